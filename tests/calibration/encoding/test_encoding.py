"""Which arrays are read without zarr, and decoders that fill their buffer or raise, whatever a chunk says of itself."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
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
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.codecs import numcodecs as wrapped

from streamstats.calibration.encoding import chunks as encoding
from streamstats.calibration.encoding.chunks import Encoding, encoding_of
from streamstats.calibration.layer import Layer, describe, find_arrays
from streamstats.calibration.reading import fused as batches
from streamstats.calibration.reading.reader import FileReader, open_reader

SHAPE = (7, 6, 8)
CHUNK_BYTES = 800
REFUSED = (ValueError, RuntimeError, zlib.error)


def written(path: Path, values: Array, **options: Any) -> Layer:
    build_store(path, {"layer": values}, **options)
    return describe(str(path), "layer", find_arrays(path)["layer"])


def encoding_in(path: Path, **options: Any) -> Encoding | None:
    return encoding_of(find_arrays(build_store(path, {"layer": samples(*SHAPE)}, **options))["layer"])


def assert_as_zarr(layer: Layer) -> None:
    """The whole array and a part cut on every side, to the bit, and without zarr."""
    array = zarr.open_array(layer.store, path=layer.name, mode="r")
    with open_reader(layer, fill=True) as reader:
        assert isinstance(reader, FileReader)
        for selection in (tuple(slice(0, n) for n in layer.shape), tuple(slice(1, n - 1) for n in layer.shape)):
            expected = np.ascontiguousarray(array[selection])
            assert reader.read(selection).tobytes() == expected.tobytes()


# What is described


@pytest.mark.parametrize(
    ("options", "compressor", "checksum"),
    [
        ({"compressors": None}, None, False),
        ({"compressors": [ZstdCodec()]}, "zstd", False),
        ({"compressors": [Crc32cCodec()]}, None, True),
        ({"compressors": [GzipCodec(), Crc32cCodec()]}, "gzip", True),
        ({"zarr_format": 2, "compressors": numcodecs.LZ4()}, "lz4", False),
        ({"zarr_format": 2, "compressors": None}, None, False),
    ],
    ids=["raw", "zstd", "crc32c", "gzip, crc32c", "version 2, lz4", "version 2, raw"],
)
def test_compressor_and_checksum_are_described(
    tmp_path: Path, options: dict[str, Any], compressor: str | None, checksum: bool
) -> None:
    found = encoding_in(tmp_path, **options)
    assert found is not None
    assert (found.compressor, found.checksum) == (compressor, checksum)
    assert found.is_raw == (compressor is None and not checksum)
    assert (found.chunks, found.shards, found.index_bytes, found.chunk_bytes) == ((2, 6, 8), (2, 6, 8), 0, 384)


@pytest.mark.parametrize(("at", "checksum", "size"), [("end", True, 100), ("start", True, 100), ("end", False, 96)])
def test_the_index_of_a_shard_is_described(tmp_path: Path, at: Any, checksum: bool, size: int) -> None:
    of_index = [BytesCodec(), *([Crc32cCodec()] if checksum else [])]
    serializer = ShardingCodec(chunk_shape=(1, 3, 8), index_codecs=of_index, index_location=at)
    found = encoding_in(tmp_path, chunks=(3, 6, 8), compressors=None, serializer=serializer)
    assert found is not None
    assert (found.chunks, found.shards) == ((1, 3, 8), (3, 6, 8))
    assert (found.index_bytes, found.index_at_end, found.index_checksum) == (size, at == "end", checksum)


@pytest.mark.parametrize(
    ("version", "keys", "expected"),
    [
        (3, None, "c/1/0/2"),
        (3, {"name": "default", "separator": "."}, "c.1.0.2"),
        (3, {"name": "v2", "separator": "."}, "1.0.2"),
        (3, {"name": "v2", "separator": "/"}, "1/0/2"),
        (2, None, "1.0.2"),
        (2, {"name": "v2", "separator": "/"}, "1/0/2"),
    ],
)
def test_chunks_are_called_what_zarr_calls_them(tmp_path: Path, version: int, keys: Any, expected: str) -> None:
    layer = written(tmp_path, samples(*SHAPE), chunks=(2, 6, 3), zarr_format=version, chunk_key_encoding=keys)
    assert layer.keys is not None
    assert layer.keys.key((1, 0, 2)) == expected
    assert (tmp_path / "layer" / expected).is_file()


OF_NUMCODECS = {
    "blosc": wrapped.Blosc,
    "gzip": wrapped.GZip,
    "lz4": wrapped.LZ4,
    "zlib": wrapped.Zlib,
    "zstd": wrapped.Zstd,
}


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("name", OF_NUMCODECS)
@pytest.mark.parametrize("checksum", [False, True])
def test_the_codecs_of_numcodecs_in_version_3_are_read_as_zarr_reads_them(
    tmp_path: Path, name: str, checksum: bool
) -> None:
    codec = OF_NUMCODECS[name]()
    layer = written(tmp_path, samples(*SHAPE), compressors=[codec, *([Crc32cCodec()] if checksum else [])])
    assert layer.encoding is not None
    assert (layer.encoding.compressor, layer.encoding.checksum) == (name, checksum)
    assert_as_zarr(layer)


@pytest.mark.parametrize("shuffle", [0, 1, 2], ids=["noshuffle", "shuffle", "bitshuffle"])
@pytest.mark.parametrize("cname", ["lz4", "lz4hc", "zstd", "zlib", "blosclz"])
@pytest.mark.parametrize("dtype", ["i1", "f8"])
def test_blosc_of_version_2_is_read_as_zarr_reads_it(tmp_path: Path, cname: str, shuffle: int, dtype: str) -> None:
    codec = numcodecs.Blosc(cname=cname, shuffle=shuffle, blocksize=256)
    assert_as_zarr(written(tmp_path, samples(*SHAPE, dtype=dtype), zarr_format=2, compressors=codec))


NESTED = ShardingCodec(chunk_shape=(2, 6, 8), codecs=[ShardingCodec(chunk_shape=(1, 6, 8))])
WITHIN = ShardingCodec(chunk_shape=(1, 6, 8), codecs=[TransposeCodec(order=(2, 1, 0)), BytesCodec()])
BIG_ENDIAN_INDEX = ShardingCodec(chunk_shape=(1, 6, 8), index_codecs=[BytesCodec(endian="big"), Crc32cCodec()])


OTHERS: dict[str, dict[str, Any]] = {
    "shards in shards": {"chunks": (4, 6, 8), "serializer": NESTED, "compressors": None},
    "transposed in a shard": {"serializer": WITHIN, "compressors": None},
    "big-endian index": {"serializer": BIG_ENDIAN_INDEX, "compressors": None},
    "checksum of a shard": {"serializer": ShardingCodec(chunk_shape=(1, 6, 8)), "compressors": [Crc32cCodec()]},
    "two checksums": {"compressors": [Crc32cCodec(), Crc32cCodec()]},
    "lzma": {"zarr_format": 2, "compressors": numcodecs.LZMA()},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec:zarr.errors.ZarrUserWarning")
def test_other_layouts_are_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    values = samples(*SHAPE)
    layer = written(tmp_path, values, **options)
    assert layer.encoding is None
    with open_reader(layer) as reader:
        selection = (slice(1, 6), slice(2, 6), slice(0, 5))
        np.testing.assert_array_equal(reader.read(selection), values[selection])


# What is not stored


def fills() -> Iterator[tuple[str, Any]]:
    """Values at the edges of every dtype."""
    yield "?", True
    for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"):
        limits = np.iinfo(dtype)
        yield from product([dtype], [int(limits.max), int(limits.min)])
    for dtype in ("f2", "f4", "f8"):
        yield from product([dtype], [float(np.finfo(dtype).max), -0.0, float("nan"), float("-inf")])


@pytest.mark.parametrize(("dtype", "fill"), list(fills()))
@pytest.mark.parametrize("options", [{"zarr_format": 2}, {}, {"shards": (4, 6, 8)}], ids=["2", "3", "shards"])
def test_any_fill_value_is_kept_to_the_bit(tmp_path: Path, dtype: str, fill: Any, options: dict[str, Any]) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=options.get("zarr_format", 3))
    given = {key: value for key, value in options.items() if key != "zarr_format"}
    array = group.create_array("layer", shape=SHAPE, dtype=dtype, chunks=(1, 6, 8), fill_value=fill, **given)
    array[5:6] = samples(1, *SHAPE[1:], dtype=dtype)  # chunk 4 of its shard is missing, and the first shard is
    assert_as_zarr(describe(str(tmp_path), "layer", find_arrays(tmp_path)["layer"]))


@pytest.mark.parametrize("dtype", ["?", "i2", "f4"])
def test_without_a_fill_value_version_2_has_zeros(tmp_path: Path, dtype: str) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    group.create_array("layer", shape=SHAPE, dtype=dtype, chunks=(2, 6, 8), fill_value=None)
    layer = describe(str(tmp_path), "layer", find_arrays(tmp_path)["layer"])
    assert_as_zarr(layer)
    assert layer.encoding is not None
    assert layer.encoding.fill == 0


# Decoding

CODECS: dict[str, list[Any]] = {
    "zstd": [numcodecs.Zstd(), numcodecs.Zstd(checksum=True)],
    "blosc": [
        numcodecs.Blosc(cname=name, shuffle=shuffle, blocksize=size)
        for name, shuffle, size in product(("lz4", "zstd", "blosclz"), (0, 1, 2), (0, 256))
    ],
    "lz4": [numcodecs.LZ4()],
    "zlib": [numcodecs.Zlib()],
    "gzip": [numcodecs.GZip()],
}


def stored_as(compressor: str | None, *, checksum: bool = False) -> Encoding:
    return Encoding((4, 50), (4, 50), np.dtype("i4"), compressor, checksum, 0)


def content(size: int = CHUNK_BYTES) -> bytes:
    return samples(size, dtype="uint8").tobytes()


def decoded_over(before: int, compressor: str, stored: bytes, *, run: bool) -> bytes | None:
    """What a chunk decodes to in a buffer full of `before`, None where it is refused. `run`: in C first."""
    out = np.full(CHUNK_BYTES, before, np.uint8)
    chunk = np.frombuffer(stored, np.uint8)
    try:
        if not (run and batches.decode(compressor, chunk.copy(), out)):
            stored_as(compressor).decode(chunk, out)
    except REFUSED:
        return None
    return out.tobytes()


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("name", CODECS)
def test_what_was_encoded_is_decoded(name: str, run: bool) -> None:
    for codec in CODECS[name]:
        assert decoded_over(77, name, bytes(codec.encode(content())), run=run) == content()


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("size", [1, 400, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 2000])
@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_of_another_size_is_refused(name: str, size: int, run: bool) -> None:
    for codec in CODECS[name]:
        assert decoded_over(77, name, bytes(codec.encode(content(size))), run=run) is None


DECLARED = {"zstd": slice(5, 7), "blosc": slice(4, 8), "lz4": slice(0, 4)}
"""Where a header says how much there is; in that of Zstandard, less 256 (for what is of 256 to 65,791 bytes)."""


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("size", [400, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 2000])
@pytest.mark.parametrize("name", DECLARED)
def test_a_header_that_claims_the_expected_size_is_not_trusted(name: str, size: int, run: bool) -> None:
    for codec in CODECS[name]:
        stored, place = bytearray(codec.encode(content(size))), DECLARED[name]
        claimed = CHUNK_BYTES - 256 if name == "zstd" else CHUNK_BYTES
        stored[place] = claimed.to_bytes(place.stop - place.start, "little")
        found = {decoded_over(before, name, bytes(stored), run=run) for before in (0x55, 0xAA)}
        assert len(found) == 1, "bytes of an earlier chunk are left in the buffer"
        if name != "blosc":  # which may keep to its claim, and decode that much
            assert found == {None}


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize("claimed", [0, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 60_000])
@pytest.mark.parametrize("name", DECLARED)
def test_a_header_that_claims_another_size_is_refused(name: str, claimed: int, run: bool) -> None:
    for codec in CODECS[name]:
        stored, place = bytearray(codec.encode(content())), DECLARED[name]
        stored[place] = max(0, claimed - 256 * (name == "zstd")).to_bytes(place.stop - place.start, "little")
        assert decoded_over(77, name, bytes(stored), run=run) is None


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=150)
@given(st.data())
def test_bytes_of_an_earlier_chunk_never_show_through_damage(name: str, data: st.DataObject) -> None:
    stored = bytearray(data.draw(st.sampled_from(CODECS[name])).encode(content()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 40) | st.integers(0, len(stored) - 1)) % len(stored)
        stored[place] = data.draw(st.integers(0, 255))
    damaged = bytes(stored[: data.draw(st.just(len(stored)) | st.integers(0, len(stored)))])
    for run in (False, True):
        first, second = (decoded_over(before, name, damaged, run=run) for before in (0x55, 0xAA))
        assert first == second


@pytest.mark.parametrize("run", [False, True], ids=["alone", "run"])
@pytest.mark.parametrize(("size", "right"), [(CHUNK_BYTES, True), (CHUNK_BYTES - 1, False), (CHUNK_BYTES + 1, False)])
def test_frames_without_a_size_and_frames_in_a_row_are_read_where_they_fill_the_chunk(
    size: int, right: bool, run: bool
) -> None:
    expected = content(size)
    raw_block = (size << 3 | 1).to_bytes(3, "little") + expected
    unsized = b"\x28\xb5\x2f\xfd\x00\x58" + raw_block
    encoded = [bytes(numcodecs.Zstd().encode(part)) for part in (expected[:300], expected[300:])]
    for stored in (unsized, b"".join(encoded)):
        assert decoded_over(77, "zstd", stored, run=run) == (expected if right else None)


@pytest.mark.parametrize("name", ["gzip", "zlib"])
def test_a_chunk_that_decodes_to_very_much_is_refused_before_it_is_decoded(name: str) -> None:
    zeros = bytes(50_000_000)
    bomb = np.frombuffer(gzip.compress(zeros) if name == "gzip" else zlib.compress(zeros), np.uint8)
    out = np.zeros(CHUNK_BYTES, np.uint8)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a chunk does not decode to 800 bytes"):
        stored_as(name).decode(bomb, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("bit", [0, 3000, 8 * CHUNK_BYTES, 8 * CHUNK_BYTES + 31])
def test_every_bit_of_chunk_and_checksum_is_checked(bit: int) -> None:
    stored = np.frombuffer(bytes(numcodecs.CRC32C(location="end").encode(content())), np.uint8).copy()
    out = np.zeros(CHUNK_BYTES, np.uint8)
    stored_as(None, checksum=True).decode(stored, out)
    assert out.tobytes() == content()
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="the checksum of 800 bytes is not the stored one"):
        stored_as(None, checksum=True).decode(stored, out)


@pytest.mark.parametrize("size", range(5))
def test_what_is_too_short_for_a_checksum_is_refused_unless_it_is_the_checksum_of_nothing(size: int) -> None:
    stored = np.zeros(size, np.uint8)
    if size == 4:
        assert encoding.checked(stored).size == 0
        return
    with pytest.raises(ValueError, match="is not the stored one"):
        encoding.checked(stored)


@pytest.mark.parametrize("name", ["gzip", "zlib"])
def test_what_follows_a_compressed_stream_is_damage(name: str) -> None:
    compress = gzip.compress if name == "gzip" else zlib.compress
    for more in (b"more", compress(b"x")):
        stored = np.frombuffer(compress(bytes(8)) + more, np.uint8)
        with pytest.raises((ValueError, zlib.error)):
            encoding.DECODERS[name](stored, np.empty(8, np.uint8))


def test_gzip_may_have_several_members() -> None:
    stored = np.frombuffer(b"".join(gzip.compress(part) for part in (b"one ", b"", b"two ")), np.uint8)
    out = np.empty(8, np.uint8)
    encoding.DECODERS["gzip"](stored, out)
    assert out.tobytes() == numcodecs.GZip().decode(stored.tobytes()) == b"one two "
