"""Why a quantised weight differs from the float one: rounding, alone or after a scale, or something else.

A correction `(W − Ŵ)·E[x]` is right only if Ŵ is W, rounded. So each difference is explained element by element before
it is used. What a quantiser rounds to nearest lies within half a step, or beyond an end of the codes, where it was
clipped. Each element then bounds the scales that may have come between the models; a scale is accepted if one lies
within the bounds of all elements of its channel, and if they leave less room than rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..layouts import TRANSPOSED

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ROUNDING = "rounding"
MARGIN = 0.01
"""By how much of a step the arithmetic of a quantiser may miss the nearest code."""
NOISE = 4.0
"""How many units in the last place a weight may be off by arithmetic, of folding for example."""
MOST_CLIPPED = 0.5
"""The largest share of elements that may be clipped."""
MOST_LEVELS = 2**16
FLOAT_DIGITS = (2**4, 2**8)
"""How many numbers the significant digits of a float of 8 bits can be, and of bfloat16."""
FINEST = 64
"""How many times the noise of the values a step must be, to be told."""
SYSTEMATIC = 0.25
"""The correlation with the weight from which a difference is more than rounding, however many elements there are."""
DEVIATIONS = 5.0
"""The same in standard deviations, for few elements."""
LOOSEST = 0.5
"""How far a scale may be uncertain: the change of the weight, as a share of what rounding changes."""
FARTHEST = 0.5
"""How far weights without a known step may be apart, as a share of their norm."""


class Channels(NamedTuple):
    """The channels of each element of a weight, int64, broadcastable to its shape; how many there are in all.

    Each output channel has `each` input channels; if that is one, scales of both cannot be told apart.
    """

    output: IntArray
    input: IntArray
    outputs: int
    inputs: int
    each: int


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
        """The grid for weights that are known up to `noise`."""
        return replace(self, noise=noise)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What explains a quantised weight: rounding of a `version` of the float weight, or the `reason` why nothing does.

    `outputs` and `inputs` are factors that the quantised weight has and the version has not, float64[channels], found
    from the weights alone; None for none. `clipped` elements of `elements` lie beyond the codes.
    """

    version: int = 0
    outputs: Float64Array | None = None
    inputs: Float64Array | None = None
    clipped: int = 0
    elements: int = 0
    reason: str = ""

    def undone(self, weight: Array, quantized: Array, channels: Channels) -> tuple[Array, Array]:
        """(the weight that `quantized` stands for, `quantized`), both for the inputs of the float layer.

        A factor of an output channel stays in both, for the correction is added to the outputs of the quantised layer;
        one of an input channel is taken out of `quantized`, for its inputs were divided by it.
        """
        if self.outputs is not None:
            weight = weight * self.outputs[channels.output]
        if self.inputs is not None:
            quantized = quantized / self.inputs[channels.input]
        return weight, quantized

    @property
    def words(self) -> str:
        """What explains the difference, in a line."""
        scaled = [
            f"a scale per {side} channel of {factors.min():.3g} to {factors.max():.3g}"
            for side, factors in (("output", self.outputs), ("input", self.inputs))
            if factors is not None
        ]
        clipped = [f"{self.clipped} of {self.elements} elements clipped"] if self.clipped else []
        return ", ".join([ROUNDING, *scaled, *clipped])


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


def explain(
    versions: Sequence[Array],
    quantized: Array,
    grid: Grid | None,
    channels: Channels,
    dtype: npt.DTypeLike | None = None,
) -> Explanation:
    """What explains `quantized`; `versions` are what the float weight may have become, the likeliest first.

    All arrays have one shape. Without a `grid`, the values of `quantized` tell it, if they lie on one. `dtype` is that
    of the float weight, if the versions have another.
    """
    kept = np.dtype(dtype or versions[0].dtype)
    found = grid or inferred_grid(quantized, channels)
    found = found and found.with_noise(NOISE * _precision(kept) * np.abs(np.asarray(quantized, np.float64)))
    for place, version in enumerate(versions):
        clipped = _nearest(version, quantized, found) if found else None
        if clipped is not None:
            return Explanation(place, clipped=clipped, elements=quantized.size)
    for place, version in enumerate(versions):
        scaled = _scaled(version, quantized, found, channels) if found else None
        if scaled is not None:
            return _checked(scaled, place, channels)
    for place, version in enumerate(versions):
        if _unsystematic(version, quantized, found, channels):
            return Explanation(place, elements=quantized.size)
    return Explanation(reason=_difference(versions[0], quantized, found))


def _checked(scaled: Explanation, place: int, channels: Channels) -> Explanation:
    """`scaled`, or the reason why it does not tell what was scaled: the inputs or the outputs."""
    factors = scaled.outputs
    if factors is None or (channels.each > 1 and np.ptp(factors) > 0):
        return Explanation(place, scaled.outputs, scaled.inputs, scaled.clipped, scaled.elements)
    size = f"{factors.min():.6g}" if np.ptp(factors) == 0 else f"{factors.min():.3g} to {factors.max():.3g}"
    return Explanation(
        reason=f"its weight is {size} times that of the float model, rounded, and the models do not say whether its "
        "inputs or its outputs were scaled; give the float model as it was quantised, with this factor in it"
    )


def _nearest(weight: Array, quantized: Array, grid: Grid) -> int | None:
    """How many elements are clipped, if all others are rounded to nearest; None if not."""
    apart = np.asarray(quantized, np.float64) - weight
    beyond = np.abs(apart) > grid.room
    if not beyond.any():
        return 0
    above, below = _at_ends(quantized, grid)
    clipped = beyond & ((above & (apart < 0)) | (below & (apart > 0)))
    if (beyond & ~clipped).any() or clipped.mean() > MOST_CLIPPED:
        return None
    return int(clipped.sum())


def _at_ends(quantized: Array, grid: Grid) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(where the highest code is, where the lowest is)."""
    near = grid.step * MARGIN
    return quantized >= grid.high - near, quantized <= grid.low + near


def _scaled(weight: Array, quantized: Array, grid: Grid, channels: Channels) -> Explanation | None:
    """The scale in all, per output channel or per input channel that leaves nothing but rounding, if there is one."""
    lowest, highest = _bounds(weight, quantized, grid)
    rounding = float(np.sqrt(np.broadcast_to(grid.step**2, weight.shape).sum() / 12))
    loosest = LOOSEST * rounding if channels.each > 1 else np.inf  # it only names what is refused
    everything = np.zeros_like(channels.output[:1].reshape(-1)[:1])
    for side, index, count in (
        ("all", everything, 1),
        ("output", channels.output, channels.outputs),
        ("input", channels.input, channels.inputs),
    ):
        wide = np.broadcast_to(index, weight.shape)
        factors, uncertain = _common(lowest, highest, weight, wide, count)
        if factors is None or uncertain > loosest:
            continue
        clipped = _nearest(weight * factors[index], quantized, grid)
        if clipped is None:
            continue
        if side == "input":
            return Explanation(inputs=factors, clipped=clipped, elements=weight.size)
        wide = np.broadcast_to(factors, channels.outputs)
        return Explanation(outputs=wide, clipped=clipped, elements=weight.size)
    return None


def _bounds(weight: Array, quantized: Array, grid: Grid) -> tuple[Float64Array, Float64Array]:
    """The least and the greatest factor with which each element of `weight` is rounded to that of `quantized`."""
    above, below = _at_ends(quantized, grid)
    low, high = np.where(below, -np.inf, quantized - grid.room), np.where(above, np.inf, quantized + grid.room)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = low / weight, high / weight
    lowest, highest = np.minimum(one, other), np.maximum(one, other)
    free = (weight == 0) & (low <= 0) & (high >= 0)
    impossible = (weight == 0) & ~free
    lowest = np.where(impossible, np.inf, np.where(free, -np.inf, lowest))
    return lowest, np.where(impossible, -np.inf, np.where(free, np.inf, highest))


def _common(
    lowest: Float64Array, highest: Float64Array, weight: Array, index: IntArray, count: int
) -> tuple[Float64Array | None, float]:
    """(the factor of each channel that lies within the bounds of all its elements, None if one has none; how far the
    factors may move the weight, as a norm).
    """
    low, high, size = np.full(count, -np.inf), np.full(count, np.inf), np.zeros(count)
    np.maximum.at(low, index, lowest)
    np.minimum.at(high, index, highest)
    np.add.at(size, index, np.square(weight, dtype=np.float64))
    low, high = (np.where(size > 0, each, 1.0) for each in (low, high))
    if (low > high).any() or not np.isfinite(low + high).all():
        return None, np.inf
    return (low + high) / 2, float(np.sqrt((np.square((high - low) / 2) * size).sum()))


def _unsystematic(weight: Array, quantized: Array, grid: Grid | None, channels: Channels) -> bool:
    """Whether the difference is within a step and has nothing of the weight in it, as of learned rounding up or down.

    Without a grid, the difference is only small.
    """
    apart = np.asarray(quantized, np.float64) - weight
    if grid is not None and (np.abs(apart) > grid.step / 2 + grid.room).any():
        return False
    if grid is None and np.linalg.norm(apart) > FARTHEST * np.linalg.norm(weight):
        return False
    everything = np.zeros_like(channels.output)
    sides = ((everything, 1), (channels.output, channels.outputs), (channels.input, channels.inputs))
    return all(
        any(_uncorrelated(apart, values, np.broadcast_to(index, weight.shape), count) for values in (weight, quantized))
        for index, count in sides
    )


def _uncorrelated(apart: Float64Array, values: Array, index: IntArray, count: int) -> bool:
    """Whether the differences of each channel have no more to do with the `values` than chance has."""
    sums = np.zeros((4, count))
    wide = np.asarray(values, np.float64)
    for place, terms in enumerate((apart * wide, apart**2, wide**2, np.ones_like(apart))):
        np.add.at(sums[place], index, terms)
    product, mine, theirs, elements = sums
    limit = np.maximum(SYSTEMATIC, DEVIATIONS / np.sqrt(np.maximum(elements, 1)))
    return bool((np.abs(product) <= limit * np.sqrt(mine * theirs) * (1 + MARGIN)).all())


def _difference(weight: Array, quantized: Array, grid: Grid | None) -> str:
    """The reason: by how much a weight that nothing explains differs, and what it may be."""
    apart = np.abs(np.asarray(quantized, np.float64) - weight)
    if grid is None:
        share = float(np.linalg.norm(apart)) / (float(np.linalg.norm(weight)) or 1.0)
        size = f"by {share:.0%} of its norm"
    else:
        beyond = (apart > grid.room).mean()
        steps = np.max(apart / grid.step, initial=0.0)
        size = f"by up to {steps:.3g} steps, and by more than half a step in {beyond:.1%} of its elements"
    return (
        f"its weight differs from that of the float model {size}; expected rounding, after at most one scale per "
        "output or per input channel; it may have been trained with quantisation, rounded with compensation (GPTQ), or "
        "scaled on both sides (equalisation): give the float model whose weights were rounded"
    )


def _precision(dtype: np.dtype[Any]) -> float:
    """The relative precision of values that were once of this `dtype`; arithmetic is of float32 at best."""
    found = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return max(found, float(np.finfo(np.float32).eps))


def likeness(weight: Array, quantized: Array, channels: Channels) -> float:
    """How far `quantized` is from `weight` after the best scale per output or per input channel, from 0 to about 1.

    Unrelated weights are 1 apart on average, however few elements a channel has.
    """
    sides = ((channels.output, channels.outputs), (channels.input, channels.inputs))
    return min(_after_scales(weight, quantized, np.broadcast_to(index, weight.shape), n) for index, n in sides)


def _after_scales(weight: Array, quantized: Array, index: IntArray, count: int) -> float:
    product, square = np.zeros(count), np.zeros(count)
    np.add.at(product, index, np.asarray(weight, np.float64) * quantized)
    np.add.at(square, index, np.square(weight, dtype=np.float64))
    total, explained = float(np.square(quantized).sum()), float((product**2 / np.where(square > 0, square, 1)).sum())
    if weight.size <= count or total == 0:
        return 1.0
    return float(np.sqrt(max(0.0, 1 - explained / total) * weight.size / (weight.size - count)))


def inferred_grid(quantized: Array, channels: Channels) -> Grid | None:
    """The grid that the values of a fake-quantised weight lie on, one in all or one per output channel, if any."""
    values = np.asarray(quantized, np.float64)
    precision = _precision(quantized.dtype)
    whole = _grid_of(values, precision)
    if whole is not None:
        return Grid(*(np.asarray(each) for each in whole))
    index = np.broadcast_to(channels.output, values.shape).reshape(-1)
    order = np.argsort(index, kind="stable")
    parts = np.split(values.reshape(-1)[order], np.flatnonzero(np.diff(index[order])) + 1)
    found = [_grid_of(part, precision) for part in parts]
    known = [each[0] for each in found if each is not None]
    if len(known) * 2 < len(parts):
        return None
    filled = [each or (max(known), part.min(), part.max()) for each, part in zip(found, parts, strict=True)]
    return Grid(*(np.asarray([each[place] for each in filled])[channels.output] for place in range(3)))


def _grid_of(values: Float64Array, precision: float) -> tuple[float, float, float] | None:
    """(step, least, greatest) of evenly spaced `values`, known to a relative `precision`; None if they are not."""
    levels = np.unique(values)
    if levels.size < 2:
        return None
    noise = NOISE * precision * float(np.abs(levels).max())
    gaps = np.diff(levels)
    gaps = gaps[gaps > noise]
    if not gaps.size or levels.size > 2 * MOST_LEVELS:
        return None
    step = _common_step(gaps, noise)
    if step is None or np.abs(gaps / step - np.rint(gaps / step)).max() * step > 2 * noise + MARGIN * step:
        return None
    return None if _are_floats(levels / step) else (step, float(levels[0]), float(levels[-1]))


def _are_floats(codes: Float64Array) -> bool:
    """Whether `codes` are far apart where they are large, as floats of 8 or 16 bits are."""
    whole = np.abs(np.rint(codes)).astype(np.int64)
    odd = whole // np.maximum(whole & -whole, 1)
    return any(whole.max() >= 2 * digits and odd.max() < digits for digits in FLOAT_DIGITS)


def _common_step(gaps: Float64Array, noise: float) -> float | None:
    """The largest number that all `gaps` are multiples of, up to `noise`; None if it is too small to tell."""
    step = float(gaps.min())
    while step > FINEST * noise and gaps.sum() / step < MOST_LEVELS:
        rest = np.abs(gaps - np.rint(gaps / step) * step)
        missed = rest[rest > 2 * noise + MARGIN * step]
        if not missed.size:
            return float(gaps.sum() / np.rint(gaps / step).sum())
        step = float(missed.min())
    return None
