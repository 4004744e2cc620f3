"""The compiled loops of exact products: they cut values into integer slices, multiply sparse slices, and deposit
products into wide integers.

Slice k of a value x is the integer nearest to what slices 0 to k − 1 leave of it, in units of 2^(e − 22k), where e is
the exponent of its column. From slice 1 on, it is at most 2^21: what is left lies within half a unit of the slice
before.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sparse = tuple[Array, Array, Array, Array, Array]
"""A matrix of few values other than zero, row by row: their rows int64, columns int64 and values float64; for each row,
the place int64[rows + 1] of its first one; and the places int64 of all, column by column.
"""

compiled: Any = numba.njit(error_model="numpy")

ROUNDER = 1.5 * 2.0**52
"""Added and subtracted, it leaves the integer nearest to a float64 below 2^51."""
TILE = 32
"""Rows and columns that are added together, so that a transpose stays in the first cache."""
DIGIT_MASK = np.uint64(0xFFFFFFFF)


@compiled
def add_squares(values: Array, norms: Array) -> None:
    """The sums of squares of the columns of values float32[rows, n], float64[n], rounded."""
    norms[:] = 0.0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = np.float64(values[row, column])
            norms[column] += value * value


@compiled
def cut(values: Array, scales: Array, place: int, step: float, slices: Array, found: Array) -> None:
    """Slice `place` of values float32[rows, n], as float64[rows, n]; scales float64[n] are 2^−e, `step` is 2^22.

    found int64[2]: how many slices are not zero, and of how many values something is left.
    """
    rows, columns = values.shape
    some = left = 0
    for row in range(rows):
        for column in range(columns):
            rest = np.float64(values[row, column]) * scales[column]
            whole = (rest + ROUNDER) - ROUNDER
            for _ in range(place):
                rest = (rest - whole) * step
                whole = (rest + ROUNDER) - ROUNDER
            slices[row, column] = whole
            some += whole != 0.0
            left += rest != whole
    found[0], found[1] = some, left


@compiled
def find(values: Array, scales: Array, place: int, step: float, sparse: Sparse, ends: Array, found: Array) -> None:
    """As `cut`, but only the integers that are not zero: in `sparse`, which has room for them.

    ends int64[n] is working memory.
    """
    at_rows, at_columns, integers, starts, by_column = sparse
    rows, columns = values.shape
    some = left = 0
    ends[:] = 0
    for row in range(rows):
        starts[row] = some
        for column in range(columns):
            rest = np.float64(values[row, column]) * scales[column]
            whole = (rest + ROUNDER) - ROUNDER
            if place > 0 and rest == whole:
                continue
            for _ in range(place):
                rest = (rest - whole) * step
                whole = (rest + ROUNDER) - ROUNDER
            left += rest != whole
            if whole != 0.0:
                at_rows[some], at_columns[some], integers[some] = row, column, whole
                ends[column] += 1
                some += 1
    starts[rows] = some
    for column in range(1, columns):
        ends[column] += ends[column - 1]
    for place in range(some - 1, -1, -1):
        column = at_columns[place]
        ends[column] -= 1
        by_column[ends[column]] = place
    found[0], found[1] = some, left


@compiled
def add_sparse(sparse: Sparse, dense: Array, products: Array) -> None:
    """Add sparseᵀ·dense to products float64[n, m]; dense is float64[rows, m]."""
    at_rows, at_columns, integers, starts, by_column = sparse
    for number in range(starts[-1]):
        place = by_column[number]
        value, line, target = integers[place], dense[at_rows[place]], products[at_columns[place]]
        for other in range(line.size):
            target[other] += value * line[other]


@compiled
def add_both_sparse(sparse: Sparse, others: Sparse, products: Array) -> None:
    """Add sparseᵀ·others to products float64[n, m]."""
    at_rows, at_columns, integers, _, _ = sparse
    _, other_columns, other_integers, starts, _ = others
    for place in range(sparse[3][-1]):
        row = at_rows[place]
        for other in range(starts[row], starts[row + 1]):
            products[at_columns[place], other_columns[other]] += integers[place] * other_integers[other]


@compiled
def add_integers(products: Array, plane: Array) -> None:
    """Add products float64[n], integers of at most 2^53, to plane int64[n]."""
    for place in range(products.size):
        plane[place] += np.int64(products[place])


@compiled
def add_triangle(products: Array, plane: Array, twice: bool) -> None:
    """Add the upper triangle of products float64[n, n], integers of at most 2^53, to that of plane int64[n, n].

    If `twice`, add that of their transpose, too.
    """
    size = products.shape[0]
    for row in range(size):
        add_integers(products[row, row:], plane[row, row:])
    if twice:
        for top in range(0, size, TILE):
            for left in range(top, size, TILE):
                _add_tile(products[left : left + TILE, top : top + TILE], plane[top : top + TILE, left : left + TILE])
        for row in range(size):  # tiles on the diagonal have been added whole
            first = row - row % TILE
            for column in range(first, row):
                plane[row, column] = 0


@compiled
def add_transposed(products: Array, plane: Array) -> None:
    """Add the transpose of products float64[m, n], integers of at most 2^53, to plane int64[n, m]."""
    height, width = plane.shape
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            _add_tile(products[left : left + TILE, top : top + TILE], plane[top : top + TILE, left : left + TILE])


@compiled
def _add_tile(products: Array, plane: Array) -> None:
    for row in range(plane.shape[0]):
        target, source = plane[row], products[:, row]
        for column in range(target.size):
            target[column] += np.int64(source[column])


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
