"""Moments: the rider that sums magnitudes and squares, and its loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.cache import load
from .exact import carried, digit_count
from .loops import ARGUMENTS, INTEGER_OF_FLOAT, MODULES, ROOM, TILE_BYTES, is_compiled
from .riders import COPIES, Tally, Where
from .running import Intake, LoopSums, widest

Array = npt.NDArray[Any]

MOMENT_MODULES = (*MODULES, f"{__package__}.moment_kernels", __name__)
SQUARE = 2
"""The power of x in x²."""


class Moments:
    """A `Rider`: the exact sums of |x| and x² per channel, over finite values of 16 bits or more."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int) -> None:
        self._axis = axis + 1
        self._sums = _MomentSums(dtype, shape[axis])
        self.take, self.took, self.rest = self._sums.take, self._sums.took, self._sums.rest

    def add(self, block: Array, where: Where) -> None:  # noqa: ARG002 - the same wherever values lie
        """As `Rider.add`."""
        self._sums.add(block, self._axis)

    def intake(self, shape: Sequence[int]) -> Intake | None:
        """As `Rider.intake`."""
        return self._sums.intake(shape, self._axis)

    @classmethod
    def working_bytes(cls, dtype: np.dtype[Any], shape: Sequence[int], axis: int) -> int:
        """As `RiderKind.working_bytes`."""
        places = digit_count(dtype) + digit_count(dtype, SQUARE) + 2 * SPARE
        return COPIES * 8 * places * widest(dtype, shape, axis)

    def found(self) -> Tally:
        """`magnitudes` and `squares`, canonical digits int64[D, C]; units as `exact` gives them for powers 1 and 2."""
        return self._sums.found()


@dataclass(frozen=True)
class _Filled:
    """The arrays that a loop fills: raw digits [D, width] of magnitudes and of squares."""

    magnitudes: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]

    @property
    def addresses(self) -> tuple[int, int, int]:
        """The addresses of its arrays, in the order of the loops' arguments."""
        return self.magnitudes.ctypes.data, self.squares.ctypes.data, 0


class _MomentSums(LoopSums[_Filled]):
    """The sums of `Moments`."""

    def _empty(self, width: int) -> _Filled:
        places = digit_count(self.dtype), digit_count(self.dtype, SQUARE)
        return _Filled(*(np.zeros((count + SPARE, width), np.int64) for count in places))

    def _loop(self, *, runs: bool) -> Callable[..., None]:
        return _moments(self.dtype, runs=runs)

    def _carry(self) -> None:
        for filled in self._filled.values():
            for digits in (filled.magnitudes, filled.squares):
                digits[:] = carried(digits)

    def found(self) -> Tally:
        """The sums of all blocks so far."""
        empty = self._empty(self.channels)
        magnitudes, squares = empty.magnitudes, empty.squares
        for (joined, run), filled in self._filled.items():
            shape = (joined, self.channels, run)
            magnitudes += filled.magnitudes.reshape(len(magnitudes), *shape).sum(axis=(1, 3))
            squares += filled.squares.reshape(len(squares), *shape).sum(axis=(1, 3))
        found = {"magnitudes": carried(magnitudes)[:-SPARE], "squares": carried(squares)[:-SPARE]}
        return Tally(found, digits=("magnitudes", "squares"))


SPARE = 1
"""Digits above those of a sum, where a loop may deposit zeros."""


@cache
def _moments(dtype: np.dtype[Any], *, runs: bool) -> Callable[..., None]:
    """The loop over rows, or runs; of the arguments of `loops`, sums are the magnitudes, and low the squares."""
    name = f"moments-{'runs' if runs else 'rows'}-{dtype.name}"
    return load(name, ARGUMENTS, lambda: _definition(dtype, runs), MOMENT_MODULES)


def _definition(dtype: np.dtype[Any], runs: bool) -> Callable[..., None]:
    import numba

    from .moment_kernels import LOOPS

    compiled = numba.njit(LOOPS[dtype.name][runs])
    carray = numba.carray
    bits = np.dtype(INTEGER_OF_FLOAT.get(dtype, dtype))
    values = dtype if is_compiled(dtype) else bits
    digits, square_digits = digit_count(dtype) + SPARE, digit_count(dtype, SQUARE) + SPARE
    tile = TILE_BYTES // dtype.itemsize

    def over_rows(data, outer, channels, inner, magnitudes, squares, unused, space):  # type: ignore[no-untyped-def]
        compiled(
            carray(data, (outer, channels), values),
            carray(data, (outer, channels), bits),
            carray(magnitudes, (digits, channels), np.int64),
            carray(squares, (square_digits, channels), np.int64),
            carray(space, (ROOM, tile), np.float64),
        )

    def over_runs(data, outer, channels, inner, magnitudes, squares, unused, space):  # type: ignore[no-untyped-def]
        compiled(
            carray(data, (outer, channels, inner), values),
            carray(data, (outer, channels, inner), bits),
            carray(magnitudes, (digits, channels), np.int64),
            carray(squares, (square_digits, channels), np.int64),
            carray(space, (ROOM, tile), np.float64),
        )

    return over_runs if runs else over_rows
