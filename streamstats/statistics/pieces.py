"""Cutting blocks of any layout into pieces that the compiled loops take in memory order.

Reduced axes may be taken in any order, so a block whose memory is contiguous (in C, Fortran or any permuted order) is
viewed, never copied. Any other block (strided, broadcast, foreign byte order) is copied piece by piece, in memory
order.
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
"""Maximum values per channel of a piece: that many deposits are far from overflowing a 64-bit digit."""
COPIED_BYTES = 2**20
"""The approximate size of pieces that must be copied."""
SHORTEST_RUN = 64
"""Shorter runs of one channel are taken as rows of several channels, if there are FEWEST_ROWS of at most WIDEST."""
FEWEST_ROWS = 16
WIDEST = 16384
NARROWEST = 1024
"""Rows narrower than this are joined: the loops take several as one."""


def pieces(block: Array, channel_axis: int) -> Iterator[Array]:
    """Cut `block` (any shape and layout) into native C-contiguous pieces with the axes (outer, channel, inner).

    Every value is in exactly one piece. Raises `MismatchError` for an axis out of range.
    """
    if not -block.ndim <= channel_axis < block.ndim:
        raise MismatchError(
            f"channel axis {channel_axis} is out of range for a block of shape {block.shape}; expected "
            f"{-block.ndim} to {block.ndim - 1}"
        )
    order = sorted(range(block.ndim), key=lambda axis: -abs(block.strides[axis]))
    ordered = block.transpose(order)
    channel = order.index(channel_axis % block.ndim)
    for part in _split(ordered, channel, _piece_values(ordered, channel)):
        native = np.require(part, part.dtype.newbyteorder("="), ["C", "A"])
        yield native.reshape(prod(part.shape[:channel]), part.shape[channel], prod(part.shape[channel + 1 :]))


def _piece_values(block: Array, channel: int) -> int:
    """Maximum values of a piece of `block`: many if it is viewed, few if it must be copied."""
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
    """The arguments of the loops: (rows [n, joined·C·inner], joined, inner), or (runs [outer, C, inner], 1, 1)."""
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
    """(whether the loops take values with these axes as runs, how many rows they take as one; preferably a divisor)."""
    width = channels * inner
    if inner > 1 and (inner >= SHORTEST_RUN or outer < FEWEST_ROWS or width > WIDEST):
        return True, 1
    most = max(1, min(NARROWEST // max(1, width), outer))
    return False, next((joined for joined in range(most, most // 2, -1) if outer % joined == 0), most)
