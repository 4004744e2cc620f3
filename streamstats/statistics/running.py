"""Running sums: exact sum, counts and extrema per channel over many blocks, in one compiled pass over each block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..compiled.cache import address
from ..errors import MismatchError
from ..floats import is_float, widened
from .exact import ExactSum, carried, digit_count
from .loops import HALF_SCALE, bound_dtype, loop, room
from .pieces import LONGEST_PIECE, NARROWEST, WIDEST, arrangement, parts, pieces

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]


class _Filled(Protocol):
    @property
    def addresses(self) -> tuple[int, int, int]: ...


F = TypeVar("F", bound=_Filled)


@dataclass(frozen=True)
class SampleMoments:
    """Sums over samples, as canonical digits int64[·, C]: of the `squares` of their sums, in the square of the unit of
    sums; of the `products` of their sums and their counts of finite values, in the unit of sums; of the squares of
    these `counts`. `samples` int64[C] is the number of samples with finite values.
    """

    samples: Counts
    squares: npt.NDArray[np.int64]
    products: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def plus(self, other: SampleMoments) -> SampleMoments:
        """Those of the samples of both."""
        squares, products = carried(self.squares + other.squares), carried(self.products + other.products)
        return SampleMoments(self.samples + other.samples, squares, products, carried(self.counts + other.counts))


@dataclass(frozen=True)
class Measures:
    """What a pass has found per channel, [C]; `digits` int64[digit_count, C] is the sum, not yet carried.

    `count` is the number of finite values; `nan` and `infinite` count the others, which enter nothing else. `low` and
    `high`, in the values' dtype (narrow floats in float32), are the extrema; without finite values, `low` is the
    greatest value of the dtype (+∞ for floats) and `high` the least. Zeros have no sign. `moments` exist if the pass
    went sample by sample; `beside` has the arrays that the riders of the pass found, by the riders' names.
    """

    dtype: np.dtype[Any]
    count: Counts
    digits: npt.NDArray[np.int64]
    nan: Counts
    infinite: Counts
    low: Array
    high: Array
    moments: SampleMoments | None = None
    beside: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


class Intake(NamedTuple):
    """How a compiled loop takes values in memory order: in units of `unit` bytes, each a row or a run.

    The fields after `loop`, its address, are its arguments after the address of the values and the number of units.
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
        """An intake that takes no values."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0)


class LoopSums(ABC, Generic[F]):
    """Takes blocks of one dtype and number of channels; a compiled loop sums over each in one pass.

    The loops fill separate arrays for each way to take a block (runs, or a number of joined rows). Only `found` folds
    these together, so adding a block costs microseconds on top of the pass over its bytes.
    """

    def __init__(self, dtype: np.dtype[Any], channels: int) -> None:
        self.dtype = dtype
        self.channels = channels
        self._values = 0
        self._uncarried = 0
        self._filled: dict[tuple[int, int], F] = {}
        self._room = room()

    @abstractmethod
    def _empty(self, width: int) -> F:
        """The arrays that a loop over `width` channels fills."""

    @abstractmethod
    def _loop(self, *, runs: bool) -> Callable[..., None]:
        """The loop over rows, or over runs."""

    @abstractmethod
    def _carry(self) -> None:
        """Carry the digits of all arrays."""

    def add(self, block: Array, channel_axis: int) -> None:
        """Take `block`, of this dtype in any byte order and layout, with the channels on `channel_axis`."""
        check_block(block, channel_axis, self.dtype, self.channels)
        for piece in pieces(block, channel_axis):
            outer, _, inner = piece.shape
            self._values += outer * inner
            self._make_room(outer * inner)
            for part, joined, run in parts(piece):
                self._fill(part, joined, run)

    def intake(self, shape: Sequence[int], channel_axis: int) -> Intake | None:
        """How a loop takes all values of `shape`, in C order, with the channels on `channel_axis`.

        The caller passes the number of bytes that the loop has taken to `took`, and values that fill no whole unit to
        `add`. None if there are too many values.
        """
        outer, channels, inner = prod(shape[:channel_axis]), shape[channel_axis], prod(shape[channel_axis + 1 :])
        if outer * inner > LONGEST_PIECE:
            return None
        runs, joined = arrangement(outer, channels, inner)
        filled = self._filling(joined, 1 if runs else inner)
        width = channels * inner
        self._make_room(outer * inner)
        return Intake(
            joined * width * self.dtype.itemsize,
            address(self._loop(runs=runs)),
            channels if runs else joined * width,
            inner if runs else 1,
            *filled.addresses,
            self._room.ctypes.data,
        )

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """Pass the whole units in `memory` to the loop; returns their number. Call `took` with their bytes."""
        return give(self._loop(runs=intake.inner > 1), memory, intake)

    def took(self, size: int) -> None:
        """Count the values in `size` bytes that a loop has taken through an intake."""
        self._values += size // (self.dtype.itemsize * self.channels)

    def rest(self, values: Array) -> None:
        """Take `values` [rows, channels, inner] that fill no unit of an intake."""
        self.add(values, 1)

    def _fill(self, part: Array, joined: int, run: int) -> None:
        filled = self._filling(joined, run)
        outer, channels, inner = part.shape if part.ndim == 3 else (*part.shape, 1)
        measure = self._loop(runs=part.ndim == 3)
        measure(part.ctypes.data, outer, channels, inner, *filled.addresses, self._room.ctypes.data)

    def _filling(self, joined: int, run: int) -> F:
        filled = self._filled.get((joined, run))
        if filled is None:
            filled = self._filled[joined, run] = self._empty(joined * self.channels * run)
        return filled

    def _make_room(self, values: int) -> None:
        """Carry if `values` more per channel could overflow a digit."""
        self._uncarried += values
        if self._uncarried > LONGEST_PIECE:
            self._carry()
            self._uncarried = values


class RunningSums(LoopSums["Filled"]):
    """Exact sums and extrema of the values."""

    def _empty(self, width: int) -> Filled:
        return Filled.empty(self.dtype, width)

    def _loop(self, *, runs: bool) -> Callable[..., None]:
        return loop(self.dtype, runs=runs)

    def _carry(self) -> None:
        for filled in self._filled.values():
            filled.sums[:-2] = ExactSum.from_raw(self.dtype, filled.sums[:-2]).digits

    @property
    def all_finite(self) -> bool:
        """Whether all values so far are finite."""
        return not any(filled.sums[-2:].any() for filled in self._filled.values())

    @property
    def nonfinite(self) -> Counts:
        """(NaN, infinities) so far, int64[2]."""
        return nonfinite_in(filled.sums for filled in self._filled.values())

    def found(self) -> Measures:
        """The measures of all blocks so far."""
        folded = [filled.folded(joined, self.channels, run) for (joined, run), filled in self._filled.items()]
        sums, low, high = together(folded, self.dtype, self.channels)
        count = self._values - sums[-2] - sums[-1]
        return Measures(self.dtype, count, sums[:-2], sums[-2], sums[-1], low, high)


@dataclass(frozen=True)
class Filled:
    """The arrays that a loop fills, per channel; the last two rows of `sums` count NaN and infinities."""

    sums: npt.NDArray[np.int64]
    low: Array
    high: Array

    @classmethod
    def empty(cls, dtype: np.dtype[Any], channels: int) -> Filled:
        """The arrays before any value."""
        least, greatest = _ends(bound_dtype(dtype))
        sums = np.zeros((digit_count(dtype) + 2, channels), np.int64)
        return cls(sums, np.full(channels, greatest), np.full(channels, least))

    @property
    def addresses(self) -> tuple[int, int, int]:
        """The addresses of its arrays."""
        return self.sums.ctypes.data, self.low.ctypes.data, self.high.ctypes.data

    def folded(self, joined: int, channels: int, run: int) -> Filled:
        """The same per channel of the block, which is spread over `joined` times `run` channels of the loop."""
        shape = (joined, channels, run)
        sums = self.sums.reshape(len(self.sums), *shape).sum(axis=(1, 3))
        return Filled(sums, self.low.reshape(shape).min(axis=(0, 2)), self.high.reshape(shape).max(axis=(0, 2)))


def together(folded: Sequence[Filled], dtype: np.dtype[Any], channels: int) -> tuple[Array, Array, Array]:
    """(sums, low, high) over all `folded`, with the extrema as values of `dtype`."""
    empty = Filled.empty(dtype, channels)
    sums, low, high = empty.sums, empty.low, empty.high
    for each in folded:
        sums, low, high = sums + each.sums, np.minimum(low, each.low), np.maximum(high, each.high)
    return sums, _to_values(low, dtype), _to_values(high, dtype)


def give(measure: Callable[..., None], memory: npt.NDArray[np.uint8], intake: Intake) -> int:
    """Pass the whole units in `memory` to `measure`; returns their number."""
    units = memory.size // intake.unit
    if units:
        measure(memory.ctypes.data, units, *intake[2:])
    return units


def nonfinite_in(sums: Iterable[npt.NDArray[np.int64]]) -> Counts:
    """(NaN, infinities) in `sums`, whose last two rows count them, int64[2]."""
    found: Counts = sum((each[-2:].reshape(2, -1).sum(axis=1) for each in sums), np.zeros(2, np.int64))
    return found


def widest(dtype: np.dtype[Any], shape: Sequence[int], axis: int) -> int:
    """The most columns of the arrays that a loop fills: the channels, unless rows or short runs are joined."""
    row = int(np.prod(shape, dtype=object)) * dtype.itemsize
    return max(shape[axis], min(WIDEST, max(NARROWEST, row)))


def check_block(block: Array, channel_axis: int, dtype: np.dtype[Any], channels: int) -> None:
    """Raise `MismatchError` unless `block` has this number of channels and `dtype`, in any byte order."""
    if (block.dtype.newbyteorder("="), block.shape[channel_axis]) != (dtype, channels):
        raise MismatchError(
            f"a block of {block.dtype} with {block.shape[channel_axis]} channels cannot be added to {dtype} with "
            f"{channels} channels; expected the same of both"
        )


def _ends(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and greatest number of `dtype`."""
    if dtype.kind == "f":
        return dtype.type(-np.inf), dtype.type(np.inf)
    limits = np.iinfo(dtype)
    return dtype.type(limits.min), dtype.type(limits.max)


def _to_values(bound: Array, dtype: np.dtype[Any]) -> Array:
    """Extrema as the loops hold them → values of `dtype`, narrow floats in float32; zeros lose their sign."""
    if dtype in HALF_SCALE:
        bound = bound * np.float32(2.0 ** -HALF_SCALE[dtype])
    held = widened(dtype)
    return bound.astype(held) + held.type(0) if is_float(dtype) else bound.astype(held)
