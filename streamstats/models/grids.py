"""The values that a quantised weight can represent, and the channels of each of its elements.

Quantised models state the steps of their codes; those of fake-quantised weights follow from their values, if they are
evenly spaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..layouts import TRANSPOSED

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MARGIN = 0.01
"""By how much of a step the arithmetic of a quantiser may miss the nearest code."""
NARROW = {2.0**-7: 0xFFFF, 2.0**-10: 0x1FFF}
"""The precision of bfloat16, and of float16 → the bits of a float32 that are zero in such a number."""
MOST_LEVELS = 2**16
FLOAT_DIGITS = (2**4, 2**8)
"""How many numbers the significant digits of a float of 8 bits can be, and of bfloat16."""
FINEST, DENSE = 32.0, 4.0
"""How many times the noise of the values a step must be, to be told; the same if half of the codes or more occur."""
FEW = 6
"""This many different values do not tell their step, unless each occurs several times."""
MOST_PARTS = 16
"""How many steps the nearest values may be apart."""


class Channels(NamedTuple):
    """The channels of each element of a weight, int64, broadcastable to its shape; how many there are in all.

    Each output channel has `each` input channels; if that is one, scales of both cannot be told apart.
    """

    output: IntArray
    input: IntArray
    outputs: int
    inputs: int
    each: int

    def within(self, extent: int) -> Channels:
        """The channels of the elements up to this `extent` of each axis."""
        corner = tuple(slice(0, extent) for _ in self.output.shape)
        return self._replace(output=self.output[corner], input=self.input[corner])


def channels_of(shape: tuple[int, ...], layout: str, groups: int) -> Channels:
    """The channels of each element of a weight of this `shape`, in a layout of `MeanBiasCorrector.calculate`."""
    if layout == "native":
        each, groups, outer = shape[-3:]
        group, one, two = (_along(axis, shape) for axis in (-2, -3, -1))
        return Channels(group * outer + two, group * each + one, groups * outer, groups * each, each)
    first, second = (layout.index(letter) for letter in (("C", "M") if "C" in layout else ("O", "I")))
    one, two = _along(first, shape), _along(second, shape)
    if "C" in layout:
        return Channels(one * shape[second] + two, one, shape[first] * shape[second], shape[first], 1)
    if layout in TRANSPOSED:
        each = shape[second] // groups
        return Channels(two // each * shape[first] + one, two, groups * shape[first], shape[second], each)
    each, group = shape[second], one // (shape[first] // groups)
    return Channels(one, group * each + two, shape[first], groups * each, each)


def _along(axis: int, shape: tuple[int, ...]) -> IntArray:
    """The index along `axis`, with extents of 1 along the others."""
    place = axis % len(shape)
    return np.arange(shape[place], dtype=np.int64).reshape([-1 if each == place else 1 for each in range(len(shape))])


@dataclass(frozen=True, eq=False)
class Grid:
    """What a quantised weight can represent: its `step`, the lowest and the highest value that occur as codes.

    All are float64 and broadcastable to the weight. `noise` is what arithmetic may move each element.
    """

    step: Float64Array
    low: Float64Array
    high: Float64Array
    noise: Float64Array = field(default_factory=lambda: np.zeros(()))

    @property
    def room(self) -> Float64Array:
        """How far rounding to nearest may move each element."""
        room: Float64Array = self.step * (0.5 + MARGIN) + self.noise
        return room

    def with_noise(self, noise: Float64Array) -> Grid:
        """The grid for weights that are known up to `noise` more."""
        return replace(self, noise=self.noise + noise)


def precision_of(dtype: np.dtype[Any]) -> float:
    """The relative precision of values that were once of this `dtype`; arithmetic is of float32 at best."""
    found = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return max(found, float(np.finfo(np.float32).eps))


def narrowest_precision(values: Array) -> float:
    """The relative precision of bfloat16 or float16 if all `values` are such numbers; that of their dtype if not."""
    precision = precision_of(values.dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    if values.dtype.itemsize > 4 and (np.asarray(values, np.float32) != values).any():
        return precision
    return next((each for each, rest in NARROW.items() if not (bits & rest).any()), precision)


def inferred_grids(quantized: Array, channels: Channels) -> Iterator[Grid]:
    """The grids that the values of a fake-quantised weight may lie on: one in all, and one per output channel.

    Values that fit a narrower float may have been rounded to it, so their grids are known less precisely.
    """
    values = np.asarray(quantized, np.float64)
    for precision in dict.fromkeys([precision_of(quantized.dtype), narrowest_precision(quantized)]):
        for grid in _grids(values, precision, channels):
            yield grid.with_noise(precision * np.abs(values))


def _grids(values: Float64Array, precision: float, channels: Channels) -> Iterator[Grid]:
    whole = _grid_of(values, precision)
    if whole is not None:
        yield Grid(*(np.asarray(each) for each in whole))
    index = np.broadcast_to(channels.output, values.shape).reshape(-1)
    order = np.argsort(index, kind="stable")
    parts = np.split(values.reshape(-1)[order], np.flatnonzero(np.diff(index[order])) + 1)
    found = [_grid_of(part, precision) for part in parts]
    filled = _filled(found, parts)
    if filled:
        yield Grid(*(np.asarray(filled)[:, place][channels.output] for place in range(3)))


_Levels = tuple[float, float, float]
"""(step, least, greatest)."""


def _filled(found: list[_Levels | None], parts: list[Float64Array]) -> list[_Levels]:
    """The levels of each channel, none if less than half of them are known.

    Steps are about the same share of the largest values of their channels. A channel whose levels are not known, or of
    which only every second or third occurs, has the greatest share that others have.
    """
    reaches = [float(np.abs(part).max()) or np.inf for part in parts]
    shares = [each[0] / reach for each, reach in zip(found, reaches, strict=True) if each is not None]
    if len(shares) * 2 < len(parts):
        return []
    typical = [share for share in shares if share <= 2 * np.median(shares)]
    longest = max(each[0] for each in found if each is not None)
    return [
        each
        if each is not None and each[0] <= max(typical) * reach
        else (max(typical) * reach if np.isfinite(reach) else longest, float(part.min()), float(part.max()))
        for each, reach, part in zip(found, reaches, parts, strict=True)
    ]


def _grid_of(values: Float64Array, precision: float) -> _Levels | None:
    """(step, least, greatest) of evenly spaced `values`, known to a relative `precision`; None if they are not, or if
    they are too few to tell.
    """
    levels = np.unique(values)
    told = levels.size > FEW or 3 * levels.size <= values.size
    if not told or not 1 < levels.size <= MOST_LEVELS:
        return None
    noise = precision * float(np.abs(levels).max())
    step = _common_step(levels, noise)
    return None if step is None or _are_floats(levels / step) else (step, float(levels[0]), float(levels[-1]))


def _are_floats(codes: Float64Array) -> bool:
    """Whether `codes` are far apart where they are large, as floats of 8 or 16 bits are."""
    whole = np.abs(np.rint(codes)).astype(np.int64)
    odd = whole // np.maximum(whole & -whole, 1)
    return any(whole.max() >= 2 * digits and odd.max() < digits for digits in FLOAT_DIGITS)


def _common_step(levels: Float64Array, noise: float) -> float | None:
    """The largest step of which all distances of `levels` are multiples, up to `noise`; None if there is none."""
    gaps = np.sort(np.diff(levels))
    gaps = gaps[gaps > noise]
    for parts in range(1, MOST_PARTS + 1) if gaps.size else ():
        step = _fitted(gaps, float(gaps[0]) / parts)
        places = np.rint((levels - levels[0]) / step)
        missed = np.abs(levels - levels[0] - places * step).max()
        dense = levels.size * 2 > places[-1]
        if step > (DENSE if dense else FINEST) * noise and missed <= 2 * noise + 2 * MARGIN * step:
            return step if places[-1] < MOST_LEVELS else None
    return None


def _fitted(gaps: Float64Array, step: float) -> float:
    """About `step`, fitted to the sorted `gaps` as its multiples: first to small ones, whose multiples are certain."""
    for reach in (4.0, 32.0, 256.0, np.inf):
        near = gaps[: np.searchsorted(gaps, reach * step)]
        if near.size:
            step = float(near.sum() / np.rint(near / step).sum())
    return step
