"""Second moments in real units: steps, zero points and means, applied to exact sums of products by algebra.

Every entry is an integer until it is divided, once. Columns are taken one after the other, so that only the integers of
one row of the matrix are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Float64Array = npt.NDArray[np.float64]
Integers = npt.NDArray[Any]
"""Integers of Python, dtype object."""
AffineMaps = Sequence[tuple[Fraction, Fraction]]
"""(step, stored value of zero) of each channel."""


@dataclass(frozen=True)
class ProductSums:
    """The sums of products of the columns of one group, integers in units of 2^`unit`.

    `line(i)` has those of column i with itself and with all later `columns`. If there are `ones`, the first column of
    each tap is one where the tap does not see padding: its sums are those of the other columns, and counts.
    """

    line: Callable[[int], list[int]]
    columns: int
    taps: int
    ones: bool
    unit: int

    @property
    def first(self) -> int:
        """The first column that is no column of ones."""
        return self.taps * self.ones

    def after(self, column: int) -> Integers:
        """The sums of a column with itself and all later ones."""
        return np.array([*self.line(column), 0], object)[:-1]

    @cached_property
    def with_ones(self) -> Integers:
        """int[taps, n]: Σ x_j over the positions where the tap does not see padding, for each column j."""
        return np.array([self.line(tap)[self.first - tap :] for tap in range(self.first)], object)

    @cached_property
    def counts(self) -> Integers:
        """int[taps, taps]: how many positions two taps see, both of them not padding."""
        found = np.zeros((self.first, self.first), object)
        for tap in range(self.first):
            found[tap, tap:] = found[tap:, tap] = self.line(tap)[: self.first - tap]
        return found


def second_moments(sums: ProductSums, maps: AffineMaps) -> Float64Array:
    """Σ x_i·x_j in real units, float64[n, n], nearest to exact. Raises `UsageError` for one beyond float64."""
    moved = _Moved(sums, maps)
    divisor = moved.factor**2 << -sums.unit
    return moved.matrix(lambda _, line: line, divisor)


def covariances(sums: ProductSums, maps: AffineMaps, count: int) -> Float64Array:
    """Σ x_i·x_j / n − (Σ x_i / n)·(Σ x_j / n) for n = `count`, as `second_moments`."""
    moved = _Moved(sums, maps)
    totals = moved.totals
    divisor = count**2 * moved.factor**2 << -2 * sums.unit
    return moved.matrix(lambda i, line: (line * count << -sums.unit) - totals[i] * totals[i:], divisor)


class _Moved:
    """The sums of products of x_i − z_i, where z_i is what is stored for zero; a tap that sees padding sees zero."""

    def __init__(self, sums: ProductSums, maps: AffineMaps) -> None:
        zeros = [zero for _, zero in maps for _ in range(sums.taps)]
        self.sums = sums
        self.factor = lcm(*(zero.denominator for zero in zeros))
        """That of the x_i here, which makes all z_i integers."""
        self._steps = [step for step, _ in maps for _ in range(sums.taps)]
        self._zeros = np.array([int(zero * self.factor) for zero in zeros], object)
        self._tap = np.arange(len(zeros)) % sums.taps

    def line(self, i: int) -> Integers:
        """Σ (x_i − z_i)(x_j − z_j) for all j from i on."""
        products = self.sums.after(self.sums.first + i) * self.factor**2
        if not self._zeros.any():
            return products
        z, tap, with_ones = self._zeros, self._tap, self.sums.with_ones
        mixed = z[i] * with_ones[tap[i], i:] + z[i:] * with_ones[tap[i:], i]
        moved: Integers = products - self.factor * mixed + z[i] * z[i:] * self.sums.counts[tap[i], tap[i:]]
        return moved

    @property
    def totals(self) -> Integers:
        """Σ (x_i − z_i) for all i."""
        columns, counts = np.arange(len(self._tap)), np.diagonal(self.sums.counts)
        found: Integers = self.sums.with_ones[self._tap, columns] * self.factor - self._zeros * counts[self._tap]
        return found

    def matrix(self, combined: Callable[[int, Integers], Integers], divisor: int) -> Float64Array:
        """The nearest to `combined(i, line(i))` / `divisor`, times the steps of both columns."""
        found = np.empty((len(self._steps),) * 2)
        for i, step in enumerate(self._steps):
            scales = {other: step * other for other in {*self._steps[i:]}}
            line = zip(combined(i, self.line(i)).tolist(), self._steps[i:], strict=True)
            found[i, i:] = found[i:, i] = [_quotient(value, scales[other], divisor) for value, other in line]
        return found


def _quotient(value: int, scale: Fraction, divisor: int) -> float:
    try:
        return value * scale.numerator / (divisor * scale.denominator)
    except OverflowError as error:
        raise UsageError(
            f"a moment is beyond float64: the product of two steps is {float(scale):.3g}; expected smaller ones"
        ) from error
