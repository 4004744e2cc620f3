"""Missing values, steps and offsets that attributes give: through a whole job, with every statistic, and later ones."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from told import Told
from zarr.codecs import BloscCodec, ZstdCodec

from streamstats.config import JobConfig
from streamstats.errors import MismatchError, UsageError
from streamstats.jobs.forget import forget
from streamstats.jobs.merge import merge
from streamstats.jobs.quantiles import exact_quantiles
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.results import open_results

Array = np.ndarray[Any, Any]
SHAPE = (33, 5, 4, 6)
MISSING, LOW, HIGH = -90, -40, 40
"""A missing value, and the values between which others count."""
SCALE, OFFSET = 0.3, 1.7
ATTRIBUTES = {"scale_factor": SCALE, "add_offset": OFFSET, "missing_value": [MISSING, 7], "valid_range": [LOW, HIGH]}
KINDS = ["squares", "spread", "histogram", "taps"]
STORED: dict[str, dict[str, Any]] = {
    "raw": {"compressors": None},
    "zstd": {"compressors": [ZstdCodec(level=1)]},
    "blosc": {"compressors": [BloscCodec(cname="lz4")]},
    "shards": {"compressors": [ZstdCodec(level=1)], "shards": (8, 5, 4, 6)},
    "parts of samples": {"compressors": [ZstdCodec(level=1)], "chunks": (4, 3, 4, 6)},
}


def values_of(dtype: str, rows: int = SHAPE[0], seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    values = random.integers(-50, 51, (rows, *SHAPE[1:])).astype(dtype)
    values[random.random(values.shape) < 0.1] = MISSING
    values[4, :, :, 2] = MISSING
    return values


def job(path: Path, values: Array, said: dict[str, Any] | None = None, **options: Any) -> Any:
    """A job over the layer `x` of a store with `values`; `options` are of the array if zarr knows them."""
    layout = {"chunks": (4, *values.shape[1:])} | {key: options.pop(key) for key in [*options] if key in LAYOUT}
    given = ATTRIBUTES if said is None else said
    group = zarr.open_group(path / "s.zarr", mode="a")
    if "x" not in group:
        group.create_array("x", shape=values.shape, dtype=values.dtype, attributes=given, **layout)[...] = values
    return JobConfig.model_validate({"source": str(path / "s.zarr"), "output": str(path / "out")} | options).job()


LAYOUT = ("compressors", "shards", "chunks")


def found(path: Path) -> LayerStatistics:
    return open_results(path / "out").statistics("x")


def counting(values: Array) -> Array:
    """Which of the stored values count."""
    return (values >= LOW) & (values <= HIGH) & (values != MISSING) & (values != 7)


def real(values: Array, channel: int) -> list[Fraction]:
    """The exact real values of a channel that count."""
    chosen = values[..., channel][counting(values[..., channel])]
    return [Fraction(value.item()) * Fraction(SCALE) + Fraction(OFFSET) for value in chosen]


def assert_exact(statistics: LayerStatistics, values: Array) -> None:
    """The figures of `statistics` are those of `values` that count, by exact arithmetic."""
    for channel in range(values.shape[-1]):
        exact = real(values, channel)
        mean = sum(exact, Fraction()) / len(exact)
        assert statistics.sums.count[channel] == len(exact)
        assert statistics.sums.nan[channel] == values[..., channel].size - len(exact)
        assert statistics.mean[channel] == float(mean)
        if "squares" in statistics.statistics:
            assert statistics.variance[channel] == float(sum((each - mean) ** 2 for each in exact) / len(exact))
        assert statistics.minimum[channel] == pytest.approx(float(min(exact)), rel=1e-15)
        assert statistics.maximum[channel] == pytest.approx(float(max(exact)), rel=1e-15)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        *(("float32", each) for each in STORED),
        ("int8", "zstd"),
        ("int8", "parts of samples"),
        ("float64", "zstd"),
        ("float16", "raw"),
    ],
)
def test_no_statistic_has_missing_values_however_they_are_stored(tmp_path: Path, dtype: str, stored: str) -> None:
    values = values_of(dtype)
    layers = [{"match": "x", "geometry": {"kernel": [3, 3], "pads": [1, 1, 1, 1]}}]
    counted = job(tmp_path, values, statistics=KINDS, layers=layers, **STORED[stored])
    run(counted)
    statistics = found(tmp_path)
    assert_exact(statistics, values)
    assert verify(counted) == []
    floats = np.where(counting(values), values, np.nan).astype(statistics.space.dtype)
    plain = job(tmp_path / "plain", floats, {}, statistics=KINDS, layers=layers, nonfinite="skip")
    run(plain)
    assert statistics.statistics == found(tmp_path / "plain").statistics


def test_magnitudes_need_a_zero_that_is_stored_as_zero(tmp_path: Path) -> None:
    values = values_of("int16")
    only_missing = {"missing_value": MISSING, "valid_range": [LOW, HIGH], "scale_factor": SCALE}
    run(job(tmp_path, values, only_missing, statistics=["magnitude"]))
    chosen = (values >= LOW) & (values <= HIGH)
    expected = [
        float(
            sum(abs(Fraction(int(v))) for v in values[..., c][chosen[..., c]])
            * Fraction(SCALE)
            / int(chosen[..., c].sum())
        )
        for c in range(6)
    ]
    assert found(tmp_path).mean_magnitude.tolist() == expected
    with pytest.raises(UsageError, match=r"`magnitude` cannot be counted, because .* and without an offset"):
        run(job(tmp_path / "other", values, statistics=["magnitude"]))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_exact_quantiles_are_those_of_the_sorted_values_that_count(tmp_path: Path, dtype: str) -> None:
    values = values_of(dtype)
    counted = job(tmp_path, values, statistics=["histogram"])
    run(counted)
    ordered = sorted(values[counting(values)].tolist())
    for each in exact_quantiles(counted, [0.0, 0.25, 0.5, 1.0]):
        place = max(0, -(-int(each.q * 100) * len(ordered) // 100) - 1)
        assert each.value == pytest.approx(ordered[place] * SCALE + OFFSET, rel=1e-14)


def test_a_mask_and_missing_values_are_combined(tmp_path: Path) -> None:
    values = values_of("float32")
    values[0, 0, 0, 0] = np.nan  # at a position that does not count
    mask = np.random.default_rng(1).random(SHAPE[:-1]) < 0.5
    mask[0, 0, 0] = False
    counted = job(tmp_path, values, layers=[{"match": "x", "mask": "m"}])
    zarr.open_group(tmp_path / "s.zarr").create_array("m", data=mask, config={"write_empty_chunks": True})
    run(counted)
    statistics = found(tmp_path)
    assert_exact_counts = counting(values) & mask[..., None]
    assert statistics.sums.count.tolist() == assert_exact_counts.sum(axis=(0, 1, 2)).tolist()
    assert statistics.masked == (mask.size - mask.sum(), mask.size)
    for channel in range(6):
        chosen = values[..., channel][assert_exact_counts[..., channel]]
        mean = sum((Fraction(v.item()) for v in chosen), Fraction()) / len(chosen)
        assert statistics.mean[channel] == float(mean * Fraction(SCALE) + Fraction(OFFSET))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_what_is_appended_or_forgotten_is_counted_alike(tmp_path: Path, dtype: str) -> None:
    values, more = values_of(dtype, 32), values_of(dtype, 8, seed=2)
    counted = job(tmp_path, values, statistics=["squares"])
    run(counted)
    zarr.open_array(tmp_path / "s.zarr/x", mode="r+").append(more)
    run(counted)
    whole = np.concatenate([values, more])
    assert_exact(found(tmp_path), whole)
    forget(counted, (4, 12))
    assert_exact(found(tmp_path), np.delete(whole, slice(4, 12), axis=0))
    assert verify(counted) == []


def test_attributes_that_change_what_was_counted_are_refused_and_others_are_not(tmp_path: Path) -> None:
    counted = job(tmp_path, values_of("float32"))
    run(counted)
    attributes = zarr.open_array(tmp_path / "s.zarr/x", mode="r+").attrs
    attributes.update({"scale_factor": 0.6, "units": "K"})
    run(counted)
    assert found(tmp_path).attributes is not None
    assert found(tmp_path).attributes.units == "K"  # type: ignore[union-attr]
    assert found(tmp_path).quantization is not None
    assert found(tmp_path).quantization.to_metadata() == {"step": 0.6, "offset": OFFSET}  # type: ignore[union-attr]
    attributes["missing_value"] = MISSING
    with pytest.raises(
        MismatchError,
        match=r"counted with missing values -90, 7, below -40, above 40, but the job now has -90, below",
    ):
        run(counted)


def test_outputs_with_other_missing_values_are_not_merged(tmp_path: Path) -> None:
    for name, attributes in (("a", {"missing_value": 7}), ("b", {"missing_value": 8})):
        run(job(tmp_path / name, values_of("float32"), attributes))
    with pytest.raises(MismatchError, match="missing values 7 and 8; expected the same in both"):
        merge([tmp_path / "a/out", tmp_path / "b/out"], tmp_path / "both")


def test_that_nan_are_called_missing_refuses_neither_resuming_nor_merging(tmp_path: Path) -> None:
    values = values_of("float32")
    for name, said in (("a", {}), ("b", {"missing_value": "NaN"})):
        run(job(tmp_path / name, values + (name == "b"), said))
    merge([tmp_path / "a/out", tmp_path / "b/out"], tmp_path / "both")
    zarr.open_array(tmp_path / "a/s.zarr/x", mode="r+").attrs["missing_value"] = "NaN"
    run(job(tmp_path / "a", values))
    assert found(tmp_path / "a").sums.nan.tolist() == [0] * 6


def test_the_configuration_replaces_the_map_and_keeps_missing_values(tmp_path: Path) -> None:
    values = values_of("int16")
    layers = [{"match": "x", "quantization": {"scale": 2.0, "scale_is": "step", "offset": 0.1}}]
    told = Told()
    run(job(tmp_path, values, layers=layers), progress=told)
    assert "note: `quantization` replaces the attributes scale_factor and add_offset: x" in told.messages
    chosen = values[..., 0][counting(values[..., 0])]
    expected = Fraction(int(chosen.sum()), len(chosen)) * 2 + Fraction(0.1)
    assert found(tmp_path).mean[0] == float(expected)
    assert found(tmp_path).sums.count[0] == len(chosen)


@pytest.mark.parametrize("where", ["job", "layer"])
def test_attributes_that_are_ignored_change_nothing_and_are_named(tmp_path: Path, where: str) -> None:
    values, told = values_of("int16"), Told()
    ignoring: dict[str, Any] = {"attributes": "ignore"}
    run(
        job(tmp_path, values, **(ignoring if where == "job" else {"layers": [{"match": "*"} | ignoring]})),
        progress=told,
    )
    assert found(tmp_path).mean.tolist() == values.mean(axis=(0, 1, 2)).tolist()
    names = "scale_factor, add_offset, missing_value, valid_range"
    assert f"note: attributes are ignored ({names}): x" in told.messages
    entry = json.loads((tmp_path / "out/manifest.json").read_text())["layers"]["x"]
    assert entry["attributes"]["ignored"] == names.split(", ")


def test_attributes_that_are_ignored_later_are_named_rather_than_the_dtype_that_they_change(tmp_path: Path) -> None:
    run(job(tmp_path, values_of("int16")))
    with pytest.raises(MismatchError, match=r"counted with missing values .*, but the job now has none"):
        run(job(tmp_path, values_of("int16"), attributes="ignore"))


def test_the_manifest_says_what_was_applied_and_which_arrays_are_coordinates(tmp_path: Path) -> None:
    counted = job(tmp_path, values_of("int16"), ATTRIBUTES | {"units": "K", "coordinates": "lat"})
    zarr.open_group(tmp_path / "s.zarr").create_array("lat", data=np.ones((2, 2)))
    told = Told()
    run(counted, progress=told)
    assert "note: not counted, because they are coordinates: lat" in told.messages
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["coordinates"] == {"lat": "`coordinates` of x"}
    assert manifest["layers"]["x"]["attributes"] == {
        "meaning": {
            "stored": "int16",
            "viewed": "int16",
            "missing": [MISSING, 7],
            "low": LOW,
            "high": HIGH,
            "nan": False,
        },
        "units": "K",
        "notes": [],
        "ignored": [],
    }
    assert manifest["layers"]["x"]["quantization"] == {"step": SCALE, "offset": OFFSET}
    assert open_results(tmp_path / "out").manifest.coordinates == manifest["coordinates"]
