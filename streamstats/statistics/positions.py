"""Sums at each position: every element of a sample is a channel of its own.

From these follow the means of what each tap of a convolution sees where zeros are padded, for any stride and dilation,
and a `ChannelMean` holds them. Blocks may be parts of samples; each part has an accumulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .mean import ChannelMean
from .pieces import Accumulator


class PositionSums:
    """The sums over some rows of every element of samples of `shape`."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype = dtype
        self._shape = shape
        self._parts: dict[tuple[tuple[int, int], ...], Accumulator] = {}

    def add(self, block: npt.NDArray[Any], inside: Sequence[slice]) -> None:
        """Take `block` [rows, …], the part `inside` of its samples: a slice for each of their axes."""
        place = tuple((part.start, part.stop) for part in inside)
        if place not in self._parts:
            self._parts[place] = Accumulator(self._dtype, prod(block.shape[1:]))
        self._parts[place].add(block.reshape(len(block), prod(block.shape[1:])), 1)

    def found(self) -> ChannelMean:
        """What was found, channels in C order of a sample; parts that did not come have counts of zero."""
        arrays = ChannelMean.empty(prod(self._shape), self._dtype).arrays()
        for place, accumulator in self._parts.items():
            inside: tuple[Any, ...] = (..., *(slice(*ends) for ends in place))
            for name, found in ChannelMean.from_measures(accumulator.measures()).arrays().items():
                whole = arrays[name].reshape(*found.shape[:-1], *self._shape)
                whole[inside] = found.reshape(*found.shape[:-1], *(stop - start for start, stop in place))
        return ChannelMean(self._dtype, **arrays)
