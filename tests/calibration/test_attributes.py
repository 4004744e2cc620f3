"""What attributes say of values: as xarray decodes them, and by the text of CF where xarray does not."""

from __future__ import annotations

from base64 import standard_b64encode
from fractions import Fraction
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
import zarr

from streamstats import LayerRule, LayerStatistics, reduce
from streamstats.calibration.attributes import attributes_of
from streamstats.calibration.selection import select_layers
from streamstats.errors import DataError, NonFiniteError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*has multiple fill values")
Array = npt.NDArray[Any]
TEMPERATURES = np.random.default_rng(3).normal(15, 5, (12, 3, 4)).astype(np.float32)
TEMPERATURES[3:5, :, 2] = np.nan
WHOLE = np.nan_to_num(TEMPERATURES).astype(np.int16)


def written(
    path: Path, values: Array, encoding: dict[str, Any], later: dict[str, Any] | None = None, zarr_format: int = 3
) -> Path:
    """A store of xarray with the layer `v`, which gets the attributes `later` once it is written."""
    dataset = xr.Dataset({"v": (("time", "y", "c"), values)})
    dataset.to_zarr(path, encoding={"v": encoding}, zarr_format=zarr_format, consolidated=False)  # type: ignore[call-overload]
    if later:
        zarr.open_array(path / "v", mode="r+").attrs.update(later)
    return path


def decoded(path: Path) -> Array:
    """The values as xarray decodes them, NaN where they are missing."""
    found = xr.open_zarr(path, consolidated=False, mask_and_scale=True, decode_times=False, chunks=None)["v"].values
    return np.asarray(found)


def assert_as_decoded(path: Path, found: LayerStatistics) -> None:
    """Counts and means are those of the stored values that xarray does not mask; all figures are near the decoded."""
    array = zarr.open_array(path / "v", mode="r")
    attributes, stored, real = array.attrs.asdict(), np.asarray(array[...]), decoded(path)
    if attributes.get("_Unsigned") == "true":
        stored = stored.view(f"{stored.dtype.byteorder}u{stored.itemsize}")
    scale, offset = (
        Fraction(attributes.get(key, default)) for key, default in (("scale_factor", 1), ("add_offset", 0))
    )
    for channel in range(stored.shape[-1]):
        counts = ~np.isnan(real[..., channel].astype(np.float64))
        values = [Fraction(value.item()) for value in stored[..., channel][counts]]
        near = real[..., channel][counts].astype(np.float64)
        assert found.sums.count[channel] == counts.sum()
        assert found.sums.nan[channel] == (~counts).sum()
        assert found.mean[channel] == float(sum(values) / len(values) * scale + offset)
        figures = [each[channel] for each in (found.mean, found.minimum, found.maximum)]
        np.testing.assert_allclose(figures, [near.mean(), near.min(), near.max()], rtol=2e-6, atol=2e-6)


ENCODINGS: dict[str, dict[str, Any]] = {
    "packed": {"dtype": "i2", "scale_factor": 0.01, "add_offset": 10.0, "_FillValue": -32768},
    "an offset that is no multiple of the step": {
        "dtype": "u1",
        "scale_factor": 0.1,
        "add_offset": 0.03,
        "_FillValue": 255,
    },
    "a step alone": {"dtype": "i4", "scale_factor": 0.001, "_FillValue": -999},
    "64 bits": {"dtype": "i8", "_FillValue": -999},
    "float32": {"_FillValue": np.float32(-9999)},
    "a fill value that decimals only approach": {"_FillValue": np.float32(1e20)},
    "float64": {"dtype": "f8", "_FillValue": 1e20},
    "float16": {"dtype": "f2", "_FillValue": np.float16(-999)},
    "missing_value": {"missing_value": np.float32(1e20), "_FillValue": None},
    "NaN, xarray's default": {},
    "packed floats": {"dtype": "f4", "scale_factor": 0.5, "add_offset": 3.25, "_FillValue": np.float32(-9)},
    "unsigned": {"dtype": "u1", "_Unsigned": "true", "scale_factor": 0.2, "_FillValue": 255},
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_counts_means_and_extrema_are_those_of_what_xarray_decodes(
    tmp_path: Path, encoding: dict[str, Any], zarr_format: int
) -> None:
    store = written(tmp_path / "s", TEMPERATURES, encoding, zarr_format=zarr_format)
    assert np.isnan(decoded(store)).sum() == 6
    assert_as_decoded(store, reduce(store, threads=1)["v"])


LATER: dict[str, tuple[str, dict[str, Any]]] = {
    "several missing values": ("i2", {"missing_value": [0, 15]}),
    "both attributes": ("i2", {"missing_value": 14, "_FillValue": 15}),
    "a missing value outside the dtype": ("i2", {"missing_value": 1e20}),
    "a missing value that is no integer": ("i2", {"missing_value": 12.5}),
    "unsigned, with a signed fill value": ("i1", {"_Unsigned": "true", "_FillValue": -5}),
    "signed": ("u1", {"_Unsigned": "false"}),
    "64 bits, missing beyond float64": ("i8", {"_FillValue": 2**63 - 1}),
}


if tuple(map(int, xr.__version__.split(".")[:2])) >= (2026, 9):  # before, xarray took no boolean for missing
    LATER["booleans"] = ("?", {"_FillValue": False})


@pytest.mark.parametrize(("dtype", "later"), LATER.values(), ids=LATER)
def test_integers_count_as_xarray_decodes_them(tmp_path: Path, dtype: str, later: dict[str, Any]) -> None:
    values = WHOLE.astype(dtype)
    values[5, 1] = {"i8": 2**63 - 1, "?": 1, "u1": 251}.get(dtype, -5)
    store = written(tmp_path / "s", values, {}, later)
    if "false" in later.values():
        values, real = values.view(np.int8), decoded(store)
        np.testing.assert_array_equal(values, real)
        assert reduce(store, threads=1)["v"].mean.tolist() == values.astype(float).mean(axis=(0, 1)).tolist()
    else:
        assert_as_decoded(store, reduce(store, threads=1)["v"])


def test_the_fill_value_of_zarr_v2_means_missing_only_where_xarray_names_dimensions(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2) % 3
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    array = group.create_array("v", shape=values.shape, dtype="f4", fill_value=0, chunks=(2, 3, 2))
    array[...] = values
    assert reduce(tmp_path, threads=1, missing="fill")["v"].sums.count.tolist() == [12, 12]
    array.attrs["_ARRAY_DIMENSIONS"] = ["time", "y", "c"]
    assert (~np.isnan(decoded(tmp_path))).sum(axis=(0, 1)).tolist() == [8, 8]
    assert reduce(tmp_path, threads=1, missing="fill")["v"].sums.count.tolist() == [8, 8]


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8"])
def test_values_in_the_other_byte_order_count_as_xarray_decodes_them(tmp_path: Path, dtype: str) -> None:
    values = WHOLE.astype(dtype)
    values[5, 1] = -5
    said = {"missing_value": 15, "scale_factor": 0.1} | ({"_Unsigned": "true"} if dtype == ">i2" else {})
    store = written(tmp_path / "s", values, {"_FillValue": None}, said, zarr_format=2)
    assert_as_decoded(store, reduce(store, threads=1)["v"])


def stored(path: Path, values: Array, **attributes: Any) -> Path:
    """A store with one layer `v` that zarr wrote."""
    zarr.open_group(path, mode="w").create_array("v", data=values, chunks=(2, *values.shape[1:]), attributes=attributes)
    return path


VALID: dict[str, tuple[dict[str, Any], Any]] = {
    "valid_min": ({"valid_min": -2}, lambda x: x >= -2),
    "valid_max": ({"valid_max": 3}, lambda x: x <= 3),
    "valid_range": ({"valid_range": [-2, 3]}, lambda x: (x >= -2) & (x <= 3)),
    "all": (
        {"valid_min": [-3], "valid_range": [-5, 3], "missing_value": [1, 2]},
        lambda x: (x >= -3) & (x <= 3) & (x != 1) & (x != 2),
    ),
    "beyond the dtype": ({"valid_range": [-1e6, 1e6]}, lambda x: x == x),
}


@pytest.mark.parametrize("dtype", ["i1", "i8", "f2", "f4"])
@pytest.mark.parametrize(("attributes", "counts"), VALID.values(), ids=VALID)
def test_values_outside_the_valid_range_do_not_count_in_stored_units(
    tmp_path: Path, attributes: dict[str, Any], counts: Any, dtype: str
) -> None:
    values = np.random.default_rng(1).integers(-6, 7, (9, 5, 3)).astype(dtype)
    found = reduce(stored(tmp_path, values, scale_factor=2.0, **whole(attributes, dtype)), threads=1)["v"]
    assert found.sums.count.tolist() == counts(values).sum(axis=(0, 1)).tolist()
    for channel in range(3):
        chosen = [Fraction(value.item()) for value in values[..., channel][counts(values[..., channel])]]
        assert found.mean[channel] == float(2 * sum(chosen) / len(chosen))
        assert (found.minimum[channel], found.maximum[channel]) == (2 * min(chosen), 2 * max(chosen))


def whole(attributes: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Limits of packed integers are integers."""
    return (
        {"valid_range": [-(10**6), 10**6]}
        if dtype[0] == "i" and "valid_range" in attributes and attributes["valid_range"][0] == -1e6
        else attributes
    )


@pytest.mark.parametrize("attributes", [{"valid_range": [-2, -5]}, {"valid_range": [0, 250]}])
def test_limits_of_unsigned_values_may_be_written_as_the_signed_ones(
    tmp_path: Path, attributes: dict[str, Any]
) -> None:
    values = np.arange(-128, 128, dtype=np.int8).reshape(64, 2, 2)
    low, high = (limit % 256 for limit in attributes["valid_range"])
    found = reduce(stored(tmp_path, values, _Unsigned="true", **attributes), threads=1)["v"]
    seen = values.view(np.uint8)
    assert found.sums.count.tolist() == ((seen >= low) & (seen <= high)).sum(axis=(0, 1)).tolist()


@pytest.mark.parametrize("compressors", [None, "auto"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_and_not_missing_is_still_an_error(tmp_path: Path, bad: float, compressors: Any) -> None:
    values = np.ones((6, 3, 2), np.float32)
    values[1, 1, 0], values[4, 2, 1] = -9, bad
    group = zarr.open_group(tmp_path, mode="w")
    array = group.create_array("v", shape=values.shape, dtype="f4", chunks=(2, 3, 2), compressors=compressors)
    array[...] = values
    array.attrs["_FillValue"] = standard_b64encode(pack("<d", -9.0)).decode()
    with pytest.raises(NonFiniteError, match=r"layer v, channel 1, rows 4:5: 1 values are NaN or infinite"):
        reduce(tmp_path, threads=1)
    found = reduce(tmp_path, threads=1, nonfinite="skip")["v"]
    assert (found.sums.count.tolist(), found.sums.nonfinite.tolist()) == ([17, 17], [1, 1])


def test_an_infinity_is_an_error_where_nan_are_missing_values(tmp_path: Path) -> None:
    values = np.ones((6, 3, 2), np.float32)
    values[1, 1, 0], values[4, 2, 1] = np.nan, np.inf
    with pytest.raises(NonFiniteError, match=r"channel 1, rows 4:5: 1 values"):
        reduce(stored(tmp_path, values, missing_value=float("nan")), threads=1)
    values[4, 2, 1] = np.nan
    assert reduce(stored(tmp_path, values, missing_value="NaN"), threads=1)["v"].sums.nan.tolist() == [1, 1]


def test_integers_with_missing_values_that_no_float_holds_are_an_error_that_says_so(tmp_path: Path) -> None:
    values = np.full((4, 2), 2**53 + 1)
    with pytest.raises(DataError, match=r"layer v, rows 0:4: it holds 9007199254740993.*`attributes: ignore`"):
        reduce(stored(tmp_path, values, _FillValue=-1), threads=1)
    found = reduce(tmp_path, layers=[LayerRule("v", attributes="ignore")], threads=1)["v"]
    assert found.sums.total.units() == [4 * (2**53 + 1)] * 2


MALFORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (r"`scale_factor` is '0\.01'; expected a finite number; repair", {"scale_factor": "0.01"}),
    "several": (r"`scale_factor` is \[1, 2\]; expected a finite number", {"scale_factor": [1, 2]}),
    "zero": (r"`scale_factor` is 0\.0; expected a number above 0", {"scale_factor": 0.0}),
    "negative": (r"`scale_factor` is -1\.0; expected a number above 0", {"scale_factor": -1}),
    "an object": (r"`add_offset` is \{'a': 1\}; expected a finite number", {"add_offset": {"a": 1}}),
    "a huge number": (r"`add_offset` is 1000.*; expected a number within float64", {"add_offset": 10**400}),
    "a huge missing value": (
        r"`missing_value` is 1000.*; expected a number within float64",
        {"missing_value": 10**400},
    ),
    "text as fill value": (r"`_FillValue` is 'none'; expected a number of int16", {"_FillValue": "none"}),
    "a truth as fill value": (r"`_FillValue` is True; expected a number of int16", {"_FillValue": True}),
    "objects": (r"`missing_value` is None; expected a number of int16", {"missing_value": [1, None]}),
    "one limit": (r"`valid_range` is \[1\]; expected a list of two numbers", {"valid_range": [1]}),
    "no limit": (r"`valid_min` is '-5'; expected a number of int16", {"valid_min": "-5"}),
    "a real limit": (
        r"`valid_max` is 50\.0; expected a stored value, of int16: CF",
        {"scale_factor": 0.1, "valid_max": 50.0},
    ),
    "signedness": (r"`_Unsigned` is 'yes'; expected \"true\" or \"false\"", {"_Unsigned": "yes"}),
}


@pytest.mark.parametrize(("message", "attributes"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_attributes_are_an_error_that_names_array_key_and_value(
    tmp_path: Path, message: str, attributes: dict[str, Any]
) -> None:
    values = np.ones((4, 2), np.int16)
    stored(tmp_path, values, **attributes)
    with pytest.raises(DataError, match=f"^layer v: its attribute {message}.*or set `attributes: ignore`$"):
        select_layers(tmp_path)
    zarr.open_group(tmp_path).create_array("w", data=values)
    selected = select_layers(tmp_path)
    assert [layer.name for layer in selected.layers] == ["w"]
    assert list(selected.unreadable) == ["v"]
    ignoring = select_layers(tmp_path, [LayerRule("*", attributes="ignore")]).layers
    assert [layer.name for layer in ignoring] == ["v", "w"]


def test_a_fill_value_of_floats_that_is_no_base64_is_an_error(tmp_path: Path) -> None:
    stored(tmp_path, np.ones((4, 2), np.float32), _FillValue="AAAA")
    with pytest.raises(DataError, match=r"`_FillValue` is 'AAAA'; expected a number, or a float64 in base64"):
        select_layers(tmp_path)


def said(tmp_path: Path, **attributes: Any) -> list[str]:
    stored(tmp_path, np.ones((4, 2), np.int32), **attributes)
    layer = select_layers(tmp_path).layers[0]
    return [] if layer.attributes is None else layer.attributes.in_words(layer.quantization)


def test_what_changes_no_value_is_passed_on_as_a_note(tmp_path: Path) -> None:
    times = {"units": "days since 2000-01-01", "calendar": "noleap"}
    assert said(tmp_path, **times) == ["times (days since 2000-01-01, calendar 'noleap'), counted as numbers"]
    assert said(tmp_path, units="seconds", dtype="timedelta64[ns]") == ["durations in seconds, counted as numbers"]
    assert said(tmp_path, flag_values=[0, 1]) == ["categories (`flag_values`): their mean says nothing"]
    assert said(tmp_path, units=["K"]) == ["`units` is ['K'], not text"]
    assert said(tmp_path, missing_value=1e20) == ["the missing value 1e+20 cannot occur in int32"]
    assert said(tmp_path, units="K") == []
    assert attributes_of(zarr.open_array(tmp_path / "v")).units == "K"


def test_what_is_applied_and_what_is_ignored_is_said(tmp_path: Path) -> None:
    assert said(tmp_path, scale_factor=0.5, add_offset=3, _FillValue=-1, valid_max=9) == [
        "attributes give real values, stored · 0.5 + 3.0",
        "attributes call stored values missing, so these do not count (-1, above 9)",
    ]
    assert said(tmp_path, scale_factor=0.5) == ["attributes give real values, stored · 0.5"]
    assert said(tmp_path, scale_factor=0.5, add_offset=3, _FillValue=-1, valid_max=9)
    layer = select_layers(tmp_path, [LayerRule("*", attributes="ignore")]).layers[0]
    assert layer.attributes is not None
    assert layer.attributes.in_words(None) == [
        "attributes are ignored (scale_factor, add_offset, _FillValue, valid_max)"
    ]
    assert (layer.quantization, layer.meaning) == (None, None)


def test_an_unknown_use_of_attributes_is_refused() -> None:
    with pytest.raises(UsageError, match="attributes is 'skip'; expected 'apply' or 'ignore'"):
        LayerRule("*", attributes="skip")
