"""The compiled loops of exact products: they cut values into integer slices, multiply sparse slices, and deposit
products into wide integers.

Slice k of a value x is the integer nearest to what slices 0 to k − 1 leave of it, in units of 2^(e − 22k), where e is
the exponent of its column. Slice 0 is at most 2^21 by the choice of e, and so are all others, which lie within half a
unit of the slice before.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from .products import SLICE_BITS

Array = npt.NDArray[Any]

compiled: Any = numba.njit(error_model="numpy")

STEP = 2.0**SLICE_BITS
ROUNDER = 1.5 * 2.0**52
"""Added and subtracted, it leaves the integer nearest to a float64 below 2^51."""
DIGIT_MASK = np.uint64(0xFFFFFFFF)


@compiled
def cut(values: Array, scales: Array, place: int, slices: Array, found: Array) -> None:
    """Slice `place` of values float32[rows, n], as float64[rows, n]; scales float64[n] are 2^−e.

    found int64[2]: how many slices are not zero, and of how many values something is left.
    """
    rows, columns = values.shape
    some = left = 0
    for row in range(rows):
        for column in range(columns):
            rest = np.float64(values[row, column]) * scales[column]
            whole = (rest + ROUNDER) - ROUNDER
            for _ in range(place):
                rest = (rest - whole) * STEP
                whole = (rest + ROUNDER) - ROUNDER
            slices[row, column] = whole
            some += whole != 0.0
            left += rest != whole
    found[0], found[1] = some, left


@compiled
def add_sparse(sparse: Array, dense: Array, products: Array) -> None:
    """Add sparseᵀ·dense to products float64[n, m]: sparse float64[rows, n] is mostly zero, dense float64[rows, m]."""
    rows, columns = sparse.shape
    for row in range(rows):
        for column in range(columns):
            value = sparse[row, column]
            if value != 0.0:
                target = products[column]
                line = dense[row]
                for other in range(line.size):
                    target[other] += value * line[other]


@compiled
def add_integers(products: Array, plane: Array) -> None:
    """Add products float64[n], integers of at most 2^53, to plane int64[n]."""
    for place in range(products.size):
        plane[place] += np.int64(products[place])


@compiled
def deposit(plane: Array, rows: Array, columns: Array, shift: int, digits: Array) -> None:
    """Add plane int64[n, m], in units of 2^(rows[i] + columns[j] + shift), to digits uint32[D, n, m] of 32 bits.

    The digits are a two's complement, lowest first, modulo 2^(32·D). A unit below 1 has only multiples of 1.
    """
    count, height, width = digits.shape
    for i in range(height):
        for j in range(width):
            value = plane[i, j]
            if value == 0:
                continue
            bits = rows[i] + columns[j] + shift
            if bits < 0:
                value >>= -bits
                bits = 0
            place, within = bits >> 5, np.uint64(bits & 31)
            low = (np.uint64(value) & DIGIT_MASK) << within
            high = (value >> 32) << np.int64(within)
            carry = np.int64(0)
            for part in range(3):
                if part == 0:
                    term = np.int64(low & DIGIT_MASK)
                elif part == 1:
                    term = np.int64(low >> np.uint64(32)) + (high & np.int64(0xFFFFFFFF))
                else:
                    term = high >> 32
                if place + part < count:
                    total = np.int64(digits[place + part, i, j]) + term + carry
                    digits[place + part, i, j] = np.uint32(total & np.int64(0xFFFFFFFF))
                    carry = total >> 32
            above = place + 3
            while carry != 0 and above < count:
                total = np.int64(digits[above, i, j]) + carry
                digits[above, i, j] = np.uint32(total & np.int64(0xFFFFFFFF))
                carry = total >> 32
                above += 1
