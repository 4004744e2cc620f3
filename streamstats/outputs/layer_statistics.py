"""LayerStatistics: the counted statistics of a layer in real units: means, ranges, standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, listed, to_count
from ..layouts import Kernels
from ..statistics.extrema import ChannelExtrema
from ..statistics.gram import Gram
from ..statistics.histogram import Histogram
from ..statistics.kinds import Kind, refusal
from ..statistics.magnitude import ChannelMagnitude
from ..statistics.mean import ChannelMean
from ..statistics.spread import SampleSpread
from ..statistics.squares import ChannelSquares
from ..statistics.taps import ReadSums, TapSums
from ..storage.tensors import content_digest
from .ledger import Ledger

Float64Array = npt.NDArray[np.float64]


class LayerStatistics(Ledger):
    """The statistics of a layer over the rows of its `sources`: one array, or several merged ones.

    `statistics`, by name, describes the stored values; so do `sums` and `extrema`. The other properties here are in
    real units.
    """

    @property
    def sums(self) -> ChannelMean:
        """The exact sums and counts per channel, of the stored values."""
        found: ChannelMean = self.statistics[ChannelMean.name]
        return found

    @property
    def extrema(self) -> ChannelExtrema:
        """The extrema per channel, of the stored values."""
        found: ChannelExtrema = self.statistics[ChannelExtrema.name]
        return found

    @cached_property
    def mean(self) -> Float64Array:
        """float64[C]: the float64 nearest to the exact mean; NaN for channels without finite values."""
        try:
            return self.sums.mean(self.quantization)
        except UsageError as error:
            raise UsageError(f"layer {self.layer}: {error}") from error

    @cached_property
    def minimum(self) -> Float64Array:
        """float64[C]: the least finite value; NaN for channels without finite values."""
        return self.extrema.real(self.quantization)[0]

    @cached_property
    def maximum(self) -> Float64Array:
        """float64[C]: the greatest finite value; NaN for channels without finite values."""
        return self.extrema.real(self.quantization)[1]

    @property
    def absmax(self) -> Float64Array:
        """float64[C]: the greatest magnitude of a finite value; NaN for channels without finite values."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @cached_property
    def mean_magnitude(self) -> Float64Array | None:
        """float64[C]: the mean of |x|, rounded once; None if `magnitude` was not counted."""
        found = self.statistics.get(ChannelMagnitude.name)
        return found.mean_magnitude(self.sums, self.quantization) if isinstance(found, ChannelMagnitude) else None

    @cached_property
    def rms(self) -> Float64Array | None:
        """float64[C]: the root mean square; None if `squares` was not counted."""
        found = self.statistics.get(ChannelSquares.name)
        return found.rms(self.sums, self.quantization) if isinstance(found, ChannelSquares) else None

    @cached_property
    def variance(self) -> Float64Array | None:
        """float64[C]: the mean of (x − E[x])², rounded once; None if `squares` was not counted."""
        found = self.statistics.get(ChannelSquares.name)
        return found.variance(self.sums, self.quantization) if isinstance(found, ChannelSquares) else None

    @cached_property
    def standard_deviation(self) -> Float64Array | None:
        """float64[C]: the root of the variance; None if `squares` was not counted."""
        found = self.statistics.get(ChannelSquares.name)
        return found.standard_deviation(self.sums, self.quantization) if isinstance(found, ChannelSquares) else None

    @property
    def gram(self) -> Gram | None:
        """The exact second moments of what the layer multiplies by its weights; None if `gram` was not counted."""
        found = self.statistics.get(Gram.name)
        return found if isinstance(found, Gram) else None

    def quantile(self, q: float, channel: int | None = None) -> tuple[float, float] | None:
        """(low, high) of the bin with the `q`-quantile, as `Histogram.quantile`; None if `histogram` was not counted.

        Raises `UsageError` for a `q` outside 0 to 1, and for a `channel` of values that are not counted per channel.
        """
        found = self.statistics.get(Histogram.name)
        return found.quantile(q, self.quantization, channel) if isinstance(found, Histogram) else None

    @cached_property
    def standard_error(self) -> Float64Array | None:
        """float64[C]: the standard error of the mean, from the spread of samples; None if `spread` was not counted, or
        of rows that are no samples: those of one sample depend on each other.

        NaN for channels whose standard error is unknown, as `SampleSpread.standard_error` explains.
        """
        spread = None if self.rows_are else self.statistics.get(SampleSpread.name)
        return spread.standard_error(self.sums, self.quantization) if isinstance(spread, SampleSpread) else None

    @cached_property
    def tap_mean(self) -> Float64Array | None:
        """float64[C, *taps]: the mean of what each tap of the kernel sees, with padded zeros.

        None without `taps`, unless the kernel misses positions. Where layers with different kernels read the same
        array, only the ledger of one of them (`read_as`) has it. NaN for taps that see positions without finite values.
        """
        taps = self.statistics.get(TapSums.name) or self.statistics.get(ReadSums.name)
        several = isinstance(self.space.kernel, Kernels)
        return taps.mean(self.quantization) if isinstance(taps, TapSums) and not several else None

    def sums_digest(self) -> str:
        """SHA-256 (hex) of the exact sums and counts."""
        return content_digest(self.sums.arrays(), {"dtype": str(self.space.dtype)})


def uncounted(kind: Kind, layers: Sequence[LayerStatistics]) -> str:
    """The message that `kind` was counted for none of `layers`, of which there is one at least, and what to do."""
    refused = {each.layer: kind.refuses(each.space, each.quantization) for each in layers}
    missed = [layer for layer, why in refused.items() if why is None]
    if missed:
        return f"`{kind.name}` was not counted for {listed(missed)}; {to_count(kind.name)}"
    layer, why = next(iter(refused.items()))
    return refusal(layer, kind.name, str(why))
