"""What kinds that add up share: `AddedArrays` merge by addition and are subtracted exactly; `CountedSums` are sums of
values with the counts of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError
from ..quantization import Quantization, channel_maps
from .exact import ExactSum, carried, digit_count, is_canonical, unit_exponent
from .statistic import Tensors, ValueStatistic, subtracted_too_much

Counts = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class AddedArrays(ValueStatistic):
    """Arrays that add up, int64: counts and, in the fields named in `exact`, the digits of exact sums.

    None of them is ever negative, except the sums named in `signed`.
    """

    exact: ClassVar[tuple[str, ...]] = ("digits",)
    signed: ClassVar[tuple[str, ...]] = ()

    def merge(self, other: Self) -> Self:
        """The sums of the arrays."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        left = self._with(part, -1)
        if left._is_negative():
            raise subtracted_too_much(self.name)
        return left

    def _with(self, other: Self, sign: int) -> Self:
        theirs = other.arrays()
        added = {name: mine + sign * theirs[name] for name, mine in self.arrays().items()}
        canonical = {name: carried(array) if name in self.exact else array for name, array in added.items()}
        return type(self)(self.space.joined(other.space), **canonical)

    def check(self) -> None:
        """As `Statistic.check`."""
        if not all(is_canonical(array) for name, array in self.arrays().items() if name in self.exact):
            raise DataError("the digits of the sums are not canonical")
        if self._is_negative():
            raise DataError("counts are negative" if self.signed else "sums or counts are negative")

    def _is_negative(self) -> bool:
        tops = {name: array[-1:] if name in self.exact else array for name, array in self.arrays().items()}
        return any((top < 0).any() for name, top in tops.items() if name not in self.signed)


@dataclass(frozen=True, eq=False, repr=False)
class CountedSums(AddedArrays):
    """Sums of finite values, as the digits of an `ExactSum`, and the counts of values.

    `digits` int64[D, …]; `count`, `nan`, `infinite` int64[…] count finite values, NaN and infinities.
    """

    signed: ClassVar[tuple[str, ...]] = ("digits",)

    digits: npt.NDArray[np.int64]
    count: Counts
    nan: Counts
    infinite: Counts

    @property
    def total(self) -> ExactSum:
        """The exact sums, one after the other."""
        return ExactSum(self.space.dtype, self.digits.reshape(len(self.digits), -1))

    @property
    def nonfinite(self) -> Counts:
        """NaN plus infinities, int64[…]."""
        return self.nan + self.infinite


def sum_tensors(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensors:
    """The tensors of sums of `shape` over values of `dtype`: digits, and counts of finite values, NaN, infinities."""
    counts = (shape, np.dtype(np.int64))
    return {"digits": ((digit_count(dtype), *shape), counts[1]), "count": counts, "nan": counts, "infinite": counts}


def exact_means(total: ExactSum, count: Counts, quantization: Quantization | None) -> Float64Array:
    """The mean for each sum in `total`, over `count` int64[n] values, float64[n], in real units.

    It is the float64 nearest to the exact rational `(S − n·zero)·step / n`, ties to even; NaN where `count` is 0.
    Raises `MismatchError` for a quantisation with another number of channels; `UsageError` if its step takes the mean
    beyond float64.
    """
    maps = channel_maps(quantization, len(count))
    shift = -unit_exponent(total.dtype)
    sums = zip(total.units(), count.tolist(), maps, strict=True)
    return np.array([exact_mean(units, shift, values, *affine) for units, values, affine in sums], dtype=np.float64)


def exact_mean(units: int, shift: int, count: int, step: Fraction, zero: Fraction) -> float:
    """(S − n·zero)·step / n with S = units / 2^shift, as one quotient of integers, which Python rounds once."""
    if count == 0:
        return float("nan")
    moved = units * zero.denominator - (count * zero.numerator << shift)
    try:
        return moved * step.numerator / (count * zero.denominator * step.denominator << shift)
    except OverflowError as error:
        raise UsageError(f"a mean is beyond float64: the step is {float(step)}; expected a smaller one") from error


def square_root(value: Fraction) -> float:
    """The float64 nearest to √value, also where `value` itself is beyond float64.

    The root has 64 bits or more, and a last bit that says whether more would follow, so that the one rounding is right.

    >>> square_root(Fraction(1, 9)), square_root(Fraction(10**400))
    (0.3333333333333333, 1e+200)
    """
    bits = 64 + max(0, (value.denominator.bit_length() - value.numerator.bit_length()) // 2 + 1)
    scaled, left = divmod(value.numerator << 2 * bits, value.denominator)
    root = math.isqrt(scaled)
    return (2 * root + (left > 0 or root * root < scaled)) / (1 << bits + 1)
