"""How the chunks of an array lie in a folder, for arrays that can be read without zarr: plain or sharded, C order,
native bytes, at most one compressor and a checksum. Everything else is zarr's to read.

A decoder is never trusted with a size: a chunk must decode to exactly what its shape asks for, and gets no more room
than that, as decoders leave the rest of a buffer as it was, and take any size from the file. (Formats: zarr v2 and v3
core, sharding_indexed, crc32c; Zstandard, RFC 8878; the header of Blosc 1; gzip and zlib, RFC 1952 and 1950.)
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr

from ..reading.fused import decode

Bytes = npt.NDArray[np.uint8]
"""Bytes in memory, uint8[n]."""

ABSENT = -1
"""Offset and length of a chunk that a shard does not have: 2^64 − 1, read as a signed number."""
CHECKSUM_BYTES = 4
SLACK_BYTES = 2**16
ENTRY_BYTES = 16
SMALL_BYTES = 2**18
"""Decoded bytes of a chunk whose file is small."""
GATHERED_BYTES = 2**20
ZSTD_MAGIC = 0xFD2FB528
BLOSC_HEADER_BYTES = 16


@dataclass(frozen=True)
class ChunkKeys:
    """How the files of an array are called: `prefix`, and the numbers of a chunk or shard joined by `separator`."""

    prefix: str
    separator: str

    def key(self, coordinates: Sequence[int]) -> str:
        """The name of a file, relative to the folder of the array."""
        return self.prefix + self.separator.join(map(str, coordinates))


@dataclass(frozen=True)
class Encoding:
    """How an array is stored: one file a shard of shape `shards`, or a chunk where there are none (`index_bytes` 0).

    `chunks` is what is decoded at once. `compressor` is one
    of DECODERS or None; `checksum` says that a CRC-32C follows each chunk. A shard has an index of `index_bytes`, at
    its end or start, with or without its own checksum. `fill` is the value of what is not stored.
    """

    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    dtype: np.dtype[Any]
    compressor: str | None
    checksum: bool
    fill: Any
    index_bytes: int = 0
    index_at_end: bool = True
    index_checksum: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether any part of a chunk can be read by itself."""
        return self.compressor is None and not self.checksum

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return prod(self.chunks) * self.dtype.itemsize

    @property
    def most_stored_bytes(self) -> int:
        """What a chunk may take in its file: compressors add little to what they cannot compress."""
        return self.chunk_bytes + self.chunk_bytes // 4 + SLACK_BYTES

    @property
    def gathered_bytes(self) -> int:
        """Stored bytes of small files that are read in one call, 0 where files are large."""
        if self.index_bytes or self.chunk_bytes > SMALL_BYTES:
            return 0
        return max(self.most_stored_bytes, GATHERED_BYTES)

    @property
    def most_file_bytes(self) -> int:
        """What a file may take: a chunk, or all those of a shard, and its index."""
        number = prod(shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True))
        return number * self.most_stored_bytes + self.index_bytes

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode the bytes of a chunk into `out`, which has their decoded size. Raises `ValueError`, `RuntimeError`."""
        if self.checksum:
            stored = checked(stored)
        if self.compressor is not None:
            DECODERS[self.compressor](stored, out)
        elif stored.size != out.size:
            raise ValueError(f"a chunk has {stored.size} bytes, expected {out.size}")
        else:
            out[:] = stored

    def index(self, stored: Bytes) -> npt.NDArray[np.int64]:
        """Offset and length of each chunk of a shard, [chunks along each axis…, 2]. Raises `ValueError`."""
        entries = checked(stored) if self.index_checksum else stored
        grid = [shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)]
        return entries.view("<i8").reshape(*grid, 2)


def chunk_keys(array: zarr.Array[Any]) -> ChunkKeys | None:
    """How the files of `array` are called, None for ways that only zarr knows."""
    document = array.metadata.to_dict()
    if document["zarr_format"] == 2:
        return ChunkKeys("", document.get("dimension_separator") or ".")  # type: ignore[arg-type]
    name, options = _named(document["chunk_key_encoding"])  # type: ignore[arg-type]
    if name not in ("default", "v2"):
        return None
    separator = options.get("separator", "/" if name == "default" else ".")
    return ChunkKeys("c" + separator if name == "default" else "", separator)


def encoding_of(array: zarr.Array[Any]) -> Encoding | None:
    """How `array` is stored in a folder, None where only zarr can read it."""
    document = array.metadata.to_dict()
    dtype = np.dtype(array.dtype)
    if not dtype.isnative:
        return None
    fill = dtype.type(0) if array.fill_value is None else dtype.type(array.fill_value)
    return _version_2(document, dtype, fill) if document["zarr_format"] == 2 else _version_3(document, dtype, fill)


def _version_2(document: Mapping[str, Any], dtype: np.dtype[Any], fill: Any) -> Encoding | None:
    compressor = document["compressor"]
    if isinstance(compressor, numcodecs.abc.Codec):
        compressor = compressor.get_config()
    name = None if compressor is None else compressor["id"]
    if document["order"] != "C" or document["filters"] or not (name is None or name in DECODERS):
        return None
    chunks = tuple(document["chunks"])
    return Encoding(chunks, chunks, dtype, name, checksum=False, fill=fill)


def _version_3(document: Mapping[str, Any], dtype: np.dtype[Any], fill: Any) -> Encoding | None:
    grid = _named(document["chunk_grid"])
    if grid[0] != "regular" or document.get("storage_transformers"):
        return None
    shards = chunks = tuple(grid[1]["chunk_shape"])
    codecs = [_named(codec) for codec in document["codecs"]]
    index: dict[str, Any] = {}
    if codecs[0][0] == "sharding_indexed" and len(codecs) == 1:
        sharding = codecs[0][1]
        chunks, codecs = tuple(sharding["chunk_shape"]), [_named(codec) for codec in sharding["codecs"]]
        of_index = _chain([_named(codec) for codec in sharding["index_codecs"]], 8)
        if of_index is None or of_index[0] is not None:
            return None
        index["index_checksum"] = of_index[1]
        index["index_at_end"] = sharding.get("index_location", "end") == "end"
        number = prod(shards) // max(1, prod(chunks))
        index["index_bytes"] = number * ENTRY_BYTES + CHECKSUM_BYTES * of_index[1]
    chain = _chain(codecs, dtype.itemsize)
    if chain is None:
        return None
    return Encoding(chunks, shards, dtype, *chain, fill, **index)


def _named(document: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration of a codec, a grid or an encoding of keys."""
    if isinstance(document, str):
        return document, {}
    return document["name"], document.get("configuration") or {}


def _chain(codecs: Sequence[tuple[str, Mapping[str, Any]]], itemsize: int) -> tuple[str | None, bool] | None:
    """(compressor, whether a checksum follows) for bytes, a compressor or none, a checksum or none; else None."""
    (first, configuration), *rest = codecs
    if first != "bytes" or (itemsize > 1 and configuration.get("endian", "little") != sys.byteorder):
        return None
    names = [name.removeprefix("numcodecs.") for name, _ in rest]
    checksum = names[-1:] == ["crc32c"] and rest[-1][0] == "crc32c"
    if checksum:
        names.pop()
    if len(names) > 1 or not set(names) <= DECODERS.keys():
        return None
    return (names[0] if names else None), checksum


# Decoding


def checked(stored: Bytes) -> Bytes:
    """`stored` without the CRC-32C that follows it. Raises `ValueError` where that is not right."""
    content, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    found = google_crc32c.value(content)
    if len(checksum) < CHECKSUM_BYTES or found != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError(f"the checksum of {content.size} bytes is not the stored one")
    return content


def _decode_zstd(stored: Bytes, out: Bytes) -> None:
    if decode("zstd", stored, out):
        return  # also of frames that do not say their size, and of several
    _check_declared(_zstd_size(stored[:18].tobytes()), out)
    numcodecs.Zstd().decode(stored, out=out)


def _zstd_size(header: bytes) -> int:
    """The content size in the header of a Zstandard frame. Raises `ValueError` for one without."""
    if len(header) < 6 or int.from_bytes(header[:4], "little") != ZSTD_MAGIC:
        raise ValueError("a chunk does not begin with a Zstandard frame")
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not width:
        raise ValueError("a Zstandard frame does not say how much it holds")
    return int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)


def _decode_blosc(stored: Bytes, out: Bytes) -> None:
    header = stored[:BLOSC_HEADER_BYTES].tobytes()
    if len(header) < BLOSC_HEADER_BYTES or int.from_bytes(header[12:], "little") > stored.size:
        raise ValueError(f"a Blosc chunk is cut off after {stored.size} bytes")
    _check_declared(int.from_bytes(header[4:8], "little"), out)
    numcodecs.Blosc().decode(stored, out=out)


def _decode_lz4(stored: Bytes, out: Bytes) -> None:
    _check_declared(int.from_bytes(stored[:4].tobytes(), "little"), out)
    numcodecs.LZ4().decode(stored, out=out)


def _decode_gzip(stored: Bytes, out: Bytes) -> None:
    """One member, or several one behind the other."""
    done, rest = 0, stored.data
    while len(rest):
        done, rest = _inflate(zlib.decompressobj(wbits=31), rest, out, done)
    if done != out.size:
        raise ValueError(f"a chunk does not decode to {out.size} bytes")


def _decode_zlib(stored: Bytes, out: Bytes) -> None:
    done, rest = _inflate(zlib.decompressobj(wbits=15), stored.data, out, 0)
    if done != out.size or len(rest):
        raise ValueError(f"a chunk does not decode to {out.size} bytes")


def _inflate(decoder: Any, stored: memoryview, out: Bytes, start: int) -> tuple[int, memoryview]:
    """Decode a stream into `out` from `start`: where it ends there, and what follows it in `stored`."""
    decoded = decoder.decompress(stored, out.size - start + 1)
    stop = start + len(decoded)
    if stop > out.size or not decoder.eof:
        raise ValueError(f"a chunk does not decode to {out.size} bytes")
    out[start:stop] = np.frombuffer(decoded, np.uint8)
    return stop, memoryview(decoder.unused_data)


def _check_declared(declared: int, out: Bytes) -> None:
    if declared != out.size:
        raise ValueError(f"a chunk says that it holds {declared} bytes, expected {out.size}")


DECODERS: Mapping[str, Callable[[Bytes, Bytes], None]] = {
    "zstd": _decode_zstd,
    "blosc": _decode_blosc,
    "lz4": _decode_lz4,
    "gzip": _decode_gzip,
    "zlib": _decode_zlib,
}
"""Name of a compressor → decode all of the first argument into the second, which it must fill."""
