"""BinContents: how often each value in a few bins of a `Histogram` occurs, which makes a quantile in them exact.

A second pass over values of 32 bits counts it, for the bins in `Space.within`. The values of a bin share their upper 16
bits; their lower 16 bits tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..compiled.cache import load
from ..floats import is_float
from ..quantization import Quantization
from .counts import BINS, patterns
from .loops import ARGUMENTS
from .riders import COPIES, CountingRider, Rider, RiderKind, Tally
from .running import Measures
from .statistic import Document, Space, Statistic, Tensors
from .sums import AddedArrays

Array = npt.NDArray[Any]
WITHIN_MODULES = (f"{__package__}.count_kernels", __name__)


@dataclass(frozen=True, eq=False, repr=False)
class BinContents(AddedArrays):
    """How often each value in the bins of `Space.within` occurs: `counts` int64[bins, 65536], ascending in each bin."""

    name: ClassVar[str] = "bin_contents"

    counts: npt.NDArray[np.int64]

    @classmethod
    def tensors(cls, space: Space) -> Tensors:
        """As `Statistic.tensors`."""
        return {"counts": ((len(space.within), BINS), np.dtype(np.int64))}

    @classmethod
    def riders(cls, space: Space) -> Mapping[str, RiderKind]:
        """As `ValueStatistic.riders`."""
        return {cls.name: _CountingWithin(space.within)}

    @classmethod
    def from_measures(cls, space: Space, measures: Measures) -> Self:
        """As `ValueStatistic.from_measures`."""
        return cls(space, measures.beside[cls.name]["counts"])

    def document(self, quantization: Quantization | None, beside: Mapping[str, Statistic]) -> Document:  # noqa: ARG002
        """No figures: it serves exact quantiles only."""
        return Document()

    def value_at(self, bin_: int, place: int) -> Any:
        """The stored value at `place`, from 0, among the sorted values of `bin_`, which is one of `Space.within`."""
        slot = self.space.within.index(bin_)
        low = int(np.searchsorted(self.counts[slot].cumsum(), place, side="right"))
        upper = int(patterns(self.space.dtype)[bin_])
        lower = BINS - 1 - low if _descends(self.space.dtype, upper) else low
        return np.array([upper << 16 | lower], np.uint32).view(self.space.dtype)[0]


def _descends(dtype: np.dtype[Any], upper: int) -> bool:
    """Whether values fall as their lower bits grow, as negative floats do."""
    return is_float(dtype) and upper >= BINS // 2


@dataclass(frozen=True)
class _CountingWithin:
    """A `RiderKind` for these bins."""

    within: tuple[int, ...]

    def __call__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, /) -> Rider:
        return _WithinBins(dtype, shape, axis, self.within)

    def working_bytes(self, dtype: np.dtype[Any], shape: Sequence[int], axis: int, /) -> int:  # noqa: ARG002
        return 8 * BINS * (1 + COPIES * len(self.within))


class _WithinBins(CountingRider):
    """The rider that counts the values of some bins."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, within: tuple[int, ...]) -> None:
        super().__init__(dtype, shape, axis)
        self._within = within
        self._slots = np.full(BINS, -1, np.int64)
        self._slots[patterns(dtype)[list(within)]] = np.arange(len(within))
        self._counts = np.zeros((len(within), BINS), np.int64)

    def _loop(self) -> Callable[..., None]:
        return _counting()

    def _arguments(self, inner: int) -> tuple[int, int, int, int, int, int]:
        arrays = self._slots.ctypes.data, self._counts.ctypes.data
        return self.channels * inner, len(self._within), *arrays, 0, 0

    def found(self) -> Tally:
        """`counts` int64[bins, 65536], ascending in each bin."""
        counts = self._counts.copy()
        for slot, upper in enumerate(patterns(self.dtype)[list(self._within)].tolist()):
            if _descends(self.dtype, upper):
                counts[slot] = counts[slot, ::-1].copy()
        return Tally({"counts": counts}, by_channel=False)


@cache
def _counting() -> Callable[..., None]:
    """The loop; of the arguments of `loops`, inner is the number of bins, sums the slots, low the counts."""
    return load("within-bins", ARGUMENTS, _definition, WITHIN_MODULES)


def _definition() -> Callable[..., None]:
    import numba

    from .count_kernels import count_within

    carray = numba.carray

    def count_bins(data, outer, width, bins, slots, counts, unused, space):  # type: ignore[no-untyped-def]
        found = carray(counts, (bins, BINS), np.int64)
        count_within(carray(data, (outer * width,), np.uint32), carray(slots, (BINS,), np.int64), found)

    return count_bins
