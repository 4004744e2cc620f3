"""Distances: how far apart the statistics of a layer are in two outputs, in real units.

Means are compared in standard errors if `spread` was counted, and as shares of the layer's range; extrema as shares of
that range; histograms by the distances of their distributions. Differences and counts are exact, and each quotient is
rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ..statistics.counts import is_counted_by_value
from ..statistics.histogram import Histogram
from .documents import json_value
from .layer_statistics import LayerStatistics

Float64Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

HUNDREDTHS = 100
"""A layer's range in hundredths, the unit of means without standard errors."""


@dataclass(frozen=True)
class Distance:
    """The greatest distance over all channels, and the first channel that has it."""

    value: float
    channel: int

    def document(self) -> dict[str, Any]:
        """JSON-ready; `value` is None for infinity."""
        return {"value": json_value(self.value), "channel": self.channel}


@dataclass(frozen=True)
class Distances:
    """How far apart the statistics of a layer are in two outputs; None means unknown.

    - `comparable`: both outputs have the same number of channels, and no channel is in `one_sided`;
    - `worst_mean`: the greatest difference of means, in standard errors or, for channels without standard errors, in
      hundredths of the layer's range;
    - `mean_in_standard_errors`: |m₁ − m₂| / √(se₁² + se₂²), which treats the samples of the outputs as independent;
      infinite if means without error differ;
    - `mean_in_ranges`: |m₁ − m₂| as a share of the layer's range, which extends from the least to the greatest value in
      either output;
    - `beyond_first`: how far the range of a channel in the second output extends beyond that in the first, as a share
      of the layer's range; `beyond_second`: the reverse;
    - `total_variation`: ½Σ|p − q| over the bins of the histograms; `kolmogorov_smirnov`: the greatest difference of
      their cumulative shares;
    - `one_sided`: the channels with finite values in only one output.
    """

    comparable: bool
    worst_mean: Distance | None = None
    mean_in_standard_errors: Distance | None = None
    mean_in_ranges: Distance | None = None
    beyond_first: Distance | None = None
    beyond_second: Distance | None = None
    total_variation: float | None = None
    kolmogorov_smirnov: float | None = None
    one_sided: tuple[int, ...] = ()

    @property
    def shift(self) -> float:
        """The value of `worst_mean`; infinity if the layers are not comparable."""
        return math.inf if not self.comparable else self.worst_mean.value if self.worst_mean else 0.0

    @property
    def in_standard_errors(self) -> bool:
        """Whether `worst_mean` is in standard errors."""
        return self.worst_mean is not None and self.worst_mean == self.mean_in_standard_errors

    @property
    def beyond(self) -> float:
        """The greater of `beyond_first` and `beyond_second`, a share of the layer's range; 0 if unknown."""
        return max((each.value for each in (self.beyond_first, self.beyond_second) if each), default=0.0)

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        greatest = {
            "worst_mean": self.worst_mean,
            "mean_in_standard_errors": self.mean_in_standard_errors,
            "mean_in_ranges": self.mean_in_ranges,
            "beyond_first": self.beyond_first,
            "beyond_second": self.beyond_second,
        }
        return {
            "comparable": self.comparable,
            "in_standard_errors": self.in_standard_errors,
            **{name: None if each is None else each.document() for name, each in greatest.items()},
            "total_variation": self.total_variation,
            "kolmogorov_smirnov": self.kolmogorov_smirnov,
            "one_sided": list(self.one_sided),
        }


def distances(first: LayerStatistics, second: LayerStatistics) -> Distances:
    """How far `first` and `second` are apart. Raises `UsageError` for a mean beyond float64."""
    variation, smirnov = _histogram_distances(first, second)
    if first.channels != second.channels:
        return Distances(comparable=False, total_variation=variation, kolmogorov_smirnov=smirnov)
    in_errors, in_ranges = mean_distances(first, second)
    beyond_first, beyond_second = _excesses(first, second)
    seen = [each.sums.count > 0 for each in (first, second)]
    one_sided = tuple(np.flatnonzero(seen[0] != seen[1]).tolist())
    return Distances(
        not one_sided,
        _greatest({channel: in_errors.get(channel, HUNDREDTHS * share) for channel, share in in_ranges.items()}),
        _greatest(in_errors),
        _greatest(in_ranges),
        _greatest(beyond_first),
        _greatest(beyond_second),
        variation,
        smirnov,
        one_sided,
    )


ByChannel = Mapping[int, float]
"""Channel → distance, for the channels where it is known."""


def _greatest(found: ByChannel) -> Distance | None:
    if not found:
        return None
    channel = max(found, key=lambda each: found[each])
    return Distance(found[channel], channel)


def mean_distances(first: LayerStatistics, second: LayerStatistics) -> tuple[ByChannel, ByChannel]:
    """The differences of the means: (in standard errors, as shares of the layer's range), as in `Distances`.

    Only channels for which they are known are in them; both layers have the same number of channels.
    """
    error, width = _standard_errors(first, second), _width(first, second)
    both = np.flatnonzero(np.isfinite(first.mean) & np.isfinite(second.mean)).tolist()
    apart = {channel: abs(_exact(first.mean, channel) - _exact(second.mean, channel)) for channel in both}
    known = {channel: gap for channel, gap in apart.items() if np.isfinite(error[channel])}
    return (
        {channel: _quotient(gap, _exact(error, channel)) for channel, gap in known.items()},
        {channel: _quotient(gap, width) for channel, gap in apart.items()},
    )


def _standard_errors(first: LayerStatistics, second: LayerStatistics) -> Float64Array:
    """The standard error of the difference of the means per channel; NaN or infinity where it is unknown."""
    mine, theirs = first.standard_error, second.standard_error
    if mine is None or theirs is None:
        return np.full(first.channels, np.nan)
    with np.errstate(over="ignore"):
        return np.hypot(mine, theirs)


def _width(first: LayerStatistics, second: LayerStatistics) -> Fraction:
    """The range of the layer over both outputs; 0 without values."""
    ends = [_ends(each) for each in (first, second)]
    low, high = (np.concatenate([each[end] for each in ends]) for end in (0, 1))
    seen = ~np.isnan(low)
    return Fraction(high[seen].max().item()) - Fraction(low[seen].min().item()) if seen.any() else Fraction(0)


def _excesses(first: LayerStatistics, second: LayerStatistics) -> tuple[ByChannel, ByChannel]:
    """How far the range of each channel extends beyond that in the other output: (`second`'s, `first`'s), as shares."""
    width, mine, theirs = _width(first, second), _ends(first), _ends(second)
    both = np.flatnonzero(~np.isnan(mine[0]) & ~np.isnan(theirs[0])).tolist()

    def beyond(inner: tuple[Float64Array, Float64Array], outer: tuple[Float64Array, Float64Array]) -> ByChannel:
        below = [_exact(inner[0], channel) - _exact(outer[0], channel) for channel in both]
        above = [_exact(outer[1], channel) - _exact(inner[1], channel) for channel in both]
        return {
            channel: _quotient(max(*ends, Fraction(0)), width)
            for channel, *ends in zip(both, below, above, strict=True)
        }

    return beyond(mine, theirs), beyond(theirs, mine)


def _ends(found: LayerStatistics) -> tuple[Float64Array, Float64Array]:
    """(minimum, maximum) per channel, float64[C]; a huge step may take them beyond float64: they are clipped to it."""
    limit = np.finfo(np.float64).max
    low, high = (np.clip(each, -limit, limit) for each in (found.minimum, found.maximum))
    return low, high


def _exact(values: Float64Array, channel: int) -> Fraction:
    return Fraction(values[channel].item())


def _quotient(part: Fraction, whole: Fraction) -> float:
    """`part` / `whole`; 0 for 0 / 0, infinity beyond float64."""
    if not part:
        return 0.0
    try:
        return float(part / whole)
    except (ZeroDivisionError, OverflowError):
        return math.inf


# Histograms


def _histogram_distances(first: LayerStatistics, second: LayerStatistics) -> tuple[float | None, float | None]:
    """(total variation, Kolmogorov–Smirnov) distance; None where the bins of one do not fit those of the other."""
    mine, theirs = (each.statistics.get(Histogram.name) for each in (first, second))
    if not (isinstance(mine, Histogram) and isinstance(theirs, Histogram)):
        return None, None
    if first.space.dtype == second.space.dtype and first.quantization == second.quantization:
        return _count_distances(mine.over_channels, theirs.over_channels)
    if not (is_counted_by_value(first.space.dtype) and is_counted_by_value(second.space.dtype)):
        return None, None
    values, _, counts = mine.bins(first.quantization)
    others, _, other_counts = theirs.bins(second.quantization)
    together = np.union1d(values, others)
    return _count_distances(_placed(values, counts, together), _placed(others, other_counts, together))


def _placed(values: Float64Array, counts: Counts, together: Float64Array) -> Counts:
    """The `counts` of `values`, each at the index of its value in `together`; both ascend."""
    placed = np.zeros(len(together), np.int64)
    placed[np.searchsorted(together, values)] = counts
    return placed


def _count_distances(mine: Counts, theirs: Counts) -> tuple[float | None, float | None]:
    """The distances of two distributions over the same bins, int64[n] each; None if one has no values."""
    total, others = int(mine.sum()), int(theirs.sum())
    if not total or not others:
        return None, None
    seen = np.flatnonzero(mine | theirs)
    pairs = zip(mine[seen].tolist(), theirs[seen].tolist(), strict=True)
    gaps = [count * others - other * total for count, other in pairs]
    whole = total * others
    variation = Fraction(sum(map(abs, gaps)), 2 * whole)
    return float(variation), float(Fraction(max(map(abs, accumulate(gaps))), whole))
