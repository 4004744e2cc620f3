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

from ..quantization import Quantization, channel_maps
from .counts import Counting, code_units, is_counted_by_channel
from .exact import ExactSum, carried, digit_count, unit_exponent
from .moments import SQUARE, Moments
from .riders import RiderKind
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays, Counts, Float64Array, square_root


@dataclass(frozen=True, eq=False, repr=False)
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
        return cls(space, _of_counts(measures.beside["counts"]["counts"], space))

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
        unit = Fraction(2) ** unit_exponent(self.space.dtype)
        return [
            (square * unit**2 - 2 * zero * total * unit + count * zero**2) * step**2
            for square, total, count, (step, zero) in self._channels(sums, quantization)
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
        """(sum of squares, sum, both in units, count, (step, stored value of zero)) of each channel."""
        maps = channel_maps(quantization, self.space.channels)
        squares = ExactSum(self.space.dtype, self.digits).units()
        return zip(squares, sums.total.units(), sums.count.tolist(), maps, strict=True)


def _of_counts(counts: Counts, space: Space) -> Counts:
    """The digits of the sum of the squares of 8-bit values, int64[D, C], from counts int64[256, C].

    Squares, of up to 64 bits, are taken in parts of 16: the sums over fewer than 2^47 values then fit 63 bits.
    """
    squares = np.abs(code_units(space.dtype)).astype(np.uint64) ** np.uint64(SQUARE)
    raw = np.zeros((digit_count(space.dtype, SQUARE) + 1, space.channels), np.int64)
    for place, shift in enumerate(range(0, 64, 16)):
        part = (squares >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64) @ counts
        digit, upper = divmod(place, 2)
        raw[digit] += (part & 0xFFFF) << 16 if upper else part
        raw[digit + 1] += part >> 16 if upper else 0
    return carried(raw)[:-1]


def _rounded(value: Fraction | None) -> float:
    """The float64 nearest to `value`; infinity beyond them."""
    if value is None:
        return np.nan
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return np.inf
