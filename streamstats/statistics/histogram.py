"""Histogram: how often each value occurs, so that any percentile or range can be computed later, without the data.

Values of 8 and 16 bits are counted one by one, those of 8 bits per channel. Wider values are counted by the upper 16
bits of their patterns, in the order of the values: for float32, 128 bins per octave. The bins are fixed by the dtype,
not by the data, so histograms merge and are subtracted exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..quantization import Quantization
from .counts import BINS, Counting, bins, is_counted_by_channel
from .riders import RiderKind
from .running import Measures
from .statistic import Document, Space, Statistic, Table, Tensors
from .sums import AddedArrays, Float64Array

Array = npt.NDArray[Any]

SHOWN = (0.0001, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 0.9999)
"""The quantiles that documents show."""
PERCENTILES = {"percentile_0_1": 0.001, "median": 0.5, "percentile_99_9": 0.999}
"""The quantiles that stand among the figures of a layer, by name."""
DRAWN = 64
"""Bars, of equal width, of the histogram in documents."""


@dataclass(frozen=True, eq=False, repr=False)
class Histogram(AddedArrays):
    """How often each value occurs: percentiles and quantisation ranges follow without reading the data again.

    `counts`, ascending by value: for values of 8 bits int64[256, C], one per value and channel; for others int64[65536]
    over all channels, one per value of 16 bits, or per bin of wider values. NaN and infinities are not counted.
    """

    name: ClassVar[str] = "histogram"

    counts: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        shape = (256, space.channels) if is_counted_by_channel(space.dtype) else (BINS,)
        return {"counts": (shape, np.dtype(np.int64))}

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:  # noqa: ARG003 - the same for all
        """As `ValueStatistic.riders`."""
        return {"counts": Counting}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        return cls(space, measures.beside["counts"]["counts"])

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: some percentiles, each the end of its bin that is nearer to zero. Tables: `quantiles` and
        `histogram`, both in real units.

        NaN and empty tables without values, and for codes of more than 8 bits with one step per channel.
        """
        low, high, counts = self.bins(quantization)
        at = {q: _at_rank(low, high, counts, rank(q, int(counts.sum()))) for q in SHOWN} if len(counts) else {}
        percentiles = {name: min(at[q], key=abs) if at else math.nan for name, q in PERCENTILES.items()}
        tables = {
            "quantiles": Table(("q", "low", "high"), [[q, *ends] for q, ends in at.items()]),
            "histogram": Table(("low", "high", "count"), _bars(low, high, counts) if at else []),
        }
        return Document(percentiles, tables=tables)

    def bins(
        self, quantization: Quantization | None = None, channel: int | None = None
    ) -> tuple[Float64Array, Float64Array, npt.NDArray[np.int64]]:
        """(least value, greatest value, count) of the bins that are not empty, ascending, in real units, [n] each.

        Least and greatest are equal where values are counted one by one. With `channel`, the bins are those of that
        channel. No bins for codes of more than 8 bits with one step per channel, whose real values are unknown. Raises
        `UsageError` for a `channel` of values that are not counted per channel.
        """
        low, high = bins(self.space.dtype)
        if is_counted_by_channel(self.space.dtype):
            return self._of_channels(low, quantization, channel)
        if channel is not None:
            raise UsageError(
                f"channel {channel} was requested, but the histogram of {self.space.dtype} values covers all channels "
                "together: only 8-bit values are counted per channel; leave the channel out"
            )
        if quantization is not None and quantization.channels is not None:
            return np.empty(0), np.empty(0), np.empty(0, np.int64)
        seen = np.flatnonzero(self.counts)
        return _real(low[seen], quantization), _real(high[seen], quantization), self.counts[seen]

    def _of_channels(
        self, codes: Array, quantization: Quantization | None, channel: int | None
    ) -> tuple[Float64Array, Float64Array, npt.NDArray[np.int64]]:
        """The same for values of 8 bits: `codes` of each channel, mapped by its step."""
        block = np.repeat(codes[:, np.newaxis], self.space.channels, axis=1)
        real, counts = _real(block, quantization), self.counts
        if channel is not None:
            real, counts = real[:, channel], counts[:, channel]
        values, place = np.unique(real.reshape(-1), return_inverse=True)
        added = np.zeros(len(values), np.int64)
        np.add.at(added, place.reshape(-1), counts.reshape(-1))
        seen = np.flatnonzero(added)
        return values[seen], values[seen], added[seen]

    def quantile(
        self, q: float, quantization: Quantization | None = None, channel: int | None = None
    ) -> tuple[float, float]:
        """(low, high): the least and greatest value of the bin with the `q`-quantile, in real units.

        It is the value at place ⌈q·n⌉ of the n sorted values, as numpy's method "inverted_cdf" gives it; low and high
        are equal, and so exact, for values of 8 and 16 bits. NaN if there are no values. Raises `UsageError` for a `q`
        outside 0 to 1, and as `bins`.
        """
        if not 0 <= q <= 1:
            raise UsageError(f"the quantile is {q}; expected a number from 0 to 1")
        low, high, counts = self.bins(quantization, channel)
        return _at_rank(low, high, counts, rank(q, int(counts.sum()))) if len(counts) else (math.nan, math.nan)

    @property
    def over_channels(self) -> npt.NDArray[np.int64]:
        """The counts of all bins over all channels, int64[256] for values of 8 bits, else int64[65536]."""
        return self.counts.sum(axis=1) if self.counts.ndim > 1 else self.counts

    def place(self, q: float) -> tuple[int, int]:
        """The index of the bin with the `q`-quantile of the stored values, and its place in that bin, from 0.

        The quantile is that of all channels. There must be values.
        """
        counts = self.over_channels
        ends = counts.cumsum()
        place = rank(q, int(ends[-1]))
        found = int(np.searchsorted(ends, place, side="right"))
        return found, place - int(ends[found] - counts[found])

    def value_of(self, bin_: int) -> Any:
        """The least value of a bin, as it is stored: the only one for values of 8 and 16 bits."""
        return bins(self.space.dtype)[0][bin_]


def rank(q: float, count: int) -> int:
    """The place of the q-quantile in `count` sorted values, from 0; `q` is taken as the decimal number it prints as.

    >>> [rank(q, 10) for q in (0.0, 0.1, 0.11, 0.5, 1.0)]
    [0, 0, 1, 4, 9]
    """
    return max(0, math.ceil(Fraction(repr(float(q))) * count) - 1)


def _at_rank(low: Float64Array, high: Float64Array, counts: Array, place: int) -> tuple[float, float]:
    found = int(np.searchsorted(counts.cumsum(), place, side="right"))
    return float(low[found]), float(high[found])


def _bars(low: Float64Array, high: Float64Array, counts: Array) -> list[list[float]]:
    """[low, high, count] of bars of about equal width, with the exact count of the values in [low, high).

    The last bar includes its end. Where an edge would cut a bin, it moves to the end of the bin. None for infinite
    values.
    """
    ends = float(low[0]), float(high[-1])
    if not np.isfinite(ends).all():
        return []
    if not ends[0] / 2 < ends[1] / 2:  # all values are the same, or too near to each other to divide
        return [[*ends, int(counts.sum())]]
    edges = 2 * np.linspace(ends[0] / 2, ends[1] / 2, DRAWN + 1)  # halves, whose difference is within float64
    first = np.searchsorted(low / 2 + high / 2, edges[1:-1])  # of the bins whose middle is beyond an edge
    last = np.where(first > 0, high[first - 1], -np.inf)  # value of the bins before
    inner = np.maximum(edges[1:-1], np.nextafter(last, np.inf))
    edges[1:-1] = np.minimum(inner, np.append(low, ends[1])[first])
    places = [0, *first.tolist(), len(low)]
    bars = [
        [float(edges[bar]), float(edges[bar + 1]), int(counts[start:stop].sum())]
        for bar, (start, stop) in enumerate(pairwise(places))
    ]
    return [bar for bar in bars if bar[0] < bar[1] or bar[2]]


def _real(values: Array, quantization: Quantization | None) -> Float64Array:
    with np.errstate(over="ignore", invalid="ignore"):  # a huge step may take them beyond float64, to infinity
        return values.astype(np.float64) if quantization is None else quantization.dequantize(values)
