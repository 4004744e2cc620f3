"""Distribution: the values of a layer and how often they occur, from what a run counted, in real units.

Values of 8 and 16 bits are counted one by one: their bins have no width. For wider values, only the bin is known; they
are assumed to be spread evenly over it. The extrema are known exactly, and cut the outermost bins. Floats in the bins
next to zero, below 1e-40 for float32, are treated as zeros unless there are no greater ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..floats import is_float
from ..outputs.layer_statistics import LayerStatistics
from ..statistics.counts import is_counted_by_channel
from ..statistics.histogram import Histogram

Float64Array = npt.NDArray[np.float64]

LARGEST = 1e150
"""Values beyond ±1e150 are refused: their squares would overflow."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """`count` int64[n] values lie from `low` to `high`, float64[n]: bins in ascending order, none of them empty."""

    low: Float64Array
    high: Float64Array
    count: npt.NDArray[np.int64]

    @classmethod
    def of(cls, statistics: LayerStatistics, channel: int | None = None) -> Self:
        """The finite values of a layer, or of one of its channels.

        Raises `UsageError`, with the reason, if `why_unknown` has one, and for values beyond ±1e150.
        """
        unknown = why_unknown(statistics, by_channel=channel is not None)
        if unknown is not None:
            raise UsageError(f"layer {statistics.layer}: {unknown.reason}; {unknown.remedy}")
        histogram: Histogram = statistics.statistics[Histogram.name]
        low, high, count = histogram.bins(statistics.quantization, channel)
        least, greatest = extrema(statistics, channel)
        if is_float(statistics.space.dtype):
            low, high = (
                np.where((high == 0) & (low > least), 0.0, low),
                np.where((low == 0) & (high < greatest), 0.0, high),
            )
        return cls(np.maximum(low, least) + 0.0, np.minimum(high, greatest) + 0.0, count)

    @property
    def total(self) -> int:
        """The number of values."""
        return int(self.count.sum())

    @cached_property
    def is_exact(self) -> bool:
        """Whether every value is known, not only its bin."""
        return bool((self.low == self.high).all())

    @property
    def mean_square(self) -> float:
        """The mean of x²."""
        return self.mean((self.low**2 + self.low * self.high + self.high**2) / 3)

    @property
    def blur(self) -> float:
        """The largest root mean square distance between the values and where they are assumed to lie, in real units."""
        return float(np.sqrt(self.mean((self.high - self.low) ** 2 / 3)))

    def mean(self, of_bins: Float64Array) -> float:
        """The mean over values of a figure of their bins."""
        return float(of_bins @ self.share)

    @cached_property
    def share(self) -> Float64Array:
        """The share of the values in each bin."""
        return self.count / self.total

    def mirrored(self) -> Distribution:
        """The distribution of −x."""
        return Distribution(-self.high[::-1], -self.low[::-1], self.count[::-1])

    def counted_between(self, edges: Float64Array) -> Float64Array:
        """The number of values between neighbouring `edges`, float64[len(edges) − 1]; wide bins give fractions.

        Edges ascend. A value on an edge belongs to the interval above it, on the last edge to the one below. Values
        outside are left out.
        """
        point = self.low == self.high
        ascending = self.low[point]
        place = np.searchsorted(ascending, edges)
        place[-1] = np.searchsorted(ascending, edges[-1], side="right")
        return np.diff(summed(self.count[point])[place] + self._counted_below(edges, ~point))

    def _counted_below(self, edges: Float64Array, wide: npt.NDArray[np.bool_]) -> Float64Array:
        """The number of values in `wide` bins below each edge."""
        if not wide.any():
            return np.zeros(len(edges))
        knots = np.stack([self.low[wide], self.high[wide]], axis=1).reshape(-1)
        below = summed(self.count[wide])
        return np.interp(edges, knots, np.stack([below[:-1], below[1:]], axis=1).reshape(-1))


def summed(terms: npt.NDArray[Any]) -> Float64Array:
    """The sums of the first 0, 1, … n of n `terms`, float64[n + 1]."""
    return np.concatenate([[0.0], np.cumsum(terms, dtype=np.float64)])


class Unknown(NamedTuple):
    """Why there is no `Distribution`, and what to do."""

    reason: str
    remedy: str


def why_unknown(statistics: LayerStatistics, *, by_channel: bool = False) -> Unknown | None:
    """Why there is no `Distribution`, or none for each channel; None if there is one."""
    dtype, quantization = statistics.space.dtype, statistics.quantization
    if by_channel and not is_counted_by_channel(dtype):
        return Unknown(
            f"the histogram of {dtype} values covers all channels together; only 8-bit values are counted per channel",
            "leave out --per-channel, use minmax, or choose other layers",
        )
    if Histogram.name not in statistics.statistics:
        return Unknown(
            "no histogram was counted",
            "add `statistics: [histogram]` to the configuration, and run again with --restart",
        )
    if quantization is not None and quantization.channels is not None and not is_counted_by_channel(dtype):
        return Unknown(
            f"each channel of the {dtype} codes has its own step, but their histogram covers all channels together, so "
            "the real values are unknown",
            "use minmax",
        )
    return None


def extrema(statistics: LayerStatistics, channel: int | None = None) -> tuple[float, float]:
    """The least and greatest finite value of a layer, or of a channel; zeros if there is none.

    Raises `UsageError` for values beyond ±1e150.
    """
    chosen = slice(None) if channel is None else slice(channel, channel + 1)
    low = float(np.fmin.reduce(statistics.minimum[chosen], initial=np.nan))
    high = float(np.fmax.reduce(statistics.maximum[chosen], initial=np.nan))
    if np.isnan(low):
        return 0.0, 0.0
    if max(-low, high) > LARGEST:
        raise UsageError(
            f"layer {statistics.layer}: its values reach from {low:g} to {high:g}; expected none beyond ±{LARGEST:g}: "
            "check that the store holds activations"
        )
    return low + 0.0, high + 0.0
