"""Masks: which positions of a sample count. What a mask leaves out is in no statistic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..floats import is_finite

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
"""bool, with the shape of a block less its channel axis: whether the values of a position count."""


def chosen(block: Array, axis: int, mask: Mask) -> Array:
    """The values of `block` where `mask` is true, sample by sample: a copy [M, 1, …, C, …, 1], channels on `axis`."""
    channels = block.shape[axis]
    rows = np.ascontiguousarray(np.moveaxis(block, axis, -1)).reshape(mask.size, channels)
    values = np.compress(mask.reshape(-1), rows, axis=0)
    extents = [1] * block.ndim
    extents[0], extents[axis] = len(values), channels
    return values.reshape(extents)


def nonfinite(block: Array, axis: int, mask: Mask | None) -> Mask:
    """bool, of the shape of `block`: which of its values are NaN or infinite and count; channels on `axis`."""
    bad = ~is_finite(block)
    return bad if mask is None else bad & np.expand_dims(mask, axis)


def chosen_bytes(block: Sequence[int], axis: int, dtype: np.dtype[Any]) -> int:
    """Peak bytes of what `chosen` makes of a block of shape `block`: two copies, the mask and the chosen positions."""
    values = prod(block)
    return 2 * values * dtype.itemsize + (2 + 8) * values // max(1, block[axis])
