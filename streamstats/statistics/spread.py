"""SampleSpread: how much the means of samples differ, and so how precisely the mean over all samples is known.

For each channel, the sum Sᵢ and the number nᵢ of a sample's finite values are exact, and so are the sums of their
squares and products. The mean is the ratio R = Σ Sᵢ / Σ nᵢ, and its standard error that of a ratio estimate (Cochran,
Sampling Techniques, section 2.11): √(N / (N − 1) · Σ (Sᵢ − R·nᵢ)²) / Σ nᵢ over N samples; with equal nᵢ, it is the
standard deviation of the samples' means, over √N. Samples are assumed independent; the values inside one are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization, channel_maps
from .exact import ExactSum, carried, unit_exponent
from .mean import ChannelMean
from .riders import RiderKind
from .running import Measures, SampleMoments
from .samples import COUNT_DIGITS, product_digits, square_digits
from .squares import ChannelSquares
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays, Counts, square_root


@dataclass(frozen=True, eq=False, repr=False)
class SampleSpread(AddedArrays):
    """How much the means of samples differ: it shows how precise the mean is, and how many samples are enough.

    `samples` int64[C] counts those with finite values. The others are digits int64[·, C], summed over samples: of the
    `squares` of their sums, of the `products` of their sums and their numbers of finite values, and of the squares of
    these numbers, `counts`.
    """

    name: ClassVar[str] = "spread"
    exact: ClassVar[tuple[str, ...]] = ("squares", "products", "counts")
    signed: ClassVar[tuple[str, ...]] = ("products",)

    samples: Counts
    squares: npt.NDArray[np.int64]
    products: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        integers, channels = np.dtype(np.int64), space.channels
        digits = square_digits(space.dtype), product_digits(space.dtype), COUNT_DIGITS
        tensors: Tensors = {"samples": ((channels,), integers)}
        return tensors | {name: ((places, channels), integers) for name, places in zip(cls.exact, digits, strict=True)}

    @classmethod
    def by_sample(cls, space: Space) -> bool:
        """As `ValueStatistic.by_sample`: unless a sample has one value per channel, which is then its own sum."""
        return space.positions != 1

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:
        """As `ValueStatistic.riders`."""
        return {} if cls.by_sample(space) else ChannelSquares.riders(space)

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        found = measures.moments if cls.by_sample(space) else _of_single_values(space, measures)
        assert found is not None
        return cls(space, found.samples, found.squares, found.products, found.counts)

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:
        """Layer: the number of `samples`, those with values, and the largest standard error. Per channel: its own."""
        sums = beside[ChannelMean.name]
        assert isinstance(sums, ChannelMean)
        error = self.standard_error(sums, quantization)
        largest = float(np.fmax.reduce(error, initial=np.nan))
        layer = {"samples": int(self.samples.max(initial=0)), "largest_standard_error": largest}
        return Document(layer, {"standard_error": error})

    def standard_error(self, sums: ChannelMean, quantization: Quantization | None = None) -> npt.NDArray[np.float64]:
        """The standard error of the mean per channel, float64[C], in real units.

        `sums` are the sums of the same samples. NaN where it is unknown: for channels with values in fewer than two
        samples. Masked values, NaN and infinities make samples of unequal weights.
        """
        steps = [step for step, _ in channel_maps(quantization, self.space.channels)]
        totals = sums.total.units()
        squares, products, counts = (
            ExactSum(self.space.dtype, digits).units() for digits in (self.squares, self.products, self.counts)
        )
        unit = Fraction(2) ** unit_exponent(self.space.dtype)
        found = np.full(self.space.channels, np.nan)
        for channel in np.flatnonzero((self.samples > 1) & (sums.count > 0)).tolist():
            samples, values = int(self.samples[channel]), int(sums.count[channel])
            ratio = Fraction(totals[channel], values)
            residuals = squares[channel] - 2 * ratio * products[channel] + ratio**2 * counts[channel]
            squared = residuals * unit**2 * samples / (samples - 1) / values**2 * steps[channel] ** 2
            found[channel] = square_root(squared)
        return found


def _of_single_values(space: Space, measures: Measures) -> SampleMoments:
    """The moments of samples with one value per channel: sums are values, and counts are 1 or, if not finite, 0."""
    squares, count = ChannelSquares.from_measures(space, measures).digits, measures.count
    return SampleMoments(
        count,
        _lengthened(squares, square_digits(space.dtype)),
        _lengthened(carried(measures.digits), product_digits(space.dtype)),
        _lengthened(carried(np.stack([count, np.zeros_like(count)])), COUNT_DIGITS),
    )


def _lengthened(digits: npt.NDArray[np.int64], places: int) -> npt.NDArray[np.int64]:
    """The canonical `digits` [D, C] as `places` digits."""
    return carried(np.concatenate([digits, np.zeros((places - len(digits), digits.shape[1]), np.int64)]))
