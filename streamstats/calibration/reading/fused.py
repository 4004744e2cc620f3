"""Decoding chunks in one call, and measuring them while they are in the cache.

Between two calls Python's lock changes hands, which among busy threads costs more than decoding a small chunk. Here a
compiled loop decodes chunk after chunk into one small buffer and gives what came to the loop that measures, and takes
the lock for none of it. The decoders are the C functions inside numcodecs' own extension modules; where a module does
not show them, and from the first chunk that they refuse, chunks go one by one through numcodecs, which says what is
wrong. A large Blosc chunk is decoded in pieces of a few of its blocks: its header is made to name only those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
import numpy.typing as npt

from ...compiled import foreign
from ...compiled.cache import POINTER, SIZE, load
from ...compiled.foreign import addresses, caller, word_reader, word_writer
from ...statistics.running import Intake

ARGUMENTS = (POINTER, SIZE, POINTER, SIZE, SIZE, SIZE, POINTER, POINTER)
"""Addresses of functions, stored bytes, places of chunks, their number, bytes of a chunk, buffer, intake, state."""

RAW = "raw"
"""Chunks that are stored as they are."""
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "zstd": ("ZSTD_createDCtx", "ZSTD_decompressDCtx", "ZSTD_freeDCtx"),
    "blosc": ("blosc_decompress_ctx",),
    "lz4": ("LZ4_decompress_safe",),
    RAW: (),
}
"""Compressor, which is also numcodecs' module → the C functions that its loop calls, after memmove."""
BLOSC_HEADER, LZ4_HEADER = 16, 4
"""Bytes that stand before a chunk."""
COPIED_BY_BLOSC = 2
"""The flag of a Blosc chunk that is not compressed, and has no blocks."""
PIECE_BYTES = 2**19
"""Decoded bytes of a large Blosc chunk that are measured before the next are decoded."""


@dataclass
class Fed:
    """What a batch did: whole `chunks`, `left` bytes at the start of the buffer not measured yet, `units` measured.

    `torn` says that the chunk after those was measured in part before it turned out to be damaged.
    """

    chunks: int
    left: int
    units: int
    torn: bool


def decode(compressor: str, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> bool:
    """Decode the chunk that is `stored` into `out`, which it must fill; whether it did."""
    fed = feed(compressor, stored, np.array([[0, stored.size]]), out.size, out, Intake.nothing(), 0)
    return fed.chunks == 1


def feed(
    compressor: str,
    stored: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    chunk_bytes: int,
    buffer: npt.NDArray[np.uint8],
    intake: Intake,
    left: int,
) -> Fed:
    """Decode chunks of `stored` into `buffer`, behind the `left` bytes at its start, and measure them by `intake`.

    `places` int64[chunks, 2] are offset and length of each, inside `stored`, whose headers are changed; `buffer` has
    room for a chunk and a unit. It stops before the first chunk that does not decode to exactly `chunk_bytes`.
    """
    functions = _functions(compressor)
    if functions is None:
        return Fed(0, left, 0, torn=False)
    numbers = np.array(intake, np.int64)
    state = np.array([0, left, 0, 0])
    arrays = functions, stored, places
    addresses = [each.ctypes.data for each in (*arrays, buffer, numbers, state)]
    _loop(compressor)(*addresses[:3], len(places), chunk_bytes, *addresses[3:])
    chunks, left, units, torn = state.tolist()
    return Fed(chunks, left, units, bool(torn))


@cache
def _loop(compressor: str) -> Callable[..., None]:
    return load(f"decode-{compressor}", ARGUMENTS, lambda: _definition(compressor), (__name__, foreign.__name__))


@cache
def _functions(compressor: str) -> npt.NDArray[np.int64] | None:
    """The addresses of memmove and the C functions, None where the extension module does not show them."""
    if compressor not in FUNCTIONS:
        return None
    try:
        library = import_module(f"numcodecs.{compressor}").__file__ if FUNCTIONS[compressor] else None
        return np.concatenate([addresses(None, ["memmove"]), addresses(library, FUNCTIONS[compressor])])
    except (AttributeError, OSError):
        return None


# Compiled


def _definition(compressor: str) -> Callable[..., None]:
    """The loop over the chunks; each C function is called as its header declares it."""
    import numba

    call, word, put_word = caller(), word_reader(), word_writer()
    carray, compiled = numba.carray, numba.njit(error_model="numpy")

    @compiled
    def measure(move, buffer, size, numbers, state):  # type: ignore[no-untyped-def]
        """Give whole units of what is in the buffer, now `size` bytes more, to the loop; the rest goes to its start."""
        unit, loop, channels, inner, sums, low, high, room = carray(numbers, (8,), np.int64)
        progress = carray(state, (4,), np.int64)
        have = progress[1] + size
        units = have // unit if unit else 0
        if units:
            call(loop, (buffer, units, channels, inner, sums, low, high, room))
            have -= units * unit
            if have:
                call(move, (buffer, buffer + units * unit, have))
        progress[1] = have
        progress[2] += units

    def zstd(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move, create, decompress, free = carray(functions, (4,), np.int64)
        place, progress = carray(places, (number, 2), np.int64), carray(state, (4,), np.int64)
        context = call(create, (0,))
        if context == 0:  # no memory
            return
        for i in range(number):
            if call(decompress, (context, buffer + progress[1], size, stored + place[i, 0], place[i, 1])) != size:
                break
            measure(move, buffer, size, numbers, state)
            progress[0] += 1
        call(free, (context,))

    def lz4(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move, decompress = carray(functions, (2,), np.int64)
        place, progress = carray(places, (number, 2), np.int64), carray(state, (4,), np.int64)
        for i in range(number):
            source, length = stored + place[i, 0] + LZ4_HEADER, place[i, 1] - LZ4_HEADER
            if length < 0 or word(source - LZ4_HEADER) != size:
                break
            if np.int32(call(decompress, (source, buffer + progress[1], length, size))) != size:
                break
            measure(move, buffer, size, numbers, state)
            progress[0] += 1

    def raw(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move = carray(functions, (1,), np.int64)[0]
        place, progress = carray(places, (number, 2), np.int64), carray(state, (4,), np.int64)
        for i in range(number):
            if place[i, 1] != size:
                break
            call(move, (buffer + progress[1], stored + place[i, 0], size))
            measure(move, buffer, size, numbers, state)
            progress[0] += 1

    def blosc(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move, decompress = carray(functions, (2,), np.int64)
        place, progress = carray(places, (number, 2), np.int64), carray(state, (4,), np.int64)
        for i in range(number):
            source = stored + place[i, 0]
            if place[i, 1] < BLOSC_HEADER or word(source + 4) != size or word(source + 12) > place[i, 1]:
                break
            block, length = word(source + 8), word(source + 12)
            blocks = -(-size // block) if block else 0
            if word(source) >> 16 & COPIED_BY_BLOSC or block > size or not 0 < 4 * blocks <= length - BLOSC_HEADER:
                block, blocks = size, 1  # to be decoded at once
            together = max(1, PIECE_BYTES // block)
            first = 0
            while first < blocks:
                last = first + together
                if last >= size // block:  # the last block may be short, and Blosc takes no chunk that is less than one
                    last = blocks
                piece = min(last * block, size) - first * block
                put_word(source + 4, piece)
                for k in range(last - first):
                    put_word(source + BLOSC_HEADER + 4 * k, word(source + BLOSC_HEADER + 4 * (first + k)))
                decoded = np.int32(call(decompress, (source, buffer + progress[1], piece, 1, 0)))
                put_word(source + 4, size)
                if decoded != piece:
                    progress[3] = first > 0
                    return
                measure(move, buffer, piece, numbers, state)
                first = last
            progress[0] += 1

    return {"zstd": zstd, "blosc": blosc, "lz4": lz4, RAW: raw}[compressor]
