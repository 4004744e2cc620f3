"""Copies of a store: a run goes on with one, and merging never counts one beside the original."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples
from told import Told

from streamstats.calibration.recorder import Recorder
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.meter import Meter
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify
from streamstats.outputs.copies import counted_twice
from streamstats.outputs.results import open_results, states_in


def config(store: Path | str, output: Path, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(output), **options).job()


def recorded(store: Path, **layers: Array) -> Path:
    with Recorder(store, chunk_bytes=4 * 3 * 4) as recorder:
        for name, values in layers.items():
            recorder.append(name, values)
    return store


def copy(store: Path, place: Path) -> Path:
    """As `cp -r` does: the same bytes with later times."""
    shutil.copytree(store, place)
    for path in place.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    return place


def replaced(store: Path) -> None:
    """The store, replaced by a copy of it."""
    copy(store, store.with_suffix(".copy"))
    shutil.rmtree(store)
    store.with_suffix(".copy").rename(store)


# Resuming


def test_a_copy_is_recognised_by_its_checksums_and_counting_goes_on(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", conv=samples(10, 3))
    run(config(store, tmp_path / "out"))
    replaced(store)
    assert verify(config(store, tmp_path / "out")) == []
    recorded(store, conv=samples(4, 3, seed=1))
    told = Told()
    found = run(config(store, tmp_path / "out"), progress=told).statistics["conv"]
    both = np.concatenate([samples(10, 3), samples(4, 3, seed=1)])
    assert found.mean.tolist() == both.mean(0, np.float64).tolist()
    assert told.stages[0].rows == 4
    assert told.messages == [
        "note: 2 chunks of conv written again since the last run: taken for copies, because sizes and checksums are "
        "the same"
    ]
    moved = run(config(copy(store, tmp_path / "t.zarr"), tmp_path / "out")).statistics["conv"]
    assert (moved.statistics, moved.covered) == (found.statistics, ((0, 14),))


@pytest.mark.parametrize("layout", [{}, {"compressors": None}, {"chunks": (2, 3), "shards": (4, 3)}], ids=str)
def test_without_checksums_a_copy_is_accepted_by_samples_of_its_bytes(tmp_path: Path, layout: dict[str, Any]) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)}, **layout)
    before = run(config(store, tmp_path / "out")).statistics["conv"]
    other = copy(store, tmp_path / "t.zarr")
    expected = r"since it was counted; .*, as in a copy of the store; .*count everything again .*`run --accept-changes`"
    with pytest.raises(DataError, match=expected):
        run(config(other, tmp_path / "out"))
    told = Told()
    found = run(config(other, tmp_path / "out"), accept_changes=True, progress=told).statistics["conv"]
    assert found.statistics == before.statistics
    assert not found.source.accepted, "so that rows can be forgotten"
    assert told.messages[0].endswith("taken for copies, because sizes and samples of their bytes are the same")
    run(config(other, tmp_path / "out"))


@pytest.mark.parametrize("place", [0, 2**18 // 3 + 7, -1])
def test_a_file_with_other_bytes_where_it_is_sampled_is_no_copy(tmp_path: Path, place: int) -> None:
    values = samples(1, 2**15, 8)
    store = build_store(tmp_path / "s.zarr", {"conv": values}, chunks=values.shape, compressors=None)
    run(config(store, tmp_path / "out"))
    values.reshape(-1)[place] += 1
    other = build_store(tmp_path / "t.zarr", {"conv": values}, chunks=values.shape, compressors=None)
    with pytest.raises(
        UsageError,
        match=r"chunk c/0/0/0 \(rows 0:1\) of .*t\.zarr is not what was counted; what was counted can only be kept",
    ):
        run(config(other, tmp_path / "out"), accept_changes=True)


def test_one_chunk_that_differs_is_no_copy_although_all_others_are(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", conv=samples(12, 3))
    run(config(store, tmp_path / "out"))
    replaced(store)
    zarr.open_array(str(store), path="conv")[4:8] = samples(4, 3, seed=3)
    with pytest.raises(DataError, match=r"chunk c/1/0 \(rows 4:8\) .* since it was counted; count everything again"):
        run(config(store, tmp_path / "out"))


# Merging


@pytest.mark.parametrize("layout", [{}, {"compressors": None}, {"chunks": (2, 3), "shards": (4, 3)}], ids=str)
def test_a_copy_is_not_merged_with_the_original(tmp_path: Path, layout: dict[str, Any]) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(8, 3)}, **layout)
    run(config(store, tmp_path / "out"))
    run(config(copy(store, tmp_path / "t.zarr"), tmp_path / "other", rows="4:8"))
    chunks = 1 if "shards" in layout else 2
    expected = (
        rf"other: layer conv: rows 4:8 are counted in .*out, too, from .* copy of it: {chunks} of {chunks} chunks"
    )
    with pytest.raises(MismatchError, match=expected):
        merge([tmp_path / "out", tmp_path / "other"], tmp_path / "all")
    run(config(store, tmp_path / "out", rows="0:4"), restart=True)
    assert merge([tmp_path / "out", tmp_path / "other"], tmp_path / "all")["conv"].rows == 8


def test_an_archive_of_a_store_is_a_copy(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", conv=samples(8, 3))
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted(store.rglob("*")):
            archive.write(path, path.relative_to(store))
    run(config(store, tmp_path / "out"))
    run(config(tmp_path / "s.zip", tmp_path / "other"))
    with pytest.raises(MismatchError, match=r"rows 0:8 are counted in .*2 of 2 chunks have the same size and content"):
        merge([tmp_path / "out", tmp_path / "other"], tmp_path / "all")


def test_a_copy_in_other_chunks_is_known_by_its_statistics(tmp_path: Path) -> None:
    for name, rows in (("a", 2), ("b", 4)):
        build_store(tmp_path / f"{name}.zarr", {"conv": samples(8, 3)}, chunks=(rows, 3))
        run(config(tmp_path / f"{name}.zarr", tmp_path / name))
    with pytest.raises(MismatchError, match=r"rows 0:8 are counted in .*: rows and statistics are the same"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_a_copy_that_has_grown_since_is_still_one(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", conv=samples(14, 3))
    run(config(copy(store, tmp_path / "t.zarr"), tmp_path / "out"))
    recorded(store, conv=samples(9, 3, seed=1))
    run(config(store, tmp_path / "other"))
    with pytest.raises(MismatchError, match=r"rows 0:14 are counted in .*3 of 3 chunks have the same size and content"):
        merge([tmp_path / "out", tmp_path / "other"], tmp_path / "all")


def test_a_copy_that_has_a_single_full_chunk_and_has_grown_since_is_still_one(tmp_path: Path) -> None:
    store = recorded(tmp_path / "s.zarr", conv=samples(6, 3))
    run(config(copy(store, tmp_path / "t.zarr"), tmp_path / "out"))
    recorded(store, conv=samples(1, 3, seed=1))
    run(config(store, tmp_path / "other"))
    for order in (("out", "other"), ("other", "out")):
        with pytest.raises(MismatchError, match=r"rows 0:6 are counted in .*1 of 1 chunks have the same size and"):
            merge([tmp_path / each for each in order], tmp_path / "all")


def test_two_stores_with_an_equal_array_are_two_while_all_chunks_have_room_for_more(tmp_path: Path) -> None:
    for seed in (1, 2):
        store = recorded(tmp_path / f"{seed}.zarr", conv=samples(3, 3, seed=seed), table=samples(1, 3))
        run(config(store, tmp_path / str(seed)))
    assert merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")["conv"].rows == 6


def test_a_copy_is_found_in_what_was_merged_before(tmp_path: Path) -> None:
    for seed in (1, 2):
        store = recorded(tmp_path / f"{seed}.zarr", conv=samples(8, 3, seed=seed))
        run(config(store, tmp_path / str(seed)))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    run(config(copy(tmp_path / "2.zarr", tmp_path / "copy.zarr"), tmp_path / "3"))
    with pytest.raises(MismatchError, match=r"3: layer conv: rows 0:8 are counted in .*both, too"):
        merge([tmp_path / "both", tmp_path / "3"], tmp_path / "all")


def test_arrays_that_are_the_same_in_two_stores_do_not_make_one_a_copy(tmp_path: Path) -> None:
    """A tensor that does not depend on the samples, and a layer that is never active."""
    same = {"table": samples(1, 3), "dead": np.zeros((8, 3), np.float32)}
    for seed in (1, 2):
        store = recorded(tmp_path / f"{seed}.zarr", **same, conv=samples(40, 3, seed=seed))
        run(config(store, tmp_path / str(seed)))
    merged = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    assert {name: found.rows for name, found in merged.items()} == {"table": 2, "dead": 16, "conv": 80}


def test_what_was_measured_without_a_store_is_compared_by_its_statistics(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        meter = Meter()
        meter.append("conv", samples(8, 3, seed=seed))
        meter.save(tmp_path / name)
    states = {name: states_in(tmp_path / name, open_results(tmp_path / name).manifest) for name in "abc"}
    assert counted_twice(states["a"], states["b"]) is not None
    assert counted_twice(states["a"], states["c"]) is None
