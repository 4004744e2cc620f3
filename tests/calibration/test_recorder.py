"""The recorder: appending in any pieces is appending once, in bounded memory, and no row counts before it is there."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Array, build_store, described, files_of, samples
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.errors import ZarrUserWarning
from zarr.registry import register_pipeline

from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.recorder import Recorder, stored_layer
from streamstats.calibration.selection import select_layers
from streamstats.errors import DataError, MismatchError, OutputError, UsageError
from streamstats.jobs.meter import Meter
from streamstats.quantization import Quantization
from streamstats.storage.names import METADATA_NAMES, check_recorded_name, safe_name

SHAPE = (3, 4)
ROW_BYTES = 48
CHUNK_ROWS = 4
CHUNK_BYTES = CHUNK_ROWS * ROW_BYTES


def rows(count: int, seed: int = 0) -> Array:
    return samples(count, *SHAPE, seed=seed)


def record(store: Path, *blocks: Array, **options: Any) -> None:
    record_all(store, blocks, **options)


def record_all(store: Path, blocks: Iterable[Array], *, name: str = "layer", **options: Any) -> None:
    with Recorder(store, chunk_bytes=CHUNK_BYTES) as recorder:
        for block in blocks:
            recorder.append(name, block, **options)


def committed(store: Path, name: str = "layer") -> int:
    """The attribute `rows`, from the file."""
    return int(json.loads((store / name / "zarr.json").read_text())["attributes"]["streamstats"]["rows"])


def read(store: Path, name: str = "layer") -> Array:
    """What a reader counts: the committed rows."""
    layer = described(store, name)
    selection = tuple(slice(0, extent) for extent in layer.shape)
    with open_reader(layer) as reader:
        return reader.read(selection).copy()


def chunk(store: Path, index: int, name: str = "layer") -> Path:
    return store.joinpath(name, "c", str(index), *("0" for _ in SHAPE))


# Appending


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [3, 8], [4, 4, 3], [5, 1, 5], [0, 7, 0, 4], [2, 9]], ids=str)
def test_unequal_appends_leave_the_same_files_as_one(tmp_path: Path, sizes: list[int]) -> None:
    values = rows(11)
    record(tmp_path / "once", values)
    record(tmp_path / "often", *np.split(values, np.cumsum(sizes)[:-1]))
    assert files_of(tmp_path / "often") == files_of(tmp_path / "once")
    np.testing.assert_array_equal(read(tmp_path / "often"), values)


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4))
def test_reopening_goes_on_where_the_store_ends(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[int]]
) -> None:
    store = tmp_path_factory.mktemp("store")
    values = rows(sum(map(sum, sessions), 0))
    start = 0
    record(store, values[:0])
    for sizes in sessions:
        blocks = []
        for size in sizes:
            blocks.append(values[start : start + size])
            start += size
        record(store, *blocks)
        assert committed(store) == start
    np.testing.assert_array_equal(read(store), values)


def test_layers_are_kept_apart(tmp_path: Path) -> None:
    first, second = samples(9, 3, 4), samples(5, 6, dtype="int8")
    with Recorder(tmp_path) as recorder:
        for start in range(0, 9, 2):
            recorder.append("block/a", first[start : start + 2], channel_axis=1)
            recorder.append("block/b", second[start : start + 2], quantization=Quantization(0.5, 3))
    a, b = select_layers(tmp_path).layers
    assert (a.name, a.shape, a.channel_axis, a.quantization) == ("block/a", (9, 3, 4), 1, None)
    assert (b.name, b.shape, b.channel_axis, b.quantization) == ("block/b", (5, 6), 1, Quantization(0.5, 3))
    np.testing.assert_array_equal(read(tmp_path, "block/a"), first)
    np.testing.assert_array_equal(read(tmp_path, "block/b"), second)


def test_a_recorder_notes_the_model_and_refuses_the_samples_of_another(tmp_path: Path) -> None:
    mine, other = "torch:" + "01" * 32, "onnx:" + "ab" * 32
    x = samples(2, 3)
    for fingerprint in (mine, mine, ""):  # one that is unknown fits any
        with Recorder(tmp_path / "s", model_fingerprint=fingerprint) as recorder:
            recorder.append("layer", x)
    assert (described(tmp_path / "s").model, committed(tmp_path / "s")) == (mine, 6)
    said = "layer: the fingerprint of the recorded model is onnx:abababababab…; the store holds torch:010101010101…"
    with Recorder(tmp_path / "s", model_fingerprint=other) as recorder, pytest.raises(MismatchError, match=said):
        recorder.append("layer", x)


def test_a_recorder_notes_the_weights_of_layers_and_refuses_the_samples_of_layers_with_others(tmp_path: Path) -> None:
    mine, other, x = "torch:" + "01" * 32, "torch:" + "ab" * 32, samples(2, 3)
    known = {"layer": mine, "another": other}
    for fingerprints in (known, known, None):  # one that is unknown fits any
        with Recorder(tmp_path / "s", weight_fingerprints=fingerprints) as recorder:
            recorder.append("layer", x)
    assert (described(tmp_path / "s").weights, committed(tmp_path / "s")) == ((("layer", mine),), 6)
    said = "layer: the fingerprint of its weight is torch:abababababab…; the store holds torch:010101010101…"
    recorder = Recorder(tmp_path / "s", weight_fingerprints={"layer": other})
    with recorder, pytest.raises(MismatchError, match=said):
        recorder.append("layer", x)
    with pytest.raises(UsageError, match="the weight fingerprint of layer conv is 'w'; expected a kind, a colon and"):
        Recorder(tmp_path / "s", weight_fingerprints={"conv": "w"})


@pytest.mark.parametrize("given", ["resnet50", "torch:01", "01" * 32, "torch:" + "XY" * 32])
@pytest.mark.parametrize("kind", ["recorder", "meter"])
def test_what_is_no_fingerprint_of_a_model_is_refused(kind: str, given: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"model_fingerprint is '{given}'; expected a kind, a colon and a SHA-256"):
        Meter(model_fingerprint=given) if kind == "meter" else Recorder(tmp_path / "s", model_fingerprint=given)
    assert not (tmp_path / "s").exists()


def test_a_quantisation_per_channel_is_kept_to_the_bit(tmp_path: Path) -> None:
    quantization = Quantization([0.1, 1 / 3, 5e-324, 1e300], [-128, 0, 1, 2**53])
    record(tmp_path, samples(2, *SHAPE, dtype="int8"), quantization=quantization)
    assert select_layers(tmp_path).layers[0].quantization == quantization


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
def test_every_dtype_is_kept(tmp_path: Path, dtype: str) -> None:
    values = samples(7, *SHAPE, dtype=dtype)
    record(tmp_path, values)
    assert read(tmp_path).dtype == dtype
    np.testing.assert_array_equal(read(tmp_path), values)


def reversed_rows(values: Array) -> Array:
    return np.ascontiguousarray(values[::-1])[::-1]


def frozen(values: Array) -> Array:
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        reversed_rows,
        frozen,
        lambda values: np.repeat(values, 2, axis=2)[:, :, ::2],
        lambda values: values.astype(">f4"),
    ],
    ids=["Fortran", "reversed", "read-only", "strided", "big-endian"],
)
def test_samples_in_any_memory_layout_and_byte_order_are_the_same_samples(tmp_path: Path, layout: Any) -> None:
    values = rows(11)
    record(tmp_path / "plain", values)
    record(tmp_path / "other", layout(values[:3]), layout(values[3:]))
    assert files_of(tmp_path / "other") == files_of(tmp_path / "plain")


def test_both_byte_orders_can_be_mixed(tmp_path: Path) -> None:
    values = rows(9)
    record(tmp_path, values[:2], values[2:6].astype(">f4"), values[6:])
    np.testing.assert_array_equal(read(tmp_path), values)


def test_samples_can_be_changed_after_they_are_appended(tmp_path: Path) -> None:
    values, buffer = rows(10), np.empty((2, *SHAPE), np.float32)
    with Recorder(tmp_path, chunk_bytes=CHUNK_BYTES) as recorder:
        for start in range(0, 10, 2):
            buffer[...] = values[start : start + 2]
            recorder.append("layer", buffer)
            buffer[...] = -1
    np.testing.assert_array_equal(read(tmp_path), values)


@pytest.mark.parametrize("shape", [(5, 0), (5, 3, 0), (5, 0, 3), (0, 4)])
def test_samples_without_elements_are_counted(tmp_path: Path, shape: tuple[int, ...]) -> None:
    record(tmp_path, np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    assert select_layers(tmp_path).layers[0].shape == (2 * shape[0], *shape[1:])


def test_no_rows_make_an_empty_layer(tmp_path: Path) -> None:
    record(tmp_path, rows(0))
    assert select_layers(tmp_path).layers[0].shape == (0, *SHAPE)
    assert committed(tmp_path) == 0


def test_closing_twice_and_closing_nothing_change_nothing(tmp_path: Path) -> None:
    Recorder(tmp_path).close()
    recorder = Recorder(tmp_path)
    recorder.append("layer", rows(3))
    recorder.close()
    before = files_of(tmp_path)
    recorder.close()
    with pytest.raises(UsageError, match=r"cannot append to layer layer of .*: the recorder is closed; open"):
        recorder.append("layer", rows(3))
    assert files_of(tmp_path) == before


def test_an_array_of_others_that_was_appended_to_may_still_leave_out_fill_values(tmp_path: Path) -> None:
    build_store(tmp_path, {"layer": np.concatenate([rows(4), 0 * rows(2)])})  # zarr does not write the last chunk
    record(tmp_path, rows(2, seed=1))
    layer = stored_layer(tmp_path, "layer")
    assert layer is not None
    assert not layer.recorded
    with open_reader(layer, fill=True) as reader:
        found = reader.read(tuple(slice(0, extent) for extent in layer.shape))
        np.testing.assert_array_equal(found, np.concatenate([rows(4), 0 * rows(2), rows(2, seed=1)]))


def test_rows_that_wait_are_written_even_if_the_caller_fails(tmp_path: Path) -> None:
    def blocks_that_end_early() -> Iterator[Array]:
        yield rows(3)
        raise KeyError

    with pytest.raises(KeyError):
        record_all(tmp_path, blocks_that_end_early())
    np.testing.assert_array_equal(read(tmp_path), rows(3))


def test_a_layer_that_cannot_be_written_on_closing_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    def fail() -> None:
        for name in ("a", "bad", "worse", "z"):
            recorder.append(name, rows(3))
        for name in ("bad", "worse"):
            chunk(tmp_path, 0, name).mkdir(parents=True)
        raise KeyError

    with pytest.raises(OutputError, match="cannot write rows 0:3 of layer bad"), Recorder(tmp_path) as recorder:
        fail()
    for name in ("a", "z"):
        np.testing.assert_array_equal(read(tmp_path, name), rows(3))
    assert (committed(tmp_path, "bad"), committed(tmp_path, "worse")) == (0, 0)
    for name in ("bad", "worse"):
        chunk(tmp_path, 0, name).rmdir()
    recorder.close()
    for name in ("bad", "worse"):
        np.testing.assert_array_equal(read(tmp_path, name), rows(3))


# Chunks and memory


def test_chunks_hold_whole_samples_of_about_the_bytes_asked_for(tmp_path: Path) -> None:
    record(tmp_path, rows(11))
    layer = select_layers(tmp_path).layers[0]
    assert layer.chunks == (CHUNK_ROWS, *SHAPE)
    record(tmp_path / "large", samples(2, 100, 100))
    assert select_layers(tmp_path / "large").layers[0].chunks == (1, 100, 100)


def test_rows_are_written_at_the_borders_of_chunks_and_the_rest_on_closing(tmp_path: Path) -> None:
    seen = []
    with Recorder(tmp_path, chunk_bytes=CHUNK_BYTES) as recorder:
        for size in (3, 1, 2, 9, 1, 4):
            recorder.append("layer", rows(size))
            seen.append(committed(tmp_path))
    assert seen == [0, 4, 4, 12, 16, 20]
    record(tmp_path, rows(3))
    with Recorder(tmp_path, chunk_bytes=CHUNK_BYTES) as recorder:
        recorder.append("layer", rows(2))
        assert committed(tmp_path) == 24
    assert committed(tmp_path) == 25


def test_at_most_a_chunk_of_a_layer_waits_in_memory(tmp_path: Path) -> None:
    with Recorder(tmp_path, chunk_bytes=2**16) as recorder:
        tracemalloc.start()
        for size in (6400, 10, 3, 6400, 1):
            block = np.ones((size, 2**8), np.float32)
            recorder.append("layer", block)
            del block
            recorder.append("other", np.ones((1, 1), np.int8))  # zarr lets go of the last block of the other layer
        recorder.append("other", np.ones((2**17, 1), np.int8))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 2**21 < 6400 * 2**10


def test_chunks_of_zeros_are_written_so_that_an_absent_chunk_is_a_lost_one(tmp_path: Path) -> None:
    for _ in range(2):
        record(tmp_path, np.zeros((8, *SHAPE), np.float32))
    assert all(chunk(tmp_path, index).is_file() for index in range(4))


class PipelineOfTheUser(BatchedCodecPipeline):
    """It cannot write."""

    async def write(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def test_zarr_writes_whatever_pipeline_the_user_has_set(tmp_path: Path) -> None:
    register_pipeline(PipelineOfTheUser)
    name = f"{PipelineOfTheUser.__module__}.{PipelineOfTheUser.__qualname__}"
    values = np.concatenate([np.zeros((6, *SHAPE), np.float32), rows(5)])
    record(tmp_path / "plain", values[:3], values[3:])
    with zarr.config.set({"codec_pipeline.path": name, "array.write_empty_chunks": False}):
        record(tmp_path / "other", values[:3], values[3:])
        assert zarr.config.get("codec_pipeline.path") == name
    assert files_of(tmp_path / "other") == files_of(tmp_path / "plain")


def test_recording_and_reading_in_many_threads_leave_the_configuration_of_zarr_as_it_was(tmp_path: Path) -> None:
    record(tmp_path / "read", rows(4))
    keys = ("codec_pipeline.path", "array.write_empty_chunks")
    before = [zarr.config.get(key) for key in keys]
    with ThreadPoolExecutor(8) as threads:
        recorded = [threads.submit(record, tmp_path / str(index), rows(6)) for index in range(8)]
        found = [threads.submit(read, tmp_path / "read") for _ in range(60)]
        assert [each.result() for each in recorded] == [None] * 8
        assert all((each.result() == rows(4)).all() for each in found)
    assert [zarr.config.get(key) for key in keys] == before


# Damage and commitment


def test_chunks_carry_a_checksum(tmp_path: Path) -> None:
    record(tmp_path, rows(4))
    assert [codec["name"] for codec in json.loads((tmp_path / "layer/zarr.json").read_text())["codecs"]] == [
        "bytes",
        "blosc",
        "crc32c",
    ]


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_flipped_bit_in_a_chunk_is_noticed_on_reading(tmp_path: Path, place: int) -> None:
    record(tmp_path, rows(11))
    flip(chunk(tmp_path, 1), place)
    with pytest.raises(DataError, match=r"layer layer: chunk c/1/0/0 \(rows 4:8\) cannot be read: the checksum"):
        read(tmp_path)


def test_a_damaged_chunk_is_not_written_over_as_if_it_were_well(tmp_path: Path) -> None:
    record(tmp_path, rows(6))
    flip(chunk(tmp_path, 1), 20)
    with pytest.raises(OutputError, match="cannot write rows 6:7 of layer layer"):
        record(tmp_path, rows(1))
    assert committed(tmp_path) == 6


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_rows_count_only_when_their_data_is_written(tmp_path: Path) -> None:
    record(tmp_path, rows(8))
    chunk(tmp_path, 3).mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write rows 8:16 of layer layer"):
        record(tmp_path, rows(8, seed=1))
    assert committed(tmp_path) == 8
    np.testing.assert_array_equal(read(tmp_path), rows(8))


def test_an_append_that_failed_can_be_repeated(tmp_path: Path) -> None:
    values = rows(13)
    with Recorder(tmp_path, chunk_bytes=CHUNK_BYTES) as recorder:
        recorder.append("layer", values[:6])
        chunk(tmp_path, 2).mkdir(parents=True)
        with pytest.raises(OutputError):
            recorder.append("layer", values[6:])
        assert committed(tmp_path) == 4
        chunk(tmp_path, 2).rmdir()
        recorder.append("layer", values[6:])
    np.testing.assert_array_equal(read(tmp_path), values)


def test_an_interrupted_recording_goes_on_after_the_rows_that_were_committed(tmp_path: Path) -> None:
    record(tmp_path, rows(6))
    array = zarr.open_array(tmp_path / "layer", mode="r+")
    array.resize((20, *SHAPE))
    array[6:20] = -1
    np.testing.assert_array_equal(read(tmp_path), rows(6))
    record(tmp_path, rows(3, seed=1))
    np.testing.assert_array_equal(read(tmp_path), np.concatenate([rows(6), rows(3, seed=1)]))


# Refusals


def test_what_does_not_fit_is_refused_with_both_sides(tmp_path: Path) -> None:
    codes = samples(3, *SHAPE, dtype="int8")
    record(tmp_path, codes, channel_axis=1, quantization=Quantization(0.5, 3))
    fitting: dict[str, Any] = {"channel_axis": 1, "quantization": Quantization(0.5, 3)}
    attempts: list[tuple[Array, dict[str, Any], Sequence[str]]] = [
        (samples(3, 3, 5, dtype="int8"), {}, ("the sample shape is (3, 5); the store holds (3, 4)",)),
        (samples(3, 3, dtype="int8"), {}, ("the sample shape is (3,); the store holds (3, 4)",)),
        (codes.astype("uint8"), {}, ("the dtype is uint8; the store holds int8",)),
        (codes, {"channel_axis": 2}, ("the channel axis is 2; the store holds 1",)),
        (codes, {"quantization": None}, ("the quantisation is none; the store holds step 0.5, zero point 3;",)),
        (codes, {"quantization": Quantization(0.25, 3)}, ("0.25", "the store holds", "0.5")),
    ]
    before = files_of(tmp_path)
    for open_before in (False, True):
        with Recorder(tmp_path, chunk_bytes=CHUNK_BYTES) as recorder:
            if open_before:
                recorder.append("layer", codes[:0], **fitting)
            for block, options, expected in attempts:
                with pytest.raises(MismatchError, match="layer layer: ") as caught:
                    recorder.append("layer", block, **(fitting | options))
                assert all(text in str(caught.value) for text in expected)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("reopened", [False, True])
def test_a_layer_that_reads_another_array_is_refused_either_way_round(tmp_path: Path, reopened: bool) -> None:
    both = {"block/conv": None, "block/skip": None}
    appends: dict[str, Any] = {"block/conv": {"layers": both}, "block/skip": {}}
    for first, other in (("block/conv", "block/skip"), ("block/skip", "block/conv")):
        store = tmp_path / other
        recorder = Recorder(store)
        recorder.append(first, rows(2), **appends[first])
        if reopened:
            recorder.close()
            recorder = Recorder(store)
        with recorder, pytest.raises(UsageError, match=f"layer block/skip reads the array {first} of .*{store.name}"):
            recorder.append(other, rows(2), **appends[other])
        assert [layer.name for layer in select_layers(store).layers] == [first]


@pytest.mark.parametrize("axis", [0, 3, -3, 5, -10])
def test_a_channel_axis_that_is_not_there_is_refused_at_every_append(tmp_path: Path, axis: int) -> None:
    with Recorder(tmp_path) as recorder:
        for _ in range(2):
            with pytest.raises(UsageError, match=f"channel_axis is {axis}, .* expected an axis from 1 to 2"):
                recorder.append("layer", rows(2), channel_axis=axis)
            recorder.append("layer", rows(2), channel_axis=2)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (np.ones(3), r"the array has the shape \(3,\)"),
        (np.float64(3), r"the array has the shape \(\)"),
        (np.ones((3, 4), complex), "its values are complex128"),
        (np.ones((3, 4), "datetime64[s]"), r"its values are datetime64\[s\]"),
        (np.full((3, 4), "a"), "its values are <U1"),
        (np.full((3, 4), None), "its values are object"),
        (np.ones((3, 4), np.longdouble), "its values are float128"),
    ],
)
def test_samples_that_cannot_be_a_layer_are_refused_and_leave_nothing(
    tmp_path: Path, block: Any, expected: str
) -> None:
    with pytest.raises(UsageError, match=f"layer layer: {expected}.*; convert or reshape the samples"):
        record(tmp_path, block)
    assert list(files_of(tmp_path)) == [Path("zarr.json")]


def test_a_quantisation_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="the quantisation has 2 channels, the layer has 4"):
        record(tmp_path, samples(3, *SHAPE, dtype="int8"), quantization=Quantization([1.0, 2.0]))
    with pytest.raises(UsageError, match="a quantisation is given, but its values are float32"):
        record(tmp_path, rows(3), quantization=Quantization(1.0))
    assert list(files_of(tmp_path)) == [Path("zarr.json")]


@pytest.mark.parametrize("name", ["../up", "a/../b", "/root", "a//b", "a/", "", ".", "two\nlines", "nul\0"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not usable: expected parts joined by single '/'"):
        record(tmp_path / "store", rows(3), name=name)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["zarr.json", "a/zarr.json", ".zgroup/a", "a/.zarray/b", ".zattrs", ".zmetadata"])
def test_a_name_that_zarr_uses_for_its_files_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not usable: zarr uses it for its own files"):
        record(tmp_path, rows(3), name=name)
    assert list(files_of(tmp_path)) == [Path("zarr.json")]


@pytest.mark.parametrize("name", [".parts/a/b", ".recorder.lock", ".keys", ".keys/a", "a/.b", "..."])
def test_a_name_of_what_a_store_holds_besides_its_layers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"names that begin with '\.' are reserved"):
        record(tmp_path, rows(3), name=name)
    assert list(files_of(tmp_path)) == [Path("zarr.json")]
    assert check_recorded_name(safe_name(name)) != name


def test_a_layer_is_not_below_a_layer_nor_a_group_of_them(tmp_path: Path) -> None:
    record(tmp_path, rows(3), name="a/b")
    with pytest.raises(UsageError, match="a/b is a layer, so a/b/c/d cannot be"):
        record(tmp_path, rows(3), name="a/b/c/d")
    with pytest.raises(UsageError, match="a is a group of layers; rename the layer"):
        record(tmp_path, rows(3), name="a")


# Stores


def test_what_a_store_has_of_a_layer_is_what_was_appended(tmp_path: Path) -> None:
    assert stored_layer(tmp_path / "nowhere", "layer") is None
    assert stored_layer(tmp_path, "layer") is None
    record(tmp_path, rows(5))
    assert stored_layer(tmp_path, "layer") == select_layers(tmp_path).layers[0]
    assert stored_layer(tmp_path, "other") is None


def test_consolidated_metadata_does_not_hide_a_layer_of_the_store(tmp_path: Path) -> None:
    record(tmp_path, rows(5))
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(tmp_path))
    record(tmp_path, rows(2), name="block/new")
    layer = stored_layer(tmp_path, "block/new")
    assert layer is not None
    assert layer.rows == 2
    with pytest.raises(UsageError, match="block is a group of layers"):
        stored_layer(tmp_path, "block")
    with pytest.raises(UsageError, match="block/new is a layer, so block/new/deep cannot be"):
        stored_layer(tmp_path, "block/new/deep")


def test_a_layer_whose_metadata_cannot_be_read_is_damage(tmp_path: Path) -> None:
    record(tmp_path, rows(5))
    (tmp_path / "layer" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="cannot read the metadata of layer: "):
        stored_layer(tmp_path, "layer")
    with pytest.raises(DataError, match="cannot read the metadata of layer: "):
        record(tmp_path, rows(1))


def test_a_place_that_is_no_group_has_no_layers(tmp_path: Path) -> None:
    record(tmp_path, rows(3))
    with pytest.raises(UsageError, match="layer is not a zarr group to record into: "):
        stored_layer(tmp_path / "layer", "deep")
    build_store(tmp_path / "old", {"layer": rows(5)}, zarr_format=2)
    with pytest.raises(UsageError, match="is a zarr v2 store, which is read-only here"):
        stored_layer(tmp_path / "old", "layer")


def test_an_array_that_others_made_can_be_appended_to(tmp_path: Path) -> None:
    build_store(tmp_path, {"layer": rows(5)})
    record(tmp_path, rows(3, seed=1))
    np.testing.assert_array_equal(read(tmp_path), np.concatenate([rows(5), rows(3, seed=1)]))
    assert committed(tmp_path) == 8


def test_rows_of_such_an_array_do_not_count_before_they_are_written(tmp_path: Path) -> None:
    build_store(tmp_path, {"layer": rows(4)})
    chunk(tmp_path, 3).mkdir(parents=True)
    with pytest.raises(OutputError):
        record(tmp_path, rows(4, seed=1))
    np.testing.assert_array_equal(read(tmp_path), rows(4))


def test_a_store_with_consolidated_metadata_can_be_appended_to(tmp_path: Path) -> None:
    record(tmp_path, rows(5))
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(tmp_path))
    record(tmp_path, rows(3, seed=1))
    record(tmp_path, rows(2), name="new")
    np.testing.assert_array_equal(read(tmp_path), np.concatenate([rows(5), rows(3, seed=1)]))
    np.testing.assert_array_equal(read(tmp_path, "new"), rows(2))


def test_a_store_of_version_2_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    build_store(tmp_path, {"layer": rows(5)}, zarr_format=2)
    before = files_of(tmp_path)
    for store in (tmp_path, tmp_path / "layer"):
        with pytest.raises(UsageError, match="is a zarr v2 store, which is read-only here; record into another folder"):
            Recorder(store)
    assert files_of(tmp_path) == before


def test_a_place_that_cannot_hold_a_store_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    record(tmp_path / "store", rows(3))
    for place in ("file", "file/below", "store/layer"):
        with pytest.raises(OutputError, match=f"cannot write a calibration store at .*{place}: "):
            Recorder(tmp_path / place)


def test_a_layer_that_cannot_be_created_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "block").write_text("a file")
    with pytest.raises(OutputError, match="cannot open or create layer block/a"):
        record(tmp_path, rows(3), name="block/a")


def test_the_names_that_zarr_uses_are_those_that_it_writes(tmp_path: Path) -> None:
    found = set()
    for zarr_format in (2, 3):
        store = build_store(tmp_path / str(zarr_format), {"layer": rows(2)}, zarr_format=zarr_format)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)  # consolidated metadata is no part of version 3
            zarr.consolidate_metadata(str(store), zarr_format=zarr_format)  # type: ignore[arg-type]
        found |= {path.name for path in files_of(store) if not path.name[0].isdigit()}
    assert found == METADATA_NAMES
