"""Masks: which positions of a sample count. What a mask leaves out is in no statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
"""bool, with the shape of a block less its channel axis: whether the values of a position count."""


def chosen(block: Array, axis: int, mask: Mask) -> Array:
    """The values of `block` where `mask` is true, sample by sample: a copy [M, 1, …, C, …, 1], channels on `axis`."""
    values = np.moveaxis(block, axis, -1)[mask]
    extents = [1] * block.ndim
    extents[0], extents[axis] = values.shape
    return values.reshape(extents)
