"""PositionSums: the exact sum and count of every element of a sample, as if each were a channel of its own.

They give the mean of what each tap of a zero-padded convolution sees, for any stride and dilation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError
from ..quantization import Quantization
from .exact import ExactSum, is_canonical
from .mean import Counts, Float64Array, exact_means, sum_tensors
from .running import RunningSums
from .statistic import Document, Space, Statistic, Tensors
from .values import Where


@dataclass(frozen=True, eq=False)
class PositionSums(Statistic):
    """The sum at each position of a sample: it makes corrections exact for layers that pad with zeros.

    `digits` int64[D, *sample]; `count`, `nan`, `infinite` int64[*sample] count finite values, NaN and infinities.
    """

    name: ClassVar[str] = "positions"
    copies: ClassVar[int] = 0

    digits: npt.NDArray[np.int64]
    count: Counts
    nan: Counts
    infinite: Counts

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return sum_tensors(space.dtype, space.sample)

    @classmethod
    def accumulator(cls, space: Space) -> _PositionAccumulator:
        """As `Statistic.accumulator`."""
        return _PositionAccumulator(space)

    def merge(self, other: Self) -> Self:
        """The sum of sums and of counts."""
        self.check_fits(other)
        return self._with(other, 1)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        return self._with(part, -1)

    def _with(self, other: Self, sign: int) -> Self:
        counts = [mine + sign * theirs for mine, theirs in zip(self._counts(), other._counts(), strict=True)]
        if any((count < 0).any() for count in counts):
            raise MismatchError(
                "more values would be subtracted than were counted: the data has changed since it was counted; count "
                "it again"
            )
        total = ExactSum.from_raw(self.space.dtype, self.digits + sign * other.digits)
        return type(self)(self.space, total.digits, *counts)

    def check(self) -> None:
        """As `Statistic.check`."""
        if not is_canonical(self.digits) or any((count < 0).any() for count in self._counts()):
            raise DataError("the digits of the sums are not canonical, or counts are negative")

    def document(self, quantization: Quantization | None) -> Document:  # noqa: ARG002 - means at positions are `mean`
        """Layer: the number of `positions` in a sample."""
        return Document({"positions": prod(self.space.sample) // max(1, self.space.channels)})

    def mean(self, quantization: Quantization | None = None) -> Float64Array:
        """The mean at each position, float64[C, *others], in real units; as `ChannelMean.mean`."""
        if quantization is not None and quantization.channels is not None:
            quantization = quantization.spread_over(self.space.sample, self.space.axis)
        total = ExactSum(self.space.dtype, self.digits.reshape(len(self.digits), -1))
        means = exact_means(total, self.count.reshape(-1), quantization)
        return np.moveaxis(means.reshape(self.space.sample), self.space.axis, 0)

    def _counts(self) -> tuple[Counts, Counts, Counts]:
        return self.count, self.nan, self.infinite


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
