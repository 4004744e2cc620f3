"""Triangles: symmetric matrices [n, n] stored as their upper triangles, row by row: n·(n + 1) / 2 values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def place_in_triangle(row: Any, column: Any, columns: int) -> Any:
    """The place of an entry with `row` ≤ `column`, integers or arrays of them, in the triangle of [columns, columns].

    >>> [place_in_triangle(row, column, 3) for row in range(3) for column in range(row, 3)]
    [0, 1, 2, 3, 4, 5]
    """
    return row * (2 * columns - row - 1) // 2 + column


def unpacked(values: Array, columns: int) -> Array:
    """The symmetric matrix [n, n] whose upper triangle has these `values`, row by row."""
    found = np.empty((columns, columns), values.dtype)
    place = 0
    for column in range(columns):
        line = values[place : place + columns - column]
        found[column, column:] = found[column:, column] = line
        place += columns - column
    return found
