"""ChannelSquares: the exact sum of x² per channel, with variance, standard deviation and root mean square.

Squares are summed in the square of the values' unit: 2^−298 for float32. With the exact sum Σx from `ChannelMean`, the
variance is an exact rational, (n·Σx² − (Σx)²) / n², rounded once: no digits cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np

from ..quantization import Quantization
from .counts import Counting, codes, is_counted_by_channel
from .exact import ExactSum, carried, digit_count, unit_exponent
from .moments import SQUARE, Moments
from .riders import RiderKind
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays, Counts, Float64Array, square_root


@dataclass(frozen=True, eq=False)
class ChannelSquares(AddedArrays):
    """The standard deviation and root mean square per channel: importance matrices are made from them.

    `digits` int64[D, C] are those of the exact sum of the squares of finite values.
    """

    name: ClassVar[str] = "squares"

    digits: Counts

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return {"digits": ((digit_count(space.dtype, SQUARE), space.channels), np.dtype(np.int64))}

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:
        """As `ValueStatistic.riders`."""
        return {"counts": Counting} if is_counted_by_channel(space.dtype) else {"moments": Moments}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        if not is_counted_by_channel(space.dtype):
            return cls(space, measures.beside["moments"]["squares"])
        counts = measures.beside["counts"]["counts"]  # fewer than 2^47 values, so the sums fit 63 bits
        digits = cls.empty(space).digits
        digits[0] = codes(space.dtype) ** 2 @ counts
        return cls(space, carried(digits))

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:
        """Layer: the greatest root mean square. Per channel: root mean square and standard deviation."""
        rms, deviation = self.rms(beside["mean"], quantization), self.standard_deviation(beside["mean"], quantization)
        greatest = float(np.fmax.reduce(rms, initial=np.nan))
        return Document({"greatest_rms": greatest}, {"rms": rms, "standard_deviation": deviation})

    def rms(self, sums: Any, quantization: Quantization | None = None) -> Float64Array:
        """The root of the mean of x² per channel, float64[C], in real units; NaN for channels without finite values.

        `sums` is the `ChannelMean` of the same values.
        """
        return self._roots(self._mean_squares(sums, quantization))

    def mean_square(self, sums: Any, quantization: Quantization | None = None) -> Float64Array:
        """The mean of x² per channel, float64[C], nearest to the exact rational, in squared real units.

        `sums` is the `ChannelMean` of the same values; NaN for channels without finite values.
        """
        return np.array([_rounded(each) for each in self._mean_squares(sums, quantization)], dtype=np.float64)

    def variance(self, sums: Any, quantization: Quantization | None = None) -> Float64Array:
        """The mean of (x − E[x])² per channel, float64[C], nearest to the exact rational, in squared real units.

        `sums` is the `ChannelMean` of the same values; NaN for channels without finite values.
        """
        return np.array([_rounded(each) for each in self._variances(sums, quantization)], dtype=np.float64)

    def standard_deviation(self, sums: Any, quantization: Quantization | None = None) -> Float64Array:
        """The root of the variance per channel, float64[C], in real units; `sums` and NaN as for `variance`."""
        return self._roots(self._variances(sums, quantization))

    def totals(self, sums: Any, quantization: Quantization | None = None) -> list[Fraction]:
        """Σx² = (Σq² − 2·z·Σq + n·z²)·step² of each channel, exact, in squared real units; `sums` as for `rms`."""
        shift = -unit_exponent(self.space.dtype)
        return [
            Fraction(
                (square - (2 * zero_point * total << shift) + (count * zero_point**2 << 2 * shift)) * step.numerator**2,
                step.denominator**2 << 2 * shift,
            )
            for square, total, count, (step, zero_point) in self._channels(sums, quantization)
        ]

    def _roots(self, values: list[Fraction | None]) -> Float64Array:
        return np.array([np.nan if each is None else square_root(each) for each in values], dtype=np.float64)

    def _mean_squares(self, sums: Any, quantization: Quantization | None) -> list[Fraction | None]:
        totals = zip(self.totals(sums, quantization), sums.count.tolist(), strict=True)
        return [total / count if count else None for total, count in totals]

    def _variances(self, sums: Any, quantization: Quantization | None) -> list[Fraction | None]:
        unit = Fraction(2) ** unit_exponent(self.space.dtype)
        return [
            (count * square - total**2) * unit**2 * step**2 / count**2 if count else None
            for square, total, count, (step, _) in self._channels(sums, quantization)
        ]

    def _channels(self, sums: Any, quantization: Quantization | None) -> Any:
        """(sum of squares, sum, both in units, count, (step, zero point)) of each channel."""
        maps = (quantization or Quantization(1.0)).channel_maps(self.space.channels)
        squares = ExactSum(self.space.dtype, self.digits).units()
        return zip(squares, sums.total.units(), sums.count.tolist(), maps, strict=True)


def _rounded(value: Fraction | None) -> float:
    """The float64 nearest to `value`; infinity beyond them."""
    if value is None:
        return np.nan
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return np.inf
