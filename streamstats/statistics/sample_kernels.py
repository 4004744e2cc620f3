"""The compiled loops that go sample by sample: the exact sum of each sample, its square, and its product with a count.

The loops of `kernels` fill arrays for one sample. At its end, these are folded, added to the sums over all samples, and
multiplied digit by digit: products of two digits of 32 bits are exact in 64.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from .kernels import LOW

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit


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
def settle(sums: Array, values: Scalar, totals: Array, squares: Array, products: Array, counts: Array) -> None:
    """Add one sample of `values` values per channel to `totals` and to the moments, and reset its `sums` to zeros.

    `sums` and `totals` are raw [D + 2, channels]; the last two rows count NaN and infinities. The moments are raw, too:
    `squares` [D', channels] of sums, in units of the square of theirs; `products` [D'', channels] of sums and numbers
    of finite values; `counts`, in the last row the samples with finite values, before it the squares of their numbers.
    """
    digits, channels = sums.shape
    for c in range(channels):
        column = sums[: digits - 2, c]
        finite = values - sums[digits - 2, c] - sums[digits - 1, c]
        negative = _to_magnitude(column)
        _add_square(column, squares, c)
        _add_product(column, negative, finite, products, c)
        _add_count(finite, counts, c)
        for d in range(column.size):
            totals[d, c] += -column[d] if negative else column[d]
            column[d] = 0
        for d in range(digits - 2, digits):
            totals[d, c] += sums[d, c]
            sums[d, c] = 0


@compiled
def _to_magnitude(digits: Array) -> bool:
    """Make raw digits those of their magnitude, each in [0, 2^32); whether the value is negative."""
    _carry(digits)
    if digits[digits.size - 1] >= 0:
        return False
    for place in range(digits.size):
        digits[place] = -digits[place]
    _carry(digits)
    return True


@compiled
def _carry(digits: Array) -> None:
    for place in range(digits.size - 1):
        digits[place + 1] += digits[place] >> 32
        digits[place] &= LOW


@compiled
def _add_square(digits: Array, squares: Array, channel: Scalar) -> None:
    """Add the square of digits in [0, 2^32): a product of two digits goes to two, once or, if they differ, twice."""
    for one in range(digits.size):
        if digits[one] == 0:
            continue
        for other in range(one, digits.size):
            if digits[other]:
                product = np.uint64(digits[one]) * np.uint64(digits[other])
                times = 1 if one == other else 2
                squares[one + other, channel] += times * np.int64(product & np.uint64(LOW))
                squares[one + other + 1, channel] += times * np.int64(product >> np.uint64(32))


@compiled
def _add_product(digits: Array, negative: bool, count: Scalar, products: Array, channel: Scalar) -> None:
    """Add the product of digits in [0, 2^32), whose value is perhaps negative, and a `count` below 2^31."""
    for place in range(digits.size):
        if digits[place]:
            product = -digits[place] * count if negative else digits[place] * count
            products[place, channel] += product & LOW
            products[place + 1, channel] += product >> 32


@compiled
def _add_count(count: Scalar, counts: Array, channel: Scalar) -> None:
    """Add the square of a `count` below 2^31 to the digits in `counts`, and one sample to its last row."""
    counts[0, channel] += count * count & LOW
    counts[1, channel] += count * count >> 32
    counts[counts.shape[0] - 1, channel] += count > 0
