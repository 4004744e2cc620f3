"""From a block of any layout to the compiled loops: a block is cut into pieces that the loops take as they lie.

Reduced axes may be taken in any order, so a block whose memory is one piece (C, Fortran or any permuted order) is
viewed, never copied; anything else (strided, broadcast, foreign byte order) is copied piece by piece, in the order
of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types

from ..errors import MismatchError
from . import kernels
from .exact import digit_count

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

LOOPS = {
    "narrow": (kernels.rows_narrow, kernels.runs_narrow),
    "wide": (kernels.rows_wide, kernels.runs_wide),
    "float16": (kernels.rows_float16, kernels.runs_float16),
    "float32": (kernels.rows_float32, kernels.runs_float32),
    "float64": (kernels.rows_float64, kernels.runs_float64),
}
"""How values are taken → the loop over rows, the loop over runs."""
NARROW_ACCUMULATOR = {1: (np.int16, 128), 2: (np.int32, 2**15), 4: (np.int64, 2**31)}
"""Bytes of an integer → accumulator that holds this many of the largest."""

REORDERED = {kernels.runs_float16, kernels.runs_float32}
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


@dataclass(frozen=True)
class Measures:
    """What one pass finds in each channel of a piece, [C]; `digits` int64[digit_count, C] is the sum, not carried.

    `nan` and `infinite` count what is not finite and has no part in the rest; `low` and `high`, of the values' dtype,
    are the extrema: ±∞, or the ends of the integer type, where there is no finite value. A zero has no sign.
    """

    dtype: np.dtype[Any]
    values: int
    digits: npt.NDArray[np.int64]
    nan: npt.NDArray[np.int64]
    infinite: npt.NDArray[np.int64]
    low: Array
    high: Array


def measure_piece(piece: Array) -> Measures:
    """Measure `piece`, one of `pieces`. `values` is the number of values of a channel."""
    outer, channels, inner = piece.shape
    total = _Accumulators.empty(piece.dtype, channels)
    for part, joined, run in _parts(piece):
        found = _Accumulators.empty(piece.dtype, joined * channels * run)
        found.measure(part)
        total.add(found, (joined, channels, run))
    low, high = (_to_values(bound, piece.dtype) for bound in (total.low, total.high))
    return Measures(piece.dtype, outer * inner, *total.counts(), low, high)


@dataclass(frozen=True)
class _Accumulators:
    """What a loop fills, for each of its channels; sums above, NaN and infinities in the last two rows."""

    sums: npt.NDArray[np.int64]
    low: Array
    high: Array

    @classmethod
    def empty(cls, dtype: np.dtype[Any], channels: int) -> _Accumulators:
        least, greatest = _bounds(dtype)
        sums = np.zeros((digit_count(dtype) + 2, channels), np.int64)
        return cls(sums, np.full(channels, greatest), np.full(channels, least))

    def counts(self) -> tuple[Array, Array, Array]:
        return self.sums[:-2], self.sums[-2], self.sums[-1]

    def measure(self, part: Array) -> None:
        digits, nan, infinite = self.counts()
        dtype = part.dtype
        if dtype.kind == "f":
            views = (part,) if dtype != np.float16 else ()
            bits = part.view(INTEGER_OF_FLOAT[dtype])
            _run(dtype.name, part.ndim, *views, bits, digits, nan, infinite, self.low, self.high)
            self._look_again(part, nan + infinite)
        elif dtype.itemsize == 8:
            upper_mask = -1 if dtype.kind == "i" else kernels.LOW
            _run("wide", part.ndim, part, part.view(np.int64), upper_mask, digits, self.low, self.high)
        else:
            accumulator, longest = NARROW_ACCUMULATOR[dtype.itemsize]
            codes = part.view(np.uint8) if dtype.kind == "b" else part
            room = np.empty(kernels.TILE, accumulator)
            _run("narrow", part.ndim, codes, room, longest, digits, self.low, self.high)

    def _look_again(self, part: Array, nonfinite: Array) -> None:
        """Find the extrema of the channels whose keys NaN and infinities have a part in, without them."""
        for channel in np.flatnonzero(nonfinite):
            values = part[:, channel]
            finite = values[np.isfinite(values)]
            bounds = [finite.min(initial=np.inf), finite.max(initial=-np.inf)]
            self.low[channel], self.high[channel] = _keys(np.array(bounds, part.dtype))

    def add(self, part: _Accumulators, shape: tuple[int, int, int]) -> None:
        """Add the accumulators of a part, whose channels are those of `shape` (joined, channels, inner)."""
        self.sums[...] += part.sums.reshape(-1, *shape).sum(axis=(1, 3))
        np.minimum(self.low, part.low.reshape(shape).min(axis=(0, 2)), out=self.low)
        np.maximum(self.high, part.high.reshape(shape).max(axis=(0, 2)), out=self.high)


def _bounds(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest number of the type that the loops compare: keys of floats, uint8 for bool."""
    limits = np.iinfo(np.uint8 if dtype.kind == "b" else INTEGER_OF_FLOAT.get(dtype, dtype))
    return limits.dtype.type(limits.min), limits.dtype.type(limits.max)


def _keys(floats: Array) -> Array:
    """Integers of the same width whose order is that of `floats`."""
    return _flipped(floats.view(INTEGER_OF_FLOAT[floats.dtype]))


def _to_values(bound: Array, dtype: np.dtype[Any]) -> Array:
    """Extrema as the loops hold them → values of `dtype`, zeros without sign."""
    return _flipped(bound).view(dtype) + dtype.type(0) if dtype.kind == "f" else bound.astype(dtype)


def _flipped(integers: Array) -> Array:
    """Negative numbers with every bit but the sign flipped: bit patterns of floats → keys, and back."""
    magnitude = integers.dtype.type(np.iinfo(integers.dtype).max)
    return np.where(integers < 0, integers ^ magnitude, integers)


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


def _run(kind: str, ndim: int, *arguments: Any) -> None:
    loop = LOOPS[kind][ndim - 2]
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
