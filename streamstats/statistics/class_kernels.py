"""The compiled loops that set values apart by the class of their position: they copy them, row by row, into strips.

A strip holds values [rows, channels] of one class; a loop of `kernels` sums over it when it is full.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy.typing as npt

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit(error_model="numpy")


@compiled
def copy_row(line: Array, row: Array) -> None:
    """Copy `line` [channels] into `row` [channels]."""
    for c in range(line.size):
        row[c] = line[c]


@compiled
def copy_columns(values: Array, positions: Array, rows: Array) -> None:
    """Copy values [channels, inner] at `positions` [n] into `rows` [n, channels]."""
    for c in range(values.shape[0]):
        line = values[c]
        for i in range(positions.size):
            rows[i, c] = line[positions[i]]
