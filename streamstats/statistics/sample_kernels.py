"""The compiled loops that go sample by sample: the exact sums of each sample, and the squares of these sums.

The loops of `kernels` fill arrays for one sample. At its end, these are folded, added to the sums over all samples,
converted to float64 and squared. A sum is converted digit by digit, highest first, so what a sample adds depends on
that sample alone: partition and order cannot show. Products of the two halves of a float64 are exact in float64, so
the square is three exact terms.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from .kernels import F64_INFINITY, LOW, _deposit_term, _power_of_two

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit

LOWER_HALF = (1 << 27) - 1
"""Mask of the low 27 bits of a float64, which are split off."""
SQUARE_IS_FINITE = 2.0**500
FAR = 512
"""Multiplication by a power of two beyond 2^±FAR takes several steps."""


@compiled
def fold(scratch: Array, sums: Array) -> None:
    """Add scratch [D, joined, channels, run] to sums [D, channels], and reset it to zeros."""
    digits, joined, channels, run = scratch.shape
    for d in range(digits):
        for j in range(joined):
            for c in range(channels):
                for i in range(run):
                    sums[d, c] += scratch[d, j, c, i]
    scratch[:] = 0


@compiled
def settle(sums: Array, exponent: Scalar, totals: Array, squares: Array) -> None:
    """Add the sums of one sample to `totals` and their squares to `squares`, and reset `sums` to zeros.

    All are raw [digits + 2, channels]; the last two rows count NaN and infinities. The unit of `sums` is 2^`exponent`.
    """
    digits, channels = sums.shape
    for c in range(channels):
        value = _to_float64(sums[: digits - 2, c], exponent)
        for d in range(digits):
            totals[d, c] += sums[d, c]
            sums[d, c] = 0
        if value == 0.0:
            continue
        high = np.int64(np.float64(value).view(np.int64) & ~LOWER_HALF).view(np.float64)
        low = value - high
        if low == 0.0 and abs(value) < SQUARE_IS_FINITE:
            _deposit_term(np.float64(high * high).view(np.int64), 52, F64_INFINITY, squares, c)
            continue
        for product in (high * high, 2.0 * high * low, low * low):
            _deposit_term(np.float64(product).view(np.int64), 52, F64_INFINITY, squares, c)


@compiled
def _to_float64(digits: Array, exponent: Scalar) -> Scalar:
    """The value of raw digits in units of 2^exponent: the digits of its magnitude, added from the highest down.

    It makes the digits canonical, which does not change their value.
    """
    top = len(digits) - 1
    _carry(digits)
    if digits[top] >= 0:
        return _added(digits, exponent)
    for place in range(top + 1):
        digits[place] = -digits[place]
    _carry(digits)
    value = -_added(digits, exponent)
    for place in range(top + 1):
        digits[place] = -digits[place]
    return value


@compiled
def _carry(digits: Array) -> None:
    for place in range(len(digits) - 1):
        digits[place + 1] += digits[place] >> 32
        digits[place] &= LOW


@compiled
def _added(digits: Array, exponent: Scalar) -> Scalar:
    total = 0.0
    for place in range(len(digits) - 1, -1, -1):
        if digits[place]:
            total += _scaled(np.float64(digits[place]), 32 * place + exponent)
    return total


@compiled
def _scaled(value: Scalar, power: Scalar) -> Scalar:
    """value·2^power, exact unless it is beyond float64."""
    while power > FAR:
        value *= _power_of_two(FAR)
        power -= FAR
    while power < -FAR:
        value *= _power_of_two(-FAR)
        power += FAR
    return value * _power_of_two(power)
