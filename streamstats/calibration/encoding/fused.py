"""Decoding many chunks in one call, and measuring them while they are in the processor's cache.

Between two calls Python's lock changes hands, which among busy threads costs more than decoding a small chunk. Here a
compiled loop decodes chunk after chunk into one small buffer, hands the result to the loop that measures, and takes the
lock for none of it. Where a block of decoded values is wanted, too, the buffer is that block, and nothing in it moves.
The loop calls the C functions inside numcodecs' own extension modules. Where a module does not export them, and from
the first chunk that they refuse, chunks go through numcodecs one by one, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compiled import foreign
from ...compiled.cache import POINTER, SIZE, load
from ...statistics.running import Intake

ARGUMENTS = (POINTER, SIZE, POINTER, SIZE, SIZE, SIZE, POINTER, POINTER)
"""Addresses of functions, stored bytes, places of chunks, their number, bytes of a chunk, buffer, intake, state.

The state is int64[STATE]: whole chunks, bytes left in the buffer, units measured, whether a chunk was torn, as in
`Fed`; where in the buffer the bytes left begin; whether decoded values stay where they are.
"""
CHUNKS, LEFT, UNITS, TORN, START, STAYS, STATE = range(7)
RAW = "raw"
"""The name for chunks that are not encoded."""
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "zstd": ("ZSTD_createDCtx", "ZSTD_decompressDCtx", "ZSTD_freeDCtx"),
    "blosc": ("blosc_decompress_ctx",),
    "lz4": ("LZ4_decompress_safe",),
    RAW: (),
}
"""Compressor, which is also the name of numcodecs' module → the C functions that its loop calls, after memmove."""
BLOSC_HEADER, LZ4_HEADER = 16, 4
"""Bytes of the header of a chunk."""
COPIED_BY_BLOSC = 2
"""The flag of a Blosc chunk that is not compressed, and so has no blocks."""
PIECE_BYTES = 2**19
"""Decoded bytes of a large Blosc chunk that are measured before more of it are decoded."""


@dataclass
class Fed:
    """What a call did: it took `chunks` whole chunks, measured `units`, and left `left` bytes in the buffer unmeasured.

    `torn` says that it measured a part of the next chunk before the rest turned out to be damaged.
    """

    chunks: int
    left: int
    units: int
    torn: bool


def decode(compressor: str, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> bool:
    """Decode the chunk `stored` into `out`; returns whether that filled it."""
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
    *,
    stay: bool = False,
) -> Fed:
    """Decode chunks of `stored` into `buffer`, behind the `left` bytes at its start, and measure them by `intake`.

    `places` int64[chunks, 2] has offset and length of each chunk in `stored`, whose headers may change. Bytes that fill
    no unit move to the start of `buffer`, which has room for a chunk and a unit; with `stay`, nothing moves, and
    `buffer` has room for `left` bytes and all chunks. Stops before the first chunk that does not decode to exactly
    `chunk_bytes`.
    """
    functions = _functions(compressor)
    if functions is None:
        return Fed(0, left, 0, torn=False)
    numbers = np.array(intake, np.int64)
    state = np.array([0, left, 0, 0, 0, stay], np.int64)
    arrays = functions, stored, places
    addresses = [each.ctypes.data for each in (*arrays, buffer, numbers, state)]
    _loop(compressor)(*addresses[:3], len(places), chunk_bytes, *addresses[3:])
    chunks, left, units, torn = state[:4].tolist()
    return Fed(chunks, left, units, bool(torn))


@cache
def _loop(compressor: str) -> Callable[..., None]:
    return load(f"decode-{compressor}", ARGUMENTS, DEFINITIONS[compressor], (__name__, foreign.__name__))


@cache
def _functions(compressor: str) -> npt.NDArray[np.int64] | None:
    """The addresses of memmove and the C functions, None if the extension module does not export them."""
    if compressor not in FUNCTIONS:
        return None
    try:
        library = import_module(f"numcodecs.{compressor}").__file__ if FUNCTIONS[compressor] else None
        return np.concatenate([foreign.addresses(None, ["memmove"]), foreign.addresses(library, FUNCTIONS[compressor])])
    except (AttributeError, OSError):
        return None


# Compiled: each C function is called as its header declares it


def _measuring() -> Any:
    """What hands the buffer to the loop that measures, for the loops below."""
    import numba

    call, carray = foreign.caller(), numba.carray

    @numba.njit(error_model="numpy")
    def measure(move, buffer, size, numbers, state):  # type: ignore[no-untyped-def]
        """Measure whole units of the buffer, which now has `size` bytes more; unless they stay, move the rest."""
        unit, loop, channels, inner, sums, low, high, room = carray(numbers, (8,), np.int64)
        progress = carray(state, (STATE,), np.int64)
        have = progress[LEFT] + size
        units = have // unit if unit else 0
        if units:
            call(loop, (buffer + progress[START], units, channels, inner, sums, low, high, room))
            have -= units * unit
            if progress[STAYS]:
                progress[START] += units * unit
            elif have:
                call(move, (buffer, buffer + units * unit, have))
        progress[LEFT] = have
        progress[UNITS] += units

    return measure


def _raw() -> Callable[..., None]:
    """The loop over chunks that are not encoded: they are copied."""
    import numba

    call, measure, carray = foreign.caller(), _measuring(), numba.carray

    def raw(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move = carray(functions, (1,), np.int64)[0]
        place, progress = carray(places, (number, 2), np.int64), carray(state, (STATE,), np.int64)
        for i in range(number):
            if place[i, 1] != size:
                break
            call(move, (buffer + progress[START] + progress[LEFT], stored + place[i, 0], size))
            measure(move, buffer, size, numbers, state)
            progress[CHUNKS] += 1

    return raw


def _zstd() -> Callable[..., None]:
    """The loop over Zstandard chunks, with one context for all of them."""
    import numba

    call, measure, carray = foreign.caller(), _measuring(), numba.carray

    def zstd(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move, create, decompress, free = carray(functions, (4,), np.int64)
        place, progress = carray(places, (number, 2), np.int64), carray(state, (STATE,), np.int64)
        context = call(create, (0,))
        if context == 0:  # no memory
            return
        for i in range(number):
            out = buffer + progress[START] + progress[LEFT]
            if call(decompress, (context, out, size, stored + place[i, 0], place[i, 1])) != size:
                break
            measure(move, buffer, size, numbers, state)
            progress[CHUNKS] += 1
        call(free, (context,))

    return zstd


def _lz4() -> Callable[..., None]:
    """The loop over LZ4 chunks, which numcodecs puts behind a word with their decoded size."""
    import numba

    call, word, measure, carray = foreign.caller(), foreign.word_reader(), _measuring(), numba.carray

    def lz4(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        move, decompress = carray(functions, (2,), np.int64)
        place, progress = carray(places, (number, 2), np.int64), carray(state, (STATE,), np.int64)
        for i in range(number):
            source, length = stored + place[i, 0] + LZ4_HEADER, place[i, 1] - LZ4_HEADER
            if length < 0 or word(source - LZ4_HEADER) != size:
                break
            if np.int32(call(decompress, (source, buffer + progress[START] + progress[LEFT], length, size))) != size:
                break
            measure(move, buffer, size, numbers, state)
            progress[CHUNKS] += 1

    return lz4


def _blosc() -> Callable[..., None]:
    """The loop over Blosc chunks."""
    import numba

    take, carray = _blosc_chunk(), numba.carray

    def blosc(functions, stored, places, number, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        place, progress = carray(places, (number, 2), np.int64), carray(state, (STATE,), np.int64)
        for i in range(number):
            if not take(functions, stored + place[i, 0], place[i, 1], size, buffer, numbers, state):
                break
            progress[CHUNKS] += 1

    return blosc


def _blosc_chunk() -> Any:
    """What decodes and measures one Blosc chunk in pieces of a few of its blocks, by making its header name only those.

    The header is 16 bytes: flags in the third, then words with the decoded size, the bytes of a block, and the stored
    size. The offset of each block follows.
    """
    import numba

    call, word, put_word = foreign.caller(), foreign.word_reader(), foreign.word_writer()
    measure, carray, compiled = _measuring(), numba.carray, numba.njit(error_model="numpy")

    @compiled
    def blocks_of(source, size):  # type: ignore[no-untyped-def]
        """(bytes of a block, blocks); a chunk that is not in usable blocks is one block."""
        block, length = word(source + 8), word(source + 12)
        blocks = -(-size // block) if block else 0
        if word(source) >> 16 & COPIED_BY_BLOSC or block > size or not 0 < 4 * blocks <= length - BLOSC_HEADER:
            return size, 1
        return block, blocks

    @compiled
    def decode_piece(decompress, source, first, last, piece, size, out):  # type: ignore[no-untyped-def]
        """Decode blocks `first` to `last`, `piece` bytes, into `out`; whether that succeeded."""
        put_word(source + 4, piece)
        for k in range(last - first):
            put_word(source + BLOSC_HEADER + 4 * k, word(source + BLOSC_HEADER + 4 * (first + k)))
        decoded = np.int32(call(decompress, (source, out, piece, 1, 0)))
        put_word(source + 4, size)
        return decoded == piece

    @compiled
    def take(functions, source, length, size, buffer, numbers, state):  # type: ignore[no-untyped-def]
        """Decode and measure the chunk at `source`; whether that succeeded."""
        move, decompress = carray(functions, (2,), np.int64)
        progress = carray(state, (STATE,), np.int64)
        if length < BLOSC_HEADER or word(source + 4) != size or word(source + 12) > length:
            return False
        block, blocks = blocks_of(source, size)
        together = max(1, PIECE_BYTES // block)
        first = 0
        while first < blocks:
            last = first + together
            if last >= size // block:  # the last block may be short, and Blosc takes no chunk shorter than a block
                last = blocks
            piece = min(last * block, size) - first * block
            if not decode_piece(
                decompress, source, first, last, piece, size, buffer + progress[START] + progress[LEFT]
            ):
                progress[TORN] = first > 0
                return False
            measure(move, buffer, piece, numbers, state)
            first = last
        return True

    return take


DEFINITIONS = {"zstd": _zstd, "blosc": _blosc, "lz4": _lz4, RAW: _raw}
"""Compressor → what defines the loop over its chunks, called with ARGUMENTS."""
