"""ChannelMean: the exact sum and count per channel, and the mean that follows from them, rounded once.

Integer codes are summed as codes; the affine map to real numbers is applied to the exact sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError, NonFiniteError, UsageError, counted
from ..quantization import Quantization, channel_maps
from .exact import ExactSum, unit_exponent
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors
from .sums import CountedSums, Float64Array, exact_means, sum_tensors


@dataclass(frozen=True, eq=False, repr=False)
class ChannelMean(CountedSums):
    """The sum of the finite values per channel, as the digits of an `ExactSum`, and the counts of values.

    `digits` int64[D, C]; `count`, `nan`, `infinite` int64[C] count finite values, NaN and infinities.
    """

    name: ClassVar[str] = "mean"

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return sum_tensors(space.dtype, (space.channels,))

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        total = ExactSum.from_raw(measures.dtype, measures.digits)
        return cls(space, total.digits, measures.count, measures.nan, measures.infinite)

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the least and greatest mean over all channels; NaN and infinities. Per channel: mean and counts."""
        mean = self.mean(quantization)
        ends = {
            "least_mean": np.fmin.reduce(mean, initial=np.nan),
            "greatest_mean": np.fmax.reduce(mean, initial=np.nan),
        }
        counts = {"nan": int(self.nan.sum()), "infinite": int(self.infinite.sum())}
        channels = {"mean": mean, "count": self.count, "nan": self.nan, "infinite": self.infinite}
        return Document({name: float(value) for name, value in ends.items()} | counts, channels)

    def mean(self, quantization: Quantization | None = None) -> Float64Array:
        """The mean of the finite values per channel, float64[C], in real units, as `exact_means` rounds and raises."""
        return exact_means(self.total, self.count, quantization)

    def totals(self, quantization: Quantization | None = None) -> list[Fraction]:
        """Σx = (Σq − n·zero)·step of each channel, exact, in real units. Raises as `mean` for a wrong quantisation."""
        maps = channel_maps(quantization, self.space.channels)
        unit = Fraction(2) ** unit_exponent(self.space.dtype)
        return [
            (total * unit - count * zero) * step
            for total, count, (step, zero) in zip(self.total.units(), self.count.tolist(), maps, strict=True)
        ]


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
        part = _mean_of_batch(_checked_codes(np.asarray(batch), quantization), channel_axis)
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


def _checked_codes(batch: npt.NDArray[Any], quantization: Quantization | None) -> npt.NDArray[Any]:
    if quantization is not None and batch.dtype.kind not in "iu":
        raise UsageError(f"a quantisation is given, but the values are {batch.dtype}; expected integer codes")
    return batch


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
