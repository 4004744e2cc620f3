"""ChannelExtrema: the least and greatest finite value per channel.

Zeros have no sign here (−0 counts as +0), so that their order cannot show in the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..floats import widened
from ..quantization import Quantization
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors, ValueStatistic


@dataclass(frozen=True, eq=False, repr=False)
class ChannelExtrema(ValueStatistic):
    """The least and greatest finite value per channel.

    `minimum` and `maximum`, [C], have the dtype of the values, or float32 for bfloat16 and float8; minimum > maximum if
    no finite value was seen.
    """

    name: ClassVar[str] = "extrema"

    minimum: npt.NDArray[Any]
    maximum: npt.NDArray[Any]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return dict.fromkeys(("minimum", "maximum"), ((space.channels,), widened(space.dtype)))

    @classmethod
    def empty(cls, space: Space) -> Self:
        """The identities of min and max: the dtype's greatest value as minimum, its least as maximum; ±∞ for floats."""
        held = widened(space.dtype)
        least, greatest = _limits(held)
        return cls(space, *(np.full(space.channels, limit, held) for limit in (greatest, least)))

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
        """As `Statistic.without`: known where `part` does not reach an extremum, or `rest` reaches it, too.

        No other row can exceed the extremum, so `rest` need not cover all others.
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

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: `minimum` and `maximum` over all channels; how many were `never_active`, zero in every sample.

        Per channel: minimum, maximum and `absmax`; NaN without a value.
        """
        low, high = self.real(quantization)
        absmax = np.maximum(np.abs(low), np.abs(high))
        ends = {"minimum": np.fmin.reduce(low, initial=np.nan), "maximum": np.fmax.reduce(high, initial=np.nan)}
        channels = {"minimum": low, "maximum": high, "absmax": absmax}
        idle = {"never_active": int(((low == 0) & (high == 0)).sum())}
        return Document({name: float(value) for name, value in ends.items()} | idle, channels)

    def real(self, quantization: Quantization | None) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(minimum, maximum), float64[C], in real units; NaN for channels without finite values."""
        seen = self.minimum <= self.maximum
        low, high = (_real(each, seen, quantization) for each in (self.minimum, self.maximum))
        return low, high


def _real(
    values: npt.NDArray[Any], seen: npt.NDArray[np.bool_], quantization: Quantization | None
) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # a huge step may take them beyond float64, to infinity
        real = values.astype(np.float64) if quantization is None else quantization.dequantize(values)
    return np.where(seen, real, np.nan)


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max
