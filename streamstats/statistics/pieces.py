"""From a block of any layout to the compiled loops: a block is cut into pieces that the loops take as they lie.

Reduced axes may be taken in any order, so a block whose memory is one piece (C, Fortran or any permuted order) is
viewed, never copied; anything else (strided, broadcast, foreign byte order) is copied piece by piece, in the order
of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from ..errors import MismatchError
from . import kernels

Array = npt.NDArray[Any]

LONGEST_PIECE = 2**27
"""Elements a channel: this many deposits are far from overflowing a 64-bit digit."""
COPIED_BYTES = 2**20
"""About the size of the pieces that have to be copied."""
SHORTEST_RUN = 32
"""Shorter runs of one channel are taken as rows of more channels, where there are FEWEST_ROWS of at most WIDEST."""
FEWEST_ROWS = 16
WIDEST = 4096
NARROWEST = 256
"""Rows narrower than this are joined: several are taken as one."""

INTEGER_OF_FLOAT = {np.dtype(np.float16): np.int16, np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
"""The signed integer of the same width, through which the bit patterns of a float are read."""

SUM_OF_FLOAT = {
    np.dtype(np.float16): (kernels.sum_rows_float16, kernels.sum_runs_float16),
    np.dtype(np.float32): (kernels.sum_rows_float32, kernels.sum_runs_float32),
    np.dtype(np.float64): (kernels.sum_rows_float64, kernels.sum_runs_float64),
}
NARROW_ACCUMULATOR = {1: (np.int16, 128), 2: (np.int32, 2**15), 4: (np.int64, 2**31)}
"""Bytes of an integer → accumulator that holds this many of the largest."""

REORDERED = {kernels.sum_runs_float16, kernels.sum_runs_float32}
"""Loops whose float sums are used only where they are exact in any order: the compiler may choose the order."""


def pieces(block: Array, channel_axis: int) -> Iterator[Array]:
    """Cut `block` (any shape and layout) into native C-contiguous pieces with the axes (outer, channel, inner).

    Every element comes exactly once. Raises `MismatchError` for an axis out of range.
    """
    if not -block.ndim <= channel_axis < block.ndim:
        raise MismatchError(f"channel axis {channel_axis} is out of range for a block of shape {block.shape}")
    order = sorted(range(block.ndim), key=lambda axis: -abs(block.strides[axis]))
    ordered = block.transpose(order)
    channel = order.index(channel_axis % block.ndim)
    for part in _split(ordered, channel, _piece_elements(ordered, channel)):
        native = np.require(part, part.dtype.newbyteorder("="), ["C", "A"])
        yield native.reshape(prod(part.shape[:channel]), part.shape[channel], prod(part.shape[channel + 1 :]))


def _piece_elements(block: Array, channel: int) -> int:
    """How many elements a piece of `block` may have: many where it is only viewed, few where it is copied."""
    as_it_lies = block.flags.c_contiguous and block.flags.aligned and block.dtype.isnative
    longest: int = LONGEST_PIECE * max(1, block.shape[channel])
    if as_it_lies and (channel > 0 or block.size <= longest):
        return longest
    return max(1, COPIED_BYTES // block.itemsize)


def _split(block: Array, channel: int, limit: int) -> Iterator[Array]:
    """Cut `block` along its outermost reduced axis, then the next, until no piece has more than `limit` elements."""
    if block.size == 0:
        return
    axis = next((axis for axis, extent in enumerate(block.shape) if axis != channel and extent > 1), None)
    if block.size <= limit or axis is None:
        yield block
        return
    step = max(1, block.shape[axis] * limit // block.size)
    for start in range(0, block.shape[axis], step):
        yield from _split(block[(slice(None),) * axis + (slice(start, start + step),)], channel, limit)


def sum_piece(piece: Array, digits: int) -> tuple[Array, Array, Array]:
    """Per channel of `piece`: raw sum int64[digits, C] (not carried), NaN count and infinity count int64[C]."""
    channels = piece.shape[1]
    total = np.zeros((digits + 2, channels), np.int64)
    for part, joined, inner in _parts(piece):
        raw = np.zeros((digits + 2, joined * channels * inner), np.int64)
        _sum_part(part, raw[:-2], raw[-2], raw[-1])
        total += raw.reshape(digits + 2, joined, channels, inner).sum(axis=(1, 3))
    return total[:-2], total[-2], total[-1]


def extrema_piece(piece: Array) -> tuple[Array, Array]:
    """Per channel of `piece` (not empty): its least and its greatest finite value, of its dtype, shape [C].

    A channel without a finite value has the identities, +∞ and −∞; a zero has no sign.
    """
    lows, highs = [], []
    for part, joined, inner in _parts(piece):
        low, high = _part_extrema(part, joined * piece.shape[1] * inner)
        lows.append(low.reshape(joined, piece.shape[1], inner).min(axis=(0, 2)))
        highs.append(high.reshape(joined, piece.shape[1], inner).max(axis=(0, 2)))
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _parts(piece: Array) -> Iterator[tuple[Array, int, int]]:
    """What the loops take: (rows [n, joined·C·inner], joined, inner), or (runs [outer, C, inner], 1, 1)."""
    outer, channels, inner = piece.shape
    width = channels * inner
    if inner > 1 and (inner >= SHORTEST_RUN or outer < FEWEST_ROWS or width > WIDEST):
        yield piece, 1, 1
        return
    rows = piece.reshape(outer, width)
    joined = max(1, min(NARROWEST // width, outer))
    whole = outer - outer % joined
    yield rows[:whole].reshape(whole // joined, joined * width), joined, inner
    if whole < outer:
        yield rows[whole:], 1, inner


def _sum_part(part: Array, digits: Array, nan: Array, infinite: Array) -> None:
    dtype = part.dtype
    if dtype.kind == "f":
        loop = SUM_OF_FLOAT[dtype][part.ndim - 2]
        views = (part,) if dtype != np.float16 else ()
        _run(loop, *views, part.view(INTEGER_OF_FLOAT[dtype]), digits, nan, infinite)
    elif dtype.itemsize == 8:
        wide = (kernels.sum_rows_wide, kernels.sum_runs_wide)[part.ndim - 2]
        _run(wide, part.view(np.int64), -1 if dtype.kind == "i" else kernels.LOW, digits)
    else:
        accumulator, longest = NARROW_ACCUMULATOR[dtype.itemsize]
        narrow = (kernels.sum_rows_narrow, kernels.sum_runs_narrow)[part.ndim - 2]
        _run(narrow, _as_integers(part), np.empty(kernels.TILE, accumulator), longest, digits)


def _part_extrema(part: Array, width: int) -> tuple[Array, Array]:
    channels = width if part.ndim == 2 else part.shape[1]
    if part.dtype.kind == "f":
        return _float_extrema(part, channels)
    codes = _as_integers(part)
    limits = np.iinfo(codes.dtype)
    low, high = np.full(channels, limits.max, codes.dtype), np.full(channels, limits.min, codes.dtype)
    _run((kernels.extrema_rows_integers, kernels.extrema_runs_integers)[part.ndim - 2], codes, low, high)
    return low.astype(part.dtype), high.astype(part.dtype)


def _float_extrema(part: Array, channels: int) -> tuple[Array, Array]:
    bits = part.view(INTEGER_OF_FLOAT[part.dtype])
    shift, mask = bits.dtype.itemsize * 8 - 1, bits.dtype.type(np.iinfo(bits.dtype).max)
    infinity = np.array(np.inf, part.dtype).view(bits.dtype)[()]
    low, high = np.full(channels, infinity), np.full(channels, ~infinity)
    loop = (kernels.extrema_rows_floats, kernels.extrema_runs_floats)[part.ndim - 2]
    _run(loop, bits, shift, mask, infinity, low, high)
    return tuple((key ^ ((key >> shift) & mask)).view(part.dtype) + 0.0 for key in (low, high))


def _as_integers(part: Array) -> Array:
    return part.view(np.uint8) if part.dtype.kind == "b" else part


def _run(loop: Any, *arguments: Any) -> None:
    _compiled(loop, tuple(_numba_type(argument) for argument in arguments))(*arguments)


def _numba_type(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return types.Array(numba.from_dtype(argument.dtype), argument.ndim, "C", readonly=not argument.flags.writeable)
    return numba.typeof(argument)


@cache
def _compiled(loop: Callable[..., None], argument_types: tuple[Any, ...]) -> Callable[..., None]:
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc"} if loop in REORDERED else False}
    try:
        return numba.njit(types.void(*argument_types), cache=True, **options)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder can be written: compile without keeping the result
        return numba.njit(types.void(*argument_types), **options)(loop)  # type: ignore[no-any-return]
