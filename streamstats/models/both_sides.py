"""Scales of outputs and inputs at once, as equalisation leaves them: what rounding lets them be.

Each element of a weight bounds the product of its output channel's factor and its input channel's. In logarithms these
are bounds on sums of two numbers, one from either side, so what they leave to each number follows from shortest paths
(a system of difference constraints): all bounds hold for the middles of what is left. The factors are known up to one
number, by which those of the outputs can be multiplied if those of the inputs are divided by it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .grids import Channels

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

MOST_ROUNDS = 64
"""How often bounds are passed on from one side to the other."""
FEWEST_EACH = 4
"""The fewest elements for each factor: fewer could be fitted by chance."""


class Factors(NamedTuple):
    """Factors of `outputs` and `inputs`, and how far each may be off, as a share of it: float64[channels]."""

    outputs: Float64Array
    inputs: Float64Array
    outputs_off: Float64Array
    inputs_off: Float64Array


def both_factors(lowest: Float64Array, highest: Float64Array, weight: Array, channels: Channels) -> Factors | None:
    """Positive factors whose products lie between `lowest` and `highest` for every element of `weight`, if there are.

    Channels of zeros have the factor 1. None, too, if some factors are not bounded, and if the elements are few.
    """
    if channels.each == 1 or weight.size < FEWEST_EACH * (channels.outputs + channels.inputs):
        return None
    pairs = tuple(np.broadcast_to(each, weight.shape) for each in (channels.output, channels.input))
    low, high = _of_pairs(lowest, highest, pairs, channels)
    if (low > high).any() or np.isneginf(high).any():  # a factor would be negative
        return None
    size = np.zeros((channels.outputs, channels.inputs))
    np.add.at(size, pairs, np.square(weight, dtype=np.float64))
    used, read = np.flatnonzero(size.any(axis=1)), np.flatnonzero(size.any(axis=0))
    if not used.size:
        return None
    found = _passed_on(low[used][:, read], high[used][:, read], int(size[used].sum(axis=1).argmax()))
    if found is None:
        return None
    (outputs, outputs_off), (inputs, inputs_off) = (
        _filled(found[0], used, channels.outputs),
        _filled(found[1], read, channels.inputs),
    )
    return Factors(np.exp(outputs), np.exp(inputs), outputs_off, inputs_off)


def _of_pairs(
    lowest: Float64Array, highest: Float64Array, pairs: tuple[Array, ...], channels: Channels
) -> tuple[Float64Array, Float64Array]:
    """The logarithms of the bounds for each pair of channels, float64[outputs, inputs]."""
    low, high = np.full((2, channels.outputs, channels.inputs), np.inf) * np.array([-1.0, 1.0])[:, None, None]
    np.maximum.at(low, pairs, lowest)
    np.minimum.at(high, pairs, highest)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.maximum(low, 0.0)), np.where(high > 0, np.log(np.maximum(high, 0.0)), -np.inf)


_Side = tuple[Float64Array, Float64Array]
"""(the logarithm of each factor, how far it may be off)."""


def _passed_on(low: Float64Array, high: Float64Array, first: int) -> tuple[_Side, _Side] | None:
    """Both sides, with the factor of the output channel `first` as 1; None if no factors fit, or some are unbounded."""
    least, most = np.full(len(low), -np.inf), np.full(len(low), np.inf)
    least[first] = most[first] = 0.0
    for _ in range(MOST_ROUNDS):
        others_least, others_most = (low - most[:, None]).max(axis=0), (high - least[:, None]).min(axis=0)
        nearer_least = np.maximum(least, (low - others_most).max(axis=1))
        nearer_most = np.minimum(most, (high - others_least).min(axis=1))
        if (nearer_least > nearer_most).any() or (others_least > others_most).any():
            return None
        if (nearer_least == least).all() and (nearer_most == most).all():
            break
        least, most = nearer_least, nearer_most
    sides = (least, most), (others_least, others_most)
    if not all(np.isfinite(bound).all() for side in sides for bound in side):
        return None
    one, other = (((lower + upper) / 2, (upper - lower) / 2) for lower, upper in sides)
    return one, other


def _filled(side: _Side, known: npt.NDArray[np.intp], count: int) -> _Side:
    """`side`, of the channels `known` among `count`, with zeros for the others."""
    logarithms, off = np.zeros((2, count))
    logarithms[known], off[known] = side
    return logarithms, off
