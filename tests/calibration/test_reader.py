"""Reading straight from the files: zarr's own reader is the arbiter, and damage is never a number."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Array, build_store, samples
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from streamstats.calibration import batches
from streamstats.calibration.layer import Layer, describe, find_arrays
from streamstats.calibration.reader import FileReader, ZarrReader, kept, open_reader
from streamstats.errors import DataError

SHAPE = (7, 6, 8)
DTYPES = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
CHAINS: dict[str, Any] = {
    "raw": [],
    "zstd": [ZstdCodec()],
    "zstd with its own checksum": [ZstdCodec(checksum=True)],
    "gzip": [GzipCodec()],
    "crc32c": [Crc32cCodec()],
    "zstd, crc32c": [ZstdCodec(), Crc32cCodec()],
    **{
        f"blosc {name}, {shuffle}": [BloscCodec(cname=name, shuffle=shuffle, typesize=4)]  # type: ignore[arg-type]
        for name, shuffle in product(("lz4", "zstd", "blosclz"), ("noshuffle", "shuffle", "bitshuffle"))
    },
}
VERSION_2: dict[str, Any] = {
    "raw": None,
    "zstd": numcodecs.Zstd(),
    "blosc": numcodecs.Blosc(),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(),
    "gzip": numcodecs.GZip(),
}
BATCHED = ("zstd", "blosc", "lz4")


def written(path: Path, values: Array, **options: Any) -> Layer:
    """`values` as the array `layer` of a store at `path`, described."""
    build_store(path, {"layer": values}, **options)
    return describe(str(path), "layer", find_arrays(path)["layer"])


def sharding(chunks: tuple[int, ...], codecs: Any = (), *, at: str = "end", checksum: bool = True) -> ShardingCodec:
    index = [BytesCodec(), *([Crc32cCodec()] if checksum else [])]
    return ShardingCodec(
        chunk_shape=chunks,
        codecs=[BytesCodec(), *codecs],
        index_codecs=index,
        index_location=at,  # type: ignore[arg-type]
    )


def block(layer: Layer, selection: tuple[slice, ...] | None = None) -> Array:
    with open_reader(layer) as reader:
        return reader.read(selection or tuple(slice(0, extent) for extent in layer.shape)).copy()


def blocks_everywhere(layer: Layer) -> None:
    """Every range of rows, whole and cut in the middle of chunks along the other axes, is what zarr reads."""
    expected = zarr.open_array(layer.store, path=layer.name, mode="r")[...]
    rows, *others = layer.shape
    parts = [
        tuple(slice(0, extent) for extent in others),
        tuple(slice(extent // 3, extent // 3 + 1) for extent in others),
        tuple(slice(min(1, extent - 1), extent) for extent in others),
    ]
    with open_reader(layer) as reader:
        assert isinstance(reader, FileReader)
        for start, rest in product(range(rows), parts):
            for stop in range(start + 1, rows + 1):
                selection = (slice(start, stop), *rest)
                found = reader.read(selection)
                assert found.dtype == expected.dtype
                assert found.tobytes() == np.ascontiguousarray(expected[selection]).tobytes()


# As zarr reads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", [2, 3])
def test_every_dtype_is_read_as_zarr_reads_it(tmp_path: Path, dtype: str, version: int) -> None:
    blocks_everywhere(written(tmp_path, samples(*SHAPE, dtype=dtype), zarr_format=version))


@pytest.mark.parametrize("codecs", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("chunks", [(2, 6, 8), (3, 4, 3), (1, 6, 8), (16, 6, 8)], ids=str)
def test_every_codec_is_read_as_zarr_reads_it(tmp_path: Path, codecs: Any, chunks: tuple[int, ...]) -> None:
    blocks_everywhere(written(tmp_path, samples(*SHAPE), chunks=chunks, compressors=codecs or None))


@pytest.mark.parametrize("codecs", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("chunks", [(1, 6, 8), (2, 3, 8)], ids=str)
@pytest.mark.parametrize(("at", "checksum"), [("end", True), ("start", True), ("end", False)])
def test_shards_are_read_as_zarr_reads_them(
    tmp_path: Path, codecs: Any, chunks: tuple[int, ...], at: str, checksum: bool
) -> None:
    serializer = sharding(chunks, codecs, at=at, checksum=checksum)
    options = {"chunks": (4, 6, 8), "compressors": None, "serializer": serializer}
    blocks_everywhere(written(tmp_path, samples(*SHAPE), **options))


@pytest.mark.parametrize("codec", VERSION_2.values(), ids=VERSION_2)
@pytest.mark.parametrize("separator", [".", "/"])
def test_version_2_is_read_as_zarr_reads_it(tmp_path: Path, codec: Any, separator: str) -> None:
    keys = {"name": "v2", "separator": separator}
    options = {"zarr_format": 2, "compressors": codec, "chunk_key_encoding": keys}
    blocks_everywhere(written(tmp_path, samples(*SHAPE), **options))


@pytest.mark.parametrize("keys", [{"name": "v2", "separator": "."}, {"name": "default", "separator": "."}])
def test_other_names_of_chunks_are_found(tmp_path: Path, keys: dict[str, str]) -> None:
    blocks_everywhere(written(tmp_path, samples(*SHAPE), chunk_key_encoding=keys))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_grid_with_missing_chunks_is_read_as_zarr_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4)))
    chunks = tuple(data.draw(st.integers(1, extent + 2)) for extent in shape)
    codecs = data.draw(st.sampled_from([*CHAINS.values()]))
    times = data.draw(st.none() | st.integers(1, 3))
    options: dict[str, Any] = {"chunks": chunks, "compressors": codecs or None}
    if times:
        shards = tuple(chunk * times for chunk in chunks)
        options = {"chunks": shards, "compressors": None, "serializer": sharding(chunks, codecs)}
    path = tmp_path_factory.mktemp("store")
    array = zarr.create_group(path).create_array("layer", shape=shape, dtype="f4", fill_value=5, **options)
    for _ in range(2):
        part = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, extent)] * 2)))) for extent in shape)
        array[part] = samples(*shape)[part]
    blocks_everywhere(describe(str(path), "layer", find_arrays(path)["layer"]))


@pytest.mark.parametrize(
    "options",
    [
        {"filters": [TransposeCodec(order=(2, 1, 0))]},
        {"compressors": [GzipCodec(), ZstdCodec()]},
        {"compressors": [Crc32cCodec(), ZstdCodec()]},
        {"serializer": BytesCodec(endian="big")},
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "compressors": numcodecs.BZ2()},
        {"zarr_format": 2, "filters": [numcodecs.Delta("f4")]},
    ],
    ids=["transposed", "two compressors", "checksum inside", "big-endian", "Fortran order", "bz2", "filters"],
)
def test_what_only_zarr_can_read_is_read_by_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    values = samples(*SHAPE)
    layer = written(tmp_path, values, **options)
    assert layer.encoding is None
    np.testing.assert_array_equal(block(layer, (slice(1, 6), slice(0, 6), slice(2, 7))), values[1:6, :, 2:7])


@pytest.mark.parametrize("dtype", [">f4", ">i2"])
def test_the_other_byte_order_and_archives_are_read_by_zarr(tmp_path: Path, dtype: str) -> None:
    values = samples(*SHAPE, dtype=dtype)
    for name, options in (("store", {"zarr_format": 2}), ("store.zip", {})):
        layer = written(tmp_path / name, values, **options)
        with open_reader(layer) as reader:
            assert isinstance(reader, ZarrReader)
        np.testing.assert_array_equal(block(layer), values)


# What is not stored


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    layer = written(tmp_path, values, fill_value=9)
    (tmp_path / "layer/c/1/0/0").unlink()
    values[2:4] = 9
    np.testing.assert_array_equal(block(layer), values)


@pytest.mark.parametrize("chunks", [(2, 6, 8), (1, 3, 8)], ids=str)
def test_a_missing_chunk_of_a_recorded_array_is_damage(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": sharding(chunks)}
    layer = written(tmp_path, samples(*SHAPE), attributes={"layer": {"rows": 7}}, **options)
    assert layer.recorded
    assert block(layer).shape == SHAPE
    (tmp_path / "layer/c/1/0/0").unlink()
    with pytest.raises(
        DataError, match=r"layer layer: chunk c/1/0/0 \(rows 2:4\) was recorded and is missing; restore"
    ):
        block(layer)


# Damage


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def assert_damaged(layer: Layer, said: str = "") -> None:
    """Reading names layer, chunk and rows, though the buffers are full of other values; the rows before are read."""
    kept("block", 10_000)[:] = 77
    kept("chunk", 10_000)[:] = 77
    first = tuple(slice(0, extent) for extent in (2, *layer.shape[1:]))
    assert block(layer, first).shape == (2, *layer.shape[1:])
    with pytest.raises(DataError, match=rf"layer layer: chunk c/1/0/0 \(rows 2:4\) cannot be read: {said}.*; repair"):
        block(layer)


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda content: content[:3]], ids=["cut", "empty", "3 bytes"])
@pytest.mark.parametrize("codecs", CHAINS.values(), ids=CHAINS)
def test_a_chunk_that_is_cut_off_is_damage(tmp_path: Path, codecs: Any, damage: Callable[[bytes], bytes]) -> None:
    layer = written(tmp_path, samples(*SHAPE), compressors=codecs or None)
    path = tmp_path / "layer/c/1/0/0"
    path.write_bytes(damage(path.read_bytes()))
    assert_damaged(layer)


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda content: content[:3]], ids=["cut", "empty", "3 bytes"])
@pytest.mark.parametrize("codecs", CHAINS.values(), ids=CHAINS)
def test_a_shard_that_is_cut_off_is_damage(tmp_path: Path, codecs: Any, damage: Callable[[bytes], bytes]) -> None:
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": sharding((1, 6, 8), codecs)}
    layer = written(tmp_path, samples(*SHAPE), **options)
    path = tmp_path / "layer/c/1/0/0"
    path.write_bytes(damage(path.read_bytes()))
    assert_damaged(layer)


@pytest.mark.parametrize("name", ["crc32c", "zstd, crc32c", "zstd with its own checksum"])
def test_a_flipped_bit_is_damage_where_there_is_a_checksum(tmp_path: Path, name: str) -> None:
    layer = written(tmp_path, samples(*SHAPE), compressors=CHAINS[name])
    path = tmp_path / "layer/c/1/0/0"
    path.write_bytes(flip(path.read_bytes()))
    assert_damaged(layer)


def test_a_flipped_bit_in_the_index_of_a_shard_is_damage(tmp_path: Path) -> None:
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": sharding((1, 6, 8))}
    layer = written(tmp_path, samples(*SHAPE), **options)
    path = tmp_path / "layer/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert_damaged(layer, "the checksum of 32 bytes is not the stored one")


@pytest.mark.parametrize(("offset", "size"), [(10**6, 8), (0, 10**15), (2**63, 8), (8, 2**64 - 2)])
def test_an_index_that_points_outside_its_shard_is_damage(tmp_path: Path, offset: int, size: int) -> None:
    serializer = sharding((1, 6, 8), [ZstdCodec()], checksum=False)
    layer = written(tmp_path, samples(*SHAPE), chunks=(2, 6, 8), compressors=None, serializer=serializer)
    path = tmp_path / "layer/c/1/0/0"
    entry = offset.to_bytes(8, "little") + size.to_bytes(8, "little")
    path.write_bytes(path.read_bytes()[:-16] + entry)
    assert_damaged(layer, "its index puts chunk")


def test_a_folder_in_the_place_of_a_chunk_is_damage(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE))
    (tmp_path / "layer/c/1/0/0").unlink()
    (tmp_path / "layer/c/1/0/0").mkdir()
    assert_damaged(layer)


ENCODERS: dict[str, tuple[Any, Any]] = {
    "zstd": ([ZstdCodec()], numcodecs.Zstd()),
    "blosc": ([BloscCodec()], numcodecs.Blosc()),
    "gzip": ([GzipCodec()], numcodecs.GZip()),
    "lz4": (numcodecs.LZ4(), numcodecs.LZ4()),
    "zlib": (numcodecs.Zlib(), numcodecs.Zlib()),
}


@pytest.mark.parametrize("values", [40, 95, 97, 5_000_000], ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_chunk_that_holds_another_number_of_values_is_damage(tmp_path: Path, name: str, values: int) -> None:
    compressors, encoder = ENCODERS[name]
    version = 2 if isinstance(compressors, numcodecs.abc.Codec) else 3
    keys = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if version == 2 else {}
    layer = written(tmp_path, samples(*SHAPE), compressors=compressors, zarr_format=version, **keys)
    path = tmp_path / "layer" / ("1/0/0" if version == 2 else "c/1/0/0")
    path.write_bytes(bytes(encoder.encode(np.ones(values, np.float32))))
    kept("block", 10_000)[:] = 77
    with pytest.raises(DataError, match=r"layer layer: chunk (c/)?1/0/0 \(rows 2:4\) cannot be read: (a )?chunk"):
        block(layer)


# Batches


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_what_its_chunks_are_one_by_one(name: str) -> None:
    codec = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4()}[name]
    chunks = samples(9, 500, dtype="int32").view(np.uint8)
    stored, places = joined([bytes(codec.encode(chunk)) for chunk in chunks])
    out = np.zeros_like(chunks)
    assert batches.decode_batch(name, stored, places, out) == 9
    np.testing.assert_array_equal(out, chunks)


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("bad", [0, 4, 8])
@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda content: content[:15]], ids=["cut", "empty", "15 bytes"])
def test_a_batch_ends_before_the_first_chunk_that_is_damaged(
    name: str, bad: int, damage: Callable[[bytes], bytes]
) -> None:
    codec = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4()}[name]
    chunks = samples(9, 500, dtype="int32").view(np.uint8)
    encoded = [bytes(codec.encode(chunk)) for chunk in chunks]
    encoded[bad] = damage(encoded[bad])
    stored, places = joined(encoded)
    out = np.zeros_like(chunks)
    assert batches.decode_batch(name, stored, places, out) == bad
    np.testing.assert_array_equal(out[:bad], chunks[:bad])


def joined(encoded: list[bytes]) -> tuple[Array, Array]:
    sizes = [len(each) for each in encoded]
    offsets = np.cumsum([0, *sizes[:-1]])
    return np.frombuffer(b"".join(encoded), np.uint8), np.stack([offsets, sizes], axis=1).astype(np.int64)


@pytest.mark.parametrize("name", ["zstd", "blosc lz4, bitshuffle"])
def test_without_the_c_functions_everything_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(batches, "_functions", lambda _: None)
    options = {"chunks": (4, 6, 8), "compressors": None, "serializer": sharding((1, 6, 8), CHAINS[name])}
    blocks_everywhere(written(tmp_path, samples(*SHAPE), **options))


def test_a_codec_that_hides_its_c_functions_has_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches.FUNCTIONS, "lz4", ("no_such_function",))
    batches._functions.cache_clear()
    out = np.zeros((1, 8), np.uint8)
    assert batches.decode_batch("lz4", out[0], np.array([[0, 8]]), out) == 0
    assert batches.decode_batch("gzip", out[0], np.array([[0, 8]]), out) == 0
    batches._functions.cache_clear()


def test_a_frame_that_does_not_say_its_size_is_left_to_an_error_and_not_to_a_guess(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE), compressors=[ZstdCodec()])
    path = tmp_path / "layer/c/1/0/0"
    frame = path.read_bytes()
    path.write_bytes(frame[:4] + bytes([0, 0x58]) + frame[6:])  # no content size, a window instead
    assert_damaged(layer)


# Threads and files


def test_each_thread_reads_into_its_own_buffers(tmp_path: Path) -> None:
    layers = [written(tmp_path / str(seed), samples(40, 6, 8, seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for seed, found in enumerate(threads.map(block, layers * 30)):
            np.testing.assert_array_equal(found, samples(40, 6, 8, seed=seed % 4))


def test_a_block_is_overwritten_by_the_next_one_and_not_copied(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE))
    with open_reader(layer) as reader:
        first = reader.read((slice(0, 2), slice(0, 6), slice(0, 8)))
        second = reader.read((slice(2, 4), slice(0, 6), slice(0, 8)))
        assert np.shares_memory(first, second)
        assert second.flags.c_contiguous


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc to count open files in")
def test_no_file_is_left_open(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE))
    block(layer)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        block(layer)
    (tmp_path / "layer/c/1/0/0").write_bytes(b"x")
    for _ in range(5):
        with pytest.raises(DataError):
            block(layer)
    assert len(os.listdir("/proc/self/fd")) == before
