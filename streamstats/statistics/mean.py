"""ChannelMean: the exact sum and the count of each channel, and the mean that follows, rounded once.

Integer codes are summed as codes; the affine map to real numbers is applied to the exact sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError, NonFiniteError, UsageError
from ..quantization import Quantization
from .exact import ExactSum, unit_exponent
from .pieces import Measures
from .statistic import ValueStatistic, checked_dtype

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelMean(ValueStatistic):
    """The sum of the finite values, as the digits of an `ExactSum`, and how many values there were.

    `digits` int64[D, C]; `count`, `nan`, `infinite` int64[C]: finite values, NaN, infinities.
    """

    name: ClassVar[str] = "mean"

    digits: npt.NDArray[np.int64]
    count: Counts
    nan: Counts
    infinite: Counts

    @classmethod
    def empty(cls, channels: int, dtype: npt.DTypeLike) -> Self:
        """The sum of nothing."""
        native = checked_dtype(dtype)
        count, nan, infinite = np.zeros((3, channels), np.int64)
        return cls(native, ExactSum.empty(channels, native).digits, count, nan, infinite)

    @classmethod
    def from_measures(cls, measures: Measures) -> Self:
        """Sum and count of some blocks."""
        count = measures.values - measures.nan - measures.infinite
        total = ExactSum.from_raw(measures.dtype, measures.digits)
        return cls(measures.dtype, total.digits, count, measures.nan, measures.infinite)

    def merge(self, other: Self) -> Self:
        """Sums and counts added."""
        self.check_mergeable(other)
        return type(self)(
            self.dtype,
            (self.total + other.total).digits,
            self.count + other.count,
            self.nan + other.nan,
            self.infinite + other.infinite,
        )

    def without(self, part: Self) -> Self:
        """Sums and counts less those of `part`, which was merged in. Raises `MismatchError` if it cannot have been."""
        self.check_mergeable(part)
        counts = [mine - theirs for mine, theirs in zip(self._counts(), part._counts(), strict=True)]
        if any((count < 0).any() for count in counts):
            raise MismatchError("more values are to be taken out than were counted; the data is not what it was")
        return type(self)(self.dtype, (self.total - part.total).digits, *counts)

    def _counts(self) -> tuple[Counts, Counts, Counts]:
        return self.count, self.nan, self.infinite

    @property
    def total(self) -> ExactSum:
        """The exact sum of each channel."""
        return ExactSum(self.dtype, self.digits)

    @property
    def nonfinite(self) -> Counts:
        """NaN and infinities of each channel, int64[C]."""
        return self.nan + self.infinite

    def mean(self, quantization: Quantization | None = None) -> npt.NDArray[np.float64]:
        """The mean of the finite values of each channel, float64[C], in real units; NaN where there are none.

        It is the float64 nearest to the exact rational `(S − n·zero_point)·step / n`, ties to even.
        Raises `MismatchError` for a quantisation of another number of channels, `UsageError` for one of float
        data or one whose step takes the mean beyond float64.
        """
        if quantization is not None and self.dtype.kind not in "iu":
            raise UsageError(f"a quantisation is given, but the values are {self.dtype}; expected integer codes")
        maps = (quantization or Quantization(1.0)).channel_maps(self.channels)
        shift = -unit_exponent(self.dtype)
        sums = zip(self.total.units(), self.count.tolist(), maps, strict=True)
        return np.array([_mean(units, shift, count, *affine) for units, count, affine in sums], dtype=np.float64)


def _mean(units: int, shift: int, count: int, step: Fraction, zero_point: int) -> float:
    """(S − n·zero_point)·step / n with S = units / 2^shift, as one quotient of integers: Python rounds that once."""
    if count == 0:
        return float("nan")
    try:
        return (units - (count * zero_point << shift)) * step.numerator / (count * step.denominator << shift)
    except OverflowError as error:
        raise UsageError(f"a mean is beyond float64: the step is {float(step)}; expected a smaller one") from error


def prepare_input_mean(
    batches: Iterable[npt.ArrayLike],
    quantization: Quantization | None = None,
    *,
    channel_axis: int = -1,
) -> npt.NDArray[np.float64]:
    """The mean of each channel over all `batches`, float64[C], in real units; NaN where the batches have no values.

    Batches are arrays of one dtype with the same number of channels on `channel_axis`; they may differ in every
    other extent. One of them is alive at a time, nothing is concatenated, every value weighs the same.

    Raises `MismatchError` where a batch does not fit those before, `UsageError` for no batches
    at all and for masked arrays, `NonFiniteError` for NaN or infinities.

    >>> prepare_input_mean([np.array([[1, 2]]), np.array([[3, 4], [5, 6]])], Quantization(0.5, 1)).tolist()
    [1.0, 1.5]
    """
    measured: ChannelMean | None = None
    numbers = itertools.count()  # not enumerate: it holds the last batch while the next one is made
    for batch in batches:
        index = next(numbers)
        if isinstance(batch, np.ma.MaskedArray):
            raise UsageError(f"batch {index} is a masked array; expected plain values, with what is masked left out")
        part = ChannelMean.measure(np.asarray(batch), channel_axis)
        if part.nonfinite.any():
            channel = int(np.flatnonzero(part.nonfinite)[0])
            raise NonFiniteError(
                f"batch {index}, channel {channel}: {part.nan[channel]} NaN and {part.infinite[channel]} infinities; "
                "expected finite values; repair the batch or leave it out"
            )
        measured = part if measured is None else measured.merge(part)
        del batch
    if measured is None:
        raise UsageError("there are no batches; expected at least one array")
    return measured.mean(quantization)
