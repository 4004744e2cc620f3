"""How held-out samples relate to those that calibrated.

If they are the same, their figures do not hold for new samples. If their values are of another size, the preprocessing
of one of them is wrong, and corrections from the others mean nothing for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...outputs.layer_statistics import LayerStatistics
from ...outputs.manifest import MANIFEST
from ...outputs.results import open_results
from ...statistics.mean import ChannelMean
from .layers import OnnxLayer
from .samples import Samples

Float64Array = npt.NDArray[np.float64]
BATCH = 64
"""How many samples are read at a time."""
FARTHEST = 3.0
"""How large the mean of a channel may be, as a multiple of the largest value of the other samples. Samples of one kind
exceed 1 only if there are hardly any values; without the division by 255, they exceed 10."""


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


@dataclass(frozen=True)
class Apart:
    """The inputs of a `layer`, with the largest means of a channel, `calibrated` and `held_out`, by magnitude.

    The larger of them is `times` the largest value that the other samples have.
    """

    layer: str
    calibrated: float
    held_out: float
    times: float

    @classmethod
    def of(cls, layer: str, calibrated: LayerStatistics, held_out: LayerStatistics) -> Apart:
        """How far apart the inputs of `layer` are in both."""
        (mine, most), (theirs, farthest) = _largest(calibrated), _largest(held_out)
        return cls(layer, mine, theirs, max(_ratio(mine, farthest), _ratio(theirs, most)))


def counted_inputs(out: Path | None, layers: Iterable[OnnxLayer]) -> dict[str, LayerStatistics]:
    """What `out` has counted of the inputs of those of `layers` that it has; a folder of correctors has nothing."""
    if out is None or not (out / MANIFEST).exists():
        return {}
    results = open_results(out)
    return {each.name: results.statistics(each.name) for each in layers if each.name in results.manifest.layers}


def farthest_apart(calibrated: Mapping[str, LayerStatistics], held_out: Mapping[str, LayerStatistics]) -> Apart | None:
    """The layer whose inputs differ most in size, if by more than samples of one kind do."""
    both = [Apart.of(layer, calibrated[layer], found) for layer, found in held_out.items() if layer in calibrated]
    farthest = max(both, key=lambda each: each.times, default=None)
    return farthest if farthest is not None and farthest.times > FARTHEST else None


def _largest(statistics: LayerStatistics) -> tuple[float, float]:
    """(the largest mean of a channel, the largest value), by magnitude; 0 without finite values."""
    return _magnitude(statistics.mean), _magnitude(statistics.absmax)


def _magnitude(channels: Float64Array) -> float:
    return float(np.nanmax(np.abs(channels), initial=0.0))


def _ratio(mean: float, value: float) -> float:
    return mean / value if value else math.inf if mean else 0.0
