"""Arrays are described as layers, with what their attributes say, or refused by name."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import build_store, described, read, samples
from zarr.codecs import Crc32cCodec
from zarr.errors import UnstableSpecificationWarning

from streamstats.calibration.describing import describe
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import DataError, UsageError
from streamstats.quantization import Quantization

SHAPE = (7, 3, 4)
DTYPES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


def wide(value: Any) -> dict[str, Any]:
    return {"layer": value}


# Describing


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_supported_dtype_is_a_layer_with_its_values(tmp_path: Path, dtype: str) -> None:
    values = samples(*SHAPE, dtype=dtype)
    layer = described(build_store(tmp_path, wide(values)))
    assert layer.dtype == dtype
    np.testing.assert_array_equal(read(layer), values)


REFUSED_VALUES = {
    "complex": "complex64",
    "string": "U5",
    "bytes": "S5",
    "datetime": "datetime64[s]",
    "timedelta": "timedelta64[s]",
    "structured": [("x", "int32")],
    "text": str,
}


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("dtype", REFUSED_VALUES.values(), ids=REFUSED_VALUES)
def test_values_that_are_no_numbers_are_refused_by_name(tmp_path: Path, dtype: Any) -> None:
    zarr.open_group(tmp_path, mode="w").create_array("odd", shape=(4, 3), dtype=dtype, chunks=(2, 3))
    source = source_of(tmp_path)
    array = source.find().arrays["odd"]
    with pytest.raises(
        UsageError,
        match=r"layer odd: its values are .*; expected one of bool, int8, .*, float64; leave it out",
    ):
        describe(source, "odd", array)


def test_the_warning_of_zarr_about_such_values_is_the_one_that_is_ignored_here(tmp_path: Path) -> None:
    with pytest.warns(UnstableSpecificationWarning):
        zarr.open_group(tmp_path, mode="w").create_array("odd", shape=(4, 3), dtype="U5", chunks=(2, 3))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_an_array_without_an_axis_for_channels_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.open_group(tmp_path, mode="w").create_array("odd", shape=shape, dtype="float32", chunks=shape)
    with pytest.raises(
        UsageError, match=r"layer odd: the array has the shape .*; expected samples on axis 0 and at least"
    ):
        described(tmp_path, "odd")


@pytest.mark.parametrize("name", ["../up", "a/../b", "/root", "a//b", "a/", "", ".", "two\nlines", "tab\t", "nul\0"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    source = source_of(build_store(tmp_path, wide(samples(*SHAPE))))
    array = source.find().arrays["layer"]
    with pytest.raises(UsageError, match="is not usable: expected parts joined by single '/'"):
        describe(source, name, array)


def test_a_folder_with_a_newline_in_its_name_is_refused(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "layer").rename(tmp_path / "two\nlines")
    with pytest.raises(UsageError, match=r"layer name 'two\\nlines' is not usable"):
        described(tmp_path, "two\nlines")


def test_chunks_are_what_is_decoded_and_shards_what_is_stored(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE)), chunks=(1, 3, 2), shards=(4, 3, 4)))
    assert (layer.chunks, layer.shards) == ((1, 3, 2), (4, 3, 4))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_of_a_chunk_that_is_not_encoded_a_row_is_read_at_once_also_in_an_archive(
    tmp_path: Path, zarr_format: int
) -> None:
    options: dict[str, Any] = {"chunks": (4, 3, 2), "compressors": None, "zarr_format": zarr_format}
    layer = described(build_store(tmp_path / "store", wide(samples(*SHAPE)), **options))
    zipped = described(build_store(tmp_path / "store.zip", wide(samples(*SHAPE)), **options))
    assert (layer.chunks, layer.shards) == ((1, 3, 2), (4, 3, 2))
    assert (zipped.chunks, zipped.shards) == (layer.chunks, layer.shards)
    assert layer.fingerprint == zipped.fingerprint


# Attributes


def test_attributes_describe_the_layer(tmp_path: Path) -> None:
    attributes = {"rows": 5, "channel_axis": 1, "quantization": {"step": [0.5, 1.0, 2.0], "zero_point": 3}}
    store = build_store(tmp_path, wide(samples(*SHAPE, dtype="int8")), attributes=wide(attributes))
    layer = described(store)
    assert (layer.shape, layer.rows, layer.channel_axis) == ((5, 3, 4), 5, 1)
    assert layer.quantization == Quantization([0.5, 1.0, 2.0], 3)


@pytest.mark.parametrize("attributes", [{}, {"quantization": None}, {"of others": 1}])
def test_attributes_that_say_nothing_change_nothing(tmp_path: Path, attributes: Any) -> None:
    plain = described(build_store(tmp_path / "plain", wide(samples(*SHAPE))))
    layer = described(build_store(tmp_path / "store", wide(samples(*SHAPE)), attributes=wide(attributes)))
    assert (layer.shape, layer.channel_axis, layer.quantization) == (SHAPE, 2, None)
    assert layer.fingerprint == plain.fingerprint


def test_only_committed_rows_are_counted_and_read(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    layer = described(build_store(tmp_path, wide(values), attributes=wide({"rows": 3})))
    np.testing.assert_array_equal(read(layer), values[:3])


BAD_ATTRIBUTES = {
    "text": ("rows", "expected a mapping, found str"),
    "a list": ([1], "expected a mapping, found list"),
    "null": (None, None),
    "rows beyond the array": ({"rows": 8}, "rows is 8, the array has 7"),
    "rows below 0": ({"rows": -1}, "rows is -1, the array has 7"),
    "rows: text": ({"rows": "5"}, "rows is '5', expected an integer"),
    "rows: a fraction": ({"rows": 5.5}, "rows is 5.5, expected an integer"),
    "rows: true": ({"rows": True}, "rows is True, expected an integer"),
    "rows: null": ({"rows": None}, "rows is None, expected an integer"),
    "axis: text": ({"channel_axis": "last"}, "channel_axis is 'last', expected an integer"),
    "axis: not there": ({"channel_axis": 3}, "channel_axis is 3, but the array has the shape"),
    "axis: the samples": ({"channel_axis": 0}, "channel_axis is 0, but the array has the shape"),
    "quantization: text": (
        {"quantization": "int8"},
        "quantization is 'int8'; expected an object with `step` and `zero_point`",
    ),
    "quantization: empty": (
        {"quantization": {}},
        "quantization is {}; expected an object with `step` and `zero_point`",
    ),
    "quantization: false": (
        {"quantization": False},
        "quantization is False; expected an object with `step` and `zero_point`",
    ),
    "quantization: no zero point": ({"quantization": {"step": 1.0}}, "expected an object with `step` and `zero_point`"),
    "quantization: step 0": ({"quantization": {"step": 0, "zero_point": 0}}, "step is 0.0; expected a positive"),
    "quantization: text as step": ({"quantization": {"step": "1", "zero_point": 0}}, "step is '1'; expected a number"),
    "quantization: other channels": (
        {"quantization": {"step": [1, 2], "zero_point": 0}},
        "has 2 channels, the layer has 4",
    ),
}


@pytest.mark.parametrize(("attributes", "expected"), BAD_ATTRIBUTES.values(), ids=BAD_ATTRIBUTES)
def test_attributes_that_cannot_be_are_damage(tmp_path: Path, attributes: Any, expected: str | None) -> None:
    store = build_store(tmp_path, wide(samples(*SHAPE, dtype="int8")), attributes=wide(attributes))
    if expected is None:
        assert described(store).shape == SHAPE
        return
    with pytest.raises(DataError) as caught:
        described(store)
    assert str(caught.value).startswith("layer layer: its attributes under 'streamstats' are not usable (")
    assert expected in str(caught.value)


def test_the_fingerprint_knows_the_layout_and_not_the_rows(tmp_path: Path) -> None:
    one = described(build_store(tmp_path / "one", wide(samples(*SHAPE)))).fingerprint
    longer = described(build_store(tmp_path / "longer", wide(samples(20, *SHAPE[1:])))).fingerprint
    chunks = described(build_store(tmp_path / "chunks", wide(samples(*SHAPE)), chunks=(1, 3, 4))).fingerprint
    codecs = described(build_store(tmp_path / "codecs", wide(samples(*SHAPE)), compressors=None)).fingerprint
    assert one == longer
    assert len({one, chunks, codecs}) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in (one, chunks, codecs))


MADE_OF = (
    '{"chunk_grid": {"configuration": {"chunk_shape": [2, 3, 4]}, "name": "regular"}, '
    '"chunk_key_encoding": {"configuration": {"separator": "/"}, "name": "default"}, '
    '"codecs": [{"configuration": {"endian": "little"}, "name": "bytes"}], "data_type": "float32", '
    '"fill_value": 0.0, "node_type": "array", "shape": [null, 3, 4], "storage_transformers": [], "zarr_format": 3}'
)


def test_the_fingerprint_is_the_sha256_of_what_zarr_says_of_the_array(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE)), compressors=None))
    assert layer.fingerprint == sha256(MADE_OF.encode()).hexdigest()


# Opening and reading


def test_a_chunk_that_zarr_cannot_decode_is_damage_that_names_layer_and_rows(tmp_path: Path) -> None:
    store = build_store(tmp_path / "store.zip", wide(samples(*SHAPE)), compressors=[Crc32cCodec()])
    layer = described(store)
    content = bytearray(store.read_bytes())
    content[content.find(samples(*SHAPE)[2:4].tobytes())] ^= 1
    store.write_bytes(content)
    assert read(layer, slice(0, 2)).shape == (2, 3, 4)
    with pytest.raises(
        DataError, match=r"layer layer: chunk c/1/0/0 \(rows 2:4\) cannot be read: .*; repair the store"
    ):
        read(layer, slice(2, 4))
