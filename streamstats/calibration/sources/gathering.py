"""Reading many small files in one call.

To open, read and close a file, Python releases its lock four times, and among busy threads each of these costs more
than the file itself. Here a compiled loop calls the C library for file after file and takes the lock for none of it.
Where the C functions are missing (`statx` exists on Linux only), files are read one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import numpy.typing as npt

from ...compiled import foreign
from ...compiled.cache import POINTER, SIZE, load
from ..encoding.decoders import Bytes
from . import links
from .identities import Identities
from .links import BENEATH, NO_LINKS, OPENAT2, READING, has_openat2, how

ARGUMENTS = (POINTER, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, POINTER, POINTER)
"""Addresses of functions, folder, the `struct open_how` of openat2(2) or 0 to follow links, names, bytes per name,
number of names, buffer, its bytes, most bytes of a file, room for the answer of statx(2), what was found of each file,
how many files were read."""
FUNCTIONS = ("openat", "statx", "pread", "close", "syscall")
HOW_BYTES = 24
EMPTY_PATH = 0x1000
"""statx(2): look at the descriptor itself."""
WANTED = 0x1 | 0x40 | 0x200
"""statx(2): type, time of the last change, size."""
MODE_AT, SIZE_AT, SECONDS_AT, NANOSECONDS_AT, EMPTY_AT, ANSWER_BYTES = 28, 40, 112, 120, 256, 264
"""Offsets in the answer of statx(2), as the kernel lays it out; an empty name follows it."""
KIND, REGULAR = 0xF000, 0x8000


@dataclass(frozen=True)
class Gathered:
    """Files read one after the other: offset and length in `places`, int64[files, 2], and their `identities`."""

    places: npt.NDArray[np.int64]
    identities: Identities

    @classmethod
    def nothing(cls) -> Self:
        """No file."""
        return cls(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


def can_gather(*, follow_links: bool = True) -> bool:
    """Whether this system has the C functions."""
    return _functions() is not None and (follow_links or has_openat2())


def gather(folder: int, names: Sequence[str], buffer: Bytes, most: int, *, follow_links: bool = True) -> Gathered:
    """Read the files called `names`, in the folder with the descriptor `folder`, into `buffer`, in order.

    It stops before the first file that is missing, empty, not a regular file, larger than `most` bytes or than the rest
    of the buffer, behind a link that is not followed, or that fails to read. The caller finds out why.
    """
    encoded = [os.fsencode(name) for name in names]
    width = max(map(len, encoded), default=0) + 1
    table = np.array(encoded, f"S{width}")
    found = np.empty((len(names), 4), np.int64)
    answer, done = np.zeros(ANSWER_BYTES, np.uint8), np.zeros(1, np.int64)
    functions, opening = _functions(), np.frombuffer(how(READING, NO_LINKS | BENEATH), np.uint8)
    assert functions is not None
    _loop()(
        functions.ctypes.data,
        folder,
        0 if follow_links else opening.ctypes.data,
        table.ctypes.data,
        width,
        len(names),
        buffer.ctypes.data,
        buffer.size,
        most,
        answer.ctypes.data,
        found.ctypes.data,
        done.ctypes.data,
    )
    return Gathered(found[: done[0], :2].copy(), found[: done[0], 2:])


@cache
def _functions() -> npt.NDArray[np.int64] | None:
    try:
        return foreign.addresses(None, FUNCTIONS)
    except (AttributeError, OSError):
        return None


@cache
def _loop() -> Callable[..., None]:
    return load("gather", ARGUMENTS, _definition, (__name__, foreign.__name__, links.__name__))


# Compiled


def _definition() -> Callable[..., None]:
    """The loop over the files; each C function is called as its header declares it."""
    import numba

    call, word = foreign.caller(), foreign.word_reader()
    carray, compiled = numba.carray, numba.njit(error_model="numpy")

    @compiled
    def opened(functions, folder, how, name):  # type: ignore[no-untyped-def]
        if how:
            return np.int64(np.int32(call(functions[4], (OPENAT2, folder, name, how, HOW_BYTES))))
        return np.int64(np.int32(call(functions[0], (folder, name, READING))))

    @compiled
    def long_word(at):  # type: ignore[no-untyped-def]
        return word(at) | word(at + 4) << 32

    @compiled
    def take(stat, read, file, buffer, room, most, answer, row):  # type: ignore[no-untyped-def]
        """Fill `buffer` and `row` from an open file; its size, or −1."""
        if np.int32(call(stat, (file, answer + EMPTY_AT, EMPTY_PATH, WANTED, answer))) != 0:
            return -1
        size = long_word(answer + SIZE_AT)
        if word(answer + MODE_AT) & KIND != REGULAR or not 0 < size <= min(most, room):
            return -1
        done = 0
        while done < size:
            count = call(read, (file, buffer + done, size - done, done))
            if count <= 0:
                return -1
            done += count
        row[1], row[2] = size, size
        row[3] = long_word(answer + SECONDS_AT) * 1_000_000_000 + word(answer + NANOSECONDS_AT)
        return size

    def gather(functions, folder, how, names, width, number, buffer, room, most, answer, found, done):  # type: ignore[no-untyped-def]
        called = carray(functions, (5,), np.int64)
        stat, read, closing = called[1], called[2], called[3]
        rows, progress = carray(found, (number, 4), np.int64), carray(done, (1,), np.int64)
        filled = 0
        for i in range(number):
            file = opened(called, folder, how, names + i * width)
            if file < 0:
                break
            size = take(stat, read, file, buffer + filled, room - filled, most, answer, rows[i])
            call(closing, (file,))
            if size < 0:
                break
            rows[i, 0] = filled
            filled += size
            progress[0] += 1

    return gather
