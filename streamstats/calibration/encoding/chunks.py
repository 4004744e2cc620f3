"""How an array is stored: the metadata of an array → the names of its files, and how each chunk is encoded in them.

This covers arrays whose files can be read without zarr: plain or sharded, C order, native byte order, at most one
compressor and one checksum. zarr reads everything else. (Formats: zarr v2 and v3 core, sharding_indexed, crc32c.)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr

from .decoders import CHECKSUM_BYTES, DECODERS, Bytes, checked

NOT_STORED = -1
"""Offset and length, in the index of a shard, of a chunk that the shard does not store: 2^64 − 1, read as int64."""
SLACK_BYTES = 2**16
ENTRY_BYTES = 16
SMALL_BYTES = 2**18
"""Decoded bytes of a chunk, at most, for its file to be small."""
GATHERED_BYTES = 2**20


@dataclass(frozen=True)
class ChunkKeys:
    """The names of an array's files: `prefix`, then the numbers of a chunk or shard joined by `separator`."""

    prefix: str
    separator: str

    def key(self, coordinates: Sequence[int]) -> str:
        """The name of a file, relative to the folder of the array."""
        return self.prefix + self.separator.join(map(str, coordinates))


@dataclass(frozen=True)
class Encoding:
    """How an array is stored: one file per shard, or per chunk where there are no shards (`index_bytes` is 0).

    A file holds a part of shape `shards`; a part of shape `chunks` is decoded at once. `compressor` is a key of
    DECODERS or None; `checksum` says that a CRC-32C follows each chunk. A shard has an index of `index_bytes`, at its
    end or start, with or without its own checksum. Chunks that are not stored hold the value `fill`.
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
        """Whether rows of a chunk can be read without decoding the whole chunk."""
        return self.compressor is None and not self.checksum

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk."""
        return prod(self.chunks) * self.dtype.itemsize

    @property
    def most_stored_bytes(self) -> int:
        """Maximum bytes of a chunk in its file: compressors add little to what they cannot compress."""
        return self.chunk_bytes + self.chunk_bytes // 4 + SLACK_BYTES

    @property
    def gathered_bytes(self) -> int:
        """The room for small files that are read in one call; 0 where files are large."""
        if self.index_bytes or self.chunk_bytes > SMALL_BYTES:
            return 0
        return max(self.most_stored_bytes, GATHERED_BYTES)

    @property
    def most_file_bytes(self) -> int:
        """Maximum bytes of a file: those of its chunks, and of its index."""
        number = prod(shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True))
        return number * self.most_stored_bytes + self.index_bytes

    def decode(self, stored: Bytes, out: Bytes) -> None:
        """Decode the `stored` bytes of a chunk into `out`, which has its decoded size. Raises as DECODERS do."""
        if self.checksum:
            stored = checked(stored)
        if self.compressor is not None:
            DECODERS[self.compressor](stored, out)
        elif stored.size != out.size:
            raise ValueError(f"a chunk has {stored.size} bytes, expected {out.size}")
        else:
            out[:] = stored

    def index(self, stored: Bytes) -> npt.NDArray[np.int64]:
        """Offset and length of each chunk of a shard, int64[chunks along each axis…, 2]. Raises `ValueError`."""
        entries = checked(stored) if self.index_checksum else stored
        grid = [shard // chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)]
        return entries.view("<i8").reshape(*grid, 2)


def is_stored(places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether a shard stores the chunks at `places`, int64[…, (offset, length)] from its index; bool[…]."""
    stored: npt.NDArray[np.bool_] = (places != NOT_STORED).any(axis=-1)
    return stored


def chunk_keys(array: zarr.Array[Any]) -> ChunkKeys | None:
    """The names of the files of `array`, None for naming schemes that only zarr knows."""
    document = array.metadata.to_dict()
    if document["zarr_format"] == 2:
        return ChunkKeys("", document.get("dimension_separator") or ".")  # type: ignore[arg-type]
    name, options = _named(document["chunk_key_encoding"])  # type: ignore[arg-type]
    if name not in ("default", "v2"):
        return None
    separator = options.get("separator", "/" if name == "default" else ".")
    return ChunkKeys("c" + separator if name == "default" else "", separator)


def encoding_of(array: zarr.Array[Any]) -> Encoding | None:
    """How `array` is stored, None where only zarr can read it."""
    document = array.metadata.to_dict()
    dtype = np.dtype(array.dtype)
    if not dtype.isnative:
        return None
    fill = dtype.type(0) if array.fill_value is None else dtype.type(array.fill_value)
    return _version_2(document, dtype, fill) if document["zarr_format"] == 2 else _version_3(document, dtype, fill)


def ends_in_blosc(array: zarr.Array[Any]) -> bool:
    """Whether Blosc is what compresses the chunks of `array` last, in files of one chunk each."""
    document = array.metadata.to_dict()
    if document["zarr_format"] == 2:
        return isinstance(array.metadata.compressor, numcodecs.Blosc)  # type: ignore[union-attr]
    return _named(document["codecs"][-1])[0].removeprefix("numcodecs.") == "blosc"  # type: ignore[index,arg-type]


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
    shape = tuple(grid[1]["chunk_shape"])
    (name, sharding), *others = codecs = [_named(codec) for codec in document["codecs"]]
    if name == "sharding_indexed" and not others:
        return _sharded(sharding, shape, dtype, fill)
    chain = _chain(codecs, dtype.itemsize)
    return Encoding(shape, shape, dtype, *chain, fill) if chain else None


def _sharded(sharding: Mapping[str, Any], shards: tuple[int, ...], dtype: np.dtype[Any], fill: Any) -> Encoding | None:
    """The encoding of shards of shape `shards`, from the configuration of `sharding_indexed`."""
    chain, of_index = (
        _chain([_named(codec) for codec in sharding[codecs]], itemsize)
        for codecs, itemsize in (("codecs", dtype.itemsize), ("index_codecs", 8))
    )
    if chain is None or of_index is None or of_index[0] is not None:
        return None
    chunks, checksum = tuple(sharding["chunk_shape"]), of_index[1]
    number = prod(shards) // max(1, prod(chunks))
    return Encoding(
        chunks,
        shards,
        dtype,
        *chain,
        fill,
        index_bytes=number * ENTRY_BYTES + CHECKSUM_BYTES * checksum,
        index_at_end=sharding.get("index_location", "end") == "end",
        index_checksum=checksum,
    )


def _named(document: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration of a codec, a chunk grid or a key encoding."""
    if isinstance(document, str):
        return document, {}
    return document["name"], document.get("configuration") or {}


def _chain(codecs: Sequence[tuple[str, Mapping[str, Any]]], itemsize: int) -> tuple[str | None, bool] | None:
    """(compressor or None, whether a checksum follows) if the codecs are bytes and at most these two; else None."""
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
