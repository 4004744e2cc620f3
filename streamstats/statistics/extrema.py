"""ChannelExtrema: the least and the greatest finite value of each channel.

Zeros have no sign here (−0 counts as +0), so that the order in which they come cannot show in the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from .pieces import Measures
from .statistic import Statistic, checked_dtype


@dataclass(frozen=True, eq=False)
class ChannelExtrema(Statistic):
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

    def without(self, part: Self) -> Self | None:
        """The extrema less those of `part`, which was merged in: the same if none of them is of `part`, else None.

        What the next one was is not known, so it has to be measured again.
        """
        self.check_mergeable(part)
        inside = (part.minimum > self.minimum) & (part.maximum < self.maximum)
        return self if inside.all() else None


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max
