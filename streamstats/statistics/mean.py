"""ChannelMean: the exact sum and count per channel, and the mean that follows from them, rounded once.

Integer codes are summed as codes; the affine map to real numbers is applied to the exact sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError, NonFiniteError, UsageError, counted
from ..quantization import Quantization
from .exact import ExactSum, digit_count, is_canonical, unit_exponent
from .running import Measures
from .statistic import Document, Space, Tensors, ValueStatistic

Counts = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelMean(ValueStatistic):
    """The sum of the finite values per channel, as the digits of an `ExactSum`, and the counts of values.

    `digits` int64[D, C]; `count`, `nan`, `infinite` int64[C] count finite values, NaN and infinities.
    """

    name: ClassVar[str] = "mean"

    digits: npt.NDArray[np.int64]
    count: Counts
    nan: Counts
    infinite: Counts

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return sum_tensors(space.dtype, (space.channels,))

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        total = ExactSum.from_raw(measures.dtype, measures.digits)
        return cls(space, total.digits, measures.count, measures.nan, measures.infinite)

    def merge(self, other: Self) -> Self:
        """The sum of sums and of counts."""
        self.check_fits(other)
        total = ExactSum.from_raw(self.space.dtype, self.digits + other.digits)
        counts = (mine + theirs for mine, theirs in zip(self._counts(), other._counts(), strict=True))
        return type(self)(self.space, total.digits, *counts)

    def without(self, part: Self, rest: Self | None = None) -> Self | None:  # noqa: ARG002 - it is not needed
        """As `Statistic.without`: always known."""
        self.check_fits(part)
        counts = [mine - theirs for mine, theirs in zip(self._counts(), part._counts(), strict=True)]
        if any((count < 0).any() for count in counts):
            raise MismatchError(
                "more values would be subtracted than were counted: the data has changed since it was counted; count "
                "it again"
            )
        total = ExactSum.from_raw(self.space.dtype, self.digits - part.digits)
        return type(self)(self.space, total.digits, *counts)

    def check(self) -> None:
        """As `Statistic.check`."""
        if not is_canonical(self.digits) or any((count < 0).any() for count in self._counts()):
            raise DataError("the digits of the sums are not canonical, or counts are negative")

    def document(self, quantization: Quantization | None) -> Document:
        """Layer: the least and greatest mean over all channels; NaN and infinities. Per channel: mean and counts."""
        mean = self.mean(quantization)
        ends = {
            "least_mean": np.fmin.reduce(mean, initial=np.nan),
            "greatest_mean": np.fmax.reduce(mean, initial=np.nan),
        }
        counts = {"nan": int(self.nan.sum()), "infinite": int(self.infinite.sum())}
        channels = {"mean": mean, "count": self.count, "nan": self.nan, "infinite": self.infinite}
        return Document({name: float(value) for name, value in ends.items()} | counts, channels)

    def _counts(self) -> tuple[Counts, Counts, Counts]:
        return self.count, self.nan, self.infinite

    @property
    def total(self) -> ExactSum:
        """The exact sum per channel."""
        return ExactSum(self.space.dtype, self.digits)

    @property
    def nonfinite(self) -> Counts:
        """NaN plus infinities per channel, int64[C]."""
        return self.nan + self.infinite

    def mean(self, quantization: Quantization | None = None) -> Float64Array:
        """The mean of the finite values per channel, float64[C], in real units; NaN for channels without any.

        It is the float64 nearest to the exact rational `(S − n·zero_point)·step / n`, ties to even.
        Raises `MismatchError` for a quantisation with another number of channels; `UsageError` for a quantisation of
        float data, or if its step takes the mean beyond float64.
        """
        return exact_means(self.total, self.count, quantization)


def sum_tensors(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensors:
    """The tensors of sums of `shape` over values of `dtype`: digits, and counts of finite values, NaN, infinities."""
    counts = (shape, np.dtype(np.int64))
    return {"digits": ((digit_count(dtype), *shape), counts[1]), "count": counts, "nan": counts, "infinite": counts}


def exact_means(total: ExactSum, count: Counts, quantization: Quantization | None) -> Float64Array:
    """As `ChannelMean.mean`: the mean for each sum in `total`, over `count` int64[C] values."""
    if quantization is not None and total.dtype.kind not in "iu":
        raise UsageError(f"a quantisation is given, but the values are {total.dtype}; expected integer codes")
    maps = (quantization or Quantization(1.0)).channel_maps(len(count))
    shift = -unit_exponent(total.dtype)
    sums = zip(total.units(), count.tolist(), maps, strict=True)
    return np.array([_mean(units, shift, values, *affine) for units, values, affine in sums], dtype=np.float64)


def _mean(units: int, shift: int, count: int, step: Fraction, zero_point: int) -> float:
    """(S − n·zero_point)·step / n with S = units / 2^shift, as one quotient of integers, which Python rounds once."""
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
) -> Float64Array:
    """The mean per channel over all `batches`, float64[C], in real units; NaN if the batches have no values.

    Batches are arrays of one dtype with the same number of channels on `channel_axis`; they may differ in every
    other extent. Only one batch is in memory at a time, nothing is concatenated, and every value has equal weight.

    Raises `MismatchError` for a batch that does not fit those before it, `UsageError` if there are no batches and for
    masked arrays, `NonFiniteError` for NaN or infinities.

    >>> prepare_input_mean([np.array([[1, 2]]), np.array([[3, 4], [5, 6]])], Quantization(0.5, 1)).tolist()
    [1.0, 1.5]
    """
    measured: ChannelMean | None = None
    numbers = itertools.count()  # not enumerate, which holds the last batch while the next one is made
    for batch in batches:
        index = next(numbers)
        if isinstance(batch, np.ma.MaskedArray):
            raise UsageError(f"batch {index} is a masked array; expected a plain array: remove the masked values first")
        part = _mean_of_batch(np.asarray(batch), channel_axis)
        if part.nonfinite.any():
            channel = int(np.flatnonzero(part.nonfinite)[0])
            raise NonFiniteError(
                f"batch {index}, channel {channel}: {part.nan[channel]} NaN and "
                f"{counted(int(part.infinite[channel]), 'infinity', 'infinities')}; expected finite values; repair or "
                "skip the batch"
            )
        measured = part if measured is None else _joined(measured, part, index)
        del batch
    if measured is None:
        raise UsageError("there are no batches; expected at least one array")
    return measured.mean(quantization)


def _joined(measured: ChannelMean, part: ChannelMean, index: int) -> ChannelMean:
    """`measured` and `part`, the mean of batch `index`, merged. Raises `MismatchError` if they do not fit."""
    expected, found = (f"{each.space.dtype} with {each.space.channels} channels" for each in (measured, part))
    if found != expected:
        raise MismatchError(f"batch {index} is {found}; expected {expected}, as the batches before it")
    return measured.merge(part)


def _mean_of_batch(batch: npt.NDArray[Any], channel_axis: int) -> ChannelMean:
    """The mean of a batch with the channels on any axis: the whole batch is one sample."""
    if not -batch.ndim <= channel_axis < batch.ndim:
        raise MismatchError(
            f"channel axis {channel_axis} is out of range for a batch of shape {batch.shape}; expected "
            f"{-batch.ndim} to {batch.ndim - 1}"
        )
    return ChannelMean.measure(batch[np.newaxis], channel_axis % batch.ndim + 1)
