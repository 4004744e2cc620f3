"""How well a correction is known: its standard error over calibration samples, in steps of the bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Precision:
    """The precision of a layer's correction from `rows` rows: its standard `error` and the `step` of the bias.

    Both are float64[outputs]. The step of a bias of floats is the one that 8-bit codes of the layer's inputs would give
    it. The error is None if the spread of the samples was not counted.
    """

    layer: str
    rows: int
    error: Float64Array | None
    step: Float64Array

    @property
    def in_steps(self) -> float:
        """The largest error of an output, in steps of its bias; NaN if it is not known."""
        return math.nan if self.error is None else self.in_its_steps(self.error)

    def in_its_steps(self, sizes: Float64Array) -> float:
        """The largest of `sizes`, one per output, in steps of its bias."""
        return float(np.divide(sizes, self.step, out=np.zeros_like(sizes), where=sizes != 0).max(initial=0.0))

    def rows_for(self, fraction: float) -> float:
        """About how many rows reduce the error to this `fraction` of a step: it falls with their square root."""
        return self.rows * (self.in_steps / fraction) ** 2
