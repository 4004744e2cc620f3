"""SampleSpread: how much the means of samples differ, and so how precisely the mean over all samples is known.

For each channel, the sum of a sample's values is exact; it is squared, and the squares are added exactly. With the sum
over all samples, which `ChannelMean` has, they give the variance of the samples' means, and from it the standard error
of the mean: s / √N, with s² = (Σ mᵢ² − (Σ mᵢ)² / N) / (N − 1). Samples are assumed independent; the values inside one
are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError
from ..quantization import Quantization
from .exact import ExactSum, digit_count, is_canonical, unit_exponent
from .mean import ChannelMean
from .running import Measures
from .samples import SQUARES
from .statistic import Document, Space, Statistic, Tensors, ValueStatistic
from .sums import square_root


@dataclass(frozen=True, eq=False)
class SampleSpread(ValueStatistic):
    """How much the means of samples differ: it shows how precise the mean is, and how many samples are enough.

    `samples` int64[C]; the sum of the squares of their sums, as `digits` int64[D, C] of float64. `beyond` int64[C]
    counts squares beyond float64: the spread of such channels is unknown.
    """

    name: ClassVar[str] = "spread"
    by_sample: ClassVar[bool] = True

    samples: npt.NDArray[np.int64]
    digits: npt.NDArray[np.int64]
    beyond: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        counts = ((space.channels,), np.dtype(np.int64))
        return {"samples": counts, "digits": ((digit_count(SQUARES), space.channels), counts[1]), "beyond": counts}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        assert measures.squares is not None
        return cls(space, measures.squares.samples, measures.squares.digits, measures.squares.beyond)

    def merge(self, other: Self) -> Self:
        """The spread of the samples of both."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        return self._with(part, -1)

    def _with(self, other: Self, sign: int) -> Self:
        samples, beyond = self.samples + sign * other.samples, self.beyond + sign * other.beyond
        if (samples < 0).any() or (beyond < 0).any():
            raise MismatchError(
                "more samples would be subtracted than were counted: the data has changed since it was counted; count "
                "it again"
            )
        digits = ExactSum.from_raw(SQUARES, self.digits + sign * other.digits).digits
        return type(self)(self.space.joined(other.space), samples, digits, beyond)

    def check(self) -> None:
        """As `Statistic.check`."""
        negative = any((each < 0).any() for each in (self.samples, self.beyond, self.digits[-1]))
        if negative or not is_canonical(self.digits):
            raise DataError("the digits of squares are not canonical, or a count or a sum of squares is negative")

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the number of `samples`."""
        return Document({"samples": int(self.samples.max(initial=0))})

    def standard_error(self, sums: ChannelMean, quantization: Quantization | None = None) -> npt.NDArray[np.float64]:
        """The standard error of the mean per channel, float64[C], in real units.

        `sums` are the sums of the same samples. NaN where it is unknown: for channels with fewer than two samples, with
        NaN or infinities, or with squares beyond float64, and for samples of different extents.
        """
        steps = [step for step, _ in (quantization or Quantization(1.0)).channel_maps(self.space.channels)]
        totals, squares = sums.total.units(), ExactSum(SQUARES, self.digits).units()
        known = (self.beyond == 0) & (sums.nonfinite == 0) & (self.samples > 1) & (sums.count > 0)
        known &= 0 not in self.space.sample  # samples of several extents were merged: their sums do not compare
        unit, square_unit = Fraction(2) ** unit_exponent(self.space.dtype), Fraction(2) ** unit_exponent(SQUARES)
        found = np.full(self.space.channels, np.nan)
        for channel in np.flatnonzero(known).tolist():
            samples = int(self.samples[channel])
            values = Fraction(int(sums.count[channel]), samples)
            variance = squares[channel] * square_unit - (totals[channel] * unit) ** 2 / samples
            squared = max(variance, Fraction(0)) / (samples - 1) / samples / values**2 * steps[channel] ** 2
            found[channel] = square_root(squared)
        return found
