"""ChannelExtrema: the least and the greatest finite value of each channel.

Zeros have no sign here (−0 counts as +0), so that the order in which they come cannot show in the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from .pieces import Measures
from .statistic import ValueStatistic, checked_dtype


@dataclass(frozen=True, eq=False)
class ChannelExtrema(ValueStatistic):
    """`minimum` and `maximum`, [C], of the dtype of the values; minimum > maximum where no finite value was seen."""

    name: ClassVar[str] = "extrema"

    minimum: npt.NDArray[Any]
    maximum: npt.NDArray[Any]

    @classmethod
    def empty(cls, channels: int, dtype: npt.DTypeLike) -> Self:
        """The identities: the greatest value as minimum and the least as maximum, ±∞ for floats."""
        native = checked_dtype(dtype)
        least, greatest = _limits(native)
        return cls(native, np.full(channels, greatest, native), np.full(channels, least, native))

    @classmethod
    def from_measures(cls, measures: Measures) -> Self:
        """The extrema of some blocks."""
        return cls(measures.dtype, measures.low, measures.high)

    def merge(self, other: Self) -> Self:
        """The extrema of both."""
        self.check_mergeable(other)
        return type(self)(self.dtype, np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum))

    def is_settled(self, part: Self, rest: Self) -> bool:
        """Whether the extrema less those of `part` are known, from those of some of the other rows, `rest`.

        They are where `part` has no share in them, and where `rest` reaches as far: nothing can reach farther.
        """
        least = (part.minimum > self.minimum) | (rest.minimum == self.minimum)
        greatest = (part.maximum < self.maximum) | (rest.maximum == self.maximum)
        return bool((least & greatest).all())

    def without(self, part: Self, rest: Self) -> Self:
        """The extrema less those of `part`, where `rest` settles them, or is all other rows."""
        least = np.where(part.minimum > self.minimum, self.minimum, rest.minimum)
        greatest = np.where(part.maximum < self.maximum, self.maximum, rest.maximum)
        return type(self)(self.dtype, least, greatest)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max
