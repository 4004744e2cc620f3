"""TapSums: exact sums of the classes of positions that the taps of a layer's kernel tell apart.

Positions that the same taps see form one class. With stride 1 and padding 1, a 3×3 kernel has nine classes, whatever
the extents of a sample. Their sums give the exact mean of what each tap sees, padded zeros included. Where several
layers read the same samples, the classes are those that all their kernels together tell apart; those of each kernel
are sums of them.

A 1×1 kernel with stride 2, as in the downsampling of a ResNet, reads a quarter of the positions, and the mean of all is
not that of what it reads. Layers whose kernels miss positions so have `ReadSums`, unless `taps` are counted anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from math import lcm, prod
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError, UsageError
from ..layouts import Kernel, Kernels, Partition, joint_kernel, labels_of, misses
from ..quantization import Quantization, channel_maps
from .classes import ClassSums, ClassSumsOf
from .exact import carried, unit_exponent
from .riders import RiderKind
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors, known_kernel
from .sums import CountedSums, Float64Array, exact_mean, sum_tensors


@dataclass(frozen=True, eq=False, repr=False)
class TapSums(CountedSums):
    """What each tap of the layer's kernel sees: it makes corrections exact with padding, strides and dilation.

    `digits` int64[D, K, C]; `count`, `nan`, `infinite` int64[K, C] count finite values, NaN and infinities, for K
    classes of positions as `labels_of` numbers them.
    """

    name: ClassVar[str] = "taps"
    uses_kernel: ClassVar[bool] = True
    maskable: ClassVar[bool] = False

    @classmethod
    def axes(cls, space: Space) -> Sequence[Partition]:
        """The classes along each axis except that of the channels. Raises `UsageError` for an unknown kernel."""
        return known_kernel(space).along(_extents(space))

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return sum_tensors(space.dtype, (_class_count(cls.axes(space)), space.channels))

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:
        """As `ValueStatistic.riders`."""
        axes = cls.axes(space)
        return {cls.name: ClassSumsOf(labels_of(axes), _class_count(axes))}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        return cls(space, **ClassSums.with_rest(measures.beside[cls.name], labels_of(cls.axes(space)), measures))

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the number of `tap_classes`, classes of positions that the taps tell apart."""
        return Document({"tap_classes": len(self.count)})

    def with_kernel(self, kernel: Kernel | Kernels | None) -> Self:
        """The sums of the classes that `kernel` tells apart, which are sums of these. Raises as `Statistic`."""
        if kernel == self.space.kernel:
            return self
        space = replace(self.space, kernel=kernel)
        try:
            into = _into(self.axes(self.space), self.axes(space))
        except UsageError as error:
            raise MismatchError(f"{self.name} was counted with other kernels: {error}") from error
        sums = {
            name: _added(array, into, *of)
            for (name, of), array in zip(self.tensors(space).items(), self.arrays().values(), strict=True)
        }
        return type(self)(space, **sums | {"digits": carried(sums["digits"])})

    def mean(self, quantization: Quantization | None = None) -> Float64Array:
        """The mean of what each tap sees over all outputs, float64[C, *taps], in real units; padding is zero.

        It is the float64 nearest to the exact rational Σ P·(S/n − zero)·step / outputs, over the classes that the
        tap sees, each with P positions and the sum S of n finite values. NaN if one of these classes has no finite
        value. Raises as `exact_means`, and `UsageError` if the kernel is unknown, or if there are several: see
        `with_kernel`.
        """
        kernel = known_kernel(self.space)
        if isinstance(kernel, Kernels):
            raise UsageError(f"{len(kernel.members)} kernels move over the samples; choose one by `with_kernel`")
        axes = kernel.along(_extents(self.space))
        sizes = reduce(np.kron, [axis.sizes for axis in axes], np.ones(1, np.int64))
        seen = reduce(np.kron, [axis.seen for axis in axes], np.ones((1, 1), bool))
        outputs = prod(axis.outputs for axis in axes)
        sums = np.array(self.total.units(), object).reshape(self.count.shape)
        maps = channel_maps(quantization, self.space.channels)
        means = [
            _tap_means(sums[:, channel], self.count[:, channel], sizes, seen, outputs, self.space.dtype, *affine)
            for channel, affine in enumerate(maps)
        ]
        return np.array(means, np.float64).reshape(self.space.channels, *kernel.taps)


@dataclass(frozen=True, eq=False, repr=False)
class ReadSums(TapSums):
    """What a layer reads whose kernel misses positions, such as a strided 1×1. It is counted where it is needed.

    Its state is that of `TapSums` for the kernels that miss positions; without such a kernel, one class.
    """

    name: ClassVar[str] = "reads"
    unasked: ClassVar[bool] = True

    @classmethod
    def needed(cls, space: Space, asked: Collection[str] = ()) -> bool:
        """As `Statistic.needed`: if a kernel misses positions, and `taps` is not asked for."""
        return TapSums.name not in asked and 0 not in space.sample and bool(_missing(space))

    @classmethod
    def axes(cls, space: Space) -> Sequence[Partition]:
        """As `TapSums.axes`, for the kernels that miss positions."""
        known_kernel(space)
        return super().axes(replace(space, kernel=joint_kernel(_missing(space))))

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """Layer: the number of `read_classes`, classes of positions that its kernel tells apart."""
        return Document({"read_classes": len(self.count)})


def _missing(space: Space) -> list[Kernel]:
    """The kernels that move over samples of `space` and miss positions."""
    kernel, extents = space.kernel, _extents(space)
    members = kernel.members if isinstance(kernel, Kernels) else () if kernel is None else (kernel,)
    return [each for each in members if misses(each, extents)]


def _extents(space: Space) -> list[int]:
    """The extents of a sample along its axes except that of the channels."""
    return [extent for axis, extent in enumerate(space.sample) if axis != space.axis]


def _class_count(axes: Sequence[Partition]) -> int:
    return prod(len(axis.sizes) for axis in axes)


def _into(fine: Sequence[Partition], coarse: Sequence[Partition]) -> npt.NDArray[np.int64]:
    """The class of a sample, by its axes in `coarse`, that each class by its axes in `fine` lies in, int64[K]."""
    found = np.zeros(1, np.int64)
    for mine, theirs in zip(fine, coarse, strict=True):
        found = (found[:, np.newaxis] * len(theirs.sizes) + mine.into(theirs)).reshape(-1)
    return found


def _added(
    array: npt.NDArray[Any], into: npt.NDArray[np.int64], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """`array` [..., K, C] with its classes added up `into` those of a result of this `shape`."""
    total = np.zeros(shape, dtype)
    np.add.at(np.moveaxis(total, -2, 0), into, np.moveaxis(array, -2, 0))
    return total


def _tap_means(
    sums: npt.NDArray[Any],
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    seen: npt.NDArray[np.bool_],
    outputs: int,
    dtype: np.dtype[Any],
    step: Fraction,
    zero: Fraction,
) -> list[float]:
    """The mean under each tap for one channel, from the sums (in units) and counts of its classes.

    The shares P/n of the classes get a common denominator, so that the terms are integers.
    """
    shift = -unit_exponent(dtype)
    shares = [Fraction(size, max(1, count)) for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)]
    denominator = lcm(*(share.denominator for share in shares))
    terms = [
        (total * zero.denominator - (count * zero.numerator << shift))
        * share.numerator
        * (denominator // share.denominator)
        for total, count, share in zip(sums, counts.tolist(), shares, strict=True)
    ]
    totals = seen @ np.array(terms, object)
    unknown = seen[:, counts == 0].sum(axis=1)
    return [
        np.nan if missing else exact_mean(total, shift, denominator * zero.denominator * outputs, step, Fraction(0))
        for total, missing in zip(totals, unknown, strict=True)
    ]
