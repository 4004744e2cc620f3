"""Activations as int8 codes: the range of each tensor, and the step and zero point that cover it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...errors import MismatchError, NonFiniteError
from ...progress import Progress
from ...quantization import Quantization
from ...statistics.extrema import ChannelExtrema
from ...statistics.masks import Mask
from ..positions import counted_values
from .run import ModelRun
from .samples import Array
from .targets import Target
from .visiting import visit_rows

CODES = np.iinfo(np.int8)


def with_quantization(run: ModelRun, targets: Sequence[Target], progress: Progress) -> list[Target]:
    """Measure the range of every layer over all samples, and give each target its quantisation."""
    ranges: dict[str, ChannelExtrema] = {}

    def measure(target: Target, block: Array, mask: Mask | None, rows: slice) -> None:
        values = counted_values(block, target.channel_axis, mask)
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"layer {target.name}: its input for the samples {rows.start}:{rows.stop} holds NaN or "
                'infinities, which have no code; repair the samples, or record with storage "float"'
            )
        extrema = ChannelExtrema.measure(values, target.channel_axis)
        ranges[target.name] = ranges[target.name].merge(extrema) if target.name in ranges else extrema

    visit_rows(run, targets, measure, progress)
    return [replace(target, quantization=_fitting(target, ranges.get(target.name))) for target in targets]


def _fitting(target: Target, extrema: ChannelExtrema | None) -> Quantization:
    """A quantisation whose codes cover `extrema`: a new one, or the store's if it is wide enough."""
    low, high = (0.0, 0.0) if extrema is None else (float(extrema.minimum.min()), float(extrema.maximum.max()))
    if low > high:  # no value counts
        low = high = 0.0
    if target.stored is None or target.stored.quantization is None:
        return tensor_quantization(low, high)
    stored = target.stored.quantization
    codes = np.array([CODES.min - 0.5, CODES.max + 0.5])
    held = ((codes - np.max(stored.zero_point)) * np.max(stored.step)).tolist()
    if stored.channels is not None or not held[0] <= low <= high <= held[1]:
        raise MismatchError(
            f"layer {target.name}: the samples to append range over [{low:g}, {high:g}], but the codes of "
            f"{target.stored.store} over {held}; record into another store"
        )
    return stored


def tensor_quantization(low: float, high: float) -> Quantization:
    """The int8 codes of the range [low, high], widened to include zero, which has a code of its own.

    >>> tensor_quantization(0.5, 127.5).to_metadata()
    {'step': 0.5, 'zero_point': -128}
    """
    low, high = min(low, 0.0), max(high, 0.0)
    codes = CODES.max - CODES.min
    step = high / codes - low / codes or 1.0
    return Quantization(step, CODES.min - round(low / step))
