"""Riders: they measure what some statistics need besides sums and extrema, in the pass that all of them share.

A rider takes the same values as the sums, while these are in the processor's cache: blocks through `add`, and the
values of a decoder through an `Intake`. A `Chain` combines the intakes of the sums and of all riders into one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import lcm, prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..compiled import foreign
from ..compiled.cache import address, load
from .exact import carried
from .loops import ARGUMENTS
from .pieces import pieces
from .running import Intake, check_block, give

Array = npt.NDArray[Any]
Where = tuple[slice, ...]
"""A part of an array: a slice per axis, with start and stop, rows first."""

TILE_BYTES = 2**18
"""Bytes of a tile: all takers take one tile before the next, while it is in the second cache."""
COPIES = 4
"""Copies of a loop's arrays in memory while they are folded, carried and sent."""
HEAD, EACH = 3, 8
"""Words at the start of a chain's state, and for each taker in it."""


@dataclass(frozen=True)
class Tally:
    """What a rider has measured: arrays that add up, int64; those named in `digits` are digits [D, …] of exact sums.

    If `by_channel`, the channels are on the last axis of each array; otherwise the arrays are sums over all channels.
    """

    arrays: Mapping[str, Array]
    digits: tuple[str, ...] = ()
    by_channel: bool = True

    def plus(self, other: Tally) -> Tally:
        """The tally of the values of both, which have the same channels."""
        return Tally(
            {name: self._carried(name, mine + other.arrays[name]) for name, mine in self.arrays.items()},
            self.digits,
            self.by_channel,
        )

    def beside(self, others: Sequence[Tally]) -> Tally:
        """The tally of all channels: this one is of the first range of channels, `others` of those that follow."""
        if not self.by_channel:
            whole = self
            for other in others:
                whole = whole.plus(other)
            return whole
        joined = {
            name: np.concatenate([mine, *(other.arrays[name] for other in others)], axis=-1)
            for name, mine in self.arrays.items()
        }
        return Tally(joined, self.digits)

    def _carried(self, name: str, added: Array) -> Array:
        return carried(added) if name in self.digits else added


class Taker(Protocol):
    """Takes the values that a decoder produces."""

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """Pass the whole units in `memory` to the loop; returns their number. Call `took` with their bytes."""

    def took(self, size: int) -> None:
        """Account for `size` bytes that a loop has taken through an intake."""

    def rest(self, values: Array) -> None:
        """Take `values` [rows, channels, inner] that fill no unit of an intake."""


class Rider(Taker, Protocol):
    """Measures the values of one range of channels."""

    def add(self, block: Array, where: Where) -> None:
        """Take `block`, of any layout and byte order, the part `where` of the array."""

    def intake(self, shape: Sequence[int]) -> Intake | None:
        """How a loop takes all values of whole samples, a block of `shape` in C order; None if it cannot."""

    def found(self) -> Tally:
        """The tally of all values so far."""


class CountingRider(ABC):
    """A rider whose loop takes rows of all channels, in any number, and counts what it takes itself."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int) -> None:
        self.dtype, self.channels, self._axis = dtype, shape[axis], axis + 1

    @abstractmethod
    def _loop(self) -> Callable[..., None]:
        """The compiled loop; it takes the arguments of `loops`."""

    @abstractmethod
    def _arguments(self, inner: int) -> tuple[int, int, int, int, int, int]:
        """Its arguments after the number of rows, for rows [channels, inner]."""

    def add(self, block: Array, where: Where) -> None:  # noqa: ARG002 - the same wherever values lie
        """As `Rider.add`."""
        check_block(block, self._axis, self.dtype, self.channels)
        for piece in pieces(block, self._axis):
            self.rest(piece)

    def intake(self, shape: Sequence[int]) -> Intake | None:
        """As `Rider.intake`."""
        inner = prod(shape[self._axis + 1 :])
        return Intake(self.channels * inner * self.dtype.itemsize, address(self._loop()), *self._arguments(inner))

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """As `Taker.take`."""
        return give(self._loop(), memory, intake)

    def took(self, size: int) -> None:  # noqa: B027 - nothing to do is what it does
        """As `Taker.took`: the loop counts what it takes."""

    def rest(self, values: Array) -> None:
        """As `Taker.rest`."""
        rows, _, inner = values.shape
        if values.size:
            native = np.require(values, self.dtype, ["C", "A"])
            self._loop()(native.ctypes.data, rows, *self._arguments(inner))


class RiderKind(Protocol):
    """Makes riders."""

    def __call__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, /) -> Rider:
        """A rider for values of `dtype`, in samples of `shape` with the channels on `axis`."""

    def working_bytes(self, dtype: np.dtype[Any], shape: Sequence[int], axis: int, /) -> int:
        """The working memory of such a rider in bytes, with its tally."""


class Chain:
    """The sums and the riders of a pass, as one taker: all of them take one tile of the values, then the next."""

    def __init__(self, takers: Sequence[tuple[Taker, Intake]]) -> None:
        self._takers = [taker for taker, _ in takers]
        unit = lcm(*(intake.unit for _, intake in takers))
        words = [len(takers), max(1, TILE_BYTES // unit), unit]
        for _, intake in takers:
            words += [unit // intake.unit, *intake[1:]]
        self._words = np.array(words, np.int64)
        self.intake = Intake(unit, address(_over_takers()), 0, 0, self._words.ctypes.data, 0, 0, 0)

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """As `Taker.take`."""
        return give(_over_takers(), memory, intake)

    def took(self, size: int) -> None:
        """As `Taker.took`."""
        for taker in self._takers:
            taker.took(size)

    def rest(self, values: Array) -> None:
        """As `Taker.rest`."""
        for taker in self._takers:
            taker.rest(values)


@cache
def _over_takers() -> Callable[..., None]:
    """The loop over takers; it takes the arguments of `loops`, with the chain's state in place of the sums."""
    return load("chain", ARGUMENTS, _definition, (__name__, foreign.__name__))


def _definition() -> Callable[..., None]:
    import numba

    carray, call, address_of = numba.carray, foreign.caller(), foreign.address_of()

    def over_takers(data, units, channels, inner, state, low, high, room):  # type: ignore[no-untyped-def]
        number, tile, unit = carray(state, (HEAD,), np.int64)
        words = carray(state, (HEAD + EACH * number,), np.int64)
        place = address_of(data)
        while units > 0:
            taken = min(units, tile)
            for taker in range(number):
                at = HEAD + EACH * taker
                rows, columns, run = taken * words[at], words[at + 2], words[at + 3]
                arrays = words[at + 4], words[at + 5], words[at + 6], words[at + 7]
                call(words[at + 1], (place, rows, columns, run, arrays[0], arrays[1], arrays[2], arrays[3]))
            place += taken * unit
            units -= taken

    return over_takers
