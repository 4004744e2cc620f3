"""The compiled loops that sum classes of positions: values of one class are gathered, and go to the loops of `kernels`.

A sample is [outer, channels, inner]; its positions, (outer, inner), have labels. Values come in units [channels,
inner], any number at a time; a call continues where the last one ended.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy.typing as npt

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit(error_model="numpy")


@compiled
def gather_rows(values: Array, labels: Array, place: Scalar, rest: Scalar, into: Array, ends: Array) -> None:
    """Copy values [rows, channels] into `into`, class by class; `ends` [classes] is where the rows of each class end.

    The label of row i is labels[(place + i) % positions]; rows of the class `rest` are left out.
    """
    positions = labels.size
    ends[:] = 0
    position = place
    for _ in range(values.shape[0]):
        ends[labels[position]] += 1
        position = position + 1 if position + 1 < positions else 0
    ends[rest] = 0
    behind = 0
    for each in range(ends.size):
        number = ends[each]
        ends[each] = behind
        behind += number
    position = place
    for row in range(values.shape[0]):
        label = labels[position]
        if label != rest:
            line, target = values[row], into[ends[label]]
            for c in range(line.size):
                target[c] = line[c]
            ends[label] += 1
        position = position + 1 if position + 1 < positions else 0


@compiled
def gather_runs(values: Array, positions: Array, into: Array) -> None:
    """Copy values [channels, inner] at `positions` [n] into `into` [channels, n]."""
    for c in range(values.shape[0]):
        line, target = values[c], into[c]
        for i in range(positions.size):
            target[i] = line[positions[i]]
