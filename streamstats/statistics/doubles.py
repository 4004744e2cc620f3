"""Doubles: numbers as unevaluated sums of two float64, of some 106 bits, many at once.

Each operation is exact up to a relative error below `ERROR`; sums, up to that share of the magnitudes of their terms.
So whoever keeps the magnitudes knows how far a result may be off, and `nearest` says whether its rounding is certain.
(The algorithms are those of Dekker 1971; for their errors see Joldes, Muller and Popescu, Tight and rigorous error
bounds for basic building blocks of double-word arithmetic, ACM Transactions on Mathematical Software 44, 2017.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .wide import BITS, Wide

Float64Array = npt.NDArray[np.float64]

ERROR = 2.0**-99
"""Above the relative error of each operation here, which is at most 2·D·2^−106 for an integer of D ≤ 21 digits."""
SPLIT = 2.0**27 + 1
"""Splits a float64 into two halves of 26 bits (Veltkamp)."""


@dataclass(frozen=True, eq=False)
class Doubles:
    """`high` + `low`, float64 of one shape; |low| is at most half a unit in the last place of high."""

    high: Float64Array
    low: Float64Array

    @classmethod
    def of_integers(cls, sums: Wide, places: Any, exponent: int) -> Self:
        """The integers at these `places`, times 2^`exponent`: from the top digit, which has the sign, to the lowest."""
        digits = sums.digits[:, places]
        high, low = digits[-1].view(np.int32).astype(np.float64), np.zeros(digits.shape[1:])
        for digit in digits[-2::-1]:
            high, rest = _sum(high * 2.0**BITS, digit.astype(np.float64))
            high, low = _short_sum(high, rest + low * 2.0**BITS)
        scale = exponent + BITS * sums.first
        return cls(np.ldexp(high, scale), np.ldexp(low, scale))

    @classmethod
    def of_fractions(cls, values: Sequence[Fraction]) -> Self:
        """float64[n]: the nearest ones, and those nearest to what they leave."""
        high = [float(value) for value in values]
        low = [float(value - Fraction(each)) for value, each in zip(values, high, strict=True)]
        return cls(np.array(high, np.float64), np.array(low, np.float64))

    def __getitem__(self, places: Any) -> Self:
        return type(self)(self.high[places], self.low[places])

    def __add__(self, other: Self) -> Self:
        high, rest = _sum(self.high, other.high)
        low, more = _sum(self.low, other.low)
        high, rest = _short_sum(high, rest + low)
        return type(self)(*_short_sum(high, rest + more))

    def __neg__(self) -> Self:
        return type(self)(-self.high, -self.low)

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __mul__(self, other: Self) -> Self:
        high, rest = _product(self.high, other.high)
        return type(self)(*_short_sum(high, rest + (self.high * other.low + self.low * other.high)))

    def nearest(self, error: Float64Array) -> tuple[Float64Array, npt.NDArray[np.bool_]]:
        """(the float64 nearest to each; whether it stays the nearest if each is off by up to `error`)."""
        above = np.spacing(np.abs(self.high)) / 2
        below = np.abs(self.high) - np.nextafter(np.abs(self.high), 0)
        least = np.minimum(above, below / 2)  # below a power of two, floats are denser
        return self.high, (np.abs(self.low) + error < least) | ((self.high == 0) & (error == 0))


def _sum(left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The rounded sum, and what rounding took away (Knuth)."""
    found = left + right
    part = found - left
    return found, (left - (found - part)) + (right - part)


def _short_sum(left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The same for |left| ≥ |right| (Dekker)."""
    found = left + right
    return found, right - (found - left)


def _product(left: Float64Array, right: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The rounded product, and what rounding took away (Dekker)."""
    found = left * right
    (a, b), (c, d) = _halves(left), _halves(right)
    return found, ((a * c - found) + a * d + b * c) + b * d


def _halves(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    wide = values * SPLIT
    upper = wide - (wide - values)
    return upper, values - upper
