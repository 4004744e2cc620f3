"""How near the outputs of a quantised model come to those of the float model: shift, signal and noise.

Outputs are compared before they are rounded to codes. The error e = ŷ − y over samples and positions has a mean per
channel, the shift, and a mean square, the noise; the signal is the mean square of y. SQNR is their ratio in decibels.
Without its term t, a layer would have the errors e − t, whose mean square is E[e²] − 2·t·E[e] + t²; so one run tells
whether the term helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError
from ..statistics.masks import Mask
from .positions import counted_values

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quality:
    """The errors of some outputs: their `shift` float64[C], and the mean squares `signal` and `noise`."""

    shift: Float64Array
    signal: float
    noise: float

    @property
    def sqnr(self) -> float:
        """The ratio of signal to quantisation noise in dB: infinite without noise, NaN without either."""
        if self.noise == 0 or self.signal == 0:
            return math.nan if self.noise == self.signal else math.copysign(math.inf, self.signal - self.noise)
        return 10 * math.log10(self.signal / self.noise)

    @property
    def size(self) -> float:
        """The root mean square of the shift over channels."""
        return float(np.sqrt(np.mean(self.shift**2))) if self.shift.size else 0.0

    def document(self) -> dict[str, Any]:
        """JSON-ready; None for numbers that are not finite."""
        return {
            "rms_shift": _finite(self.size),
            "sqnr_db": _finite(self.sqnr),
            "signal": _finite(self.signal),
            "noise": _finite(self.noise),
            "shift": [_finite(each) for each in self.shift.tolist()],
        }

    def harmed_by(self, term: Float64Array) -> bool:
        """Whether the errors would be smaller without the `term` that is in the layer's bias."""
        return self.gained_by(term) < 0

    def gained_by(self, term: Float64Array) -> float:
        """By how much the mean square of the errors would be greater without the `term` in the layer's bias."""
        return float((term**2 - 2 * term * self.shift).mean())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass
class Sums:
    """Sums over batches: of errors per channel, of their squares, and of the squares of the float model's values."""

    values: int = 0
    errors: Float64Array | float = 0.0
    noise: float = 0.0
    signal: float = 0.0

    def add(self, layer: str, mine: Array, theirs: Array, axis: int, mask: Mask | None = None) -> None:
        """Add a batch of outputs, channels on `axis`, and those of the float model. Raises `MismatchError`.

        Only positions where `mask` is true count, if it is the mask of these outputs.
        """
        if mine.shape != theirs.shape:
            raise MismatchError(
                f"layer {layer}: its outputs have the shape {mine.shape}, in the float model {theirs.shape}; expected "
                "models of the same network"
            )
        mine, theirs = (counted_values(values, axis, mask) for values in (mine, theirs))
        wanted = np.moveaxis(theirs, axis, -1).reshape(-1, theirs.shape[axis]).astype(np.float64)
        error = np.moveaxis(mine, axis, -1).reshape(wanted.shape) - wanted
        self.values += len(wanted)
        self.errors = self.errors + error.sum(axis=0)
        self.noise += float(np.square(error).sum())
        self.signal += float(np.square(wanted).sum())

    def quality(self) -> Quality:
        """The shift and the mean squares of everything added."""
        shift = np.atleast_1d(np.asarray(self.errors, np.float64)) / max(self.values, 1)
        elements = max(self.values, 1) * shift.size
        return Quality(shift, self.signal / elements, self.noise / elements)


def together(qualities: Sequence[Quality]) -> Quality:
    """The quality of several outputs: all shifts in a row, and the mean squares over all values of all channels."""
    shift = np.concatenate([np.empty(0), *(each.shift for each in qualities)])
    shares = [each.shift.size / max(shift.size, 1) for each in qualities]
    signal, noise = (
        float(np.dot(shares, values))
        for values in ([each.signal for each in qualities], [each.noise for each in qualities])
    )
    return Quality(shift, signal, noise)
