"""What kinds that add up share: `CountedSums`, signed exact sums with counts, and `AddedArrays`, sums that are never
negative.

Both merge by addition and are subtracted exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError, UsageError
from ..quantization import Quantization
from .exact import ExactSum, carried, digit_count, is_canonical, unit_exponent
from .statistic import Statistic, Tensors, ValueStatistic

Counts = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CountedSums(Statistic):
    """Sums of finite values, as the digits of an `ExactSum`, and the counts of values.

    `digits` int64[D, …]; `count`, `nan`, `infinite` int64[…] count finite values, NaN and infinities.
    """

    digits: npt.NDArray[np.int64]
    count: Counts
    nan: Counts
    infinite: Counts

    def merge(self, other: Self) -> Self:
        """The sum of sums and of counts."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        return self._with(part, -1)

    def _with(self, other: Self, sign: int) -> Self:
        counts = [mine + sign * theirs for mine, theirs in zip(self._counts(), other._counts(), strict=True)]
        if any((count < 0).any() for count in counts):
            raise MismatchError(
                "more values would be subtracted than were counted: the data has changed since it was counted; count "
                "it again"
            )
        total = ExactSum.from_raw(self.space.dtype, self.digits + sign * other.digits)
        return type(self)(self.space, total.digits, *counts)

    def check(self) -> None:
        """As `Statistic.check`."""
        if not is_canonical(self.digits) or any((count < 0).any() for count in self._counts()):
            raise DataError("the digits of the sums are not canonical, or counts are negative")

    def _counts(self) -> tuple[Counts, Counts, Counts]:
        return self.count, self.nan, self.infinite

    @property
    def total(self) -> ExactSum:
        """The exact sums, one after the other."""
        return ExactSum(self.space.dtype, self.digits.reshape(len(self.digits), -1))

    @property
    def nonfinite(self) -> Counts:
        """NaN plus infinities, int64[…]."""
        return self.nan + self.infinite


class AddedArrays(ValueStatistic):
    """Arrays that add up and are never negative, int64: counts or, in the field `digits`, the digits of exact sums."""

    def merge(self, other: Self) -> Self:
        """The sums of the arrays."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        left = self._with(part, -1)
        if left._is_negative():
            raise MismatchError(
                f"{self.name}: more would be subtracted than was counted: the data has changed since it was counted; "
                "count it again"
            )
        return left

    def _with(self, other: Self, sign: int) -> Self:
        theirs = other.arrays()
        added = {name: mine + sign * theirs[name] for name, mine in self.arrays().items()}
        if DIGITS in added:
            added[DIGITS] = carried(added[DIGITS])
        return type(self)(self.space, **added)

    def check(self) -> None:
        """As `Statistic.check`."""
        digits = self.arrays().get(DIGITS)
        if self._is_negative() or (digits is not None and not is_canonical(digits)):
            raise DataError("the digits of the sums are not canonical, or a sum or a count is negative")

    def _is_negative(self) -> bool:
        return any(((array[-1:] if name == DIGITS else array) < 0).any() for name, array in self.arrays().items())


DIGITS = "digits"


def sum_tensors(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensors:
    """The tensors of sums of `shape` over values of `dtype`: digits, and counts of finite values, NaN, infinities."""
    counts = (shape, np.dtype(np.int64))
    return {"digits": ((digit_count(dtype), *shape), counts[1]), "count": counts, "nan": counts, "infinite": counts}


def exact_means(total: ExactSum, count: Counts, quantization: Quantization | None) -> Float64Array:
    """The mean for each sum in `total`, over `count` int64[n] values, float64[n], in real units.

    It is the float64 nearest to the exact rational `(S − n·zero_point)·step / n`, ties to even; NaN where `count` is 0.
    Raises `MismatchError` for a quantisation with another number of channels; `UsageError` for a quantisation of float
    data, or if its step takes the mean beyond float64.
    """
    maps = real_maps(total.dtype, quantization, len(count))
    shift = -unit_exponent(total.dtype)
    sums = zip(total.units(), count.tolist(), maps, strict=True)
    return np.array([exact_mean(units, shift, values, *affine) for units, values, affine in sums], dtype=np.float64)


def real_maps(dtype: np.dtype[Any], quantization: Quantization | None, channels: int) -> list[tuple[Fraction, int]]:
    """The exact (step, zero point) per channel of values of `dtype`; raises as `exact_means`."""
    if quantization is not None and dtype.kind not in "iu":
        raise UsageError(f"a quantisation is given, but the values are {dtype}; expected integer codes")
    return (quantization or Quantization(1.0)).channel_maps(channels)


def exact_mean(units: int, shift: int, count: int, step: Fraction, zero_point: int) -> float:
    """(S − n·zero_point)·step / n with S = units / 2^shift, as one quotient of integers, which Python rounds once."""
    if count == 0:
        return float("nan")
    try:
        return (units - (count * zero_point << shift)) * step.numerator / (count * step.denominator << shift)
    except OverflowError as error:
        raise UsageError(f"a mean is beyond float64: the step is {float(step)}; expected a smaller one") from error


def square_root(value: Fraction) -> float:
    """√value, also where value itself is beyond float64."""
    shift = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(value / Fraction(4) ** shift), shift)
