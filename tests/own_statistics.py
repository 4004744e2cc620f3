"""Two statistics that the package does not know: what adding one takes.

`register` is the line in `KINDS`. Worker processes need none: they are sent the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from streamstats.errors import DataError, MismatchError
from streamstats.quantization import Quantization
from streamstats.statistics.kinds import KINDS
from streamstats.statistics.riders import Where
from streamstats.statistics.statistic import Document, Space, Statistic, Tensors


@dataclass(frozen=True, eq=False)
class ZeroCounts(Statistic):
    """How many values of each channel are zero: `zeros` int64[C]. It can be subtracted."""

    name: ClassVar[str] = "zeros"

    zeros: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        return {"zeros": ((space.channels,), np.dtype(np.int64))}

    @classmethod
    def accumulator(cls, space: Space) -> _CountingZeros:
        return _CountingZeros(space)

    def merge(self, other: Self) -> Self:
        self.check_fits(other)
        return type(self)(self.space, self.zeros + other.zeros)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002
        self.check_fits(part)
        if (self.zeros < part.zeros).any():
            raise MismatchError("more zeros would be taken out than were counted")
        return type(self)(self.space, self.zeros - part.zeros)

    def check(self) -> None:
        if (self.zeros < 0).any():
            raise DataError("a count of zeros is negative")

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        return Document({"all_zeros": int(self.zeros.sum())}, {"zeros": self.zeros})


class _CountingZeros:
    def __init__(self, space: Space) -> None:
        self._space, self._zeros = space, np.zeros(space.channels, np.int64)

    def add(self, block: npt.NDArray[Any], where: Where) -> None:
        axis = self._space.axis + 1
        others = tuple(other for other in range(block.ndim) if other != axis)
        self._zeros[where[axis]] += np.count_nonzero(block == 0, axis=others)

    def found(self) -> ZeroCounts:
        return ZeroCounts(self._space, self._zeros.copy())


@dataclass(frozen=True, eq=False)
class GreatestProducts(Statistic):
    """The greatest product of any two channels at one position: `products` float64[C, C]. It cannot be subtracted."""

    name: ClassVar[str] = "products"
    copies: ClassVar[int] = 4
    """float64 of a float16 block at most, and the products of a few positions."""

    products: npt.NDArray[np.float64]

    @classmethod
    def uncut(cls, space: Space) -> tuple[str, ...]:  # noqa: ARG003
        return ("channels",)

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        return {"products": ((space.channels, space.channels), np.dtype(np.float64))}

    @classmethod
    def empty(cls, space: Space) -> Self:
        return cls(space, np.full((space.channels, space.channels), -np.inf))

    @classmethod
    def accumulator(cls, space: Space) -> _Multiplying:
        return _Multiplying(space)

    def merge(self, other: Self) -> Self:
        self.check_fits(other)
        return type(self)(self.space, np.maximum(self.products, other.products))

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        greatest = float(self.products.max(initial=-np.inf))
        return Document({"greatest_product": greatest}, {"greatest_square": np.diagonal(self.products).copy()})


class _Multiplying:
    def __init__(self, space: Space) -> None:
        self._space = space
        self._products = GreatestProducts.empty(space).products

    def add(self, block: npt.NDArray[Any], where: Where) -> None:
        axis = self._space.axis + 1
        assert (where[axis].start, where[axis].stop) == (0, self._space.channels), "channels must not be cut"
        for values in np.moveaxis(block, axis, -1).reshape(-1, self._space.channels) if block.size else ():
            wide = values.astype(np.float64)
            products = np.outer(wide, wide) + 0.0  # zeros have no sign, so that their order cannot show
            np.maximum(self._products, products, out=self._products)

    def found(self) -> GreatestProducts:
        return GreatestProducts(self._space, self._products.copy())


OWN = (ZeroCounts, GreatestProducts)


def register() -> None:
    """Add them to the kinds of this process."""
    KINDS.update({kind.name: kind for kind in OWN})
