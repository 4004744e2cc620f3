"""Decoders: the bytes of one stored chunk → its values, or an error.

A decoder never trusts a size that a chunk claims. It gets exactly the room that the chunk's shape asks for and must
fill it, because decoders leave the rest of a buffer as it was. (Formats: crc32c as in zarr v3; Zstandard, RFC 8878; the
header of Blosc 1; gzip and zlib, RFC 1952 and 1950.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
from numcodecs.errors import UnknownCodecError

from .fused import decode

Bytes = npt.NDArray[np.uint8]
"""Bytes in memory, uint8[n]."""

MISSING_CODEC = (ImportError, NotImplementedError, UnknownCodecError)
"""What says that a codec is not installed, or cannot do what is asked of it, and nothing of the stored bytes."""
CHECKSUM_BYTES = 4
ZSTD_MAGIC = 0xFD2FB528
BLOSC_HEADER_BYTES = 16


def checked(stored: Bytes) -> Bytes:
    """`stored` without the CRC-32C at its end. Raises `ValueError` for a wrong checksum."""
    content, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    found = google_crc32c.value(content)
    if len(checksum) < CHECKSUM_BYTES or found != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError(f"the checksum of {content.size} bytes is not the stored one")
    return content


def _zstd(stored: Bytes, out: Bytes) -> None:
    if decode("zstd", stored, out):
        return  # which also handles several frames, and frames that do not declare their size
    _check_declared(_zstd_size(stored[:18].tobytes()), out)
    numcodecs.Zstd().decode(stored, out=out)


def _zstd_size(header: bytes) -> int:
    """The content size that the header of a Zstandard frame declares. Raises `ValueError` if it declares none."""
    if len(header) < 6 or int.from_bytes(header[:4], "little") != ZSTD_MAGIC:
        raise ValueError("a chunk does not begin with a Zstandard frame")
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not width:
        raise ValueError("a Zstandard frame does not declare its size")
    return int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)


def _blosc(stored: Bytes, out: Bytes) -> None:
    header = stored[:BLOSC_HEADER_BYTES].tobytes()
    if len(header) < BLOSC_HEADER_BYTES or int.from_bytes(header[12:], "little") > stored.size:
        raise ValueError(f"a Blosc chunk is cut off after {stored.size} bytes")
    _check_declared(int.from_bytes(header[4:8], "little"), out)
    numcodecs.Blosc().decode(stored, out=out)


def _lz4(stored: Bytes, out: Bytes) -> None:
    _check_declared(int.from_bytes(stored[:4].tobytes(), "little"), out)
    numcodecs.LZ4().decode(stored, out=out)


def _gzip(stored: Bytes, out: Bytes) -> None:
    """One gzip member, or several in a row."""
    done, rest = 0, stored.data
    while len(rest):
        done, rest = _inflate(zlib.decompressobj(wbits=31), rest, out, done)
    if done != out.size:
        raise ValueError(f"a chunk does not decode to {out.size} bytes")


def _zlib(stored: Bytes, out: Bytes) -> None:
    done, rest = _inflate(zlib.decompressobj(wbits=15), stored.data, out, 0)
    if done != out.size or len(rest):
        raise ValueError(f"a chunk does not decode to {out.size} bytes")


def _inflate(decoder: Any, stored: memoryview, out: Bytes, start: int) -> tuple[int, memoryview]:
    """Decode one stream into `out` from `start`; returns where it ends in `out`, and what follows it in `stored`."""
    decoded = decoder.decompress(stored, out.size - start + 1)
    stop = start + len(decoded)
    if stop > out.size or not decoder.eof:
        raise ValueError(f"a chunk does not decode to {out.size} bytes")
    out[start:stop] = np.frombuffer(decoded, np.uint8)
    return stop, memoryview(decoder.unused_data)


def _check_declared(declared: int, out: Bytes) -> None:
    if declared != out.size:
        raise ValueError(f"a chunk declares {declared} bytes, expected {out.size}")


DECODERS: Mapping[str, Callable[[Bytes, Bytes], None]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "gzip": _gzip,
    "zlib": _zlib,
}
"""Name of a compressor → its decoder: decodes all of the first argument into the second, which it must fill.

Raises `ValueError`, `RuntimeError` or `zlib.error`.
"""
