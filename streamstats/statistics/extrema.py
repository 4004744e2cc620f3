"""ChannelExtrema: the least and the greatest finite value of each channel.

Zeros have no sign here (−0 counts as +0), so that the order in which they come cannot show in the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..quantization import Quantization
from .running import Measures
from .statistic import Document, Space, Tensors, ValueStatistic


@dataclass(frozen=True, eq=False)
class ChannelExtrema(ValueStatistic):
    """The least and the greatest finite value of each channel.

    `minimum` and `maximum`, [C], are of the dtype of the values; minimum > maximum where no finite value was seen.
    """

    name: ClassVar[str] = "extrema"

    minimum: npt.NDArray[Any]
    maximum: npt.NDArray[Any]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return dict.fromkeys(("minimum", "maximum"), ((space.channels,), space.dtype))

    @classmethod
    def empty(cls, space: Space) -> Self:
        """The identities: the greatest value as minimum and the least as maximum, ±∞ for floats."""
        least, greatest = _limits(space.dtype)
        return cls(space, *(np.full(space.channels, limit, space.dtype) for limit in (greatest, least)))

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        return cls(space, measures.low, measures.high)

    def merge(self, other: Self) -> Self:
        """The extrema of both."""
        self.check_fits(other)
        least, greatest = np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum)
        return type(self)(self.space, least, greatest)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:
        """As `Statistic.without`: known where `part` has no share in an extremum, or `rest` reaches as far.

        Nothing can reach farther, so fewer rows than all others may suffice.
        """
        self.check_fits(part)
        rest = self.empty(self.space) if rest is None else rest
        least = (part.minimum > self.minimum) | (rest.minimum == self.minimum)
        greatest = (part.maximum < self.maximum) | (rest.maximum == self.maximum)
        return self if (least & greatest).all() else None

    def check(self) -> None:
        """As `Statistic.check`."""
        seen = self.minimum <= self.maximum
        nothing = self.empty(self.space)
        unseen = (self.minimum == nothing.minimum) & (self.maximum == nothing.maximum)
        infinite = [each for each in (self.minimum, self.maximum) if each.dtype.kind == "f"]
        finite = np.logical_and.reduce([np.isfinite(each) for each in infinite]) if infinite else True
        if not ((seen & finite) | unseen).all():
            raise DataError("a minimum is above its maximum, or one of them is not finite")

    def document(self, quantization: Quantization | None) -> Document:
        """Layer: `minimum` and `maximum` of all channels. Per channel: the same, float64[C]; NaN without a value."""
        low, high = self.real(quantization)
        ends = {"minimum": np.fmin.reduce(low, initial=np.nan), "maximum": np.fmax.reduce(high, initial=np.nan)}
        return Document({name: float(value) for name, value in ends.items()}, {"minimum": low, "maximum": high})

    def real(self, quantization: Quantization | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(minimum, maximum), float64[C], in real units; NaN for a channel without finite values."""
        seen = self.minimum <= self.maximum
        low, high = (_real(each, seen, quantization) for each in (self.minimum, self.maximum))
        return low, high


def _real(
    values: npt.NDArray[Any], seen: npt.NDArray[np.bool_], quantization: Quantization | None
) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # a step near the end of float64 takes them to infinity
        real = values.astype(np.float64) if quantization is None else quantization.dequantize(values)
    return np.where(seen, real, np.nan)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max
