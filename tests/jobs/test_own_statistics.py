"""A statistic is one file and one line in `KINDS`: two that the package does not know go through everything."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import blocks, kernel_of, places, space_for
from own_statistics import OWN, GreatestProducts
from stores import Array, build_store, samples
from told import Told

from streamstats.calibration.recorder import Recorder
from streamstats.cli import main
from streamstats.config import ClusterConfig, JobConfig
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify
from streamstats.outputs.results import open_results
from streamstats.statistics.kinds import KINDS, optional
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import StatisticsAccumulator

MiB = 2**20
COMMAND = """
import sys
import own_statistics
own_statistics.register()
from streamstats.cli import main
sys.exit(main(sys.argv[1:]))
"""
SLOWLY = """
import sys, time
import own_statistics
own_statistics.register()
from streamstats.jobs import measuring, plan
from streamstats.outputs import saving
saving.SAVE_SECONDS = saving.SAVING_SHARE = 0
plan.SMALLEST_TASK_BYTES = plan.TASK_BYTES = 4000
whole = measuring.measure_part
def slowly(*arguments, **options):
    time.sleep(0.02)
    return whole(*arguments, **options)
measuring.measure_part = slowly
from streamstats.cli import main
sys.exit(main(sys.argv[1:]))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in OWN:
        monkeypatch.setitem(KINDS, kind.name, kind)


def values(rows: int = 60, seed: int = 0) -> Array:
    """Activations after ReLU: half of them zero."""
    return np.maximum(samples(rows, 4, 3, 6, seed=seed), 0)


def config(store: Path, output: Path | None = None, **options: Any) -> Job:
    layers = [{"match": "*", "geometry": {"kernel": [3, 3], "pads": [1, 1, 1, 1]}}]
    settings = {"statistics": ["zeros", "products", "spread"], "layers": layers} | options
    document = {"source": str(store), "output": str(output or store.parent / "out"), **settings}
    return JobConfig.model_validate(document).job()


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "state").rglob("*.safetensors")}


def check(output: Path, counted: Array) -> None:
    """What is in `output` is what numpy says of the rows `counted`."""
    found = open_results(output).statistics("conv").statistics
    flat = counted.reshape(-1, counted.shape[-1]).astype(np.float64)
    assert found["zeros"].zeros.tolist() == (flat == 0).sum(axis=0).tolist()
    assert found["products"].products.tolist() == (flat[:, :, None] * flat[:, None, :]).max(axis=0).tolist()


@given(st.data())
def test_they_are_the_same_however_blocks_are_cut_and_beside_all_others(data: st.DataObject) -> None:
    block, axis = data.draw(blocks([np.dtype("i1"), np.dtype("f4")], finite=True))
    kinds, space = tuple({**KINDS, **{kind.name: kind for kind in OWN}}.values()), space_for(block, axis)
    accumulator = StatisticsAccumulator(kinds, space)
    for where in data.draw(places(block.shape, axis, [name for kind in kinds for name in kind.uncut(space)])):
        accumulator.add(np.require(block[where], block.dtype.newbyteorder("="), ["C", "A"]), where)
    found = accumulator.found()
    assert all(found[kind.name] == kind.measure(block, axis, kernel_of(block.shape)) for kind in kinds)


@pytest.mark.parametrize(
    "layout", [{"chunks": (7, 4, 3, 2)}, {"chunks": (1, 4, 3, 6), "shards": (8, 4, 3, 6)}], ids=str
)
def test_a_run_resumes_appends_and_leaves_the_bytes_of_one_run(tmp_path: Path, layout: dict[str, Any]) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": values()}, **layout)
    run(config(store, rows="0:31", cluster=ClusterConfig(threads=2)))
    check(tmp_path / "out", values()[:31])
    told = Told()
    run(config(store), progress=told)
    assert told.rows == 29
    run(config(store, tmp_path / "whole", cluster=ClusterConfig(threads=1)))
    check(tmp_path / "out", values())
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_rows_that_are_appended_are_counted_on_top(tmp_path: Path) -> None:
    for part in (values()[:25], values()[25:]):
        with Recorder(tmp_path / "s.zarr") as recorder:
            recorder.append("conv", part)
        told = Told()
        run(config(tmp_path / "s.zarr"), progress=told)
        assert told.rows == len(part)
    check(tmp_path / "out", values())


def test_killed_at_random_moments_it_resumes_and_leaves_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": values(600)}, chunks=(2, 4, 3, 6))
    job = tmp_path / "job.yaml"
    job.write_text(f"source: {store}\noutput: {tmp_path / 'out'}\nstatistics: [products, spread, zeros]\n")
    command = [sys.executable, "-c", SLOWLY, "run", str(job)]
    rng = random.Random(1)
    for _ in range(3):
        before = newest(tmp_path / "out")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        while newest(tmp_path / "out") == before:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
    assert not (tmp_path / "out/manifest.json").exists()
    run(config(store))
    run(config(store, tmp_path / "undisturbed"))
    assert written(tmp_path / "out") == written(tmp_path / "undisturbed")
    check(tmp_path / "out", values(600))


def newest(output: Path) -> int:
    state = output / "state/conv.safetensors"
    return state.stat().st_mtime_ns if state.exists() else 0


@pytest.mark.parametrize("own", [["zeros"], ["products"], ["zeros", "products", "taps"]], ids=str)
@pytest.mark.parametrize("rows", [(0, 9), (20, 41), (0, 60)], ids=str)
def test_forgetting_leaves_the_bytes_of_never_having_counted(tmp_path: Path, own: list[str], rows: Any) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": values()}, chunks=(7, 4, 3, 6))
    run(config(store, statistics=own))
    told = Told()
    (forgotten,) = forget(config(store, statistics=own), rows, progress=told)
    never = config(store, tmp_path / "never", statistics=own)
    forget(never, rows)
    run(never)
    assert written(tmp_path / "out") == written(tmp_path / "never")
    others = 60 - (rows[1] - rows[0])
    assert forgotten.others == others if "products" in own else forgotten.others <= others


def test_merged_parts_have_the_bytes_of_one_run(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": values()}, chunks=(7, 4, 3, 6))
    for name, rows in (("a", "0:23"), ("b", "23:60")):
        run(config(store, tmp_path / name, rows=rows))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    run(config(store))
    assert written(tmp_path / "both") == written(tmp_path / "out")


def swap(store: Path, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Swap two values of an uncompressed array of one chunk, behind the back of everything that looks at files."""
    chunk = next(path for path in (store / "conv/c").rglob("*") if path.is_file())
    before = chunk.stat()
    array = np.frombuffer(chunk.read_bytes(), np.float32).reshape(values().shape).copy()
    assert array[left] != array[right]
    array[left], array[right] = array[right], array[left]
    chunk.write_bytes(array.tobytes())
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("seen_by", "left", "right"),
    [
        ("spread", (0, 1, 1, 2), (9, 1, 1, 2)),  # another sample: sums and extrema stay
        ("taps", (5, 0, 0, 2), (5, 3, 2, 2)),  # another position of the same sample
        ("products", (5, 0, 0, 2), (5, 3, 2, 2)),
    ],
)
def test_verify_finds_a_change_that_only_one_statistic_can_see(
    tmp_path: Path, seen_by: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    counted = values()
    counted[left], counted[right], counted[5, 0, 0, 3] = 200, 150, 1000
    store = build_store(tmp_path / "s.zarr", {"conv": counted}, chunks=(60, 4, 3, 6), compressors=None)
    blind, seeing = config(store, tmp_path / "blind", statistics=["zeros"]), config(store, statistics=[seen_by])
    for job in (blind, seeing):
        run(job)
        assert verify(job) == []
    swap(store, left, right)
    assert verify(blind) == []
    (problem,) = verify(seeing)
    assert problem.problem == f"statistics differ from those that were counted: {seen_by}"


def test_the_command_line_counts_them_in_processes_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": values()}, chunks=(7, 4, 3, 6))
    job = tmp_path / "job.yaml"
    job.write_text(
        f"source: {store}\noutput: {tmp_path / 'out'}\nstatistics: [zeros, products]\n"
        "cluster: {workers: 2, threads: 1}\n"
    )
    done = command_line("run", str(job), "--json")
    document = json.loads(done.stdout)["layers"]["conv"]
    assert document["statistics"] == ["mean", "extrema", "products", "zeros"]
    assert document["all_zeros"] == int((values() == 0).sum())
    check(tmp_path / "out", values())
    assert main(["inspect", str(tmp_path / "out"), "conv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["per_channel"]["zeros"] == (values() == 0).sum(axis=(0, 1, 2)).tolist()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "all zeros" in capsys.readouterr().out
    assert main(["verify", str(job)]) == 0
    assert main(["status", str(tmp_path / "out")]) == 0


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=ENVIRONMENT)


def test_what_can_be_asked_for_is_listed_with_a_sentence_about_each() -> None:
    assert optional()["zeros"].startswith("How many values of each channel are zero")
    assert optional().keys() >= {"zeros", "products", "spread"}


MEASURE = """
import json, re, sys
import own_statistics
own_statistics.register()
from streamstats import LayerRule, LayerStatistics
from streamstats.calibration.selection import select_layers
from streamstats.jobs import session
from streamstats.jobs.measuring import Policy
from streamstats.jobs.opening import open_workers
from streamstats.jobs.workers import Cluster
layers = select_layers(sys.argv[1], [LayerRule("*", statistics=("zeros", "products"))]).layers
ledgers = {layer.name: LayerStatistics.empty(layer) for layer in layers}
wanted, memory = session.missing_rows(layers, ledgers), 2**31
with open_workers(Cluster(threads=2), []) as workers:
    plan = session.planned(layers, wanted, memory, workers)
    session.reduce_layers(layers, ledgers, wanted, memory, workers, Policy())
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"planned": plan.peak_bytes, "found": peak}))
"""


def test_a_large_state_is_in_the_memory_that_is_promised(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"wide": samples(80, 2000)}, chunks=(20, 500))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(store)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=ENVIRONMENT,
    )
    taken = json.loads(done.stdout)
    state = GreatestProducts.state_bytes(Space(np.dtype("f4"), (2000,), 0))
    assert state == 2000 * 2000 * 8
    assert 6 * state < taken["found"] <= taken["planned"] <= 2048 * MiB
