"""Rounding exact sums to float32, once: a value that was is rounded to float64 first can end on the wrong side."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Float32Array = npt.NDArray[np.float32]

BEYOND = "beyond float32, which the format holds; leave the layer out with --layers or --names"


def rounded(values: Sequence[Fraction], layer: str) -> Float32Array:
    """The float32 nearest to each value, ties to even. Raises `UsageError`, naming `layer`, for values beyond it.

    >>> rounded([Fraction(2**24 + 1) + Fraction(1, 2**60), Fraction(2**24 + 1)], "fc").tolist()
    [16777218.0, 16777216.0]
    """
    try:
        wide = np.array([value.numerator / value.denominator for value in values], np.float64)
    except OverflowError as error:
        raise UsageError(f"layer {layer}: a sum is {BEYOND}") from error
    for place in np.flatnonzero(_are_ties(wide)).tolist():  # what the first rounding took away decides
        rest = values[place] - Fraction(float(wide[place]))
        if rest:
            wide[place] = np.nextafter(wide[place], np.inf if rest > 0 else -np.inf)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise UsageError(f"layer {layer}: a sum is {BEYOND}")
    return narrow


def _are_ties(wide: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which values lie in the middle between two float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = wide.astype(np.float32)
        other = np.nextafter(near, np.where(wide > near, np.inf, -np.inf).astype(np.float32))
        ties: npt.NDArray[np.bool_] = (near != wide) & (wide - near.astype(np.float64) == other.astype(float) - wide)
    return ties
