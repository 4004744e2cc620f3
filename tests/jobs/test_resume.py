"""Exactly once: whatever stops a run, the next goes on, and the files are those of one undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples
from told import Told

from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import LayerRule
from streamstats.config import ClusterConfig, JobConfig
from streamstats.coverage import in_slice
from streamstats.errors import DataError, MismatchError, NonFiniteError, OutputError, UsageError
from streamstats.jobs import measuring, plan
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import Follow, reduce, run
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs import saving
from streamstats.outputs.results import open_results
from streamstats.outputs.state import FORMAT
from streamstats.progress import Stage
from streamstats.storage.tensors import read_tensors, tensors_bytes

SLOW = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where `nohup` had the tests ignore it
from streamstats.jobs import measuring, plan
from streamstats.outputs import saving
saving.SAVE_SECONDS = saving.SAVING_SHARE = 0
plan.SMALLEST_TASK_BYTES = plan.TASK_BYTES = 20_000
whole = measuring.measure_part
def slowly(*arguments, **options):
    time.sleep(0.01)
    return whole(*arguments, **options)
measuring.measure_part = slowly
from streamstats.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, saving after every task, and slow enough to be killed on its way."""


def config(store: Path, output: Path | None = None, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(output or store.parent / "out"), **options).job()


def write_job(folder: Path, **options: str) -> Path:
    lines = {"source": folder / "s.zarr", "output": folder / "out"} | options
    path = folder / "job.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


def results(output: Path) -> dict[str, bytes]:
    """State and correctors: every byte."""
    found = [path for kind in ("state", "correctors") for path in (output / kind).rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def undisturbed(store: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    run(config(store, folder / "undisturbed", **options), restart=True)
    return results(folder / "undisturbed")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Killed


def kill_until_done(folder: Path, times: int, seed: int) -> None:
    """Start the run and kill it at a random moment, `times` times in a row; then let it finish."""
    store = build_store(folder / "s.zarr", {f"block{n}/conv": samples(301, 8, 16, seed=n) for n in range(4)})
    expected = undisturbed(store, folder)
    path, moments = write_job(folder), random.Random(seed)
    kills = finished = 0
    while kills < times:
        process = start("run", path)
        try:
            process.communicate(timeout=moments.uniform(0.2, 1.6))
            finished += 1
            assert results(folder / "out") == expected
            for leftover in (folder / "out").rglob("*.safetensors"):
                leftover.unlink()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    done = start("run", path)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert results(folder / "out") == expected
    assert status(folder / "out").complete


def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    kill_until_done(tmp_path, times=6, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_killed_thirty_times_in_a_row_four_times_over(tmp_path: Path, seed: int) -> None:
    kill_until_done(tmp_path, times=30, seed=seed)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_was_counted_and_the_next_run_reads_only_the_rest(
    tmp_path: Path, stop: signal.Signals
) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(600, 8, 16)})
    process = start("run", write_job(tmp_path))
    wait_for(lambda: (tmp_path / "out/state/conv.safetensors").exists())
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was counted is saved" in errors.splitlines()[-1]
    before = status(tmp_path / "out")
    assert 0 < before.layers[0].counted < 600
    assert before.layers[0].missing[-1][1] == "not counted yet"
    told = Told()
    run(config(store), progress=told)
    planned = [stage.rows for stage in told.stages]
    assert planned == [600 - before.layers[0].counted]
    assert results(tmp_path / "out") == undisturbed(store, tmp_path)


def wait_for(condition: Any, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def test_a_run_that_is_done_reads_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 8)})
    run(config(store))
    before = results(tmp_path / "out")
    monkeypatch.setattr(FileReader, "measure", lambda *_: pytest.fail("data was read"))
    run(config(store))
    assert results(tmp_path / "out") == before


def test_an_error_on_the_way_loses_nothing_that_was_counted(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(20, 8), "b": samples(20, 8)})
    (store / "b/c/9/0").write_bytes(b"")
    with pytest.raises(DataError):
        run(config(store, cluster=ClusterConfig(threads=1)))
    assert status(tmp_path / "out").layers[0].counted == 20


def test_what_was_counted_of_a_layer_that_a_job_leaves_out_for_a_while_is_kept(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(20, 8), "b": samples(20, 8)})
    run(config(store))
    before = results(tmp_path / "out")
    run(replace(config(store), layers=(LayerRule("a"),)))
    assert open_results(tmp_path / "out").layers == ["a"]
    told = Told()
    run(config(store), progress=told)
    planned = [stage.rows for stage in told.stages]
    assert planned == [0]
    assert results(tmp_path / "out") == before


# Appended


def record(store: Path, values: Array, layer: str = "conv", **options: Any) -> None:
    with Recorder(store, **options) as recorder:
        recorder.append(layer, values)


@pytest.mark.parametrize("old", [8, 10, 11, 16])
def test_appended_rows_are_counted_and_only_they_are_read(
    tmp_path: Path, old: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = samples(30, 8, 4)
    record(tmp_path / "s.zarr", values[:old], chunk_bytes=8 * 4 * 4 * 8)
    run(config(tmp_path / "s.zarr"))
    record(tmp_path / "s.zarr", values[old:], chunk_bytes=8 * 4 * 4 * 8)
    opened: list[str] = []
    monkeypatch.setattr(FileReader, "close", lambda self: (opened.extend(self.identified), close_reader(self))[1])
    outcome = run(config(tmp_path / "s.zarr"))
    assert sorted(set(opened)) == [f"c/{number}/0/0" for number in range(old // 8, 4)]
    assert outcome.statistics["conv"].covered == ((0, 30),)
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path)


close_reader = FileReader.close


def test_a_followed_store_is_counted_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamstats.jobs.run.POLL_SECONDS", 0.01)
    values = samples(40, 8)
    record(tmp_path / "s.zarr", values[:10])
    appending = threading.Thread(
        target=lambda: [record(tmp_path / "s.zarr", values[start : start + 10]) for start in (10, 20, 30)]
    )
    appending.start()
    outcome = run(config(tmp_path / "s.zarr"), follow=Follow(rows=40, idle=60))
    appending.join()
    assert outcome.statistics["conv"].covered == ((0, 40),)
    assert outcome.statistics["conv"].mean.tolist() == values.mean(axis=0, dtype=np.float64).tolist()
    assert run(config(tmp_path / "s.zarr"), follow=Follow(idle=0.05)).statistics["conv"].rows == 40


def test_the_plan_is_told_once_however_often_a_followed_store_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamstats.jobs.run.POLL_SECONDS", 0.01)
    record(tmp_path / "s.zarr", samples(10, 8))
    told, left = Told(), [5, 5, 20]

    def grow(_: object) -> None:
        if left:
            record(tmp_path / "s.zarr", samples(left.pop(0), 8))

    run(config(tmp_path / "s.zarr"), follow=Follow(rows=40), progress=told, on_written=grow)
    assert [each.what.partition(":")[0] for each in told.stages] == ["plan", "", "", ""]
    assert [each.rows for each in told.stages] == [10, 5, 5, 20]
    assert [each.unit for each in told.stages[1:]] == [f"rows of all layers in addition to {n}" for n in (10, 15, 20)]


def test_following_ends_with_a_signal_after_saving(tmp_path: Path) -> None:
    record(tmp_path / "s.zarr", samples(10, 8))
    process = start("run", write_job(tmp_path), "--follow")
    wait_for(lambda: (tmp_path / "out/manifest.json").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert status(tmp_path / "out").complete


def test_a_layer_that_appears_while_its_store_is_followed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamstats.jobs.run.POLL_SECONDS", 0.01)
    record(tmp_path / "s.zarr", samples(10, 8))
    planned: list[int] = []

    def another(_stage: Stage) -> None:
        if not planned:
            with Recorder(tmp_path / "s.zarr") as recorder:
                recorder.append("new", samples(4, 8))
        planned.append(1)

    outcome = run(config(tmp_path / "s.zarr"), follow=Follow(idle=1), progress=Told(another))
    assert {name: found.rows for name, found in outcome.statistics.items()} == {"conv": 10, "new": 4}
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path)


def test_a_restart_that_is_stopped_never_mixes_old_counts_with_new(tmp_path: Path) -> None:
    first = build_store(tmp_path / "s.zarr", {"a": samples(600, 8, 16), "b": samples(600, 8, 16)})
    run(config(first))
    build_store(tmp_path / "t.zarr", {"a": samples(600, 8, 16, seed=5), "b": samples(600, 8, 16, seed=6)})
    process = start("run", write_job(tmp_path, source=str(tmp_path / "t.zarr")), "--restart")
    wait_for(lambda: status(tmp_path / "out").layers[0].counted < 600)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    run(config(tmp_path / "t.zarr", tmp_path / "out"))
    assert results(tmp_path / "out") == undisturbed(tmp_path / "t.zarr", tmp_path)


# Forgotten


@pytest.mark.parametrize("layout", [{}, {"chunks": (7, 8, 2)}, {"chunks": (1, 8, 4), "shards": (8, 8, 4)}], ids=str)
@pytest.mark.parametrize("rows", ["0:3", "5:17", "16:20", "0:20"])
def test_forgotten_rows_leave_the_bytes_of_never_having_been_counted(
    tmp_path: Path, rows: str, layout: dict[str, Any]
) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 8, 4), "other": samples(20, 8, 4)}, **layout)
    run(config(store))
    taken = tuple(map(int, rows.split(":")))
    forget(config(store), taken, layers="conv")  # type: ignore[arg-type]
    forget(config(store, tmp_path / "never"), taken, layers="conv")  # type: ignore[arg-type]
    run(config(store, tmp_path / "never"))
    assert results(tmp_path / "out") == results(tmp_path / "never")
    assert run(config(store)).statistics["conv"].excluded == (taken,)
    assert results(tmp_path / "out") == results(tmp_path / "never")


def test_what_is_subtracted_is_read_alone_and_extrema_are_found_again_where_they_have_to_be(tmp_path: Path) -> None:
    values = samples(20, 3)
    values[[0, 1]] = [[1], [200]]
    store = build_store(tmp_path / "s.zarr", {"conv": values})
    run(config(store))
    inside = forget(config(store), (10, 12))
    assert (inside[0].rows, inside[0].others) == (2, 0)
    at_the_end = forget(config(store), (0, 2))
    assert (at_the_end[0].rows, at_the_end[0].others) == (2, 16)
    rest = np.delete(values, [0, 1, 10, 11], axis=0)
    found = open_results(tmp_path / "out").statistics("conv")
    assert found.mean.tolist() == rest.mean(axis=0, dtype=np.float64).tolist()
    assert found.maximum.tolist() == rest.max(axis=0).tolist()


def test_others_are_read_no_further_than_an_equal_extremum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.maximum(samples(200, 3) - 100, 0)
    values[::7] = 60
    store = build_store(tmp_path / "s.zarr", {"conv": values}, chunks=(10, 3))
    run(config(store))
    monkeypatch.setattr(plan, "SMALLEST_TASK_BYTES", 1)
    monkeypatch.setattr(plan, "TASK_BYTES", 1)
    forgotten = forget(config(store), (100, 120))[0]
    assert 10 <= forgotten.others <= 40
    found = open_results(tmp_path / "out").statistics("conv")
    rest = np.delete(values, range(100, 120), axis=0)
    assert (found.minimum.tolist(), found.maximum.tolist()) == (rest.min(axis=0).tolist(), rest.max(axis=0).tolist())


def test_forgotten_rows_stay_forgotten_when_everything_is_counted_again(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    forget(config(store), (3, 5))
    before = run(config(store)).statistics["conv"]
    assert run(config(store), restart=True).statistics["conv"] == before


def test_forgetting_rows_of_a_layer_leaves_what_is_saved_of_others(tmp_path: Path) -> None:
    layers = ("grows", "saved", "shrinks")
    for name in layers:
        record(tmp_path / "s.zarr", samples(6, 3), name)
    job = config(tmp_path / "s.zarr", tmp_path / "out")
    run(job)
    before = results(tmp_path / "out")
    for name in ("grows", "saved"):
        record(tmp_path / "s.zarr", samples(4, 3), name)
    later = replace(job, output=str(tmp_path / "later"))
    shutil.copytree(tmp_path / "out", tmp_path / "later")
    run(later)
    state = Path("state", "saved.safetensors")  # as an interrupted run leaves it
    shutil.copy(tmp_path / "later" / state, tmp_path / "out" / state)
    forget(job, (2, 4), layers="shrinks")
    found = open_results(tmp_path / "out")
    assert {name: found.statistics(name).rows for name in layers} == {"grows": 6, "saved": 10, "shrinks": 4}
    after = results(tmp_path / "out")
    for name in ("state/grows.safetensors", "correctors/grows.safetensors"):
        assert after[name] == before[name]
    assert all(found.corrector_path(name) is not None for name in layers)  # of which it checks the content


def test_what_was_forgotten_comes_back_from_another_output_a_copy_or_appended_rows(tmp_path: Path) -> None:
    values = samples(20, 3)
    record(tmp_path / "s.zarr", values)
    job = config(tmp_path / "s.zarr", tmp_path / "out")
    whole = run(job).statistics["conv"].mean
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    forget(job, (3, 5))
    assert run(job).statistics["conv"].rows == 18
    for output in ("another", "copy"):
        assert run(replace(job, output=str(tmp_path / output))).statistics["conv"].mean.tolist() == whole.tolist()
    record(tmp_path / "s.zarr", values[3:5])
    assert run(job).statistics["conv"].mean.tolist() == whole.tolist()


def test_rows_that_cannot_be_read_any_more_can_be_forgotten(tmp_path: Path) -> None:
    values = samples(8, 3)
    store = build_store(tmp_path / "s.zarr", {"conv": values})
    run(config(store, missing="report"))
    (store / "conv/c/1/0").unlink()
    with pytest.raises(DataError, match=r"chunk c/1/0 \(rows 2:4\) was removed since it was counted; .*count every"):
        forget(config(store), (2, 4))
    run(config(store), accept_changes=True)
    assert forget(config(store), (2, 4))[0].others == 6
    found = open_results(tmp_path / "out").statistics("conv")
    assert found.mean.tolist() == np.delete(values, [2, 3], axis=0).mean(axis=0, dtype=np.float64).tolist()


def test_nothing_is_forgotten_where_rows_that_stay_are_needed_and_cannot_be_read(tmp_path: Path) -> None:
    store, values = tmp_path / "s.zarr", samples(13, 3)
    values[0] = 200
    record(store, values[:12], chunk_bytes=5 * 3 * 4)
    run(config(store))
    before = results(tmp_path / "out")
    record(store, values[12:], chunk_bytes=5 * 3 * 4)
    (store / "conv/c/2/0").unlink()
    with pytest.raises(DataError, match=r"chunk c/2/0 \(rows 10:12\) was .*; nothing was forgotten, because"):
        forget(config(store, missing="report"), (0, 1))
    assert results(tmp_path / "out") == before


@pytest.mark.parametrize(("rows", "match"), [((0, 9), "has 8 rows"), ((8, 12), "has 8 rows")])
def test_rows_that_are_not_there_cannot_be_forgotten(tmp_path: Path, rows: tuple[int, int], match: str) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    with pytest.raises(UsageError, match=match):
        forget(config(store), rows)
    with pytest.raises(UsageError, match=r"no layer matches 'dense'; the job has conv"):
        forget(config(store), (0, 1), layers="dense")


@pytest.mark.parametrize("rows", [(0, 2), (4, 6), (7, 9), (3, None), (8, None)], ids=str)
def test_rows_that_the_job_does_not_count_cannot_be_forgotten(tmp_path: Path, rows: tuple[int, int | None]) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    run(config(store, rows="5:"))
    said = (
        f"layer conv: rows {in_slice(rows)} cannot be forgotten; it has 8 rows, and `rows` of the job is 5:; "
        "expected a range within 5:8"
    )
    with pytest.raises(UsageError, match=re.escape(said)):
        forget(config(store, rows="5:"), rows)
    assert run(config(store, rows="5:")).statistics["conv"].excluded == ()


def test_rows_without_an_end_are_forgotten_up_to_the_last_that_the_store_has(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    limited = config(store, tmp_path / "limited", rows="0:6")
    run(limited)
    assert forget(limited, (4, None))[0].excluded == ((4, 6),)
    with pytest.raises(UsageError, match=r"rows 4:8 cannot be forgotten; .* a range within 0:6"):
        forget(limited, (4, 8))
    run(config(store))
    found = forget(config(store), (6, None), (0, 1))[0]
    assert (found.rows, found.excluded) == (3, ((0, 1), (6, 8)))
    zarr.open_array(str(store), path="conv").append(samples(2, 3))
    assert run(config(store)).statistics["conv"].covered == ((1, 6), (8, 10))


def test_the_reasons_of_what_is_missing_outlive_forgetting_and_merging(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    (store / "conv/c/3/0").unlink()
    rows = {"one": "0:8", "two": "10:20"}
    for name, wanted in rows.items():
        run(config(store, tmp_path / name, rows=wanted, missing="report"))
    forget(config(store, tmp_path / "one", rows="0:8", missing="report"), (7, 8))
    for output in ("one", "merged"):
        merge([tmp_path / each for each in rows], tmp_path / "merged")
        first = status(tmp_path / output).layers[0].missing[0]
        assert first[0] == (6, 7)
        assert "chunk c/3/0 (rows 6:8) is missing" in first[1]
    assert status(tmp_path / "merged").layers[0].missing[1:] == (((8, 10), "not counted yet"),)


# Merged


def test_two_parts_of_one_store_merge_to_the_bytes_of_one_run(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a/b": samples(20, 8), "c": samples(20, 3)}, chunks=(4, 3))
    parts = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    for part, rows in zip(parts, ("0:5", "9:20", "5:9"), strict=True):
        run(config(store, part, rows=rows))
    for order in (parts, parts[::-1]):
        output = tmp_path / f"merged-{order[0].name}"
        merge(order, output)
        assert results(output) == undisturbed(store, tmp_path)
        assert status(output).complete
        assert open_results(output).statistics("a/b").covered == ((0, 20),)


def test_two_stores_merge_to_the_sums_of_all_their_rows(tmp_path: Path) -> None:
    both = [samples(20, 8, seed=1), samples(6, 8, seed=2)]
    for number, values in enumerate(both):
        store = build_store(tmp_path / f"{number}.zarr", {"conv": values})
        run(config(store, tmp_path / f"out{number}"))
    merged = merge([tmp_path / "out0", tmp_path / "out1"], tmp_path / "all")["conv"]
    assert merged.mean.tolist() == np.concatenate(both).mean(axis=0, dtype=np.float64).tolist()
    assert (merged.rows, len(merged.sources)) == (26, 2)
    merge([tmp_path / "out1", tmp_path / "out0"], tmp_path / "all2")
    assert results(tmp_path / "all") == results(tmp_path / "all2")
    with pytest.raises(UsageError, match="all holds merged results; run in the outputs that were merged"):
        run(config(tmp_path / "0.zarr", tmp_path / "all"))


def test_the_same_rows_twice_are_refused_with_their_numbers(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 8)})
    for name, rows in (("one", "0:12"), ("two", "8:20")):
        run(config(store, tmp_path / name, rows=rows))
    with pytest.raises(
        MismatchError, match=r"layer conv: rows 8:12 are counted in .*one, too, .*; expected each row once"
    ):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("values", "options", "match"),
    [
        (samples(4, 8, dtype="int8"), {}, "dtype float32 and int8"),
        (samples(4, 7), {}, "channels 8 and 7"),
        (
            samples(4, 8),
            {"statistics": ["spread"]},
            r"statistics mean \+ extrema and mean \+ extrema \+ spread; expect",
        ),
        (samples(4, 8, 2), {"layers": [{"match": "*", "channel_axis": 1}]}, "cannot be merged"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_both(
    tmp_path: Path, values: Array, options: dict[str, Any], match: str
) -> None:
    run(config(build_store(tmp_path / "a.zarr", {"conv": samples(4, 8)}), tmp_path / "a"))
    other = build_store(tmp_path / "b.zarr", {"conv": values})
    run(JobConfig.model_validate({"source": str(other), "output": str(tmp_path / "b"), **options}).job())
    if values.ndim == 3:
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
        return
    with pytest.raises(MismatchError, match=match):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_an_output_without_states_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no states"):
        merge([tmp_path], tmp_path / "all")
    with pytest.raises(UsageError, match="is one of the outputs"):
        merge([tmp_path], tmp_path)


# A source that has changed


def change(path: Path, how: str) -> None:
    if how == "was removed":
        path.unlink()
    elif how == "was rewritten":
        content = path.read_bytes()
        time.sleep(0.01)
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("how", ["was removed", "was rewritten", r"changed from \d+ to \d+ bytes"])
@pytest.mark.parametrize("zip_or_folder", ["s.zarr", "s.zip"])
def test_a_counted_chunk_that_changed_is_an_error_that_names_it_and_both_ways_out(
    tmp_path: Path, how: str, zip_or_folder: str
) -> None:
    store = build_store(tmp_path / zip_or_folder, {"conv": samples(8, 3)}, compressors=None)
    run(config(store))
    before = results(tmp_path / "out")
    if store.suffix == ".zip":
        if how != "was rewritten":
            return
        store.unlink()
        build_store(store, {"conv": np.concatenate([samples(2, 3) + 1, samples(8, 3)[2:]])}, compressors=None)
        expected = r"layer conv: chunk c/0/0 \(rows 0:2\) was rewritten since it was counted"
    else:
        change(store / "conv/c/1/0", how)
        expected = rf"layer conv: chunk c/1/0 \(rows 2:4\) {how} since it was counted"
    with pytest.raises(
        DataError, match=rf"{expected}; .*count everything again with `run --restart`, or keep .*`run --accept-ch"
    ):
        run(config(store))
    assert results(tmp_path / "out") == before
    assert run(config(store), accept_changes=True).statistics["conv"].rows == 8
    run(config(store))  # what was accepted stays accepted


@pytest.mark.parametrize("rows", [8, 7], ids=["full", "with room for more"])
def test_a_shard_that_changes_while_it_is_read_is_an_error_unless_it_has_room_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(rows, 3)}, chunks=(1, 3), shards=(8, 3))
    monkeypatch.setattr(plan, "SMALLEST_TASK_BYTES", 1)
    monkeypatch.setattr(plan, "TASK_BYTES", 1)
    times = iter(range(3))
    measure_part = measuring.measure_part

    def changing(*arguments: Any, **options: Any) -> Any:
        found = measure_part(*arguments, **options)
        if next(times, None) is not None:
            os.utime(store / "conv/c/0/0")
        return found

    monkeypatch.setattr(measuring, "measure_part", changing)
    once = config(store, cluster=ClusterConfig(threads=1))
    if rows == 8:
        with pytest.raises(DataError, match=r"chunk c/0/0 \(rows 0:8\) was rewritten since it was counted; .*count"):
            run(once)
    else:
        run(once)
        assert results(tmp_path / "out") == undisturbed(store, tmp_path)


def test_an_array_that_was_made_anew_in_another_way_is_an_error(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    run(config(store))
    group = zarr.open_group(store)
    group.create_array("conv", data=samples(8, 3), chunks=(4, 3), overwrite=True)
    with pytest.raises(DataError, match=r"chunks or codecs have changed since it was counted; .*count every"):
        run(config(store))
    run(config(store), restart=True)
    assert results(tmp_path / "out") == undisturbed(store, tmp_path)


MODELS = [f"onnx:{digit * 64}" for digit in "ab"]


@pytest.mark.parametrize(
    "known",
    [
        [{"model_fingerprint": each} for each in MODELS],
        [{"weight_fingerprints": {"fc": each}} for each in MODELS],
    ],
    ids=["model", "weight"],
)
def test_a_store_that_was_recorded_anew_from_a_model_with_other_weights_is_an_error(
    tmp_path: Path, known: list[dict[str, Any]]
) -> None:
    store = tmp_path / "s.zarr"
    for rows, fingerprints in zip((8, 9), known, strict=True):
        shutil.rmtree(store, ignore_errors=True)
        with Recorder(store, **fingerprints) as recorder:
            recorder.append("fc", samples(rows, 3, seed=rows))
        if rows == 8:
            run(config(store))
    for refused in (lambda: run(config(store)), lambda: forget(config(store), (0, 1)), lambda: verify(config(store))):
        with pytest.raises(
            MismatchError, match=r"layer fc: .*other weights .* onnx:b+… and onnx:a+…; count everything"
        ):
            refused()
    run(config(store), restart=True)
    assert results(tmp_path / "out") == undisturbed(store, tmp_path)


def test_fingerprints_of_different_kinds_prove_no_other_weights(tmp_path: Path) -> None:
    for kind in ("onnx", "torch"):
        shutil.rmtree(tmp_path / "s.zarr", ignore_errors=True)
        with Recorder(tmp_path / "s.zarr", model_fingerprint=f"{kind}:{'a' * 64}") as recorder:
            recorder.append("fc", samples(8, 3, seed=len(kind)))
        if kind == "onnx":
            run(config(tmp_path / "s.zarr"))
    with pytest.raises(DataError, match=r"layer fc: it was recorded anew since it was counted"):
        run(config(tmp_path / "s.zarr"))


def test_a_store_with_fewer_rows_than_were_counted_is_an_error(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    run(config(store))
    zarr.open_group(store)["conv"].resize((4, 3))  # type: ignore[union-attr]
    with pytest.raises(DataError, match="it has 4 rows, but rows up to 8 were counted"):
        run(config(store))


def test_another_description_of_a_layer_is_an_error_and_another_quantisation_is_applied(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3, 3, dtype="int8")})
    run(config(store))
    rule = {"match": "*", "channel_axis": 1}
    with pytest.raises(MismatchError, match="it was counted with channel axis 2, but the job now has 1"):
        run(JobConfig.model_validate({"source": str(store), "output": str(tmp_path / "out"), "layers": [rule]}).job())
    rule = {"match": "*", "quantization": {"scale": 0.5, "scale_is": "step"}}
    document = {"source": str(store), "output": str(tmp_path / "out"), "layers": [rule]}
    first, again = Told(), Told()
    run(JobConfig.model_validate(document).job(), progress=first)
    run(JobConfig.model_validate(document).job(), progress=again)
    assert [each for each in (*first.messages, *again.messages) if "changed" in each] == [
        "note: the quantisation has changed from none to step 0.5, zero point 0, so results are computed anew from the "
        "same counts: conv"
    ]
    before = results(tmp_path / "out")
    document = {"source": str(store), "output": str(tmp_path / "new"), "layers": [rule]}
    run(JobConfig.model_validate(document).job())
    assert results(tmp_path / "new") == before


def test_values_that_were_left_out_are_named_once_the_job_refuses_them(tmp_path: Path) -> None:
    values = samples(8, 3)
    values[2, 1] = np.nan
    store = build_store(tmp_path / "s.zarr", {"conv": values, "fc": samples(8, 3)})
    told = {policy: Told() for policy in ("skip", "error")}
    for policy, progress in told.items():
        run(config(store, nonfinite=policy), progress=progress)
    assert not any("nonfinite" in each for each in told["skip"].messages)
    (said,) = (each for each in told["error"].messages if "nonfinite" in each)
    assert said.endswith("count again with --restart: conv")
    with pytest.raises(NonFiniteError):
        run(config(store, nonfinite="error"), restart=True)


def test_another_range_of_rows_needs_another_output(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    run(config(store, rows="0:8"))
    assert status(tmp_path / "out").complete
    with pytest.raises(
        UsageError, match=r"`rows` is 4:12, but rows 0:4 of layer conv are counted in .*; choose another"
    ):
        run(config(store, rows="4:12"))
    assert run(config(store, rows="4:12"), restart=True).statistics["conv"].covered == ((4, 12),)
    with pytest.raises(UsageError, match="`rows` is 20:30, but no layer has more than 20 rows"):
        run(config(store, tmp_path / "other", rows="20:30"))


def test_changes_are_not_accepted_of_another_store(tmp_path: Path) -> None:
    stores = [build_store(tmp_path / f"{seed}.zarr", {"conv": samples(20, 3, seed=seed)}) for seed in (1, 2)]
    run(config(stores[0]))
    with pytest.raises(UsageError, match=r"chunk c/0/0 \(rows 0:2\) of .*2\.zarr is not what was counted; .*`run --"):
        run(config(stores[1]), accept_changes=True)
    with pytest.raises(DataError, match=r"rewritten .*; .*2\.zarr is at another place .*--restart`, or choose") as told:
        run(config(stores[1]))
    assert "--accept-changes" not in str(told.value), "it would be refused"


def test_a_run_leaves_merged_results_alone(tmp_path: Path) -> None:
    for name in "ab":
        run(config(build_store(tmp_path / f"{name}.zarr", {name: samples(20, 3)}), tmp_path / name))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    with pytest.raises(UsageError, match="all holds merged results; run in the outputs that were merged"):
        run(config(tmp_path / "a.zarr", tmp_path / "all"))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_results_are_not_merged_into_a_store_or_over_a_run(tmp_path: Path) -> None:
    for name in "ab":
        run(config(build_store(tmp_path / f"{name}.zarr", {name: samples(20, 3)}), tmp_path / name))
    outputs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match=r"is a zarr store \(it holds zarr.json\)"):
        merge(outputs, tmp_path / "a.zarr")
    run(config(tmp_path / "a.zarr", tmp_path / "c"))
    with pytest.raises(UsageError, match="holds the results of a run; choose another folder"):
        merge(outputs, tmp_path / "c")
    merge(outputs, tmp_path / "all")
    merge(outputs, tmp_path / "all")  # again, as one does when there is more


def test_status_notices_that_the_state_of_a_counted_layer_is_gone(tmp_path: Path) -> None:
    run(config(build_store(tmp_path / "s.zarr", {"a": samples(20, 3), "b": samples(20, 3)})))
    (tmp_path / "out/state/b.safetensors").unlink()
    assert not status(tmp_path / "out").complete


# Two at once


def test_a_second_run_says_who_is_in_the_output(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    with saving.held(tmp_path / "out", "s.zarr", {"conv": 20}):
        found = subprocess.run(
            [sys.executable, "-m", "streamstats", "run", str(write_job(tmp_path))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert found.returncode == 1
    assert f"is in use by process {os.getpid()} on " in found.stderr
    assert "since 20" in found.stderr
    run(config(store))


def test_the_lock_of_a_process_that_is_gone_holds_nobody_up(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(2000, 8, 16)})
    process = start("run", write_job(tmp_path))
    wait_for(lambda: (tmp_path / "out/state/conv.safetensors").exists())
    assert status(tmp_path / "out").running
    with pytest.raises(OutputError, match="is in use by process"):
        run(config(store))
    process.kill()
    process.communicate()
    assert (tmp_path / "out/run.lock").exists()
    assert not status(tmp_path / "out").running
    run(config(store))
    assert not (tmp_path / "out/run.lock").exists()


# Status


def test_status_tells_what_is_missing_why_and_what_to_do(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"a": samples(8, 3), "b": samples(8, 3)})
    (store / "b/c/1/0").unlink()
    command = [sys.executable, "-m", "streamstats"]
    run = subprocess.run(
        [*command, "run", str(write_job(tmp_path, missing="report"))], capture_output=True, text=True, check=False
    )
    assert run.returncode == 3
    assert "2 rows could not be read and are not counted; the first: layer b: chunk c/1/0" in run.stderr
    found = subprocess.run([*command, "status", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert found.returncode == 3
    lines = {line.split()[0]: line for line in found.stdout.splitlines()}
    assert lines["a"].split()[1:5] == ["8", "8", "none", "none"]
    assert lines["b"].split()[1:5] == ["6", "8", "none", "2:4"]
    assert "is missing" in lines["b"]
    assert "resume with: streamstats run" in found.stderr
    found = subprocess.run(
        [*command, "status", str(tmp_path / "out"), "--json"], capture_output=True, text=True, check=False
    )
    assert json.loads(found.stdout)["layers"]["b"]["missing"][0]["rows"] == [2, 4]


def test_a_folder_that_is_no_output_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no states; expected the output folder"):
        status(tmp_path)


# Saving


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    return now


def test_what_has_changed_is_saved_every_few_seconds_and_no_more_than_a_fiftieth_of_the_time(
    tmp_path: Path, ticking: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)})
    statistics = reduce(store)["conv"]
    writes: list[float] = []

    def slow_write(_output: Path, states: Any) -> None:
        if list(states):
            writes.append(ticking[0])
        ticking[0] += 0.5

    monkeypatch.setattr(saving, "write_states", slow_write)
    saver = saving.Saver(tmp_path, [])
    for _ in range(1000):
        ticking[0] += 0.1
        saver.changed(statistics)
    assert writes[0] == pytest.approx(saving.SAVE_SECONDS, abs=0.2)
    assert all(later - sooner >= 0.5 * saving.SAVING_SHARE for sooner, later in pairwise(writes))


# Outputs of other versions


def made_older(output: Path) -> None:
    """Take an output back to the formats of before."""
    manifest = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps(manifest | {"format": "streamstats.manifest/1"}))
    for path in (output / "state").rglob("*.safetensors"):
        tensors, metadata = read_tensors(path, FORMAT)
        path.write_bytes(tensors_bytes(tensors, metadata | {"format": "streamstats.state/2"}))


def test_an_output_of_an_older_version_is_refused_and_the_remedy_works(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    run(config(store))
    forget(config(store), (4, 7))
    before = results(tmp_path / "out")
    made_older(tmp_path / "out")
    attempts: list[Callable[[], object]] = [
        lambda: run(config(store)),
        lambda: forget(config(store), (0, 1)),
        lambda: verify(config(store)),
        lambda: status(tmp_path / "out"),
        lambda: open_results(tmp_path / "out"),
        lambda: merge([tmp_path / "out"], tmp_path / "merged"),
    ]
    for attempt in attempts:
        with pytest.raises(DataError, match=r"was written by an older version: .*`run --restart`"):
            attempt()
    run(config(store), restart=True)
    assert results(tmp_path / "out") == before, "what was forgotten stays forgotten"


def test_an_output_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    def restart() -> None:
        run(config(store), restart=True)

    store = build_store(tmp_path / "s.zarr", {"conv": samples(20, 3)})
    run(config(store))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest | {"format": "streamstats.manifest/99"}))
    for attempt in (lambda: run(config(store)), restart, lambda: open_results(tmp_path / "out")):
        with pytest.raises(DataError, match="install a newer streamstats"):
            attempt()
