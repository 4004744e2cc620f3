"""Masks: what they leave out is in no statistic, through a whole job; a mask that does not fit is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import build_store, samples
from told import Told

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, NonFiniteError, UsageError
from streamstats.jobs.forget import forget
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.results import open_results

Array = np.ndarray[Any, Any]
KINDS = ["magnitude", "squares", "histogram"]
RNG = np.random.default_rng(5)
EVERY_CHUNK = {"write_empty_chunks": True}
CASES = {
    "tokens": (samples(41, 9, 6), 2, RNG.random((41, 9)) < 0.6),
    "codes": (samples(41, 9, 6, dtype="int8"), 2, (RNG.random((41, 9)) < 0.6).astype("int64")),
    "whole samples": (samples(41, 9, 6), 2, RNG.random((41, 1)) < 0.6),
    "images": (samples(41, 4, 5, 7), 1, (RNG.random((41, 5, 7)) < 0.6).astype("uint8")),
    "rows of images": (samples(41, 4, 5, 7), 1, RNG.random((41, 5, 1)) < 0.6),
    "vectors": (samples(41, 8), 1, RNG.random(41) < 0.6),
    "nothing left out": (samples(41, 9, 6), 2, np.ones((41, 9), bool)),
    "nothing left": (samples(41, 9, 6), 2, np.zeros((41, 9), "int32")),
}
"""Values, channel axis, mask."""


def job(tmp_path: Path, output: str = "out", **options: Any) -> Any:
    settings = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / output)} | options
    return JobConfig.model_validate(settings).job()


def masked(tmp_path: Path, case: str, **options: Any) -> Any:
    """A job over the layer `x` with its mask named in the configuration; they differ in chunks."""
    values, axis, mask = CASES[case]
    build_store(tmp_path / "s.zarr", {"x": values}, chunks=(4, *(max(1, n - 2) for n in values.shape[1:])))
    build_store(tmp_path / "s.zarr", {"deep/mask": mask}, chunks=(7, *mask.shape[1:]), config=EVERY_CHUNK)
    layers = [{"match": "x", "channel_axis": axis, "mask": "deep/mask"}]
    return job(tmp_path, **({"layers": layers, "statistics": [*KINDS, "spread"]} | options))


def counted(case: str) -> tuple[Array, int]:
    """The rows of positions that count, [M, C], and how many positions there are."""
    values, axis, mask = CASES[case]
    positions = np.moveaxis(values, axis, -1)
    return positions[np.broadcast_to(mask != 0, positions.shape[:-1])], positions[..., 0].size


def found(tmp_path: Path, output: str = "out", layer: str = "x") -> LayerStatistics:
    return open_results(tmp_path / output).statistics(layer)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", ["2GiB", "600MiB"])
def test_what_a_mask_leaves_out_is_in_no_statistic(tmp_path: Path, case: str, memory: str) -> None:
    run(masked(tmp_path, case, memory=memory))
    statistics, (rows, positions) = found(tmp_path), counted(case)
    meter = ss.Meter(statistics=KINDS)
    meter.append("x", rows)
    expected = meter.statistics["x"].statistics
    for name in ("mean", "extrema", *KINDS):
        for tensor, array in expected[name].arrays().items():
            np.testing.assert_array_equal(array, statistics.statistics[name].arrays()[tensor], f"{name}.{tensor}")
    assert statistics.masked == (positions - len(rows), positions)
    assert statistics.rows == 41


def test_the_chunks_the_workers_and_the_order_do_not_matter(tmp_path: Path) -> None:
    run(masked(tmp_path, "images"))
    whole = found(tmp_path)
    values, axis, mask = CASES["images"]
    for number, (chunks, of_mask) in enumerate({(41, 4, 5, 7): (1, 2, 3), (1, 1, 5, 2): (41, 5, 7)}.items()):
        folder = tmp_path / str(number)
        build_store(folder / "s.zarr", {"x": values}, chunks=chunks)
        build_store(folder / "s.zarr", {"m": mask}, chunks=of_mask, config=EVERY_CHUNK)
        layers = [{"match": "x", "channel_axis": axis, "mask": "m"}]
        for rows in ("0:17", None):
            settings = {"layers": layers, "statistics": [*KINDS, "spread"], "rows": rows}
            run(job(folder, **settings, cluster={"workers": 1} if rows else {}))
        assert found(folder).statistics == whole.statistics


def test_recorder_and_meter_take_masks_that_a_job_then_counts_alike(tmp_path: Path) -> None:
    for case, (values, axis, mask) in CASES.items():
        meter = ss.Meter(statistics=[*KINDS, "spread"])
        with ss.Recorder(tmp_path / case / "s.zarr", chunk_bytes=1000) as recorder:
            for start in range(0, 41, 5):
                part = slice(start, start + 5)
                for sink in (recorder, meter):
                    sink.append("a/x", values[part], channel_axis=axis, mask=mask[part])
        run(job(tmp_path / case, statistics=[*KINDS, "spread"]))
        run(masked(tmp_path / case / "other", case))
        recorded = found(tmp_path / case, layer="a/x")
        assert open_results(tmp_path / case / "out").layers == ["a/x"]
        assert recorded.statistics == meter.statistics["a/x"].statistics == found(tmp_path / case / "other").statistics


def test_appending_resuming_forgetting_and_merging_keep_what_is_left_out(tmp_path: Path) -> None:
    values, axis, mask = CASES["tokens"]

    def append(folder: Path, rows: slice) -> None:
        with ss.Recorder(folder / "s.zarr", chunk_bytes=1000) as recorder:
            recorder.append("x", values[rows], channel_axis=axis, mask=mask[rows])

    for rows in (slice(0, 13), slice(13, 41)):
        append(tmp_path, rows)
        run(job(tmp_path, statistics=["spread"]))
    assert verify(job(tmp_path, statistics=["spread"])) == []
    assert found(tmp_path).rows == 41
    assert [each.rows for each in forget(job(tmp_path, statistics=["spread"]), (0, 30))] == [30]
    append(tmp_path / "rest", slice(30, 41))
    run(job(tmp_path / "rest", statistics=["spread"]))
    assert found(tmp_path).statistics == found(tmp_path / "rest").statistics
    append(tmp_path / "first", slice(0, 30))
    run(job(tmp_path / "first", statistics=["spread"]))
    merge([tmp_path / "rest" / "out", tmp_path / "first" / "out"], tmp_path / "all")
    append(tmp_path / "at once", slice(0, 41))
    run(job(tmp_path / "at once", statistics=["spread"]))
    assert found(tmp_path, "all").statistics == found(tmp_path / "at once").statistics


def test_outputs_with_and_without_a_mask_are_not_merged(tmp_path: Path) -> None:
    run(masked(tmp_path, "tokens"))
    run(job(tmp_path, "plain", layers=[{"match": "x"}], statistics=[*KINDS, "spread"]))
    with pytest.raises(MismatchError, match="layer x cannot be merged: mask one and none"):
        merge([tmp_path / "out", tmp_path / "plain"], tmp_path / "all")


def rewritten(tmp_path: Path, values: Array, name: str = "deep/mask") -> None:
    zarr.open_group(tmp_path / "s.zarr")[name][...] = values


def test_a_mask_that_has_changed_since_it_was_counted_is_an_error(tmp_path: Path) -> None:
    first = masked(tmp_path, "tokens")
    run(first)
    mask = CASES["tokens"][2].copy()
    mask[20, 3] ^= True
    rewritten(tmp_path, mask)
    said = r"layer x: chunk c/0/0 \(rows 0:7\) of its mask deep/mask was rewritten since it was counted"
    with pytest.raises(DataError, match=said):
        run(first)
    problems = [each.problem for each in verify(first)]
    assert any("statistics differ" in each for each in problems)
    assert any("of its mask deep/mask was rewritten" in each for each in problems)
    run(first, restart=True)
    assert verify(first) == []


def test_a_mask_that_has_changed_is_noticed_where_the_layer_has_no_chunk(tmp_path: Path) -> None:
    values, mask = samples(16, 5, 3), np.ones((16, 5), bool)
    values[4:8] = 0  # a chunk that zarr does not write
    build_store(tmp_path / "t.zarr", {"x": values}, attributes={"x": {"mask": "m"}}, chunks=(4, 5, 3))
    build_store(tmp_path / "t.zarr", {"m": mask}, chunks=(4, 5), config=EVERY_CHUNK)
    filled = job(tmp_path, source=str(tmp_path / "t.zarr"), missing="fill")
    run(filled)
    mask[4:8, 2:] = False
    zarr.open_group(tmp_path / "t.zarr")["m"][4:8] = mask[4:8]
    with pytest.raises(DataError, match=r"chunk c/1/0 \(rows 4:8\) of its mask m changed from"):
        run(filled)


def test_rows_are_appended_whatever_the_chunks_of_the_mask(tmp_path: Path) -> None:
    values, mask = samples(20, 5, 3), RNG.random((20, 5)) < 0.6
    for rows in (16, 20):
        for name, array, chunks in (("x", values, (4, 5, 3)), ("m", mask, (64, 5))):
            if rows == 16:
                attributes = {"x": {"mask": "m"}}
                build_store(tmp_path / "s.zarr", {name: array[:16]}, attributes=attributes, chunks=chunks)
            else:
                zarr.open_group(tmp_path / "s.zarr")[name].append(array[16:])
        run(job(tmp_path))
    assert found(tmp_path).rows == 20
    assert found(tmp_path).masked == (int((~mask).sum()), 100)
    assert verify(job(tmp_path)) == []


def test_one_store_counted_with_two_masks_is_not_merged(tmp_path: Path) -> None:
    values, mask = samples(8, 5, 3), np.ones((8, 5), bool)
    build_store(tmp_path / "s.zarr", {"x": values, "m": mask, "copy": mask}, chunks="auto")
    for name, rows in (("m", None), ("copy", None), ("m", "0:4"), ("copy", "4:8")):
        layers = [{"match": "x", "mask": name}]
        run(job(tmp_path, f"{name} {rows}", layers=layers, rows=rows))
    for outputs, said in {
        ("m None", "copy None"): "rows 0:8 are counted in .*m None, too",
        ("m 0:4", "copy 4:8"): "rows of one store were counted with the masks m and copy",
    }.items():
        with pytest.raises(MismatchError, match=said):
            merge([tmp_path / each for each in outputs], tmp_path / "all")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, "counted with mask deep/mask, but the job now has none"),
        ("other", "counted with mask deep/mask, but the job now has other"),
        ("deep/mask", r"chunk c/0/0 \(rows 0:5\) of its mask deep/mask"),
    ],
)
def test_another_mask_than_the_counted_one_is_an_error(tmp_path: Path, mask: str | None, said: str) -> None:
    run(masked(tmp_path, "tokens"))
    build_store(tmp_path / "s.zarr", {"other": CASES["tokens"][2]}, chunks=(7, 9))
    if mask == "deep/mask":
        del zarr.open_group(tmp_path / "s.zarr")[mask]
        build_store(tmp_path / "s.zarr", {mask: CASES["tokens"][2]}, chunks=(5, 9))
    again = job(tmp_path, layers=[{"match": "x", "mask": mask}], statistics=[*KINDS, "spread"])
    with pytest.raises((DataError, MismatchError), match=f"layer x: .*{said}"):
        run(again)
    if mask == "deep/mask":  # stored in other chunks
        assert any("of its mask deep/mask" in each.problem for each in verify(again))


def with_mask(tmp_path: Path, mask: Array | None, attributes: Mapping[str, Any] | None = None) -> Any:
    arrays = {"x": samples(6, 5, 3)} | ({} if mask is None else {"m": mask})
    build_store(tmp_path / "s.zarr", arrays, attributes={"x": attributes or {"mask": "m"}}, chunks="auto")
    return job(tmp_path, statistics=["spread"])


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones((6, 3), bool), r"layer x: its mask m has the shape \(6, 3\); expected \(6, 5\)"),
        (np.ones((5, 5), bool), r"layer x: its mask m has the shape \(5, 5\); expected \(6, 5\)"),
        (np.ones((7, 5), bool), r"layer x: its mask m has the shape \(7, 5\); expected \(6, 5\)"),
        (np.ones(6, bool), r"layer x: its mask m has the shape \(6,\); expected \(6, 5\)"),
        (np.ones((6, 5, 3), bool), r"layer x: its mask m has the shape \(6, 5, 3\); expected \(6, 5\)"),
        (np.ones((6, 5), "complex64"), "layer x: its mask m holds values of complex64; expected booleans, or the num"),
        (None, "layer x: its mask m is not in the store"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, mask: Array | None, said: str) -> None:
    with pytest.raises((MismatchError, UsageError), match=said):
        run(with_mask(tmp_path, mask))


@pytest.mark.parametrize("others", [[], [{"match": "*"}]])
def test_a_layer_is_not_its_own_mask(tmp_path: Path, others: list[dict[str, Any]]) -> None:
    with_mask(tmp_path, np.ones((6, 5), bool))
    with pytest.raises(UsageError, match="layer x is named as its own mask; expected another array of its shape"):
        run(job(tmp_path, layers=[{"match": "x", "mask": "x"}, *others]))


def test_a_mask_of_null_is_that_of_the_attributes(tmp_path: Path) -> None:
    mask = np.tile([True, True, True, False, False], (6, 1))
    with_mask(tmp_path, mask)
    run(job(tmp_path, layers=[{"match": "x", "mask": None}]))
    assert found(tmp_path).masked == (12, 30)


def test_a_mask_of_other_numbers_is_refused_with_the_place(tmp_path: Path) -> None:
    mask = np.ones((6, 5), "int16")
    mask[4, 2] = -1
    with pytest.raises(DataError, match=r"layer x: its mask m holds -1 at \(4, 2\); expected 1 .* 0"):
        run(with_mask(tmp_path, mask))


@pytest.mark.parametrize(("dtype", "wrong"), [("float32", -np.inf), ("float64", 0.5), ("float16", np.nan)])
def test_a_mask_of_floats_holds_ones_and_zeros(tmp_path: Path, dtype: str, wrong: float) -> None:
    mask = np.ones((6, 5), dtype)
    mask[1] = 0
    run(with_mask(tmp_path, mask))
    assert found(tmp_path).masked == (5, 30)
    mask[4, 2] = wrong
    rewritten(tmp_path, mask, "m")
    with pytest.raises(DataError, match=rf"layer x: its mask m holds {wrong} at \(4, 2\)"):
        run(job(tmp_path, "again"))


def test_a_single_value_and_the_layer_itself_are_no_masks(tmp_path: Path) -> None:
    with_mask(tmp_path, np.array(True))
    with pytest.raises(MismatchError, match="layer x: its mask m is a single value"):
        run(job(tmp_path))
    with pytest.raises(UsageError, match="layer x is named as its own mask"):
        run(job(tmp_path, layers=[{"match": "x", "mask": "x"}]))


def test_chunks_of_a_mask_that_cannot_be_read_name_its_layer(tmp_path: Path) -> None:
    first = with_mask(tmp_path, np.ones((6, 5), "int16"))
    (tmp_path / "s.zarr/m/c/0/0").unlink()
    with pytest.raises(DataError, match=r"layer x: its mask m: chunk c/0/0 \(rows 0:6\) is missing"):
        run(first)


def test_attributes_that_are_no_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x: `mask` in its attributes is 3; expected the name of an array"):
        run(with_mask(tmp_path, None, {"mask": 3}))


def test_statistics_for_which_positions_matter_refuse_masks(tmp_path: Path) -> None:
    with_mask(tmp_path, np.ones((6, 5), bool))
    geometry = {"kernel": [3], "pads": [1, 1]}
    with pytest.raises(
        UsageError, match=r"layer x: `taps` cannot be counted, because the layer has a mask, [^:;]*; request"
    ):
        run(job(tmp_path, layers=[{"match": "x", "geometry": geometry, "statistics": ["taps"]}]))


def test_nan_under_a_mask_is_no_error_and_elsewhere_it_is_named(tmp_path: Path) -> None:
    values, mask = samples(6, 5, 3), np.ones((6, 5), bool)
    values[2, 4], mask[2, 4] = np.nan, False
    build_store(tmp_path / "s.zarr", {"x": values, "m": mask}, attributes={"x": {"mask": "m"}}, chunks="auto")
    run(job(tmp_path))
    assert found(tmp_path).sums.nonfinite.tolist() == [0, 0, 0]
    meter = ss.Meter()
    meter.append("x", values, mask=mask)
    assert meter.statistics["x"].statistics == found(tmp_path).statistics
    values[5, 1, 2] = np.inf
    with pytest.raises(NonFiniteError, match="layer x, row 5, channel 2"):
        ss.Meter().append("x", values, mask=mask)
    rewritten(tmp_path, values, "x")
    with pytest.raises(NonFiniteError, match="layer x, channel 2, rows 5:6: 1 values"):
        run(job(tmp_path, "again"))


@pytest.mark.parametrize("open_sink", [ss.Meter, lambda: ss.Recorder("s.zarr")])
def test_a_mask_is_given_with_all_samples_or_with_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_sink: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    values = samples(4, 5, 3)
    sink = open_sink()
    sink.append("x", values, mask=np.ones((4, 5)).astype(int))
    for mask in (None, np.ones((4, 1), bool)):
        with pytest.raises(MismatchError, match="layer x: the mask is"):
            sink.append("x", values, mask=mask)
    with pytest.raises(MismatchError, match=r"layer x: its mask has the shape \(4, 3\); expected \(4, 5\)"):
        sink.append("x", values, mask=np.ones((4, 3), bool))
    with pytest.raises(UsageError, match="layer x: its mask holds 2; expected 1"):
        sink.append("x", values, mask=np.full((4, 5), 2))


def test_a_recorder_that_was_interrupted_before_it_made_the_layer_starts_again(tmp_path: Path) -> None:
    values, mask = samples(4, 5, 3), np.ones((4, 5), bool)
    for _ in range(2):
        with ss.Recorder(tmp_path / "s.zarr") as recorder:
            recorder.append("x", values, mask=mask)
        del zarr.open_group(tmp_path / "s.zarr")["x"]
    with pytest.raises(UsageError, match=r"has no layers, only masks of layers: x\.mask"):
        run(job(tmp_path))
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("y.mask", values)
        with pytest.raises(UsageError, match=r"y\.mask is a layer already"):
            recorder.append("y", values, mask=mask)
        recorder.append("x", values, mask=mask)
        with pytest.raises(UsageError, match=r"x\.mask is the mask of layer x"):
            recorder.append("x.mask", mask)


@pytest.mark.parametrize(
    ("name", "mask"),
    {
        "words": np.ones((8, 5), bool),
        "words/whole": np.ones(8, bool),
        "attention_mask": np.ones((8, 5), "int64"),
        "in/MASK": np.ones((8, 1, 1, 5), "float32"),
    }.items(),
)
@pytest.mark.parametrize("layers", [["enc", "images"], ["*"]])
def test_an_array_that_looks_like_the_mask_of_a_layer_is_pointed_out_whether_or_not_it_is_counted(
    tmp_path: Path, name: str, mask: Array, layers: list[str]
) -> None:
    values = {"enc": samples(8, 5, 3), "images": samples(8, 2, 3, 4), "other": samples(8, 4)}
    store = build_store(tmp_path / "s.zarr", {**values, "ids": np.ones((8, 5), "int64")})
    build_store(store, {name: mask})
    said = Told()
    run(job(tmp_path, layers=[{"match": each} for each in layers]), progress=said)
    asked = f"{name} looks like a mask of enc, "
    assert [each for each in said.messages if each.startswith(f"note: {asked}")]
    with pytest.warns(UserWarning, match=re.escape(asked)):
        ss.reduce(store, layers=layers)
    every = [ss.LayerRule(each, mask=False) for each in layers]
    assert ss.reduce(store, layers=every)["enc"].masked is None
    declared = [{"match": each, "mask": False} for each in layers]
    run(job(tmp_path, "declared", layers=declared), progress=(said := Told()))
    assert not [each for each in said.messages if "looks like" in each]


def test_the_mask_that_is_pointed_out_can_be_named_in_a_store_with_parts(tmp_path: Path) -> None:
    values, _, mask = CASES["tokens"]
    for part in ("r0", "r1"):
        with ss.Recorder(tmp_path / "s.zarr", part=part) as recorder:
            recorder.append("enc", values)
            recorder.append("attention_mask", mask.astype("int64"))
    with pytest.warns(UserWarning, match="^attention_mask looks like a mask of enc, .* `mask: attention_mask` "):
        ss.reduce(tmp_path / "s.zarr", layers="enc")
    found = ss.reduce(tmp_path / "s.zarr", layers=ss.LayerRule("enc", mask="attention_mask"))["enc"]
    assert found.masked == (2 * (~mask).sum(), 2 * mask.size)


def test_a_recorded_mask_applies_unless_the_job_says_that_every_position_counts(tmp_path: Path) -> None:
    values, axis, mask = CASES["tokens"]
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("x", values, channel_axis=axis, mask=mask)
    assert ss.reduce(tmp_path / "s.zarr")["x"].masked == ((~mask).sum(), mask.size)
    found = ss.reduce(tmp_path / "s.zarr", layers=ss.LayerRule("x", mask=False))
    assert [*found] == ["x"]
    np.testing.assert_array_equal(found["x"].sums.count, mask.size)
    run(job(tmp_path))
    with pytest.raises(UsageError, match="mask"):
        run(job(tmp_path, layers=[{"match": "x", "mask": False}]))


def test_masks_of_scores_and_of_padding_are_refused_or_pointed_out(tmp_path: Path) -> None:
    values, _, mask = CASES["tokens"]
    masks = {
        "scores": np.where(mask, 0, -1e9).astype("float32"),
        "chances": np.where(mask, 0.75, 0).astype("float32"),
        "key_padding_mask": ~mask,
        "zeros": np.zeros(mask.shape, "float32"),
    }
    store = build_store(tmp_path / "s.zarr", {"x": values, **masks}, config=EVERY_CHUNK)
    for name, remedy in {"scores": "`mask == 0` says", "chances": "`mask > 0.5`, or the like, says"}.items():
        with pytest.raises(DataError, match=remedy):
            ss.reduce(store, layers=ss.LayerRule("x", mask=name))
        with pytest.raises(UsageError, match=remedy):
            ss.Meter().append("x", values, mask=masks[name])
    with pytest.raises(UsageError, match="floats that are all 0: it may be an additive mask"):
        ss.Meter().append("x", values, mask=masks["zeros"])
    notes = {"key_padding_mask": "if it is true for padding", "zeros": "the mask of x is 0 everywhere"}
    for name, note in notes.items():
        run(job(tmp_path, name, layers=[{"match": "x", "mask": name}]), progress=(said := Told()))
        assert [each for each in said.messages if note in each]
