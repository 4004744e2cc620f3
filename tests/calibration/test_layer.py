"""A layer of a store: how it is found and described, in every kind of store."""

from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, samples
from zarr.codecs import Crc32cCodec
from zarr.errors import UnstableSpecificationWarning, ZarrUserWarning

from streamstats.calibration.layer import (
    DEFAULT_PIPELINE,
    FETCHES,
    Layer,
    codec_pipeline,
    decoding,
    describe,
    find_arrays,
    open_store,
)
from streamstats.calibration.reading.reader import open_reader
from streamstats.errors import DataError, MismatchError, UsageError
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


def described(store: Path, name: str = "layer") -> Layer:
    return describe(str(store), name, find_arrays(store)[name])


def read(layer: Layer, *selection: slice) -> Array:
    whole = tuple(slice(0, extent) for extent in layer.shape)
    chosen = (*selection, *whole[len(selection) :])
    with open_reader(layer) as reader:
        return reader.read(chosen).copy()


def wide(value: Any) -> dict[str, Any]:
    return {"layer": value}


# Finding


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["store", "store.zip"])
def test_every_array_below_the_group_is_found_by_its_path_in_order(tmp_path: Path, zarr_format: int, name: str) -> None:
    layers = {
        path: samples(*SHAPE, seed=len(path)) for path in ("stem", "block/b/conv", "block/a", "block/b/add", "a b")
    }
    store = build_store(tmp_path / name, layers, zarr_format=zarr_format)
    assert list(find_arrays(store)) == sorted(layers)
    for path, values in layers.items():
        layer = described(store, path)
        assert (layer.shape, layer.dtype, layer.chunks, layer.shards) == (SHAPE, values.dtype, (2, 3, 4), (2, 3, 4))
        assert (layer.rows, layer.channel_axis, layer.channels, layer.row_bytes) == (7, 2, 4, 48)
        np.testing.assert_array_equal(read(layer), values)


def test_a_url_of_a_folder_is_a_store(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    store = build_store(tmp_path / "store", wide(values)).as_uri()
    layer = describe(store, "layer", find_arrays(store)["layer"])
    assert layer.encoding is None
    np.testing.assert_array_equal(read(layer), values)


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.zarr does not exist; check `source`"):
        find_arrays(tmp_path / "none.zarr")


@pytest.mark.parametrize("name", ["store.zip", "store.txt"])
@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is a file, but not a zip archive; expected a zarr group"):
        find_arrays(tmp_path / name)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_in_place_of_a_group_is_refused(tmp_path: Path, zarr_format: int) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=zarr_format)
    with pytest.raises(UsageError, match=r"layer is a zarr array; .*the group above it"):
        find_arrays(tmp_path / "layer")


def test_a_folder_that_is_no_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a zarr group \(no zarr\.json or \.zgroup in it\)"):
        find_arrays(tmp_path)


@pytest.mark.parametrize("name", ["store", "store.zip"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_without_arrays_is_refused(tmp_path: Path, name: str, zarr_format: int) -> None:
    store = build_store(tmp_path / name, {}, zarr_format=zarr_format)
    with pytest.raises(UsageError, match="is a zarr group without arrays; record activations into it first"):
        find_arrays(store)


@pytest.mark.parametrize("where", ["zarr.json", "layer/zarr.json"])
def test_metadata_that_cannot_be_read_is_damage(tmp_path: Path, where: str) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / where).write_text("{")
    with pytest.raises(DataError, match=f"{tmp_path}"):
        find_arrays(tmp_path)


def test_a_stray_file_is_not_a_layer(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "README.md").write_text("Recorded on a Monday.")
    with pytest.warns(ZarrUserWarning, match=r"README\.md is not recognized"):
        assert list(find_arrays(tmp_path)) == ["layer"]


def test_consolidated_metadata_does_not_hide_what_was_appended(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=2)
    zarr.consolidate_metadata(str(tmp_path), zarr_format=2)
    zarr.open_array(str(tmp_path / "layer"), mode="r+").append(samples(*SHAPE))
    zarr.open_group(str(tmp_path), mode="r+", use_consolidated=False).create_array("new", shape=(2, 2), dtype="int8")
    assert list(find_arrays(tmp_path)) == ["layer", "new"]
    assert described(tmp_path).rows == 14


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
    arrays = find_arrays(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"layer odd: its values are .*; expected one of bool, int8, .*, float64; name the layers",
    ):
        describe(str(tmp_path), "odd", arrays["odd"])


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
    array = find_arrays(build_store(tmp_path, wide(samples(*SHAPE))))["layer"]
    with pytest.raises(UsageError, match="is not usable: expected parts joined by single '/'"):
        describe(str(tmp_path), name, array)


def test_a_folder_with_a_newline_in_its_name_is_refused(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "layer").rename(tmp_path / "two\nlines")
    with pytest.raises(UsageError, match=r"layer name 'two\\nlines' is not usable"):
        described(tmp_path, "two\nlines")


def test_chunks_are_what_is_decoded_and_shards_what_is_stored(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE)), chunks=(1, 3, 2), shards=(4, 3, 4)))
    assert (layer.chunks, layer.shards) == ((1, 3, 2), (4, 3, 4))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_of_a_chunk_that_is_not_encoded_a_row_is_read_at_once_but_not_in_an_archive(
    tmp_path: Path, zarr_format: int
) -> None:
    options: dict[str, Any] = {"chunks": (4, 3, 2), "compressors": None, "zarr_format": zarr_format}
    layer = described(build_store(tmp_path / "store", wide(samples(*SHAPE)), **options))
    zipped = described(build_store(tmp_path / "store.zip", wide(samples(*SHAPE)), **options))
    assert (layer.chunks, layer.shards) == ((1, 3, 2), (4, 3, 2))
    assert (zipped.chunks, zipped.shards) == ((4, 3, 2), (4, 3, 2))
    assert layer.fingerprint == zipped.fingerprint


@pytest.mark.parametrize(("axis", "expected"), [(1, 1), (2, 2), (-1, 2), (-2, 1)])
def test_the_channel_axis_counts_from_either_end(tmp_path: Path, axis: int, expected: int) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE)))).with_channel_axis(axis)
    assert (layer.channel_axis, layer.channels) == (expected, SHAPE[expected])


@pytest.mark.parametrize("axis", [0, 3, -3, -4, 100])
def test_a_channel_axis_that_is_not_there_is_refused(tmp_path: Path, axis: int) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE))))
    with pytest.raises(
        UsageError, match=rf"layer layer: channel_axis is {axis}, .*\(7, 3, 4\).* from 1 to 2, or from -2 to -1"
    ):
        layer.with_channel_axis(axis)


def test_a_quantisation_needs_integer_codes(tmp_path: Path) -> None:
    store = build_store(tmp_path, {"codes": samples(*SHAPE, dtype="int8"), "reals": samples(*SHAPE)})
    quantization = Quantization(0.5, 3)
    assert described(store, "codes").with_quantization(quantization).quantization == quantization
    assert described(store, "codes").with_quantization(quantization).with_quantization(None).quantization is None
    with pytest.raises(UsageError, match="layer reals: a quantisation is given, but its values are float32"):
        described(store, "reals").with_quantization(quantization)


def test_a_quantisation_for_other_channels_is_refused(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE, dtype="int8"))))
    assert layer.with_quantization(Quantization([1.0, 2.0, 3.0, 4.0])).quantization is not None
    with pytest.raises(MismatchError, match="layer layer: the quantisation has 3 channels, the layer has 4"):
        layer.with_quantization(Quantization([1.0, 2.0, 3.0]))


def test_a_layer_travels_to_other_processes(tmp_path: Path) -> None:
    layer = described(build_store(tmp_path, wide(samples(*SHAPE, dtype="int8")))).with_quantization(Quantization(0.5))
    assert layer.encoding is not None
    assert pickle.loads(pickle.dumps(layer)) == layer


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
    "quantization: text": ({"quantization": "int8"}, "quantization is 'int8'; expected step and zero_point"),
    "quantization: empty": ({"quantization": {}}, "quantization is {}; expected step and zero_point"),
    "quantization: false": ({"quantization": False}, "quantization is False; expected step and zero_point"),
    "quantization: no zero point": ({"quantization": {"step": 1.0}}, "expected step and zero_point"),
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


def test_reading_in_many_threads_leaves_the_configuration_of_zarr_as_it_was(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    layers = [described(build_store(tmp_path / name, wide(values))) for name in ("store", "store.zip")]
    before = zarr.config.get("codec_pipeline.path")
    with ThreadPoolExecutor(8) as threads:
        for block in threads.map(read, layers * 40):
            np.testing.assert_array_equal(block, values)
    assert zarr.config.get("codec_pipeline.path") == before


def test_the_pipeline_of_the_user_is_left_and_put_back_after_an_error() -> None:
    with zarr.config.set({"codec_pipeline.path": "of.the.user"}):
        with pytest.raises(KeyError), codec_pipeline(DEFAULT_PIPELINE):
            raise KeyError
        assert zarr.config.get("codec_pipeline.path") == "of.the.user"


def test_decoding_has_as_many_threads_as_asked_for_and_then_those_of_the_user_again() -> None:
    keys = ("threading.max_workers", "async.concurrency")
    before = [zarr.config.get(key) for key in keys]
    with decoding(3):
        assert [zarr.config.get(key) for key in keys] == [3, FETCHES]
    assert [zarr.config.get(key) for key in keys] == before


def test_stores_are_opened_for_reading_only(tmp_path: Path) -> None:
    for name in ("store", "store.zip"):
        store = open_store(build_store(tmp_path / name, wide(samples(*SHAPE))))
        assert not isinstance(store, str)
        assert store.read_only
    assert open_store("https://host/store") == "https://host/store"
