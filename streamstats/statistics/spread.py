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

from ..quantization import Quantization
from .exact import ExactSum, unit_exponent
from .mean import ChannelMean
from .running import Measures
from .samples import square_digits
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays, Counts, square_root


@dataclass(frozen=True, eq=False)
class SampleSpread(AddedArrays):
    """How much the means of samples differ: it shows how precise the mean is, and how many samples are enough.

    `samples` int64[C]; `digits` int64[D, C] of the sum of the squares of their sums, in the square of the sums' unit.
    """

    name: ClassVar[str] = "spread"
    by_sample: ClassVar[bool] = True

    samples: Counts
    digits: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        integers = np.dtype(np.int64)
        digits = (square_digits(space.dtype), space.channels)
        return {"samples": ((space.channels,), integers), "digits": (digits, integers)}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        assert measures.squares is not None
        return cls(space, measures.squares.samples, measures.squares.digits)

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the number of `samples`."""
        return Document({"samples": int(self.samples.max(initial=0))})

    def standard_error(self, sums: ChannelMean, quantization: Quantization | None = None) -> npt.NDArray[np.float64]:
        """The standard error of the mean per channel, float64[C], in real units.

        `sums` are the sums of the same samples. NaN where it is unknown: for channels with fewer than two samples, with
        NaN or infinities, and for samples of different extents.
        """
        steps = [step for step, _ in (quantization or Quantization(1.0)).channel_maps(self.space.channels)]
        totals, squares = sums.total.units(), ExactSum(self.space.dtype, self.digits).units()
        known = (sums.nonfinite == 0) & (self.samples > 1) & (sums.count > 0)
        known &= 0 not in self.space.sample  # samples of several extents were merged: their sums do not compare
        unit = Fraction(2) ** unit_exponent(self.space.dtype)
        found = np.full(self.space.channels, np.nan)
        for channel in np.flatnonzero(known).tolist():
            samples = int(self.samples[channel])
            values = Fraction(int(sums.count[channel]), samples)
            variance = (squares[channel] - Fraction(totals[channel] ** 2, samples)) * unit**2 / (samples - 1)
            squared = variance / samples / values**2 * steps[channel] ** 2
            found[channel] = square_root(squared)
        return found
