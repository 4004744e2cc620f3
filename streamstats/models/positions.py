"""Which positions of a tensor a mask counts: what the formats of models share.

A mask `[N, T]` is that of tensors `[N, T, C]`; tensors with other positions count whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.masking import broadcasts_to, positions_of_axis
from ..statistics.masks import Mask, chosen


def fits(mask: Sequence[int], values: Sequence[int], axis: int) -> bool:
    """Whether a mask of shape `mask` is that of `values` with the channels on `axis`."""
    return broadcasts_to(mask, positions_of_axis(values, axis))


def counted_values(values: npt.NDArray[Any], axis: int, mask: Mask | None) -> npt.NDArray[Any]:
    """The `values` that count, channels on `axis` of as many axes; all of them if the mask is not that of `values`."""
    if mask is None or not fits(mask.shape, values.shape, axis):
        return values
    return chosen(values, axis % values.ndim, np.broadcast_to(mask, positions_of_axis(values.shape, axis)))
