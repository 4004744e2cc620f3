"""Statistics that are measured in several cuts: counted zero or one time, whatever happens between the cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store
from test_workers import Killer, config, results

from streamstats.calibration.selection import LayerRule, select_layers
from streamstats.config import ClusterConfig
from streamstats.coverage import Coverage
from streamstats.errors import ChangedError, DataError
from streamstats.jobs import measuring, plan, session
from streamstats.jobs.forget import forget
from streamstats.jobs.joining import join_cuts
from streamstats.jobs.merge import merge
from streamstats.jobs.plan import Plan, Task, make_plan
from streamstats.jobs.run import reduce, run
from streamstats.jobs.verify import verify
from streamstats.outputs.results import open_results
from streamstats.progress import Quiet
from streamstats.statistics import gram_pieces
from streamstats.statistics.gram import Gram

LAYERS = [{"match": "*", "statistics": ["gram"]}]
RULES = [LayerRule("*", statistics=["gram"])]


@pytest.fixture
def values() -> Array:
    random = np.random.default_rng(0)
    return (random.standard_normal((64, 3, 20)) * 40).astype("f2")


@pytest.fixture
def store(tmp_path: Path, values: Array) -> Path:
    layers = {"wide": values, "codes": np.rint(values[..., :3]).clip(-128, 127).astype("i1")}
    return build_store(tmp_path / "s.zarr", layers)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer `wide` is cut into pairs of four blocks, in tasks of a few rows."""
    monkeypatch.setattr(gram_pieces, "BLOCK", 6)
    monkeypatch.setattr(plan, "CUT_SHARE", 1)


def planned(store: Path, **limits: Any) -> Plan:
    layers = select_layers(str(store), RULES).layers
    return make_plan(layers, {each.name: Coverage.first(each.rows) for each in layers}, **limits)


def test_each_cut_is_a_task_of_its_own(store: Path) -> None:
    found = planned(store, memory=2**31, threads=2)
    cuts = [task for task in found.tasks if task.cuts > 1]
    (count,) = {task.cuts for task in cuts}
    assert count == 10
    for start in range(0, len(cuts), count):
        same = cuts[start : start + count]
        assert [task.cut for task in same] == [*range(count)]
        assert len({task.parts for task in same}) == 1
    assert sum(task.rows for task in found.tasks if task.cut == 0) == found.rows == 128
    assert sum(task.bytes for task in found.tasks) == found.bytes
    assert len(cuts) > count
    assert found.operations > 64 * 3 * 20**2 / 2


def test_what_travels_is_a_small_share_of_what_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    array = zarr.open_group(tmp_path / "s.zarr", mode="w").create_array(
        "layer", shape=(2**20, 4096), dtype="f2", chunks=(256, 4096)
    )
    found = planned(tmp_path / "s.zarr", memory=2**31, threads=2)
    assert found.threads == 2
    assert found.peak_bytes < 2**31
    layer = select_layers(str(tmp_path / "s.zarr"), RULES).layers[0]
    returned = len(found.tasks) * Gram.cut_bytes(layer.space)
    assert returned < found.bytes / 15
    assert array.nbytes == found.bytes / found.tasks[0].cuts


def test_cuts_give_the_statistic_of_the_whole(store: Path, values: Array) -> None:
    found = reduce(store, statistics=["gram"], threads=2)
    assert found["wide"].gram == Gram.measure(values, -1)


class Rows(Quiet):
    """Keeps the numbers of rows that are reported."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def advance(self, rows: int, size: int = 0) -> None:  # noqa: ARG002 - bytes are those of each task
        self.found.append(rows)


def test_rows_are_reported_when_all_their_cuts_have_ended(store: Path) -> None:
    rows = Rows()
    reduce(store, statistics=["gram"], threads=1, progress=rows)
    cut = [number for number in rows.found if number != 64]  # the codes have no cuts
    assert sum(cut) == sum(cut[9::10]) == 64
    assert min(cut[9::10]) > 0


class StoppedError(Exception):
    """Ends a run."""


def stopping_after(tasks: int) -> Callable[..., Iterator[Any]]:
    def reduced(*arguments: Any) -> Iterator[Any]:
        for number, each in enumerate(reduce_tasks(*arguments)):
            if number == tasks:
                raise StoppedError
            yield each

    reduce_tasks = session.reduce_tasks
    return reduced


@pytest.mark.parametrize("tasks", [3, 9, 10, 17])
def test_an_interrupted_run_counts_no_row_of_which_a_cut_is_missing(
    tasks: int, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config(store, tmp_path / "out", layers=LAYERS)
    with monkeypatch.context() as patch:
        patch.setattr(session, "reduce_tasks", stopping_after(tasks))
        with pytest.raises(StoppedError):
            run(job)
    run(job)
    run(config(store, tmp_path / "undisturbed", layers=LAYERS))
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


@pytest.mark.parametrize("order", [1, -1])
def test_rows_are_finished_with_the_last_of_their_cuts(order: int, store: Path) -> None:
    layers = {each.name: each for each in select_layers(str(store), RULES).layers}
    tasks = [task for task in planned(store, memory=2**31, threads=1).tasks if task.cuts > 1][:10]
    measured = ((task, measuring.measure_task(task, layers, measuring.STRICT)[0]) for task in tasks[::order])
    finished = list(join_cuts(measured, layers))
    assert [each.rows for each in finished] == [0] * 9 + [tasks[0].rows]
    assert [len(each.results) for each in finished] == [0] * 9 + [1]
    assert sum(each.bytes for each in finished) == sum(task.bytes for task in tasks)


def test_rows_are_appended_forgotten_verified_and_merged(store: Path, values: Array, tmp_path: Path) -> None:
    job = config(store, tmp_path / "out", layers=LAYERS)
    first = replace(job, rows=(0, 20))
    run(first)
    run(job)
    assert forget(job, (8, 12))
    counted = np.concatenate([values[:8], values[12:]])
    assert open_results(tmp_path / "out").statistics("wide").gram == Gram.measure(counted, -1)
    assert verify(job) == []
    other = build_store(tmp_path / "t.zarr", {"wide": values + 1, "codes": np.ones((5, 3, 3), "i1")})
    run(config(other, tmp_path / "other", layers=LAYERS))
    merge([tmp_path / "out", tmp_path / "other"], tmp_path / "both")
    both = np.concatenate([counted, values + np.float16(1)])
    assert open_results(tmp_path / "both").statistics("wide").gram == Gram.measure(both, -1)


def test_a_lost_chunk_costs_only_its_own_rows(store: Path, values: Array, tmp_path: Path) -> None:
    next((store / "wide").rglob("c/5/*/*")).unlink()
    outcome = run(config(store, tmp_path / "out", layers=LAYERS, missing="report"))
    assert {each.rows for each in outcome.unreadable} == {(10, 12)}
    counted = np.concatenate([values[:10], values[12:]])
    assert open_results(tmp_path / "out").statistics("wide").gram == Gram.measure(counted, -1)
    with pytest.raises(DataError, match="c/5/0/0"):
        run(config(store, tmp_path / "strict", layers=LAYERS))


def test_a_file_that_changes_from_one_cut_to_the_next_ends_the_run(store: Path) -> None:
    layers = {each.name: each for each in select_layers(str(store), RULES).layers}
    tasks = [task for task in planned(store, memory=2**31, threads=1).tasks if task.cuts > 1][:10]

    def measured() -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            if task.cut == 4:
                zarr.open_group(store, mode="a")["wide"][0:2] = 7
            yield task, measuring.measure_task(task, layers, measuring.STRICT)[0]

    with pytest.raises(
        ChangedError, match=r"layer wide, rows 0:\d+: its files were written while they were being read"
    ):
        list(join_cuts(measured(), layers))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_workers_that_are_killed_leave_the_same_bytes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are other processes, so the layer is really wide."""
    monkeypatch.undo()
    random = np.random.default_rng(seed)
    values = random.integers(-128, 128, (80_000, 2400), np.int8)
    store = build_store(tmp_path / "s.zarr", {"wide": values}, chunks=(1000, 2400))
    two = ClusterConfig(workers=2, threads=1, worker_timeout=60)
    with Killer(seed) as killer:
        run(config(store, tmp_path / "out", layers=LAYERS, cluster=two), progress=killer)
    run(config(store, tmp_path / "undisturbed", layers=LAYERS))
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")
    assert killer.killed
    assert math.isclose(
        float(open_results(tmp_path / "out").statistics("wide").gram.matrix()[0, 0, 0]),
        float((values[:, 0].astype("f8") ** 2).sum()),
    )
