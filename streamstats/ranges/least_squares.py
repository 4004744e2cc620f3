"""The range of least squared error: the pair of ends, in a grid of candidates, with the least mean squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization
from .codes import Codes
from .distortion import mean_squared_errors
from .distribution import Distribution, summed

Float64Array = npt.NDArray[np.float64]

PER_OCTAVE, OCTAVES = 16, 16
FIRST = 64
"""Candidates that are tried first; their error shows which others cannot be better."""
MARGIN = 1e-12
"""More than the rounding errors of the lower bounds, relative to the mean square."""


def least_squares_range(values: Distribution, codes: Codes) -> tuple[float, float]:
    """(low, high) of the least mean squared error, rounding and clipping together, of all candidates.

    The candidates for an end are the extremum times 2^(−k/16), k = 0 … 256, and, for affine codes, zero. Each pair of a
    low and a high is a candidate range; for symmetric codes, each ± the greatest magnitude times 2^(−k/16). A candidate
    is skipped if a lower bound of its error exceeds the error of another. Of equally good ranges, the widest is
    returned. There must be values.
    """
    low, high = _candidates(values, codes)
    quantization = codes.quantization(low, high)
    least = _least_errors(values, codes, quantization)
    likely = np.argsort(least + quantization.step**2 / 12, kind="stable")[:FIRST]
    known = mean_squared_errors(values, codes, codes.quantization(low[likely], high[likely])).min()
    left = np.flatnonzero(least <= known * (1 + MARGIN) + MARGIN * values.mean_square)
    errors = mean_squared_errors(values, codes, codes.quantization(low[left], high[left]))
    best = left[errors.argmin()]
    return float(low[best]), float(high[best])


def _candidates(values: Distribution, codes: Codes) -> tuple[Float64Array, Float64Array]:
    """The lows and highs of all candidate ranges, widest first."""
    low, high = codes.widened(values.low[0], values.high[-1])
    factors = 2.0 ** (-np.arange(PER_OCTAVE * OCTAVES + 1) / PER_OCTAVE)
    if codes.symmetric:
        return low * factors, high * factors
    factors = np.append(factors, 0.0)
    lows, highs = (end * factors if end else np.zeros(1) for end in (low, high))
    return np.repeat(lows, len(highs)), np.tile(highs, len(lows))


def _least_errors(values: Distribution, codes: Codes, quantization: Quantization) -> Float64Array:
    """A lower bound of the error of each map: that of values beyond its codes, and of values that round to zero."""
    lowest, highest = codes.reach(quantization)
    return _least_above_zero(values, quantization.step, highest) + _least_above_zero(
        values.mirrored(), quantization.step, -lowest
    )


def _least_above_zero(values: Distribution, step: Float64Array, highest: npt.NDArray[np.int64]) -> Float64Array:
    """A lower bound of the part of the error that is due to values above zero, from the ends of their bins.

    Beyond the highest code, Σ (low − end)² of the bins that begin there; Σ low² of those that end below half a step.
    """
    positive = values.low >= 0
    low, top, share = values.low[positive], values.high[positive], values.share[positive]
    squares, firsts, shares = (summed(low**power * share) for power in (2, 1, 0))
    end = highest * step
    begin = np.searchsorted(low, end)
    beyond = [each[-1] - each[begin] for each in (squares, firsts, shares)]
    clipped = beyond[0] - 2 * end * beyond[1] + end**2 * beyond[2]
    rounded = squares[np.searchsorted(top, step / 2, side="right")]
    return np.asarray(clipped + np.where(highest > 0, rounded, 0.0))
