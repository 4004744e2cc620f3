"""From blocks of any layout to the compiled loops: a block is cut into pieces that the loops take as they lie.

Reduced axes may be taken in any order, so a block whose memory is one piece (C, Fortran or any permuted order) is
viewed, never copied; anything else (strided, broadcast, foreign byte order) is copied piece by piece, in the order
of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..compiled.cache import address
from ..errors import MismatchError
from .exact import ExactSum, digit_count
from .loops import bound_dtype, loop, room

Array = npt.NDArray[Any]

LONGEST_PIECE = 2**27
"""Elements a channel: this many deposits are far from overflowing a 64-bit digit."""
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
    """What is found in each channel of some blocks, [C]; `digits` int64[digit_count, C] is the sum, not carried.

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


class Intake(NamedTuple):
    """How a compiled loop takes values in the order of memory: by units of `unit` bytes, each a row or a run.

    The rest is what the loop at the address `loop` is called with, beside where the values are and how many units.
    """

    unit: int
    loop: int
    channels: int
    inner: int
    sums: int
    low: int
    high: int
    room: int

    @classmethod
    def nothing(cls) -> Intake:
        """Values are left where they are."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0)


class Accumulator:
    """Takes blocks of one dtype and number of channels, one pass over each, and adds up what it finds.

    The loops fill arrays of their own for every way they take a block (rows of so many joined channels, runs), which
    are folded together when they are asked for: adding a block costs microseconds beside its bytes.
    """

    def __init__(self, dtype: np.dtype[Any], channels: int) -> None:
        self.dtype = dtype
        self.channels = channels
        self._values = 0
        self._uncarried = 0
        self._filled: dict[tuple[int, int], _Filled] = {}
        self._room = room()

    def add(self, block: Array, channel_axis: int) -> None:
        """Take `block`, of this dtype in any byte order and any layout, with the channels on `channel_axis`."""
        if (block.dtype.newbyteorder("="), block.shape[channel_axis]) != (self.dtype, self.channels):
            raise MismatchError(
                f"a block of {block.dtype} with {block.shape[channel_axis]} channels cannot be added to {self.dtype} "
                f"with {self.channels} channels"
            )
        for piece in pieces(block, channel_axis):
            outer, _, inner = piece.shape
            self._values += outer * inner
            self._make_room(outer * inner)
            for part, joined, run in _parts(piece):
                self._fill(part, joined, run)

    def intake(self, shape: Sequence[int], channel_axis: int) -> Intake | None:
        """How `shape` values in C order, with the channels on `channel_axis`, are to be given to a loop, all of them.

        It is to be told by `took` how many bytes a loop has had; what is no whole unit is for `add`. None where there
        are too many values.
        """
        outer, channels, inner = prod(shape[:channel_axis]), shape[channel_axis], prod(shape[channel_axis + 1 :])
        if outer * inner > LONGEST_PIECE:
            return None
        runs, joined = _arrangement(outer, channels, inner)
        filled = self._filling(joined, 1 if runs else inner)
        width = channels * inner
        self._make_room(outer * inner)
        return Intake(
            joined * width * self.dtype.itemsize,
            address(loop(self.dtype, runs=runs)),
            channels if runs else joined * width,
            inner if runs else 1,
            *filled.addresses,
            self._room.ctypes.data,
        )

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """Give the whole units in `memory` to the loop and move the rest to its start; how many bytes are left."""
        units, left = divmod(memory.size, intake.unit)
        if units:
            loop(self.dtype, runs=intake.inner > 1)(memory.ctypes.data, units, *intake[2:])
            memory[:left] = memory[memory.size - left :].copy()
            self.took(memory.size - left)
        return left

    def took(self, size: int) -> None:
        """Count the values of `size` bytes that were given to a loop by an intake."""
        self._values += size // (self.dtype.itemsize * self.channels)

    @property
    def all_finite(self) -> bool:
        """Whether no NaN and no infinity was found."""
        return not any(filled.sums[-2:].any() for filled in self._filled.values())

    def measures(self) -> Measures:
        """What was found in all blocks."""
        empty = _Filled.empty(self.dtype, self.channels)
        folded = [filled.folded(joined, self.channels, run) for (joined, run), filled in self._filled.items()]
        sums = sum((each.sums for each in folded), empty.sums)
        low, high = empty.low, empty.high
        for each in folded:
            low, high = np.minimum(low, each.low), np.maximum(high, each.high)
        digits, nan, infinite = sums[:-2], sums[-2], sums[-1]
        low, high = (_to_values(bound, self.dtype) for bound in (low, high))
        return Measures(self.dtype, self._values, digits, nan, infinite, low, high)

    def _fill(self, part: Array, joined: int, run: int) -> None:
        filled = self._filling(joined, run)
        outer, channels, inner = part.shape if part.ndim == 3 else (*part.shape, 1)
        measure = loop(self.dtype, runs=part.ndim == 3)
        measure(part.ctypes.data, outer, channels, inner, *filled.addresses, self._room.ctypes.data)

    def _filling(self, joined: int, run: int) -> _Filled:
        filled = self._filled.get((joined, run))
        if filled is None:
            filled = self._filled[joined, run] = _Filled.empty(self.dtype, joined * self.channels * run)
        return filled

    def _make_room(self, values: int) -> None:
        """Carry where `values` more in each channel could be too many."""
        self._uncarried += values
        if self._uncarried > LONGEST_PIECE:
            self._carry()
            self._uncarried = values

    def _carry(self) -> None:
        for filled in self._filled.values():
            filled.sums[:-2] = ExactSum.from_raw(self.dtype, filled.sums[:-2]).digits


@dataclass(frozen=True)
class _Filled:
    """What a loop fills, for each of its channels; sums above, NaN and infinities in the last two rows."""

    sums: npt.NDArray[np.int64]
    low: Array
    high: Array
    addresses: tuple[int, int, int]

    @classmethod
    def empty(cls, dtype: np.dtype[Any], channels: int) -> _Filled:
        least, greatest = _ends(bound_dtype(dtype))
        sums = np.zeros((digit_count(dtype) + 2, channels), np.int64)
        low, high = np.full(channels, greatest), np.full(channels, least)
        return cls(sums, low, high, (sums.ctypes.data, low.ctypes.data, high.ctypes.data))

    def folded(self, joined: int, channels: int, run: int) -> _Filled:
        """The same of the channels of the block, where one of them is `joined` times `run` of the loop's."""
        shape = (joined, channels, run)
        sums = self.sums.reshape(-1, *shape).sum(axis=(1, 3))
        low, high = self.low.reshape(shape).min(axis=(0, 2)), self.high.reshape(shape).max(axis=(0, 2))
        return _Filled(sums, low, high, (sums.ctypes.data, low.ctypes.data, high.ctypes.data))


def _ends(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest number of `dtype`."""
    if dtype.kind == "f":
        return dtype.type(-np.inf), dtype.type(np.inf)
    limits = np.iinfo(dtype)
    return dtype.type(limits.min), dtype.type(limits.max)


def _to_values(bound: Array, dtype: np.dtype[Any]) -> Array:
    """Extrema as the loops hold them → values of `dtype`, zeros without sign."""
    if dtype == np.float16:
        bound = bound * np.float32(2.0**112)
    return bound.astype(dtype) + dtype.type(0) if dtype.kind == "f" else bound.astype(dtype)


def _parts(piece: Array) -> Iterator[tuple[Array, int, int]]:
    """What the loops take: (rows [n, joined·C·inner], joined, inner), or (runs [outer, C, inner], 1, 1)."""
    outer, channels, inner = piece.shape
    width = channels * inner
    runs, joined = _arrangement(outer, channels, inner)
    if runs:
        yield piece, 1, 1
        return
    rows = piece.reshape(outer, width)
    whole = outer - outer % joined
    yield rows[:whole].reshape(whole // joined, joined * width), joined, inner
    if whole < outer:
        yield rows[whole:], 1, inner


def _arrangement(outer: int, channels: int, inner: int) -> tuple[bool, int]:
    """Whether values with these axes are taken as runs; if not, how many rows of them as one, with none left over."""
    width = channels * inner
    if inner > 1 and (inner >= SHORTEST_RUN or outer < FEWEST_ROWS or width > WIDEST):
        return True, 1
    most = max(1, min(NARROWEST // max(1, width), outer))
    return False, next((joined for joined in range(most, most // 2, -1) if outer % joined == 0), most)


class SampleSums:
    """The exact sum of each channel of each of some samples, which come in one block or in several parts."""

    def __init__(self, dtype: np.dtype[Any], samples: int, channels: int) -> None:
        self.dtype = dtype
        self.samples = samples
        self.channels = channels
        self._sums = np.zeros((samples, digit_count(dtype) + 2, channels), np.int64)
        self._bounds = _Filled.empty(dtype, channels)
        self._room = room()

    def add(self, block: Array, channel_axis: int) -> None:
        """Take `block`, [samples, …] in any layout, with the channels on `channel_axis`, which is not the first.

        Of one channel, less than 2^27 values a sample in all.
        """
        for sample, sums in zip(block, self._sums, strict=True):
            for piece in pieces(sample, channel_axis % block.ndim - 1):
                outer, channels, inner = piece.shape
                measure = loop(self.dtype, runs=inner > 1)
                bounds = self._bounds.addresses[1:]
                measure(piece.ctypes.data, outer, channels, inner, sums.ctypes.data, *bounds, self._room.ctypes.data)

    def digits(self) -> npt.NDArray[np.int64]:
        """Canonical, int64[digit_count, samples, channels]; what is not finite is left out."""
        return ExactSum.from_raw(self.dtype, self._sums[:, :-2].swapaxes(0, 1)).digits
