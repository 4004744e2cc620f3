"""MovedMoments: second moments in real units, from exact sums of products of stored values, each rounded once.

Stored values q have the real values (q − z)·s, with a zero z and a step s per column; covariances also subtract the
product of the means. Both are rational numbers. They are computed in `Doubles` of 106 bits, with a bound on the error.
Almost always that proves which float64 is the nearest; the few entries that it leaves open are computed in fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .doubles import ERROR, Doubles
from .wide import Wide

Float64Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

OPERATIONS = 2**4
"""More operations in a row than any entry takes, each of an error of at most ERROR of the magnitudes."""
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
        alive = [column for column in range(self.size) if self._exact(column, column, count)]
        for place, row in enumerate(alive):  # the others have moments of zero with every column (Cauchy and Schwarz)
            others = np.array(alive[place:])
            found[row, others] = found[others, row] = self._row(row, others, count)
        return found

    def _row(self, row: int, others: Places, count: int | None) -> Float64Array:
        """The entries of a row for columns from its own on."""
        if not self._is_moderate:
            return np.array([self._nearest(row, column, count) for column in others.tolist()])
        values, certain = self._estimated(row, others, count)
        for place in np.flatnonzero(~certain).tolist():
            values[place] = self._nearest(row, int(others[place]), count)
        return values

    # In doubles

    @cached_property
    def _is_moderate(self) -> bool:
        steps = all(1 / MODERATE <= step <= MODERATE for step in self.steps)
        return steps and all(abs(zero) <= MODERATE for zero in self.zeros)

    def _estimated(self, row: int, others: Places, count: int | None) -> tuple[Float64Array, npt.NDArray[np.bool_]]:
        terms = [self._doubles(self._places(row, others))]
        if self._has_zeros:
            z, w = self._zeros[[row]], self._zeros[others]
            mine, theirs = self._doubles(self._seen(row, others)), self._doubles(self._seen(others, row))
            terms += [-(z * mine), -(w * theirs), z * w * self._doubles(self._both(row, others))]
        if count is not None:
            number, sums = Doubles.of_fractions([Fraction(count)]), self._column_sums
            terms = [each * number for each in terms] + [-(sums[[row]] * sums[others])]
        total, magnitude = _total(terms)
        scales = self._steps[[row]] * self._steps[others]
        if count is not None:
            scales *= Doubles.of_fractions([Fraction(1, count**2)])
        found = total * scales
        magnitude = (magnitude + self._magnitude(row, others, count)) * np.abs(scales.high)
        return found.nearest(OPERATIONS * ERROR * magnitude)

    def _magnitude(self, row: int, others: Places, count: int | None) -> Float64Array:
        """What the terms of the sums of columns add to the magnitudes."""
        if count is None:
            return np.zeros(len(others))
        found: Float64Array = self._sum_magnitudes[row] * self._sum_magnitudes[others]
        return found

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
        return self.start + low * (2 * width - low - 1) // 2 + high


def _total(terms: Sequence[Doubles]) -> tuple[Doubles, Float64Array]:
    """(the sum, the sum of the magnitudes)."""
    total, magnitude = terms[0], np.abs(terms[0].high)
    for each in terms[1:]:
        total, magnitude = total + each, magnitude + np.abs(each.high)
    return total, magnitude
