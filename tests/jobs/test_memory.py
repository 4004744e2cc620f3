"""Memory is a promise: the plan says how much a run will take, and the operating system finds no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

MiB = 2**20
SAMPLE = (64, 64, 256)

# VmHWM, because ru_maxrss begins with the peak of the process that started this one
MEASURE = """
import json, re, sys
from streamstats import LayerStatistics
from streamstats.calibration.selection import LayerRule, select_layers
from streamstats.jobs import session
from streamstats.jobs.measuring import Policy
from streamstats.jobs.sizes import parse_bytes
from streamstats.jobs.opening import open_workers
from streamstats.jobs.workers import Cluster
layers = select_layers(sys.argv[1], [LayerRule("*", statistics=tuple(sys.argv[3:]))]).layers
ledgers = {layer.name: LayerStatistics.empty(layer) for layer in layers}
wanted, memory = session.missing_rows(layers, ledgers), parse_bytes(sys.argv[2])
with open_workers(Cluster(threads=4), []) as workers:
    plan = session.planned(layers, wanted, memory, workers)
    session.reduce_layers(layers, ledgers, wanted, memory, workers, Policy())
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"planned": plan.peak_bytes, "found": peak, "bytes": plan.bytes}))
"""


def write_repetitive(path: Path, rows: int, dtype: str, chunk: int, **options: Any) -> Path:
    """A layer of `rows` samples that compresses well, so that gigabytes of it fit any disk."""
    group = zarr.open_group(path, mode="w")
    array = group.create_array("layer", shape=(rows, *SAMPLE), chunks=(chunk, *SAMPLE), dtype=dtype, **options)
    height = array.shards[0] if array.shards else chunk
    block = np.tile(np.arange(256, dtype=dtype) % 7, (height, *SAMPLE[:2], 1))
    for start in range(0, rows, height):
        array[start : start + height] = block
    return path


def measure(store: Path, memory: str, *statistics: str) -> dict[str, int]:
    command = [sys.executable, "-c", MEASURE, str(store), memory, *statistics]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return dict(json.loads(done.stdout))


def masked(store: Path, chunk: int) -> Path:
    """`store` with a mask that leaves out every fourth position of its layer, in chunks of `chunk` rows."""
    group = zarr.open_group(store)
    layer = group["layer"]
    assert isinstance(layer, zarr.Array)
    layer.attrs["streamstats"] = {"mask": "mask"}
    mask = group.create_array("mask", shape=layer.shape[:-1], chunks=(chunk, *SAMPLE[:2]), dtype="int64")
    mask[...] = np.broadcast_to(np.arange(SAMPLE[1]) % 4 > 0, mask.shape)
    return store


LAYERS: dict[str, dict[str, Any]] = {
    "chunks of 16 MiB": {"dtype": "float32", "chunk": 4},
    "shards of 16 MiB with chunks of one sample": {"dtype": "int8", "chunk": 1, "shards": (16, *SAMPLE)},
}


@pytest.mark.parametrize("memory", ["400MiB", "2GiB"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_run_takes_no_more_memory_than_planned(tmp_path: Path, kind: str, memory: str) -> None:
    options = dict(LAYERS[kind])
    rows = 600 * MiB // (int(np.prod(SAMPLE)) * np.dtype(options["dtype"]).itemsize)
    taken = measure(write_repetitive(tmp_path / "s.zarr", rows, **options), memory)
    assert taken["bytes"] >= 590 * MiB
    assert taken["found"] <= taken["planned"] <= (400 if memory == "400MiB" else 2048) * MiB


def test_a_mask_takes_no_more_memory_than_planned(tmp_path: Path) -> None:
    taken = measure(masked(write_repetitive(tmp_path / "s.zarr", 150, "float32", 4), 150), "700MiB")
    assert taken["found"] <= taken["planned"] <= 700 * MiB


def test_the_sums_of_many_short_samples_under_a_mask_take_no_more_memory_than_planned(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    layer = group.create_array("layer", shape=(32768, 2, 64), chunks=(8192, 2, 64), dtype="float64")
    layer[...] = np.ones(layer.shape)
    layer.attrs["streamstats"] = {"mask": "mask"}
    group.create_array("mask", shape=(32768, 2), chunks=(8192, 2), dtype="bool")[...] = np.tile(
        [True, False], (32768, 1)
    )
    taken = measure(tmp_path / "s.zarr", "2GiB", "spread")
    assert taken["found"] <= taken["planned"] <= 2048 * MiB


@pytest.mark.soak
def test_ten_times_the_data_takes_the_same_memory(tmp_path: Path) -> None:
    small = measure(write_repetitive(tmp_path / "small.zarr", 512, "float32", 4), "2GiB")
    large = measure(write_repetitive(tmp_path / "large.zarr", 5120, "float32", 4), "2GiB")
    assert large["bytes"] > 20e9
    assert large["found"] <= large["planned"]
    assert large["found"] <= 1.05 * small["found"]
