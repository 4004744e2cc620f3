"""Codes: the integers that values are quantised to, and the map to them for a range of real values.

Zero always has a code, so that padding and ReLU stay exact, and a step is always above zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..quantization import Quantization, check_bits

Float64Array = npt.NDArray[np.float64]

SMALLEST_STEP = np.finfo(np.float64).smallest_subnormal


@dataclass(frozen=True)
class Codes:
    """The codes of `bits` bits, 2 to 16.

    Affine codes are 0 … 2^bits − 1, or, if signed, −2^(bits−1) … 2^(bits−1) − 1, with a zero point for each range.
    Symmetric codes lie at most 2^(bits−1) − 1 from their zero point, which is 0, or, if unsigned, 2^(bits−1). By
    default, symmetric codes are signed and affine codes unsigned. Raises `UsageError` for other bit widths.

    >>> Codes(8).quantization(-50.0, 205.0).to_metadata()
    {'step': 1.0, 'zero_point': 50}
    """

    bits: int
    symmetric: bool = False
    signed: bool | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.signed is None:
            object.__setattr__(self, "signed", self.symmetric)

    def __str__(self) -> str:
        """What a message calls them.

        >>> str(Codes(4, symmetric=True))
        'symmetric signed codes of 4 bits'
        """
        kind = "symmetric" if self.symmetric else "affine"
        return f"{kind} {'signed' if self.signed else 'unsigned'} codes of {self.bits} bits"

    @property
    def lowest(self) -> int:
        """The lowest code."""
        lowest = -(1 << self.bits - 1) if self.signed else 0
        return lowest + 1 if self.symmetric else lowest

    @property
    def highest(self) -> int:
        """The highest code."""
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    def widened(self, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
        """(low, high) of the least range that includes `low`, `high` and zero; centred on zero for symmetric codes."""
        ends = np.minimum(low, 0.0) + 0.0, np.maximum(high, 0.0) + 0.0  # + 0.0: no −0
        if not self.symmetric:
            return ends
        extent = np.maximum(-ends[0], ends[1])
        return -extent + 0.0, extent

    def quantization(self, low: npt.ArrayLike, high: npt.ArrayLike) -> Quantization:
        """The map for the range `low` to `high`, scalars or [n], in real units, widened to include zero.

        The zero point is rounded, so the ends of an affine range may shift by up to half a step. A range that holds
        zero alone gets step 1, because any step represents it exactly; its zero point is 0 unless the codes are
        symmetric and unsigned.
        """
        low, high = self.widened(low, high)
        levels = self.highest - self.lowest
        with np.errstate(over="ignore"):
            whole = (high - low) / levels
        step = np.where(np.isfinite(whole), whole, high / levels - low / levels)
        empty = high == low
        step = np.where(empty, 1.0, np.maximum(step, SMALLEST_STEP))
        return Quantization(step, np.where(empty, self._middle, self._zero_point(low, step)))

    @property
    def _middle(self) -> int:
        """The zero point of symmetric codes, and of ranges without extent."""
        return 1 << self.bits - 1 if self.symmetric and not self.signed else 0

    def _zero_point(self, low: Float64Array, step: Float64Array) -> npt.NDArray[np.int64]:
        if self.symmetric:
            return np.full(step.shape, self._middle)
        below = np.rint(low / step).astype(np.int64)
        return np.clip(self.lowest - below, self.lowest, self.highest)

    def reach(self, quantization: Quantization) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(lowest, highest) code less the zero point: the multiples of the step between which values have a code."""
        return self.lowest - quantization.zero_point, self.highest - quantization.zero_point
