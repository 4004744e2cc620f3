"""SampleSpread: how much the means of single samples differ, and so how well the mean over all of them is known.

For each channel the sum of a sample's values is found exactly and squared; the squares are added exactly. With the sum
over all samples, which `ChannelMean` has, that gives the variance of the samples' means, and from it the standard error
of the mean: s / √N, with s² = (Σ mᵢ² − (Σ mᵢ)² / N) / (N − 1). Samples are drawn independently; the values inside one
are not.

A sum of floats is taken to float64 digit by digit, highest first, before it is squared: what a sample adds depends on
that sample alone, so partitions and order cannot show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError
from ..quantization import Quantization
from .exact import DIGIT_BITS, ExactSum, unit_exponent
from .mean import ChannelMean
from .pieces import Accumulator, SampleSums
from .statistic import Statistic, checked_block, checked_dtype

SQUARES = np.dtype(np.float64)
HALF = 27
"""Bits of a float64's 53 that are split off, so that products of the halves are exact."""


@dataclass(frozen=True, eq=False)
class SampleSpread(Statistic):
    """How many `samples` int64[C], and the sum of the squares of their sums, as the `digits` int64[D, C] of float64.

    `beyond` int64[C] counts what was beyond float64: nothing is known of the spread of such a channel.
    """

    name: ClassVar[str] = "spread"

    samples: npt.NDArray[np.int64]
    digits: npt.NDArray[np.int64]
    beyond: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, channels: int, dtype: npt.DTypeLike) -> Self:
        """Of no samples."""
        samples, beyond = np.zeros((2, channels), np.int64)
        return cls(checked_dtype(dtype), samples, ExactSum.empty(channels, SQUARES).digits, beyond)

    @classmethod
    def measure(cls, block: npt.NDArray[Any], channel_axis: int = -1) -> Self:
        """Of `block`, with samples on axis 0. Raises `MismatchError` also for channels on axis 0."""
        dtype, channels = checked_block(block, channel_axis)
        if channel_axis % block.ndim == 0:
            raise MismatchError(f"channel axis {channel_axis} of a block of shape {block.shape} is that of its samples")
        sums = SampleSums(dtype, block.shape[0], channels)
        sums.add(block, channel_axis)
        return cls.from_sums(sums)

    @classmethod
    def from_sums(cls, sums: SampleSums) -> Self:
        """Of samples whose exact sums are known."""
        totals = _to_float64(sums.digits(), sums.dtype)
        high = _high_half(totals)
        squares = Accumulator(SQUARES, sums.channels)
        with np.errstate(over="ignore", invalid="ignore"):
            low = totals - high
            for product in (high * high, 2 * high * low, low * low):
                squares.add(product, -1)
        found = squares.measures()
        samples = np.full(sums.channels, sums.samples, np.int64)
        digits = ExactSum.from_raw(SQUARES, found.digits).digits
        return cls(sums.dtype, samples, digits, found.nan + found.infinite)

    def merge(self, other: Self) -> Self:
        """Of the samples of both."""
        self.check_mergeable(other)
        return self._with(other, 1)

    def without(self, part: Self) -> Self:
        """Of the samples that are not in `part`, which was merged in. Raises `MismatchError` if it cannot have been."""
        self.check_mergeable(part)
        return self._with(part, -1)

    def _with(self, other: Self, sign: int) -> Self:
        samples, beyond = self.samples + sign * other.samples, self.beyond + sign * other.beyond
        if (samples < 0).any() or (beyond < 0).any():
            raise MismatchError("more samples are to be taken out than were counted; the data is not what it was")
        digits = ExactSum.from_raw(SQUARES, self.digits + sign * other.digits).digits
        return type(self)(self.dtype, samples, digits, beyond)

    def standard_error(self, sums: ChannelMean, quantization: Quantization | None = None) -> npt.NDArray[np.float64]:
        """The standard error of the mean of each channel, float64[C], in real units.

        `sums` are those of the same samples. NaN where it is not known: for less than two samples, where values are
        left out because they are not finite, and for squares beyond float64.
        """
        steps = [step for step, _ in (quantization or Quantization(1.0)).channel_maps(self.channels)]
        totals, squares = sums.total.units(), ExactSum(SQUARES, self.digits).units()
        known = (self.beyond == 0) & (sums.nonfinite == 0) & (self.samples > 1) & (sums.count > 0)
        unit, square_unit = Fraction(2) ** unit_exponent(self.dtype), Fraction(2) ** unit_exponent(SQUARES)
        found = np.full(self.channels, np.nan)
        for channel in np.flatnonzero(known).tolist():
            samples = int(self.samples[channel])
            values = Fraction(int(sums.count[channel]), samples)
            variance = squares[channel] * square_unit - (totals[channel] * unit) ** 2 / samples
            squared = max(variance, Fraction(0)) / (samples - 1) / samples / values**2 * steps[channel] ** 2
            found[channel] = _square_root(squared)
        return found


class SpreadOfParts:
    """The spread of samples that come in parts: those of the same rows one after the other."""

    def __init__(self, dtype: np.dtype[Any], channels: int) -> None:
        self._dtype = dtype
        self._channels = channels
        self._found = SampleSpread.empty(channels, dtype)
        self._rows = (0, 0)
        self._sums = SampleSums(dtype, 0, channels)

    def add(self, block: npt.NDArray[Any], channel_axis: int, rows: tuple[int, int]) -> None:
        """Take the part `block` of the samples `rows`."""
        if rows != self._rows:
            self._found = self.found()
            self._rows, self._sums = rows, SampleSums(self._dtype, rows[1] - rows[0], self._channels)
        self._sums.add(block, channel_axis)

    def found(self) -> SampleSpread:
        """The spread of all samples so far."""
        return self._found.merge(SampleSpread.from_sums(self._sums))


def _square_root(value: Fraction) -> float:
    """√value, also where value itself is beyond float64."""
    shift = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    return math.ldexp(math.sqrt(value / Fraction(4) ** shift), shift)


def _to_float64(digits: npt.NDArray[np.int64], dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Canonical digits [D, …] → float64[…]: those of the magnitude, added from the highest down."""
    sign = np.where(digits[-1] < 0, -1, 1)
    magnitude = ExactSum.from_raw(dtype, digits * sign).digits
    total = np.zeros(digits.shape[1:])
    with np.errstate(over="ignore"):
        for place in range(len(magnitude) - 1, -1, -1):
            total += np.ldexp(magnitude[place].astype(np.float64), DIGIT_BITS * place + unit_exponent(dtype))
    return sign * total


def _high_half(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The upper bits of each value; it and the rest have products that float64 holds exactly."""
    bits = values.view(np.int64) & ~((1 << HALF) - 1)
    return bits.view(np.float64)
