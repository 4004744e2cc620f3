"""ReadSums: exact sums of what a layer really reads, where its kernel misses positions.

A 1×1 kernel with stride 2, as in the downsampling of a ResNet, reads a quarter of the positions; the mean of all is not
that of what it reads. Such layers have the sums of the classes that their kernels tell apart, four at most with two
axes, unless `taps` counts them anyway. Where other layers read the same samples, only the kernels that miss positions
make classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..layouts import Kernel, Kernels, Partition, joint_kernel
from ..quantization import Quantization
from .statistic import Document, Space, Statistic, known_kernel
from .taps import TapSums, extents_of


@dataclass(frozen=True, eq=False)
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
    kernel, extents = space.kernel, extents_of(space)
    members = kernel.members if isinstance(kernel, Kernels) else () if kernel is None else (kernel,)
    return [each for each in members if each.misses(extents)]
