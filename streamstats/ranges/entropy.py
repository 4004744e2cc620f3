"""The entropy range: the threshold at which quantising loses the least information, as TensorRT defines it.

Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017. |x| is counted in 2,048 bins of equal width up to its
maximum. For each threshold, after the first k bins, P is the histogram of these bins, with all values beyond added to
its last one. Q has the same bins merged into as many levels as there are codes on a side, and the values of each level
spread evenly over those of its bins that are not empty in P. The threshold with the least divergence
KL(P‖Q) = Σ P·log(P/Q) wins.

The slides leave open what happens if k is not a multiple of the levels, and if Q is empty where P is not. Here bin j
belongs to level ⌊j·levels/k⌋, and a threshold follows a bin that is not empty: there Q has values wherever P has some.
Below it, there are at least as many different values as levels: otherwise, rounding would lose nothing, whatever is
clipped. Zeros are left out: they have a code of their own, so they lose nothing, and otherwise the many zeros behind a
ReLU would decide alone.

onnxruntime's thresholds differ, and are mostly wider. Bins that remain once all levels have equally many, the one with
the values beyond among them, are empty in its Q and get 1e-4 of a value there, which makes clipping look dear. It
rounds Q down to integers, and counts zeros. By default it has 128 bins for 128 levels, so that the maximum is the only
threshold.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .codes import Codes
from .distribution import Distribution

Float64Array = npt.NDArray[np.float64]

BINS = 2048
NOTHING = 2.0**-40
"""Magnitudes below this share of the greatest one round to zero with any step."""


def entropy_range(values: Distribution, codes: Codes) -> tuple[float, float]:
    """(low, high): the threshold of least divergence on both sides of zero, cut at the extrema.

    The levels are 2^(bits−1); of values on one side of zero in affine codes, 2^bits. With 2,048 levels, each bin has
    its own, nothing is lost, and the range is that of the extrema.
    """
    low, high = float(values.low[0]), float(values.high[-1])
    extent = max(-low, high)
    one_sided = low >= 0 or high <= 0
    levels = 2**codes.bits if one_sided and not codes.symmetric else 2 ** (codes.bits - 1)
    fewest = max(levels, _bins_with(levels, values, extent))
    threshold = extent * (_least_divergence(_magnitudes(values, extent), levels, fewest) / BINS)
    return max(low, -threshold), min(high, threshold)


def _magnitudes(values: Distribution, extent: float) -> Float64Array:
    """The counts of |x|, without zeros, in bins of equal width up to `extent`; the upper edge belongs to a bin."""
    edges = np.linspace(0.0, extent, BINS + 1) * (1 + NOTHING)
    edges[0] = extent * NOTHING
    return values.counted_between(edges) + values.mirrored().counted_between(edges)


def _bins_with(number: int, values: Distribution, extent: float) -> int:
    """How many of the bins hold `number` different magnitudes; all of them if there are not so many."""
    different = np.unique(np.maximum(np.abs(values.low), np.abs(values.high)))
    different = different[different > extent * NOTHING]
    return math.ceil(different[number - 1] / extent * BINS * (1 - NOTHING)) if number <= len(different) else BINS


def _least_divergence(counts: Float64Array, levels: int, fewest: int) -> int:
    """How many of the bins, at least `fewest`, are below the best threshold; the most of those equally good."""
    best, least = BINS, math.inf
    for kept in (np.flatnonzero(counts)[::-1] + 1).tolist():
        if kept < fewest:
            break
        divergence = _divergence(counts, kept, levels)
        if divergence < least:
            best, least = kept, divergence
    return best


def _divergence(counts: Float64Array, kept: int, levels: int) -> float:
    """KL(P‖Q) for a threshold after the first `kept` bins, the last of which is not empty."""
    inside = counts[:kept]
    reference = inside.copy()
    reference[-1] += counts[kept:].sum()
    seen = reference > 0
    level = np.arange(kept) * levels // kept
    spread = np.bincount(level, inside, levels) / np.maximum(np.bincount(level, seen, levels), 1)
    p, q = reference[seen], spread[level[seen]]
    p, q = p / p.sum(), q / q.sum()
    return float(p @ np.log(p / q))
