"""ChannelMagnitude: the exact sum of |x| per channel, and the mean magnitude, which weighs channels for AWQ.

The magnitude of a code is that of its real value, |q − zero|·step. For 8-bit codes, the state therefore counts
each value of each channel: the sum is exact for any zero point, which may change after counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization, channel_maps, moves_zero
from .counts import Counting, code_units, is_counted_by_channel
from .exact import ExactSum, carried, digit_count, unit_exponent
from .moments import Moments
from .riders import RiderKind
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays, Float64Array, exact_mean

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class ChannelMagnitude(AddedArrays):
    """The mean magnitude per channel: it shows which channels matter most, as AWQ weighs them.

    For values of 8 bits, `counts` int64[256, C] counts each value per channel, in ascending order. For others, `digits`
    int64[D, C] are those of the exact sum of the magnitudes of finite values. The other field is None.
    """

    name: ClassVar[str] = "magnitude"

    digits: Any = None
    counts: Any = None

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        if is_counted_by_channel(space.dtype):
            return {"counts": ((256, space.channels), np.dtype(np.int64))}
        return {"digits": ((digit_count(space.dtype), space.channels), np.dtype(np.int64))}

    @classmethod
    def refuses(cls, space: Space, quantization: Quantization | None) -> str | None:
        """As `Statistic.refuses`: |q| is summed for wider codes, which does not give the sum of |q − zero|."""
        if is_counted_by_channel(space.dtype) or quantization is None or not moves_zero(quantization):
            return None
        return (
            f"magnitudes of {space.dtype} codes are exact only with the zero point 0 and without an offset; request "
            "the statistic for other layers"
        )

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:
        """As `ValueStatistic.riders`: none for unsigned values, which are their own magnitudes."""
        if is_counted_by_channel(space.dtype):
            return {"counts": Counting}
        return {} if space.dtype.kind == "u" else {"moments": Moments}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        if is_counted_by_channel(space.dtype):
            return cls(space, counts=measures.beside["counts"]["counts"].copy())
        if space.dtype.kind == "u":
            return cls(space, carried(measures.digits))
        return cls(space, measures.beside["moments"]["magnitudes"])

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:
        """Layer: the greatest mean magnitude. Per channel: the mean magnitude."""
        found = self.mean_magnitude(beside["mean"], quantization)
        greatest = float(np.fmax.reduce(found, initial=np.nan))
        return Document({"greatest_mean_magnitude": greatest}, {"mean_magnitude": found})

    def mean_magnitude(self, sums: Any, quantization: Quantization | None = None) -> Float64Array:
        """The mean of |x| per channel, float64[C], in real units: the float64 nearest to the exact rational.

        `sums` is the `ChannelMean` of the same values. NaN for channels without finite values, and for codes of more
        than 8 bits whose 0 is not the real 0. Raises `UsageError` if the step takes a mean beyond float64.
        """
        maps, shift = channel_maps(quantization, self.space.channels), -unit_exponent(self.space.dtype)
        if not is_counted_by_channel(self.space.dtype):
            units: Sequence[Fraction | int] = ExactSum(self.space.dtype, self.digits).units()
            known = [zero == 0 for _, zero in maps]
        else:
            values = code_units(self.space.dtype)
            counts = self.counts.astype(object)
            units = [
                Fraction(np.abs(values.astype(object) - zero * 2**shift) @ counts[:, channel])
                for channel, (_, zero) in enumerate(maps)
            ]
            known = [True] * len(maps)
        counted = sums.count.tolist()
        return np.array(
            [
                exact_mean(1, shift, count, step * total, Fraction(0)) if is_known else np.nan
                for total, count, (step, _), is_known in zip(units, counted, maps, known, strict=True)
            ],
            dtype=np.float64,
        )
