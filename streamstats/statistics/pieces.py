"""Cutting blocks of any layout into pieces that the compiled loops take as they lie in memory.

Reduced axes may be taken in any order, so a block whose memory is one piece (C, Fortran or any permuted order) is
viewed, never copied; anything else (strided, broadcast, foreign byte order) is copied piece by piece, in the order
of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError

Array = npt.NDArray[Any]

LONGEST_PIECE = 2**27
"""Values per channel: this many deposits are far from overflowing a 64-bit digit."""
COPIED_BYTES = 2**20
"""About the size of the pieces that have to be copied."""
SHORTEST_RUN = 64
"""Shorter runs of one channel are taken as rows of more channels, where there are FEWEST_ROWS of at most WIDEST."""
FEWEST_ROWS = 16
WIDEST = 16384
NARROWEST = 1024
"""Rows narrower than this are joined: several are taken as one."""


def pieces(block: Array, channel_axis: int) -> Iterator[Array]:
    """Cut `block` (any shape and layout) into native C-contiguous pieces with the axes (outer, channel, inner).

    Every value comes exactly once. Raises `MismatchError` for an axis out of range.
    """
    if not -block.ndim <= channel_axis < block.ndim:
        raise MismatchError(f"channel axis {channel_axis} is out of range for a block of shape {block.shape}")
    order = sorted(range(block.ndim), key=lambda axis: -abs(block.strides[axis]))
    ordered = block.transpose(order)
    channel = order.index(channel_axis % block.ndim)
    for part in _split(ordered, channel, _piece_values(ordered, channel)):
        native = np.require(part, part.dtype.newbyteorder("="), ["C", "A"])
        yield native.reshape(prod(part.shape[:channel]), part.shape[channel], prod(part.shape[channel + 1 :]))


def _piece_values(block: Array, channel: int) -> int:
    """How many values a piece of `block` may have: many where it is only viewed, few where it is copied."""
    as_it_lies = block.flags.c_contiguous and block.flags.aligned and block.dtype.isnative
    longest: int = LONGEST_PIECE * max(1, block.shape[channel])
    if as_it_lies and (channel > 0 or block.size <= longest):
        return longest
    return max(1, COPIED_BYTES // block.itemsize)


def _split(block: Array, channel: int, limit: int) -> Iterator[Array]:
    """Cut `block` along its outermost reduced axis, then the next, until no piece has more than `limit` values."""
    if block.size == 0:
        return
    axis = next((axis for axis, extent in enumerate(block.shape) if axis != channel and extent > 1), None)
    if block.size <= limit or axis is None:
        yield block
        return
    step = max(1, block.shape[axis] * limit // block.size)
    for start in range(0, block.shape[axis], step):
        yield from _split(block[(slice(None),) * axis + (slice(start, start + step),)], channel, limit)


def parts(piece: Array) -> Iterator[tuple[Array, int, int]]:
    """What the loops take: (rows [n, joined·C·inner], joined, inner), or (runs [outer, C, inner], 1, 1)."""
    outer, channels, inner = piece.shape
    width = channels * inner
    runs, joined = arrangement(outer, channels, inner)
    if runs:
        yield piece, 1, 1
        return
    rows = piece.reshape(outer, width)
    whole = outer - outer % joined
    yield rows[:whole].reshape(whole // joined, joined * width), joined, inner
    if whole < outer:
        yield rows[whole:], 1, inner


def arrangement(outer: int, channels: int, inner: int) -> tuple[bool, int]:
    """Whether values with these axes are taken as runs; if not, how many rows of them as one, with none left over."""
    width = channels * inner
    if inner > 1 and (inner >= SHORTEST_RUN or outer < FEWEST_ROWS or width > WIDEST):
        return True, 1
    most = max(1, min(NARROWEST // max(1, width), outer))
    return False, next((joined for joined in range(most, most // 2, -1) if outer % joined == 0), most)
