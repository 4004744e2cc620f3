"""Distortion: the mean squared error of quantising a distribution, from rounding and clipping together.

A value is quantised to the nearest value with a code, so its error is its distance to a fixed set of values. Over a bin
whose values are spread evenly, the mean of the squared distance has a closed form; in a bin without width, it is the
squared distance itself. Distances to a set differ by no more than the points do. So the root mean square error of the
values themselves is within `Distribution.blur` of the one computed here (Minkowski's inequality). For values that are
counted one by one, the two are equal up to the rounding of float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization
from .codes import Codes
from .distribution import Distribution

Float64Array = npt.NDArray[np.float64]

AT_ONCE = 2**18
"""Distances that are computed at once: they fit the processor's cache."""


@dataclass(frozen=True)
class Distortion:
    """The expected error of quantised values, in squared real units.

    `mean_square` is that of the values. The root of `mean_squared_error` is off by at most `within`, in real units: 0
    for values that are counted one by one.
    """

    mean_squared_error: float
    mean_square: float
    within: float

    @property
    def sqnr(self) -> float:
        """The signal-to-quantisation-noise ratio in dB; infinite without an error."""
        return decibels(self.mean_square, self.mean_squared_error)

    @property
    def bound(self) -> Bound:
        """What is certain of the error."""
        least_root = max(0.0, math.sqrt(self.mean_square) - self.within)
        return Bound((math.sqrt(self.mean_squared_error) + self.within) ** 2, least_root**2)


@dataclass(frozen=True)
class Bound:
    """What is certain of the error of quantised values, in squared real units.

    The mean squared error is at most `mean_squared_error`. The mean square of the values is at least `mean_square`,
    None if nothing is known of it.
    """

    mean_squared_error: float
    mean_square: float | None

    @property
    def sqnr(self) -> float:
        """The least signal-to-quantisation-noise ratio in dB; NaN if nothing is known of the mean square."""
        return math.nan if self.mean_square is None else decibels(self.mean_square, self.mean_squared_error)


def decibels(mean_square: float, mean_squared_error: float) -> float:
    """The ratio of the two in dB; infinite without an error."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(mean_square / mean_squared_error) if mean_square else -math.inf


def unclipped_bound(quantization: Quantization, mean_square: float | None) -> Bound:
    """The bound for a range that includes all values, of which only the extrema and `mean_square` are known, or None.

    Every value lies within half a step of a value with a code, even if the zero point was rounded; and none is farther
    from such a value than from zero, which has a code.
    """
    half_a_step = float(quantization.step) ** 2 / 4
    return Bound(half_a_step if mean_square is None else min(half_a_step, mean_square), mean_square)


def distortion(values: Distribution, codes: Codes, quantization: Quantization) -> Distortion | None:
    """The expected error of `values` in `codes`, mapped by a single step; None if there are no values."""
    if not values.total:
        return None
    (error,) = mean_squared_errors(values, codes, quantization)
    return Distortion(float(error), values.mean_square, values.blur)


def mean_squared_errors(values: Distribution, codes: Codes, quantization: Quantization) -> Float64Array:
    """The mean squared error of `values` for each of the n maps in `quantization`, float64[n]; there must be values."""
    step = quantization.step.reshape(-1, 1)
    lowest, highest = (np.broadcast_to(end.reshape(-1, 1), step.shape) for end in codes.reach(quantization))
    together = max(1, AT_ONCE // len(values.count))
    parts = (slice(start, start + together) for start in range(0, len(step), together))
    errors = [_squared_distances(values, step[part], lowest[part], highest[part]) @ values.share for part in parts]
    return np.concatenate(errors)


def _squared_distances(
    values: Distribution, step: Float64Array, lowest: npt.NDArray[np.int64], highest: npt.NDArray[np.int64]
) -> Float64Array:
    """The mean of d² in each bin, [maps, bins], with d the distance to the nearest of lowest·step … highest·step.

    Between the ends a and b of a bin, c codes change, and ∫ d² = (d(b)³ − d(a)³) / 3 + c·step³ / 12, with signed d. Of
    a bin on which c is 0, the mean is (d(a)² + d(a)·d(b) + d(b)²) / 3, which also holds if a = b.
    """
    first, from_first = _nearest(values.low, step, lowest, highest)
    if values.is_exact:
        return from_first**2
    last, from_last = _nearest(values.high, step, lowest, highest)
    within = (from_first**2 + from_first * from_last + from_last**2) / 3
    changes = last - first
    width = np.where(values.high > values.low, values.high - values.low, 1.0)
    across = ((from_last - from_first) * within + changes * step**3 / 12) / width
    largest = np.maximum(np.maximum(from_first**2, from_last**2), step**2 / 4)
    return np.where(changes == 0, within, np.clip(across, 0, largest))  # narrow bins lose digits there


def _nearest(
    values: Float64Array, step: Float64Array, lowest: npt.NDArray[np.int64], highest: npt.NDArray[np.int64]
) -> tuple[Float64Array, Float64Array]:
    """The multiple of the step that is nearest to each value, and the signed distance to it."""
    with np.errstate(over="ignore"):  # beyond float64 is beyond the last code
        code = np.clip(np.rint(values / step), lowest, highest)
    return code, values - code * step
