"""The percentile range: the same share of the values lies beyond each end of it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from ..errors import UsageError
from .codes import Codes
from .distribution import Distribution

PERCENTILE = 99.99


def percentile_range(values: Distribution, codes: Codes, percentile: float = PERCENTILE) -> tuple[float, float]:
    """(low, high), in real units: `percentile` % of the values are at most high, and `percentile` % at least low.

    For symmetric codes, the range is ±extent, and the magnitudes of `percentile` % of the values are at most extent.
    High is the value at place ⌈p·n⌉ of the n sorted values, as numpy's method "inverted_cdf" gives it, and low the same
    for −x. For values of 8 and 16 bits, both are exact. For wider values, each is the outer edge of the bin with that
    value, so that no more than the requested share lies beyond. Raises `UsageError` for a percentile that is not above
    50 and at most 100.

    (onnxruntime divides the share beyond between both ends: our 99.99 is its 99.98, unless codes are symmetric.)
    """
    if not 50 < percentile <= 100:
        raise UsageError(f"the percentile is {percentile:g}; expected a number above 50, at most 100")
    if codes.symmetric:
        extent = _upper(_magnitudes(values), percentile)
        return -extent, extent
    return -_upper(values.mirrored(), percentile), _upper(values, percentile)


def _upper(values: Distribution, percentile: float) -> float:
    """The outer edge of the bin with the value at place ⌈p·n⌉."""
    share = Fraction(str(percentile)) / 100  # the decimal that was given: 99.99 % of 10,000 values are 9,999
    place = math.ceil(share * values.total) - 1
    return float(values.high[np.searchsorted(values.count.cumsum(), place, side="right")])


def _magnitudes(values: Distribution) -> Distribution:
    """The distribution of |x|, in ascending order of the outer edges; bins may overlap."""
    inner = np.where((values.low < 0) & (values.high > 0), 0.0, np.minimum(np.abs(values.low), np.abs(values.high)))
    outer = np.maximum(np.abs(values.low), np.abs(values.high))
    order = np.argsort(outer, kind="stable")
    return Distribution(inner[order], outer[order], values.count[order])
