"""LayerStatistics: the counted statistics of a layer in real units: means, ranges, standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, counted, listed, suggestion, to_count
from ..layouts import Kernels
from ..statistics.extrema import ChannelExtrema
from ..statistics.gram import Gram
from ..statistics.histogram import Histogram
from ..statistics.kinds import Kind, refusal
from ..statistics.magnitude import ChannelMagnitude
from ..statistics.mean import ChannelMean
from ..statistics.spread import SampleSpread
from ..statistics.squares import ChannelSquares
from ..statistics.statistic import Statistic
from ..statistics.taps import ReadSums, TapSums
from .ledger import Ledger

Float64Array = npt.NDArray[np.float64]
S = TypeVar("S", bound=Statistic)

MEANT: dict[str, tuple[str, Kind]] = {
    **dict.fromkeys(("avg", "average"), ("mean", ChannelMean)),
    **dict.fromkeys(("count", "counts", "sum"), ("sums", ChannelMean)),
    **dict.fromkeys(("min", "amin", "low"), ("minimum", ChannelExtrema)),
    **dict.fromkeys(("max", "amax", "high"), ("maximum", ChannelExtrema)),
    **dict.fromkeys(("abs_max", "max_abs"), ("absmax", ChannelExtrema)),
    **dict.fromkeys(("abs_mean", "mean_abs", "magnitude"), ("mean_magnitude", ChannelMagnitude)),
    **dict.fromkeys(("std", "stdev", "stddev", "sigma"), ("standard_deviation", ChannelSquares)),
    "var": ("variance", ChannelSquares),
    "squares": ("rms", ChannelSquares),
    **dict.fromkeys(("sem", "stderr", "std_error"), ("standard_error", SampleSpread)),
    **dict.fromkeys(("percentile", "percentiles", "quantiles"), ("quantile(q), q from 0 to 1", Histogram)),
    "median": ("quantile(0.5)", Histogram),
    **dict.fromkeys(("hist", "histogram", "bins"), ('statistics["histogram"].bins(quantization)', Histogram)),
    **dict.fromkeys(("cov", "covariance"), ("gram.covariance(quantization)", Gram)),
    "hessian": ("gram.matrix(quantization)", Gram),
    **dict.fromkeys(("spectrum", "eigenvalues", "condition"), ("LayerSpectrum.of(statistics)", Gram)),
}
"""What people type → (what it is called here, the statistic that must be counted)."""


class LayerStatistics(Ledger):
    """The statistics of a layer over the rows of its `sources`: one array, or several merged ones.

    `reduce`, `run`, `load`, `merge` and `Meter` return one for each layer. `statistics`, by name, describes the stored
    values; so do `sums`, `extrema` and `gram`, whose methods take the quantisation. The other properties here are in
    real units. C is the number of channels.

    Raises `UsageError` for figures of a statistic that was not counted.

    >>> found = ss.load("out")["fc"]
    >>> found
    <LayerStatistics of fc: 4 rows, 2 channels; mean, extrema, histogram, spread>
    >>> found.mean, found.minimum, found.maximum
    (array([4., 6.]), array([1., 2.]), array([ 7., 12.]))
    >>> found.rows, found.covered
    (4, ((0, 4),))
    """

    def __repr__(self) -> str:
        amount = f"{counted(self.rows, 'row')}, {counted(self.channels, 'channel')}"
        return f"<LayerStatistics of {self.layer}: {amount}; {', '.join(self.statistics)}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Raise `AttributeError` that says what is meant and, if it was not counted, how to count it."""
            raise AttributeError(f"LayerStatistics has no attribute {name!r}{self._hint(name)}", name=name, obj=self)

    def _hint(self, name: str) -> str:
        if name not in MEANT:
            return suggestion(name, (each for each in dir(type(self)) if not each.startswith("_")))
        meant, kind = MEANT[name]
        missing = "" if kind.name in self.statistics else f" {uncounted(kind, [self])}"
        return f"; did you mean {meant}?{missing}"

    @property
    def sums(self) -> ChannelMean:
        """The exact sums and counts per channel, of the stored values: `count`, `nan`, `infinite` are int64[C]."""
        return self._counted(ChannelMean)

    @property
    def extrema(self) -> ChannelExtrema:
        """The extrema per channel, of the stored values: `minimum` and `maximum` have their dtype, [C]."""
        return self._counted(ChannelExtrema)

    @cached_property
    def mean(self) -> Float64Array:
        """float64[C]: the float64 nearest to the exact mean; NaN for channels without finite values.

        Raises `UsageError` for a mean that float64 cannot represent.
        """
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
    def mean_magnitude(self) -> Float64Array:
        """float64[C]: the mean of |x|, rounded once. Raises `UsageError` if `magnitude` was not counted."""
        return self._counted(ChannelMagnitude).mean_magnitude(self.sums, self.quantization)

    @cached_property
    def rms(self) -> Float64Array:
        """float64[C]: the root mean square. Raises `UsageError` if `squares` was not counted."""
        return self._counted(ChannelSquares).rms(self.sums, self.quantization)

    @cached_property
    def variance(self) -> Float64Array:
        """float64[C]: the mean of (x − E[x])², rounded once. Raises `UsageError` if `squares` was not counted."""
        return self._counted(ChannelSquares).variance(self.sums, self.quantization)

    @cached_property
    def standard_deviation(self) -> Float64Array:
        """float64[C]: the root of the variance. Raises `UsageError` if `squares` was not counted.

        >>> ss.reduce("calibration.zarr", statistics=["squares"])["fc"].standard_deviation.round(2)
        array([2.24, 3.74])
        """
        return self._counted(ChannelSquares).standard_deviation(self.sums, self.quantization)

    @property
    def gram(self) -> Gram:
        """The exact second moments of what the layer multiplies by its weights: `matrix()` is float64[groups, n, n].

        Those of quantised layers are of the stored codes; `matrix(found.quantization)` is in real units.

        Raises `UsageError` if `gram` was not counted.

        >>> ss.reduce("calibration.zarr", statistics=["gram"])["fc"].gram.matrix().tolist()
        [[[84.0, 128.0], [128.0, 200.0]]]
        """
        return self._counted(Gram)

    def quantile(self, q: float, channel: int | None = None) -> tuple[float, float]:
        """(low, high) of the bin with the `q`-quantile of all values, or of those of a `channel`, as
        `Histogram.quantile` finds it, in real units.

        Raises `UsageError` if `histogram` was not counted, for a `q` outside 0 to 1, and for a `channel` of values that
        are not counted per channel.

        >>> ss.load("out")["fc"].quantile(0.5)
        (4.0, 4.03124...)
        """
        return self._counted(Histogram).quantile(q, self.quantization, channel)

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

    def _counted(self, kind: type[S]) -> S:
        found = self.statistics.get(kind.name)
        if not isinstance(found, kind):
            raise UsageError(uncounted(kind, [self]))
        return found


def uncounted(kind: Kind, layers: Sequence[LayerStatistics]) -> str:
    """The message that `kind` was counted for none of `layers`, of which there is one at least, and what to do."""
    refused = {each.layer: kind.refuses(each.space, each.quantization) for each in layers}
    missed = [layer for layer, why in refused.items() if why is None]
    if missed:
        return f"`{kind.name}` was not counted for {listed(missed)}; {to_count(kind.name)}"
    layer, why = next(iter(refused.items()))
    return refusal(layer, kind.name, str(why))
