"""Whether held-out samples were calibrated with: then their figures do not hold for new samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...outputs.manifest import MANIFEST
from ...outputs.results import open_results
from ...statistics.mean import ChannelMean
from .layers import OnnxLayer
from .samples import Samples

Float64Array = npt.NDArray[np.float64]
BATCH = 64
"""How many samples are read at a time."""


def shared(held_out: Samples, calibration: Samples) -> int:
    """How many samples of `held_out` are among those of `calibration`, to the bit."""
    known = set(_digests(calibration))
    return sum(digest in known for digest in _digests(held_out))


def _digests(samples: Samples) -> Iterator[bytes]:
    for number in range(samples.number):
        digest = sha256()
        for name in sorted(samples.axes):
            values = samples.part(name, slice(number, number + 1))
            digest.update(repr((name, values.dtype.str, values.shape)).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        yield digest.digest()


def counted_as(held_out: Samples, out: Path, layers: Iterable[OnnxLayer]) -> str:
    """The layer that reads an input of the model and of which `out` has counted exactly the `held_out` samples.

    As many rows with the same exact means are the same samples. Empty if there is none, or if that cannot be told.
    """
    if not (out / MANIFEST).exists():
        return ""
    results = open_results(out)
    known = set(results.layers)
    for layer in layers:
        if layer.name not in known or held_out.axes.get(layer.input) is None:
            continue
        counted = results.statistics(layer.name)
        if counted.rows == held_out.number and not counted.rows_are and not counted.space.masked:
            mean = _mean(held_out, layer.input, counted.channel_axis)
            return layer.name if mean is not None and np.array_equal(mean, counted.mean, equal_nan=True) else ""
    return ""


def _mean(samples: Samples, name: str, channel_axis: int) -> Float64Array | None:
    """The exact mean of each channel of the input `name`, rounded once; None if the channels differ in number."""
    found: list[ChannelMean] = []
    for rows in samples.batches(BATCH):
        block = np.moveaxis(samples.part(name, rows), samples.axes[name] or 0, 0)
        if block.ndim <= channel_axis:
            return None
        by_position = np.moveaxis(block, channel_axis, -1).reshape(-1, block.shape[channel_axis])
        found.append(ChannelMean.measure(np.ascontiguousarray(by_position), 1))
    if len({each.space.channels for each in found}) != 1:
        return None
    return reduce(ChannelMean.merge, found).mean()
