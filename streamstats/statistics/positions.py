"""PositionSums: the exact sum and count of every element of a sample, as if each were a channel of its own.

They give the mean of what each tap of a zero-padded convolution sees, for any stride and dilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization
from .exact import ExactSum
from .riders import Where
from .running import RunningSums
from .statistic import Document, Space, Statistic, Tensors
from .sums import CountedSums, Float64Array, exact_means, sum_tensors


@dataclass(frozen=True, eq=False)
class PositionSums(CountedSums):
    """The sum at each position of a sample: it makes corrections exact for layers that pad with zeros.

    `digits` int64[D, *sample]; `count`, `nan`, `infinite` int64[*sample] count finite values, NaN and infinities.
    """

    name: ClassVar[str] = "positions"
    copies: ClassVar[int] = 0

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return sum_tensors(space.dtype, space.sample)

    @classmethod
    def accumulator(cls, space: Space) -> _PositionAccumulator:
        """As `Statistic.accumulator`."""
        return _PositionAccumulator(space)

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the number of `positions` in a sample."""
        return Document({"positions": prod(self.space.sample) // max(1, self.space.channels)})

    def mean(self, quantization: Quantization | None = None) -> Float64Array:
        """The mean at each position, float64[C, *others], in real units; as `ChannelMean.mean`."""
        if quantization is not None and quantization.channels is not None:
            quantization = quantization.spread_over(self.space.sample, self.space.axis)
        means = exact_means(self.total, self.count.reshape(-1), quantization)
        return np.moveaxis(means.reshape(self.space.sample), self.space.axis, 0)


class _PositionAccumulator:
    """Running sums for each part into which blocks cut the samples."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._parts: dict[tuple[tuple[int, int], ...], RunningSums] = {}

    def add(self, block: npt.NDArray[Any], where: Where) -> None:
        place = tuple((part.start, part.stop) for part in where[1:])
        elements = prod(block.shape[1:])
        if place not in self._parts:
            self._parts[place] = RunningSums(self._space.dtype, elements)
        self._parts[place].add(block.reshape(len(block), elements), 1)

    def found(self) -> PositionSums:
        arrays = PositionSums.empty(self._space).arrays()
        for place, sums in self._parts.items():
            inside = tuple(slice(*ends) for ends in place)
            extents = [stop - start for start, stop in place]
            found = sums.found()
            total = ExactSum.from_raw(found.dtype, found.digits)
            arrays["digits"][:, *inside] = total.digits.reshape(len(total.digits), *extents)
            for name, counts in {"count": found.count, "nan": found.nan, "infinite": found.infinite}.items():
                arrays[name][inside] = counts.reshape(extents)
        return PositionSums(self._space, **arrays)
