"""Reading from the files: zarr's own reader is the arbiter, and damage is never a number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numcodecs
import numcodecs.errors
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from own_statistics import ZeroCounts
from stores import Array, build_store, described, samples
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from streamstats.calibration.encoding import fused
from streamstats.calibration.layer import Layer, Selection
from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.parts import kept
from streamstats.calibration.reading.reader import Reader, open_reader
from streamstats.calibration.reading.zarr_reader import ZarrReader
from streamstats.errors import ChangedError, DamageError, DataError, StreamstatsError
from streamstats.jobs.run import reduce
from streamstats.statistics.exact import ExactSum
from streamstats.statistics.kinds import Kind, kinds_of
from streamstats.statistics.riders import Where
from streamstats.statistics.spread import SampleSpread
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import StatisticsAccumulator

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
ALONE = kinds_of(())
RIDERS = kinds_of(("magnitude", "squares", "histogram"))
VERSION_2: dict[str, Any] = {
    "raw": None,
    "zstd": numcodecs.Zstd(),
    "blosc": numcodecs.Blosc(),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(),
    "gzip": numcodecs.GZip(),
}


def written(path: Path, values: Array, **options: Any) -> Layer:
    """`values` as the array `layer` of a store at `path`, described."""
    build_store(path, {"layer": values}, **options)
    return described(path)


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


class Seen(ZeroCounts):
    """A kind that takes blocks: it keeps a copy of each, and where it lies."""

    @classmethod
    def accumulator(cls, space: Space) -> Any:
        return _Seeing(space)


class _Seeing:
    def __init__(self, space: Space) -> None:
        self._space, self.blocks = space, dict[str, bytes]()

    def add(self, block: Array, where: Where) -> None:
        self.blocks[str(where)] = block.tobytes()

    def found(self) -> _Seeing:
        return self


FURTHER = ((*ALONE, SampleSpread), (*ALONE, Seen), (*RIDERS, SampleSpread), (*RIDERS, Seen))
"""Kinds that take the values sample by sample, with riders, or as whole blocks."""


def measured(reader: Reader, layer: Layer, selection: Selection, kinds: Sequence[Kind] = ALONE) -> object:
    """What the reader finds in `selection`."""
    accumulator = StatisticsAccumulator(kinds, layer.space)
    reader.measure(selection, accumulator)
    return found_by(accumulator)


def added(values: Array, layer: Layer, selection: Selection, kinds: Sequence[Kind] = ALONE) -> object:
    """What is found in `values`, those of `selection`."""
    accumulator = StatisticsAccumulator(kinds, layer.space)
    accumulator.add(np.ascontiguousarray(values), selection)
    return found_by(accumulator)


def found_by(accumulator: StatisticsAccumulator) -> object:
    """The bits of what the pass found, and the blocks that `Seen` got, if it was asked."""
    found = accumulator.values.found()
    sums = ExactSum.from_raw(found.dtype, found.digits).digits
    arrays = [sums, found.count, found.nan, found.infinite, found.low, found.high]
    moments = found.moments
    if moments is not None:
        arrays += [moments.samples, moments.squares, moments.products, moments.counts]
    arrays += [array for name in sorted(found.beside) for array in found.beside[name].values()]
    seen: Any = accumulator.others.get(Seen.name)
    return [array.tobytes() for array in arrays], seen and seen.blocks


def blocks_everywhere(layer: Layer) -> None:
    """Every range of rows, whole and cut in the middle of chunks along the other axes, is what zarr reads."""
    expected = zarr.open_array(layer.store, path=layer.name, mode="r")[...]
    rows, *others = layer.shape
    parts = [
        tuple(slice(0, extent) for extent in others),
        tuple(slice(extent // 3, extent // 3 + 1) for extent in others),
        tuple(slice(min(1, extent - 1), extent) for extent in others),
    ]
    with open_reader(layer, fill=True) as reader:
        assert isinstance(reader, FileReader)
        for start, rest in product(range(rows), parts):
            for stop in range(start + 1, rows + 1):
                selection = (slice(start, stop), *rest)
                found = reader.read(selection)
                assert found.dtype == expected.dtype
                assert found.tobytes() == np.ascontiguousarray(expected[selection]).tobytes()
                for kinds in (ALONE, FURTHER[(start + stop) % len(FURTHER)]):
                    added_up = added(expected[selection], layer, selection, kinds)
                    assert measured(reader, layer, selection, kinds) == added_up


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


LAYOUTS: dict[str, dict[str, Any]] = {
    "raw": {"chunks": (3, 4, 3), "compressors": None},
    "blosc": {"chunks": (3, 6, 8)},
    "chunks larger than the array": {"chunks": (9, 7, 20)},
    "shards": {"chunks": (2, 3, 4), "shards": (4, 6, 8)},
    "shards of raw chunks": {"chunks": (2, 3, 8), "shards": (6, 6, 8), "compressors": None},
    "one chunk a shard": {"chunks": (2, 6, 8), "shards": (2, 6, 8)},
    "version 2": {"chunks": (2, 4, 8), "zarr_format": 2},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", ["?", "i8", "f2"])
def test_any_blocks_one_after_the_other_are_what_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], dtype: str
) -> None:
    values = samples(*SHAPE, dtype=dtype)
    layer = written(tmp_path_factory.mktemp("store"), values, **options)
    assert layer.encoding is not None
    array = zarr.open_array(layer.store, path=layer.name, mode="r")

    @settings(max_examples=20)
    @given(st.lists(st.tuples(*(st.sampled_from([*combinations(range(extent + 1), 2)]) for extent in SHAPE))))
    def check(selections: list[tuple[tuple[int, int], ...]]) -> None:
        with open_reader(layer) as reader:
            for ends in selections:
                selection = tuple(slice(*each) for each in ends)
                assert reader.read(selection).tobytes() == np.ascontiguousarray(array[selection]).tobytes()

    check()


def shard_of(chunks: Array, order: list[int], codec: Any, *, at_end: bool) -> bytes:
    """A shard with `chunks` in `order`, those that are not in it missing, with gaps and an index without checksum."""
    index = np.full((len(chunks), 2), -1, "<i8")
    start, content = (0 if at_end else index.nbytes), b""
    for number in order:
        stored = chunks[number].tobytes() if codec is None else bytes(codec.encode(chunks[number]))
        content += b"gap"
        index[number] = start + len(content), len(stored)
        content += stored
    return content + index.tobytes() if at_end else index.tobytes() + content


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 0], [1], []], ids=str)
@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize("name", ["raw", "zstd", "blosc blosclz, shuffle", "gzip"])
def test_chunks_lie_in_a_shard_in_any_order_with_gaps_or_not_at_all(
    tmp_path: Path, order: list[int], at: str, name: str
) -> None:
    codec = {"raw": None, "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()}.get(name, numcodecs.Blosc())
    serializer = sharding((1, 6, 8), CHAINS[name], at=at, checksum=False)
    options = {"chunks": (4, 6, 8), "compressors": None, "serializer": serializer, "fill_value": 7}
    layer = written(tmp_path, samples(*SHAPE), **options)
    content = shard_of(samples(4, 6, 8, seed=1), order, codec, at_end=at == "end")
    (tmp_path / "layer/c/0/0/0").write_bytes(content)
    blocks_everywhere(layer)
    (tmp_path / "layer/c/0/0/0").unlink()
    blocks_everywhere(layer)


@pytest.mark.parametrize("extents", [(5, 0), (5, 0, 3), (0, 4)], ids=str)
def test_an_array_without_elements_is_read(tmp_path: Path, extents: tuple[int, ...]) -> None:
    layer = written(tmp_path, np.zeros(extents, np.float32), chunks=tuple(max(1, extent) for extent in extents))
    assert layer.encoding is not None
    assert block(layer).shape == extents


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
    blocks_everywhere(described(path))


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
def test_the_other_byte_order_is_read_by_zarr(tmp_path: Path, dtype: str) -> None:
    values = samples(*SHAPE, dtype=dtype)
    layer = written(tmp_path / "store", values, zarr_format=2)
    with open_reader(layer) as reader:
        assert isinstance(reader, ZarrReader)
    np.testing.assert_array_equal(block(layer), values)


# What is not stored


def test_a_missing_chunk_is_the_fill_value_where_that_is_asked_for(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    layer = written(tmp_path, values, fill_value=9)
    (tmp_path / "layer/c/1/0/0").unlink()
    values[2:4] = 9
    everything = tuple(slice(0, extent) for extent in SHAPE)
    for each in (layer, replace(layer, encoding=None)):
        with open_reader(each, fill=True) as reader:
            np.testing.assert_array_equal(reader.read(everything), values)
            assert reader.filled == [(2, 4)]
        with pytest.raises(DataError, match=r"layer layer: chunk c/1/0/0 \(rows 2:4\) is missing; restore it, or set"):
            block(each)


@pytest.mark.parametrize("chunks", [(2, 6, 8), (1, 3, 8)], ids=str)
def test_a_missing_chunk_of_a_recorded_array_is_damage(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": sharding(chunks)}
    layer = written(tmp_path, samples(*SHAPE), attributes={"layer": {"rows": 7, "recorded": True}}, **options)
    assert layer.recorded
    assert block(layer).shape == SHAPE
    (tmp_path / "layer/c/1/0/0").unlink()
    with pytest.raises(
        DataError, match=r"layer layer: chunk c/1/0/0 \(rows 2:4\) was recorded and is missing; restore"
    ):
        block(layer)


def test_a_missing_chunk_in_a_shard_of_a_recorded_array_is_damage(tmp_path: Path) -> None:
    serializer = sharding((1, 6, 8), [ZstdCodec()], checksum=False)
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": serializer}
    layer = written(tmp_path, samples(*SHAPE), attributes={"layer": {"rows": 7, "recorded": True}}, **options)
    path = tmp_path / "layer/c/1/0/0"
    path.write_bytes(path.read_bytes()[:-16] + b"\xff" * 16)
    with pytest.raises(DataError, match=r"layer layer: chunk .*c/1/0/0 \(rows 3:4\) was recorded and is missing"):
        block(layer)


def test_a_missing_chunk_of_a_recorded_shard_is_damage(tmp_path: Path) -> None:
    options = {"chunks": (2, 6, 8), "compressors": None, "serializer": sharding((1, 6, 8))}
    values = samples(*SHAPE)
    values[3] = 0  # which zarr does not store
    layer = written(tmp_path, values, attributes={"layer": {"rows": 7, "recorded": True}}, **options)
    with pytest.raises(DataError, match=r"chunk \(3, 0, 0\) of c/1/0/0 \(rows 3:4\) was recorded and is missing"):
        block(layer)


# Damage


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def assert_damaged(layer: Layer, said: str = "", rows: str = "2:4") -> None:
    """Reading names layer, chunk and rows, though the buffers are full of other values; the rows before are read."""
    kept("block", 10_000)[:] = 77
    kept("chunk", 10_000)[:] = 77
    first = tuple(slice(0, extent) for extent in (2, *layer.shape[1:]))
    assert block(layer, first).shape == (2, *layer.shape[1:])
    where = rf"layer layer: chunk c/1/0/0 \(rows {rows}\) cannot be read: {said}.*; repair"
    with pytest.raises(DataError, match=where):
        block(layer)
    everything = tuple(slice(0, extent) for extent in layer.shape)
    for kinds in (ALONE, (*ALONE, Seen)):
        with open_reader(layer) as reader, pytest.raises(DataError, match=where):
            measured(reader, layer, everything, kinds)


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


@pytest.mark.parametrize(("offset", "size"), [(10**6, 8), (0, 10**15), (2**63, 8), (8, 2**64 - 2), (2**62, 2**62)])
def test_an_index_that_points_outside_its_shard_is_damage(tmp_path: Path, offset: int, size: int) -> None:
    serializer = sharding((1, 6, 8), [ZstdCodec()], checksum=False)
    layer = written(tmp_path, samples(*SHAPE), chunks=(2, 6, 8), compressors=None, serializer=serializer)
    path = tmp_path / "layer/c/1/0/0"
    entry = offset.to_bytes(8, "little") + size.to_bytes(8, "little")
    path.write_bytes(path.read_bytes()[:-16] + entry)
    assert_damaged(layer, "its index puts chunk", "[23]:[34]")


def test_a_folder_in_the_place_of_a_chunk_is_damage(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE))
    (tmp_path / "layer/c/1/0/0").unlink()
    (tmp_path / "layer/c/1/0/0").mkdir()
    assert_damaged(layer)


@pytest.mark.parametrize("name", ["raw", "zstd", "blosc lz4, shuffle", "gzip"])
@pytest.mark.parametrize("entries", [[(2**62, 2**62)], [(0, 2**62), (2**62, 2**62)], [(2**63 - 1, 1)]], ids=str)
def test_an_index_whose_sums_overflow_is_damage(tmp_path: Path, name: str, entries: list[tuple[int, int]]) -> None:
    serializer = sharding((1, 6, 8), CHAINS[name], checksum=False)
    layer = written(tmp_path, samples(*SHAPE), chunks=(2, 6, 8), compressors=None, serializer=serializer)
    path = tmp_path / "layer/c/1/0/0"
    forged = np.array(entries, "<u8").tobytes()
    path.write_bytes(path.read_bytes()[: -len(forged)] + forged)
    assert_damaged(layer, "its index puts chunk", "[23]:[34]")


@pytest.mark.parametrize("cname", ["lz4", "zstd"])
def test_chunks_of_a_shard_that_share_their_bytes_are_read_one_by_one(tmp_path: Path, cname: Any) -> None:
    codecs = [BloscCodec(cname=cname, blocksize=2**15)]
    values = samples(2, 2**19, 2) % 50
    options = {"chunks": (2, 2**19, 2), "compressors": None}
    layer = written(tmp_path, values, serializer=sharding((1, 2**19, 2), codecs, checksum=False), **options)
    path = tmp_path / "layer/c/0/0/0"
    content = path.read_bytes()
    path.write_bytes(content[:-16] + content[-32:-16])
    expected = np.stack([values[0], values[0]])
    with open_reader(layer) as reader:
        everything = tuple(slice(0, extent) for extent in values.shape)
        assert measured(reader, layer, everything) == added(expected, layer, everything)


@pytest.mark.parametrize("size", [1, 31, 35])
def test_an_index_at_the_start_that_is_cut_off_is_damage(tmp_path: Path, size: int) -> None:
    serializer = sharding((1, 6, 8), [ZstdCodec()], at="start")
    layer = written(tmp_path, samples(*SHAPE), chunks=(2, 6, 8), compressors=None, serializer=serializer)
    path = tmp_path / "layer/c/1/0/0"
    path.write_bytes(path.read_bytes()[:size])
    assert_damaged(layer, f"it ends at byte {size}, expected 36 or more")


@pytest.mark.parametrize("bad", range(4))
@pytest.mark.parametrize("name", ["zstd", "blosc lz4, bitshuffle", "gzip", "zstd, crc32c"])
def test_the_chunks_around_a_damaged_one_are_read_and_never_instead_of_it(tmp_path: Path, name: str, bad: int) -> None:
    serializer = sharding((1, 6, 8), CHAINS[name])
    values = samples(4, 6, 8)
    layer = written(tmp_path, values, chunks=(4, 6, 8), compressors=None, serializer=serializer)
    path = tmp_path / "layer/c/0/0/0"
    content = bytearray(path.read_bytes())
    start, size = np.frombuffer(content[-68:-4], "<i8").reshape(4, 2)[bad]
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    columns = (slice(0, 6), slice(0, 8))
    with open_reader(layer) as reader:
        for _ in range(2):
            with pytest.raises(DataError, match=rf"layer layer: chunk c/0/0/0 \(rows {bad}:{bad + 1}\) cannot be read"):
                reader.read((slice(0, 4), *columns))
            for row in range(4):
                if row != bad:
                    np.testing.assert_array_equal(reader.read((slice(row, row + 1), *columns))[0], values[row])


def test_a_file_in_the_place_of_a_folder_is_damage(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE))
    (tmp_path / "layer/c/1/0/0").unlink()
    (tmp_path / "layer/c/1/0").rmdir()
    (tmp_path / "layer/c/1/0").write_bytes(b"")
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


@pytest.mark.parametrize("bad", [0, 0.5, 1])
def test_a_large_blosc_chunk_with_a_damaged_block_is_never_measured_in_part(tmp_path: Path, bad: float) -> None:
    """Its first blocks are measured before the damage is found: that must be an error, not another try."""
    values = samples(4, 2**19, 2, dtype="int32") % 50
    layer = written(
        tmp_path, values, chunks=(1, 2**19, 2), compressors=[BloscCodec(cname="lz4", blocksize=2**15, typesize=4)]
    )
    path = tmp_path / "layer/c/2/0/0"
    content = bytearray(path.read_bytes())
    last = -(-values[0].nbytes // int.from_bytes(content[8:12], "little")) - 1
    assert last > 2
    start = 16 + 4 * int(bad * last)
    content[start : start + 4] = (2**30).to_bytes(4, "little")  # where the block is
    path.write_bytes(content)
    with open_reader(layer) as reader, pytest.raises(DataError, match=r"chunk c/2/0/0 \(rows 2:3\) cannot be read"):
        measured(reader, layer, (slice(0, 4), slice(0, 2**19), slice(0, 2)))


@pytest.mark.parametrize("name", ["zstd", "zstd, crc32c", "blosc lz4, bitshuffle"])
def test_without_the_c_functions_everything_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(fused, "_functions", lambda _: None)
    options = {"chunks": (4, 6, 8), "compressors": None, "serializer": sharding((1, 6, 8), CHAINS[name])}
    blocks_everywhere(written(tmp_path, samples(*SHAPE), **options))


def test_a_frame_that_does_not_say_its_size_is_left_to_an_error_and_not_to_a_guess(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE), compressors=[ZstdCodec()])
    path = tmp_path / "layer/c/1/0/0"
    frame = path.read_bytes()
    path.write_bytes(frame[:4] + bytes([0, 0x58]) + frame[6:])  # no content size, a window instead
    assert_damaged(layer)


@pytest.mark.parametrize("chunks", [(2, 6, 8), (3, 6, 8)], ids=["a run", "alone"])
def test_frames_in_a_row_are_one_chunk(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    values = samples(*SHAPE)
    layer = written(tmp_path, values, compressors=[ZstdCodec()], chunks=chunks)
    first, second = (values[: chunks[0]].reshape(2, -1)[half] for half in (0, 1))
    frames = [bytes(numcodecs.Zstd().encode(half)) for half in (first, second)]
    (tmp_path / "layer/c/0/0/0").write_bytes(b"".join(frames))
    blocks_everywhere(layer)


# Threads and files


def test_each_thread_reads_into_its_own_buffers(tmp_path: Path) -> None:
    layers = [written(tmp_path / str(seed), samples(40, 6, 8, seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for seed, found in enumerate(threads.map(block, layers * 30)):
            np.testing.assert_array_equal(found, samples(40, 6, 8, seed=seed % 4))


def test_readers_of_several_layouts_in_several_threads_do_not_meet(tmp_path: Path) -> None:
    values = {name: samples(*SHAPE, seed=seed) for seed, name in enumerate(LAYOUTS)}
    layers = {name: written(tmp_path / name, values[name], **options) for name, options in LAYOUTS.items()}
    selections = [tuple(slice(first, last) for last in SHAPE) for first in range(5)]

    def read_all(names: list[str]) -> None:
        with ExitStack() as stack:
            readers = {name: stack.enter_context(open_reader(layers[name])) for name in names}
            for selection, name in product(selections * 3, names):
                np.testing.assert_array_equal(readers[name].read(selection), values[name][selection])

    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(read_all, [list(LAYOUTS), list(LAYOUTS)[::-1]] * 8):
            pass


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


# What happens while it is read


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    layer = written(tmp_path, samples(*SHAPE), shards=(4, 6, 8), chunks=(1, 3, 8))
    for fill in (False, True):
        with open_reader(layer, fill=fill) as reader:
            reader.read((slice(0, 4), slice(0, 3), slice(0, 8)))
            reader.read((slice(4, 7), slice(0, 3), slice(0, 8)))
            file = tmp_path / "layer/c/0/0/0"
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
            with pytest.raises(ChangedError, match="chunk c/0/0/0 was replaced while it was read; run again"):
                reader.read((slice(0, 4), slice(3, 6), slice(0, 8)))


class OddError(Exception):
    """What no library of ours raises."""


NO_DAMAGE: dict[str, tuple[Exception, str]] = {
    "stale": (OSError(116, "Stale file handle"), r"cannot be read at the moment: OSError: .*; check the disk"),
    "memory": (MemoryError("too little"), "cannot be read at the moment: MemoryError: too little"),
    "odd": (OddError("http://me:secret@host/x?key=1"), r"at the moment: OddError: http://…@host/x\?…; check"),
    "assertion": (AssertionError("nested"), r"cannot be decoded by zarr .*: AssertionError: nested; try another"),
    "codec": (numcodecs.errors.UnknownCodecError("acme"), "cannot be decoded here: .*acme.*; install what its codec"),
    "module": (ImportError("no acme"), "cannot be decoded here: ImportError: no acme; install"),
    "not implemented": (NotImplementedError("no"), "cannot be decoded here: NotImplementedError: no; install"),
}


@pytest.mark.parametrize(("error", "expected"), NO_DAMAGE.values(), ids=NO_DAMAGE.keys())
@pytest.mark.parametrize("straight", [True, False])
def test_an_error_that_says_nothing_of_the_data_is_never_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str, straight: bool
) -> None:
    layer = written(tmp_path, samples(*SHAPE))

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    if straight:
        monkeypatch.setattr("streamstats.calibration.sources.local.LocalFile.read", failing)
    else:
        layer = replace(layer, encoding=None)
        monkeypatch.setattr("zarr.Array.get_basic_selection", failing)
    with (
        open_reader(layer, fill=True) as reader,
        pytest.raises(StreamstatsError, match=expected) as raised,
    ):
        reader.read(tuple(slice(0, extent) for extent in SHAPE))
    assert not reader.filled
    assert not isinstance(raised.value, DamageError)


# What zarr takes


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_gzip_with_padding_is_what_zarr_takes_it_for(tmp_path: Path, zarr_format: int) -> None:
    values = samples(*SHAPE)
    codec: Any = numcodecs.GZip() if zarr_format == 2 else GzipCodec()
    layer = written(tmp_path, values, zarr_format=zarr_format, compressors=codec)
    chunk = tmp_path / "layer" / ("1.0.0" if zarr_format == 2 else "c/1/0/0")
    chunk.write_bytes(chunk.read_bytes() + bytes(700))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "layer", mode="r")[...], values)
    np.testing.assert_array_equal(block(layer), values)
    found = reduce(tmp_path)["layer"]
    assert found.mean.tolist() == reduce(written(tmp_path / "plain", values).store)["layer"].mean.tolist()


@pytest.mark.parametrize("options", [{"zarr_format": 2, "order": "F"}, {"filters": [TransposeCodec(order=(2, 1, 0))]}])
def test_a_chunk_of_blosc_that_is_cut_off_is_damage_where_only_zarr_can_read_it(tmp_path: Path, options: Any) -> None:
    codec: Any = numcodecs.Blosc() if "order" in options else BloscCodec()
    layer = written(tmp_path, samples(*SHAPE), compressors=codec, **options)
    assert layer.encoding is None
    chunk = tmp_path / "layer" / ("0.0.0" if "order" in options else "c/0/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(DamageError, match="a Blosc chunk is cut off after"):
        block(layer)
