"""Stores that grow under writers who make an array longer before they write it: what was counted too early is counted
again, and ends as if the run had come last.

The bytes of every output are compared with those of one run over the finished store; means and extrema with exact ones.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples
from told import Told

from streamstats.calibration.recorder import Recorder
from streamstats.calibration.selection import LayerRule
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.jobs.status import status
from streamstats.jobs.verify import verify
from streamstats.outputs.results import open_results
from streamstats.outputs.state import FORMAT, OLDER, read_state
from streamstats.storage.tensors import read_tensors, tensors_bytes

ALL = ["magnitude", "squares", "histogram", "spread"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "one file a row": {"chunks": (8, 3)},
    "several files a row": {"chunks": (8, 2)},
    "shards": {"chunks": (2, 3), "shards": (8, 3)},
    "raw": {"chunks": (8, 3), "compressors": None},
}


def config(store: Path | str, output: Path, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(output), **options).job()


def results(output: Path) -> dict[str, bytes]:
    found = [path for kind in ("state", "correctors") for path in (output / kind).rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


def undisturbed(store: Path, output: Path, **options: Any) -> dict[str, bytes]:
    run(config(store, output, **options), restart=True)
    return results(output)


class Writer:
    """Writes the array `conv` as zarr's own `append` does: longer first, then row by row."""

    def __init__(self, store: Path, values: Array, **layout: Any) -> None:
        self.store, self.values = store, values
        build_store(store, {"conv": values[:0]}, **layout)

    @property
    def array(self) -> zarr.Array[Any]:
        return zarr.open_array(str(self.store), path="conv", mode="r+")

    def grow(self, rows: int) -> None:
        self.array.resize((rows, *self.values.shape[1:]))

    def write(self, start: int, stop: int) -> None:
        self.array[start:stop] = self.values[start:stop]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_that_was_counted_between_growing_and_writing_is_counted_again(tmp_path: Path, layout: str) -> None:
    values = samples(20, 3) - np.float32(60)
    writer = Writer(tmp_path / "s.zarr", values, **LAYOUTS[layout])
    job = config(tmp_path / "s.zarr", tmp_path / "out", statistics=ALL)
    writer.grow(10)
    writer.write(0, 10)
    run(job)
    writer.grow(14)
    assert run(job).statistics["conv"].rows == 14, "with four rows of padding"
    writer.write(10, 14)
    writer.grow(20)
    writer.write(14, 20)
    found = run(job).statistics["conv"]
    assert found.mean.tolist() == [float(sum(map(Fraction, column.tolist())) / 20) for column in values.T]
    assert (found.minimum.tolist(), found.maximum.tolist()) == (values.min(0).tolist(), values.max(0).tolist())
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path / "once", statistics=ALL)
    assert verify(job) == []


@pytest.mark.parametrize("missing", ["error", "fill"])
def test_a_chunk_that_had_room_is_still_to_be_written_when_the_array_has_grown_beyond_it(
    tmp_path: Path, missing: str
) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(30, 3), chunks=(8, 3))
    job = config(tmp_path / "s.zarr", tmp_path / "out", missing=missing, statistics=ALL)
    writer.grow(11)
    writer.write(0, 11)
    run(job)
    writer.grow(30)
    for _ in range(2):
        if missing == "error":
            with pytest.raises(DataError, match=r"chunk c/2/0 \(rows 16:24\) is missing"):
                run(job)
        else:
            run(job)
    writer.write(11, 26)
    run(replace(job, missing="fill"))
    writer.write(26, 30)
    assert run(job).statistics["conv"].mean.tolist() == writer.values.mean(0, np.float64).tolist()
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path / "once", statistics=ALL)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 40))])
def test_however_a_writer_appends_behind_a_chunk_with_room_the_end_is_that_of_one_run(
    tmp_path: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    layout = LAYOUTS[list(LAYOUTS)[seed % len(LAYOUTS)]]
    writer = Writer(tmp_path / "s.zarr", samples(40, 3, seed=seed), **layout)
    options: dict[str, Any] = {"statistics": ["histogram"], "missing": "fill"}
    job = config(tmp_path / "s.zarr", tmp_path / "out", **options)
    rows = 0
    while rows < 40:
        first = rows // 8 * 8
        room = int(random.integers(max(rows, first + 1), first + 8))  # the last chunk has room for more
        beyond = int(random.integers(room, 41))
        for grown, written in ((room, random.integers(first, room + 1)), (beyond, first), (beyond, beyond)):
            writer.grow(grown)
            writer.write(first, int(written))
            run(job)
        rows = beyond
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path / "once", statistics=["histogram"])


def test_a_full_chunk_that_was_counted_before_it_was_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    writer.grow(20)
    writer.write(0, 8)
    job = config(tmp_path / "s.zarr", tmp_path / "out", missing="fill")
    run(job)
    before = results(tmp_path / "out")
    writer.write(8, 20)
    expected = (
        r"layer conv: chunk c/1/0 \(rows 8:16\) was written since it was counted; if rows are being appended, their "
        r"writer made the array longer before .*; count everything again with `run --restart`, or keep what "
    )
    with pytest.raises(DataError, match=expected):
        run(job)
    assert results(tmp_path / "out") == before
    assert run(job, restart=True).statistics["conv"].mean.tolist() == writer.values.mean(0, np.float64).tolist()


def test_only_the_rows_of_the_last_chunk_are_read_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(40, 3), chunks=(8, 3))
    planned: list[int] = []
    for rows in (12, 14, 14, 30):
        writer.grow(rows)
        if not planned or rows != 14 or planned[-1] != 6:
            writer.write(0 if not planned else 8, rows)
        told = Told()
        run(config(tmp_path / "s.zarr", tmp_path / "out"), progress=told)
        planned.append(told.stages[0].rows)
    assert planned == [12, 6, 0, 22]


def test_a_recorder_appends_and_nothing_is_read_again(tmp_path: Path) -> None:
    values, planned = samples(14, 3), []
    for start, stop in ((0, 10), (10, 14)):
        with Recorder(tmp_path / "s.zarr", chunk_bytes=8 * 3 * 4) as recorder:
            recorder.append("conv", values[start:stop])
        told = Told()
        run(config(tmp_path / "s.zarr", tmp_path / "out"), progress=told)
        planned.append(told.stages[0].rows)
    assert planned == [10, 4]
    assert read_state(tmp_path / "out/state/conv.safetensors").settled is None


@pytest.mark.parametrize("heights", [(8, 8), (8, 12), (4, 8)])
def test_a_mask_that_is_written_after_it_was_made_longer_is_counted_again(
    tmp_path: Path, heights: tuple[int, int]
) -> None:
    values, keep = samples(34, 4, 3), np.random.default_rng(0).random((34, 4)) < 0.7
    store = tmp_path / "s.zarr"
    group = zarr.open_group(store)
    for name, array, height in (("conv", values, heights[0]), ("keep", keep, heights[1])):
        group.create_array(name, shape=(0, *array.shape[1:]), dtype=array.dtype, chunks=(height, *array.shape[1:]))
    rules = [{"match": "conv", "mask": "keep"}]
    document = {"source": str(store), "layers": rules}
    job = JobConfig.model_validate({**document, "output": str(tmp_path / "out")}).job()
    conv, mask = group["conv"], group["keep"]
    start = 0
    for stop in (9, 11, 17, 27, 30, 34):
        for array in (conv, mask):
            array.resize((stop, *array.shape[1:]))  # type: ignore[union-attr]
        conv[start:stop] = values[start:stop]  # type: ignore[index]
        if stop // 4 * 4 == start // 4 * 4:
            run(job)  # before the mask is written, in the chunk that has room
        mask[start:stop] = keep[start:stop]  # type: ignore[index]
        run(job)
        start = stop
    once = JobConfig.model_validate({**document, "output": str(tmp_path / "once")}).job()
    found = run(once).statistics["conv"]
    assert found.mean.tolist() == [
        float(sum(map(Fraction, values[keep][:, c].tolist())) / keep.sum()) for c in range(3)
    ]
    assert results(tmp_path / "out") == results(tmp_path / "once")


@pytest.mark.parametrize("rows", [(0, 3), (9, 11), (6, 12), (13, 14)])
def test_rows_of_the_last_chunk_are_forgotten_as_if_they_had_never_been_counted(
    tmp_path: Path, rows: tuple[int, int]
) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    writer.grow(14)
    writer.write(0, 14)
    job, never = (config(tmp_path / "s.zarr", tmp_path / name, statistics=ALL) for name in ("out", "never"))
    run(job)
    forgotten = forget(job, rows)[0]
    assert forgotten.rows == rows[1] - rows[0]
    forget(never, rows)
    run(never)
    assert results(tmp_path / "out") == results(tmp_path / "never")
    writer.grow(20)
    writer.write(14, 20)
    for each in (job, never):
        run(each)
    assert results(tmp_path / "out") == results(tmp_path / "never")


def test_parts_of_a_store_whose_last_chunk_has_room_merge_to_the_bytes_of_one_run(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    writer.grow(13)
    writer.write(0, 13)
    parts = [tmp_path / rows for rows in ("0:5", "9:13", "5:9")]
    for part in parts:
        run(config(tmp_path / "s.zarr", part, rows=part.name))
    for number, order in enumerate((parts, parts[::-1])):
        merge(order, tmp_path / f"merged{number}")
        assert results(tmp_path / f"merged{number}") == undisturbed(tmp_path / "s.zarr", tmp_path / "once")


def test_rows_without_an_end_are_those_that_a_store_gains_and_never_those_before(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    writer.grow(13)
    writer.write(0, 13)
    job = config(tmp_path / "s.zarr", tmp_path / "tonight", rows="9:")
    run(job)
    assert run(job).complete
    assert status(tmp_path / "tonight").complete
    writer.grow(20)
    writer.write(13, 20)
    run(job)
    whole = undisturbed(tmp_path / "s.zarr", tmp_path / "once", rows="9:20")
    assert results(tmp_path / "tonight") == whole
    with pytest.raises(UsageError, match="`rows` is 10:, but rows 9:10 of layer conv are counted"):
        run(replace(job, rows=(10, None)))
    run(config(tmp_path / "s.zarr", tmp_path / "before", rows="0:9"))
    merge([tmp_path / "before", tmp_path / "tonight"], tmp_path / "merged")
    assert results(tmp_path / "merged") == undisturbed(tmp_path / "s.zarr", tmp_path / "once")
    assert json.loads((tmp_path / "tonight" / "manifest.json").read_text())["rows"] == [9, None]


def test_rows_are_integers_of_a_range_that_holds_one() -> None:
    for rows in ((3, 2), (2, 2), (-1, 2), (True, None), (0, True), (0.0, 2), (1,), "0:2"):
        with pytest.raises(UsageError, match=r"expected \(start, stop\), integers with 0 ≤ start < stop, or"):
            Job("in.zarr", "out", rows=rows)  # type: ignore[arg-type]
    found = Job("in.zarr", "out", rows=(np.int64(2), np.uint8(5))).rows  # type: ignore[arg-type]
    assert repr(found) == "(2, 5)"


def test_parts_of_a_store_between_which_a_chunk_changed_are_not_merged(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    parts = [tmp_path / rows for rows in ("0:5", "9:13", "5:9", "13:20")]
    for part in parts:
        if part.name in ("0:5", "5:9"):
            rows = 13 if part.name == "0:5" else 20
            writer.grow(rows)
            writer.write(0 if rows == 13 else 8, rows)
        run(config(tmp_path / "s.zarr", part, rows=part.name))
    with pytest.raises(
        MismatchError, match=r"5:9: layer conv: 1 chunk of the store changed between the runs .*; run ag"
    ):
        merge(parts, tmp_path / "merged")
    run(config(tmp_path / "s.zarr", parts[1], rows="9:13"))
    merge(parts, tmp_path / "merged")
    assert results(tmp_path / "merged") == undisturbed(tmp_path / "s.zarr", tmp_path / "once")


def test_outputs_of_several_stores_have_no_tail_in_any_order(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        build_store(tmp_path / f"{name}.zarr", {"conv": samples(13, 3, seed=seed)}, chunks=(8, 3))
    parts = {"a0": ("a", "0:9"), "a1": ("a", "9:13"), "b": ("b", "0:13")}
    for part, (store, rows) in parts.items():
        run(config(tmp_path / f"{store}.zarr", tmp_path / part, rows=rows))
    for number, order in enumerate((("a0", "a1", "b"), ("a0", "b", "a1"), ("b", "a1", "a0"))):
        merge([tmp_path / part for part in order], tmp_path / f"merged{number}")
        assert results(tmp_path / f"merged{number}") == results(tmp_path / "merged0")
    assert read_state(tmp_path / "merged0/state/conv.safetensors").settled is None


def made_older(output: Path) -> None:
    """Take the state of `conv` back to the format of before."""
    path = output / "state/conv.safetensors"
    tensors, metadata = read_tensors(path, FORMAT)
    old = {name: array for name, array in tensors.items() if not name.startswith("settled.") and "tail" not in name}
    for name in ("source.0.files", "source.0.mask_files"):
        old[name] = old[name][:, :2]
    sources = json.dumps([source[:3] for source in json.loads(metadata["sources"])])
    path.write_bytes(tensors_bytes(old, metadata | {"format": OLDER, "sources": sources}))
    (output / "manifest.json").unlink()


def test_an_output_of_the_format_before_is_resumed_and_a_change_of_its_last_chunk_is_an_error(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    job = config(tmp_path / "s.zarr", tmp_path / "out")
    writer.grow(13)
    writer.write(0, 13)
    run(job)
    made_older(tmp_path / "out")
    assert run(job).statistics["conv"].rows == 13
    writer.grow(20)
    writer.write(13, 20)
    with pytest.raises(DataError, match=r"chunk c/1/0 \(rows 8:16\) changed .* since it was counted; .*; count every"):
        run(job)
    found = run(job, restart=True).statistics["conv"]
    assert found.mean.tolist() == writer.values.mean(0, np.float64).tolist()


def test_where_files_cannot_be_told_apart_the_last_chunk_is_counted_anew_in_every_run(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(14, 3), chunks=(8, 3))
    job = config((tmp_path / "s.zarr").as_uri(), tmp_path / "out")
    writer.grow(14)
    writer.write(0, 10)
    run(job)
    writer.write(10, 14)  # the shape and, so far as the URL tells, the chunk are the same
    told = Told()
    found = run(job, progress=told).statistics["conv"]
    assert told.stages[0].rows == 6
    assert found.mean.tolist() == writer.values.mean(0, np.float64).tolist()


def test_verify_tells_padding_that_was_counted_and_takes_appending_for_no_problem(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    job = config(tmp_path / "s.zarr", tmp_path / "out")
    writer.grow(12)
    writer.write(0, 10)
    run(job)
    writer.write(10, 12)
    problems = [each.problem for each in verify(job)]
    assert len(problems) == 2
    assert any(
        "c/1/0" in each and each.endswith("since it was counted: the next run counts it again") for each in problems
    )
    assert any("statistics differ from those that were counted" in each for each in problems)
    run(job)
    writer.grow(14)
    writer.write(12, 14)
    assert verify(job) == []


def test_a_store_that_was_cut_back_within_its_last_chunk_is_counted_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s.zarr", samples(20, 3), chunks=(8, 3))
    job = config(tmp_path / "s.zarr", tmp_path / "out")
    writer.grow(14)
    writer.write(0, 14)
    run(job)
    writer.grow(10)  # an append that failed is taken back
    writer.write(8, 10)
    assert run(job).statistics["conv"].covered == ((0, 10),)
    assert results(tmp_path / "out") == undisturbed(tmp_path / "s.zarr", tmp_path / "once")


def test_what_was_counted_in_other_chunks_is_accepted_as_a_whole_and_counting_goes_on(tmp_path: Path) -> None:
    values = samples(30, 3)
    store, job = tmp_path / "s.zarr", config(tmp_path / "s.zarr", tmp_path / "out")
    build_store(store, {"conv": values[:13]}, chunks=(8, 3))
    run(job)
    array = zarr.open_group(store).create_array("conv", data=values[:13], chunks=(32, 3), overwrite=True)
    accepted = run(job, accept_changes=True).statistics["conv"]
    assert (accepted.rows, accepted.source.accepted.ranges, accepted.settled) == (13, ((0, 13),), None)
    array.append(values[13:])
    with pytest.raises(DataError, match=r"chunk c/0/0 \(rows 0:30\) changed"):
        run(job)
    found = run(job, accept_changes=True).statistics["conv"]
    assert found.mean.tolist() == values.mean(0, np.float64).tolist()


def test_layers_of_which_a_job_takes_other_statistics_keep_their_tails_apart(tmp_path: Path) -> None:
    """The rules of a job may name one layer only; the state of the other keeps its tail."""
    values = samples(13, 3)
    store = build_store(tmp_path / "s.zarr", {"a": values, "b": values + 1}, chunks=(8, 3))
    job = config(store, tmp_path / "out")
    run(job)
    run(replace(job, layers=(LayerRule("a"),)))
    array = zarr.open_group(store)["b"]
    array[8:13] = values[8:13] + 2  # type: ignore[index]
    run(job)
    found = open_results(tmp_path / "out").statistics("b")
    expected = np.concatenate([values[:8] + 1, values[8:] + 2])
    assert found.mean.tolist() == expected.mean(0, np.float64).tolist()
