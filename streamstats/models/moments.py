"""The second moments that weights are rounded by: those of a layer's inputs, as far as its samples tell them.

A correction of the bias undoes what rounding does to the mean, so the covariance counts where it undoes all of that.
Correlations that were estimated from few samples are partly chance, and rounding would follow it: they are shrunk by
the share that chance explains (Schäfer and Strimmer, Stat. Appl. Genet. Mol. Biol. 4, 32, 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..layouts import Kernel
from ..outputs.layer_statistics import LayerStatistics
from ..spectra.group import correlations
from ..statistics.gram import Gram

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class InputMoments:
    """The second moments float64[groups, n, n] of what a layer multiplies by its weights; `rows` were counted.

    `central` says whether they are those about the mean. `independent` is how many samples that do not depend on each
    other would tell the means as precisely; None if that is unknown.
    """

    matrices: Float64Array
    rows: int
    central: bool
    independent: float | None

    @classmethod
    def of(cls, statistics: LayerStatistics) -> InputMoments | None:
        """Those of a layer that counted `gram`; None if it did not, or counted no values. Raises `UsageError`."""
        gram = statistics.statistics.get(Gram.name)
        if not isinstance(gram, Gram) or not gram.rows:
            return None
        found, central = _matrices(statistics, gram)
        return cls(found, gram.rows, central, _independent(statistics, found) if central else None)

    def shrunk(self) -> Float64Array:
        """The moments with correlations as small as chance suggests, where `independent` is known."""
        if self.independent is None:
            return self.matrices
        return np.stack([_shrunk(each, self.independent) for each in self.matrices])


def _matrices(statistics: LayerStatistics, gram: Gram) -> tuple[Float64Array, bool]:
    """(the moments, whether they are central). Under several taps, a mean is corrected only if `taps` tells it."""
    quantization, kernel, means = statistics.quantization, statistics.space.kernel, statistics.tap_mean
    several = isinstance(kernel, Kernel) and math.prod(kernel.taps) > 1
    if not several or means is not None:
        try:
            return gram.covariance(quantization), True
        except UsageError:
            pass
    found = gram.matrix(quantization) / gram.rows
    if not several or means is None or not np.isfinite(means).all() or gram.left_out.any():
        return found, False
    mean = means.reshape(len(found), -1)
    return found - mean[:, :, None] * mean[:, None, :], True


def _independent(statistics: LayerStatistics, covariance: Float64Array) -> float | None:
    """The variance of a channel divided by the squared standard error of its mean: the median over channels."""
    error = statistics.standard_error
    if error is None:
        return None
    variance = np.diagonal(covariance, axis1=1, axis2=2).reshape(len(error), -1).mean(axis=1)
    known = np.isfinite(error) & (error > 0) & (variance > 0)
    return float(np.median(variance[known] / error[known] ** 2)) if known.any() else None


def _shrunk(covariance: Float64Array, samples: float) -> Float64Array:
    """`covariance` with its correlations r shrunk by Σ(1 − r²)² / `samples` / Σr², at most to nothing."""
    squares = np.clip(correlations(covariance), -1, 1)[~np.eye(len(covariance), dtype=bool)] ** 2
    chance, found = float(((1 - squares) ** 2).sum()) / samples, float(squares.sum())
    share = min(1.0, chance / found) if found else 1.0
    shrunk = (1 - share) * covariance
    np.fill_diagonal(shrunk, np.diag(covariance))
    return shrunk
