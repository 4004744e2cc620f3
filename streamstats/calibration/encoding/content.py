"""The content of a file in one number, to tell whether it is a copy: a hash of its size and of samples of its bytes.

Small files are taken whole. Of others, four pieces are read, at the beginning, at the end and in between, so that it
costs little beside decoding. If a file ends with a checksum of the rest, equal numbers mean equal files. State files
hold these numbers, so the hash must stay what it is. (A CRC would not do: over bytes and their own CRC, it is the same
for all files of one size.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from ...compiled.cache import POINTER, SIZE, load
from .decoders import Bytes

PIECES, PIECE_BYTES = 4, 2**8
SAMPLE_BYTES = PIECES * PIECE_BYTES
UNSAMPLED = -1
"""Stands for the content of a file that was not sampled."""
FACTOR, SHIFT = 0x9E3779B97F4A7C15, 29
"""Each word of 8 bytes is mixed in by h ← (h ^ word)·FACTOR, h ← h ^ h >> SHIFT; bytes that are left, one by one."""
ARGUMENTS = (POINTER, POINTER, POINTER, POINTER, SIZE)
"""Addresses of bytes; of the starts and the lengths of the pieces of each file; of the sizes of the files, which become
their contents; the number of files."""

Integers = npt.NDArray[np.int64]

_IN_SAMPLE = np.arange(0, SAMPLE_BYTES, PIECE_BYTES)
_WHOLE_PIECES = np.full(PIECES, PIECE_BYTES)


def contents_in(stored: Bytes, places: Integers) -> Integers:
    """The contents of the files whose bytes are in `stored`, at `places`, int64[files, (offset, size)]."""
    sizes = places[:, 1].copy()
    starts, lengths = _pieces(sizes)
    return _hashed(stored, starts + places[:, :1], lengths, sizes)


def content_of(size: int, read: Callable[[int, Bytes], object]) -> int:
    """The content of a file of `size` bytes; `read` fills a buffer from a byte on, and may raise what it raises."""
    if size <= SAMPLE_BYTES:
        whole = np.empty(size, np.uint8)
        read(0, whole)
        return int(contents_in(whole, np.array([[0, size]]))[0])
    sample = np.empty(SAMPLE_BYTES, np.uint8)
    for number in range(PIECES):
        start = number * (size - PIECE_BYTES) // (PIECES - 1)
        read(start, sample[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])
    return int(_hashed(sample, _IN_SAMPLE, _WHOLE_PIECES, np.array([size]))[0])


def _pieces(sizes: Integers) -> tuple[Integers, Integers]:
    """Where the pieces of files of `sizes` bytes begin, and their lengths, int64[files, PIECES] each."""
    number = np.arange(PIECES)
    cuts = sizes[:, None] * np.arange(PIECES + 1) // PIECES
    is_whole = sizes[:, None] <= SAMPLE_BYTES
    starts = np.where(is_whole, cuts[:, :-1], number * (sizes[:, None] - PIECE_BYTES) // (PIECES - 1))
    return starts, np.where(is_whole, np.diff(cuts), PIECE_BYTES)


def _hashed(stored: Bytes, starts: Integers, lengths: Integers, sizes: Integers) -> Integers:
    """The contents of files of `sizes` bytes from their pieces in `stored`; they take the place of `sizes`."""
    _loop()(stored.ctypes.data, starts.ctypes.data, lengths.ctypes.data, sizes.ctypes.data, len(sizes))
    return sizes


@cache
def _loop() -> Callable[..., None]:
    return load("contents", ARGUMENTS, _definition, (__name__,))


# Compiled


def _definition() -> Callable[..., None]:
    """The loop over the pieces of files."""
    import numba

    carray, u64 = numba.carray, np.uint64
    factor, shift, byte, most = u64(FACTOR), u64(SHIFT), u64(8), 2**62

    @numba.njit(error_model="numpy")
    def mixed(h, word):  # type: ignore[no-untyped-def]
        h = (h ^ word) * factor
        return h ^ (h >> shift)

    @numba.njit(error_model="numpy")
    def word(data, at):  # type: ignore[no-untyped-def]
        found = u64(data[at + 7])
        for place in range(6, -1, -1):
            found = (found << byte) | u64(data[at + place])
        return found

    def contents(stored, starts, lengths, files, number):  # type: ignore[no-untyped-def]
        data = carray(stored, (most,), np.uint8)
        first, length = carray(starts, (number, PIECES), np.int64), carray(lengths, (number, PIECES), np.int64)
        found = carray(files, (number,), np.int64)
        for file in range(number):
            h = mixed(u64(0), u64(found[file]))
            for piece in range(PIECES):
                at, stop = first[file, piece], first[file, piece] + length[file, piece]
                while at + 8 <= stop:
                    h = mixed(h, word(data, at))
                    at += 8
                while at < stop:
                    h = mixed(h, u64(data[at]))
                    at += 1
            found[file] = np.int64(h >> u64(1))

    return contents
