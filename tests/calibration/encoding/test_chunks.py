"""Which arrays are read without zarr, and how their metadata says that they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from stores import Array, build_store, described, samples
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.codecs import numcodecs as wrapped

from streamstats.calibration.encoding.chunks import Encoding, encoding_of
from streamstats.calibration.layer import Layer
from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.sources.choose import source_of

SHAPE = (7, 6, 8)


def written(path: Path, values: Array, **options: Any) -> Layer:
    build_store(path, {"layer": values}, **options)
    return described(path)


def encoding_in(path: Path, **options: Any) -> Encoding | None:
    return encoding_of(source_of(build_store(path, {"layer": samples(*SHAPE)}, **options)).find().arrays["layer"])


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
    assert_as_zarr(described(tmp_path))


@pytest.mark.parametrize("dtype", ["?", "i2", "f4"])
def test_without_a_fill_value_version_2_has_zeros(tmp_path: Path, dtype: str) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=2)
    group.create_array("layer", shape=SHAPE, dtype=dtype, chunks=(2, 6, 8), fill_value=None)
    layer = described(tmp_path)
    assert_as_zarr(layer)
    assert layer.encoding is not None
    assert layer.encoding.fill == 0
