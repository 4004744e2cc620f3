"""MovedMoments: second moments in real units, from exact sums of products of stored values, each rounded once.

Stored values q have the real values (q − z)·s, with a zero z and a step s per column; covariances also subtract the
product of the means. Both are rational numbers. They are computed in `Doubles` of 106 bits, with a bound on the error.
Almost always that proves which float64 is the nearest; the few entries that it leaves open are computed in fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .doubles import ERROR, Doubles
from .triangles import place_in_triangle
from .wide import Wide

Float64Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Estimated = tuple[Float64Array, npt.NDArray[np.bool_]]

OPERATIONS = 2**4
"""More operations in a row than any entry takes, each of an error of at most ERROR of the magnitudes."""
PIECE = 2**15
"""About how many pairs of columns are worked on at once: their temporary arrays fit the second cache."""
MODERATE = 2.0**150
"""Steps and zeros up to this, and steps down to its reciprocal, overflow or underflow nowhere in `Doubles`."""


@dataclass(frozen=True)
class MovedMoments:
    """The moments of n columns, whose `sums`, in units of 2^`exponent`, begin at the place `start` with an upper
    triangle, row by row.

    If `ones`, the first columns of the triangle are ones: one for each of the `taps`, whose columns follow, as
    (channel, *taps); `zeros` and `steps` are those of these n columns. Without ones, all zeros are 0.
    """

    sums: Wide
    exponent: int
    start: int
    taps: int
    ones: bool
    steps: Sequence[Fraction]
    zeros: Sequence[Fraction]

    @property
    def size(self) -> int:
        """The number of columns, n."""
        return len(self.steps)

    def matrix(self) -> Float64Array:
        """Σ(q_i − z_i)(q_j − z_j)·s_i·s_j, float64[n, n]. Raises `UsageError` for moments beyond float64."""
        return self._filled(None)

    def covariance(self, count: int) -> Float64Array:
        """The moments of `count` rows less the product of their sums over `count`, over `count`, float64[n, n]."""
        return self._filled(count)

    def _filled(self, count: int | None) -> Float64Array:
        found = np.zeros((self.size, self.size))
        live = self._live(count)
        for rows, columns in _pairs(live):
            found[rows, columns] = found[columns, rows] = self._entries(rows, columns, count)
        return found

    def _live(self, count: int | None) -> Places:
        """The columns whose moment with themselves is not zero; that of any other with every column is (Cauchy and
        Schwarz).
        """
        every = np.arange(self.size)
        return every[self._entries(every, every, count, known=lambda exact: float(exact > 0)) > 0]

    def _entries(
        self, rows: Places, columns: Places, count: int | None, known: Callable[[Fraction], float] | None = None
    ) -> Float64Array:
        """The moments of pairs of columns; those that `Doubles` leave open by fractions, or what is `known` of them."""
        values, certain = self._estimated(rows, columns, count) if self._is_moderate else _unknown(len(rows))
        for place in np.flatnonzero(~certain).tolist():
            row, column = int(rows[place]), int(columns[place])
            values[place] = known(self._exact(row, column, count)) if known else self._nearest(row, column, count)
        return values

    # In doubles

    @cached_property
    def _is_moderate(self) -> bool:
        steps = all(1 / MODERATE <= step <= MODERATE for step in self.steps)
        return steps and all(abs(zero) <= MODERATE for zero in self.zeros)

    def _estimated(self, rows: Places, columns: Places, count: int | None) -> Estimated:
        """The moments of pairs of columns, and whether they are certain."""
        total, magnitude = _total(self._terms(rows, columns))
        scales = self._steps[rows] * self._steps[columns]
        if count is not None:
            means = self._column_sums[rows] * self._column_sums[columns]
            total = total * Doubles.of_fractions([Fraction(count)]) - means
            magnitude = count * magnitude + self._sum_magnitudes[rows] * self._sum_magnitudes[columns]
            scales *= Doubles.of_fractions([Fraction(1, count**2)])
        return (total * scales).nearest(OPERATIONS * ERROR * magnitude * np.abs(scales.high))

    def _terms(self, rows: Places, columns: Places) -> list[Doubles]:
        """Those of Σ(q_i − z_i)(q_j − z_j)."""
        products = self._doubles(self._places(rows, columns))
        if not self._has_zeros:
            return [products]
        z, w = self._zeros[rows], self._zeros[columns]
        mine, theirs = self._doubles(self._seen(rows, columns)), self._doubles(self._seen(columns, rows))
        return [products, -(z * mine), -(w * theirs), z * w * self._doubles(self._both(rows, columns))]

    def _doubles(self, places: Places) -> Doubles:
        return Doubles.of_integers(self.sums, places, self.exponent)

    @cached_property
    def _has_zeros(self) -> bool:
        return any(self.zeros)

    @cached_property
    def _steps(self) -> Doubles:
        return Doubles.of_fractions(self.steps)

    @cached_property
    def _zeros(self) -> Doubles:
        return Doubles.of_fractions(self.zeros)

    @cached_property
    def _column_sums(self) -> Doubles:
        """Σ(q − z) of each column."""
        every = np.arange(self.size)
        sums = self._doubles(self._seen(every, every))
        return sums - self._zeros * self._doubles(self._both(every, every)) if self._has_zeros else sums

    @cached_property
    def _sum_magnitudes(self) -> Float64Array:
        """Of each column, the magnitudes of the terms of its sum."""
        every = np.arange(self.size)
        found = np.abs(self._doubles(self._seen(every, every)).high)
        if self._has_zeros:
            found = found + np.abs(self._zeros.high) * self._doubles(self._both(every, every)).high
        return found

    # In fractions

    def _nearest(self, row: int, column: int, count: int | None) -> float:
        exact = self._exact(row, column, count)
        if count is not None:
            exact /= count**2
        exact *= self.steps[row] * self.steps[column]
        try:
            return exact.numerator / exact.denominator
        except OverflowError as error:
            raise UsageError(
                f"a moment is beyond float64: the step is {float(self.steps[row]):g}; expected a smaller one"
            ) from error

    def _exact(self, row: int, column: int, count: int | None) -> Fraction:
        """The moment in units of the steps, times `count`² if it is a covariance."""
        z, w = self.zeros[row], self.zeros[column]
        found = self._fraction(self._places(row, column))
        if z or w:
            found -= z * self._fraction(self._seen(row, column)) + w * self._fraction(self._seen(column, row))
            found += z * w * self._fraction(self._both(row, column))
        if count is not None:
            found = count * found - self._sum(row) * self._sum(column)
        return found

    def _sum(self, column: int) -> Fraction:
        seen = self._fraction(self._seen(column, column))
        zero = self.zeros[column]
        return seen - zero * self._fraction(self._both(column, column)) if zero else seen

    def _fraction(self, place: Any) -> Fraction:
        (value,) = self.sums.integers([int(place)])
        return value * Fraction(2) ** self.exponent

    # Places

    def _places(self, row: Any, column: Any) -> Any:
        """Of Σq_i·q_j."""
        first = self.taps * self.ones
        return self._place(first + row, first + column)

    def _seen(self, row: Any, column: Any) -> Any:
        """Of Σq_j over the rows in which the tap of column i sees a value."""
        return self._place(row % self.taps, self.taps + column)

    def _both(self, row: Any, column: Any) -> Any:
        """Of the number of rows in which the taps of both columns see values."""
        return self._place(row % self.taps, column % self.taps)

    def _place(self, row: Any, column: Any) -> Any:
        width = self.size + self.taps * self.ones
        low, high = np.minimum(row, column), np.maximum(row, column)
        return self.start + place_in_triangle(low, high, width)


def _pairs(columns: Places) -> Iterator[tuple[Places, Places]]:
    """Each column with itself and each later one, in pieces of about PIECE pairs."""
    start = 0
    while start < len(columns):
        rows = max(1, PIECE // (len(columns) - start))
        first, second = np.triu_indices(min(rows, len(columns) - start), m=len(columns) - start)
        yield columns[start + first], columns[start + second]
        start += rows


def _unknown(size: int) -> Estimated:
    return np.zeros(size), np.zeros(size, bool)


def _total(terms: Sequence[Doubles]) -> tuple[Doubles, Float64Array]:
    """(the sum, the sum of the magnitudes)."""
    total, magnitude = terms[0], np.abs(terms[0].high)
    for each in terms[1:]:
        total, magnitude = total + each, magnitude + np.abs(each.high)
    return total, magnitude
