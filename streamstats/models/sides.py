"""Which side of a layer a scale belongs to, its inputs or its outputs: biases tell, where weights cannot.

A factor of a layer's outputs multiplies its bias, too; one of its inputs leaves the bias as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

FEWEST = 3
"""The fewest biases that tell a factor."""
NEAR = 2.0**-12
"""How far a bias may be off by arithmetic, as a share of the largest."""
TELLING = 4.0
"""How many times as large as what it may be off a bias must be, to tell a factor."""
SAME = 0.01
"""How far a factor may be from 1 to be none."""


class Biases(NamedTuple):
    """The biases of the float layer and of the quantised one, float64[outputs], and the `step` of the latter."""

    original: Float64Array
    stored: Float64Array
    step: Float64Array | float = 0.0

    @property
    def room(self) -> Float64Array:
        """How far rounding and arithmetic may move each stored bias."""
        room: Float64Array = self.step * 0.51 + NEAR * np.abs(self.stored).max(initial=0.0)
        return room

    def factor(self, outputs: Float64Array, off: Float64Array | float = 0.0) -> float | None:
        """The number that, with the factors `outputs`, makes the original biases the stored ones: 1 if that does.

        None if there is none, or if too few biases tell it. `off` is how far each of `outputs` may be off, as a share.
        """
        scaled = self.original * outputs
        room = self.room + off * np.abs(self.stored)
        telling = np.abs(self.stored) > TELLING * room
        if telling.sum() < FEWEST or (scaled[telling] == 0).any():
            return None
        ends = np.sort((self.stored + room * [[-1], [1]])[:, telling] / scaled[telling], axis=0)
        least, most = float(ends[0].max()), float(ends[1].min())
        found = 1.0 if least - SAME <= 1 <= most + SAME else (least + most) / 2
        if not 0 < least <= most or (np.abs(self.stored - found * scaled) > room + SAME * np.abs(self.stored)).any():
            return None
        return found

    def refined(
        self, outputs: Float64Array, off: Float64Array | float, *, same: bool
    ) -> tuple[Float64Array, Float64Array]:
        """`outputs`, factors that may be `off` by these shares, as precisely as biases tell them; how far off then.

        If they are the `same`, all biases tell one number.
        """
        one, size = self.factor(np.ones(len(outputs))) if same else None, np.abs(self.stored)
        if one is not None:
            return np.full(len(outputs), one), np.zeros(len(outputs))
        known = np.divide(self.room, size, out=np.full(len(outputs), np.inf), where=size > 0)
        better = (known < off) & (self.original != 0)
        ratio = np.divide(self.stored, self.original, out=np.array(outputs), where=better)
        room = off * np.abs(outputs)
        return np.clip(ratio, outputs - room, outputs + room), np.minimum(known, off)


def told(biases: Biases | None, outputs: Float64Array, off: Float64Array | float = 0.0) -> float | None:
    """As `Biases.factor`; None without biases."""
    return None if biases is None else biases.factor(outputs, off)


def uniform(factors: npt.NDArray[Any], within: float) -> bool:
    """Whether all `factors` are the same, within a share of the largest."""
    return bool(np.ptp(factors) <= within * np.abs(factors).max())
