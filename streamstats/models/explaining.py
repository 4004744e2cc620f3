"""Why a quantised weight differs from the float one: rounding, alone or after a scale, or something else.

A correction `(W − Ŵ)·E[x]` is right only if Ŵ is W, rounded. So each difference is explained element by element before
it is used. What a quantiser rounds to nearest lies within half a step, or beyond an end of the codes, where it was
clipped. Each element then bounds the scales that may have come between the models; a scale is accepted if one lies
within the bounds of all elements of its channel, and if they leave less room than rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .both_sides import FEWEST_EACH, both_factors
from .grids import MARGIN, Channels, Grid, inferred_grids, narrowest_precision, precision_of
from .sides import Biases, told, uniform

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ROUNDING = "rounding"
ONE_SIDE = (
    "its weight is {} times that of the float model, rounded, and the models do not say whether its inputs or its "
    "outputs were scaled: no biases tell; give the float model as it was quantised, with this factor in it"
)
WAYS_OUT = (
    "if it was trained with quantisation, or equalised before it was rounded, give the float model after that; if it "
    "was rounded with compensation (GPTQ), which looks the same, correct from mean outputs (`correct --outputs`)"
)
STEPLESS = "if it has few elements, nothing tells rounding from other changes; "
BOTH_SIDES = (
    "its weight is that of the float model with its outputs scaled by {} and its inputs by {} (equalisation), rounded; "
    "both are known only up to a number that its biases do not tell; give the float model that was quantised, after "
    "equalisation"
)
AS_IT_IS = "no steps found in its values, so its difference from the float one is taken as it is"
"""What a difference is called that is only small: rounding, or noise."""
NOISE = 4.0
"""How many units in the last place a weight may be off by arithmetic, of folding for example."""
NEGLIGIBLE = 2.0**-14
"""The share of the largest weight up to which a difference is not worth an explanation."""
MOST_CLIPPED = 0.5
"""The largest share of elements that may be clipped."""
SYSTEMATIC = 0.25
"""The correlation with the weight from which a difference is more than rounding, however many elements there are."""
DEVIATIONS = 5.0
"""The same in standard deviations, for few elements."""
UNIFORM = 0.02
"""How far scales may be apart, as a share of the largest, that are taken for one."""
LOOSEST = 0.5
"""How far a scale may be uncertain: the change of the weight, as a share of what rounding changes."""
BOTH = 2.0
"""How many times that much scales on both sides may be uncertain: they are a tenth as far off, as a rule."""
ARITHMETIC = 2.0**-20
"""The share of a step that is no difference, where a scale lies at its bounds."""
SWEEPS = 4
"""How often scales of outputs and of inputs are fitted in turn, to tell weights apart."""
FARTHEST = 0.5
"""How far weights without a known step may be apart, as a share of their norm."""
CLOSE = 1 / 64
"""The same up to which elements may be too few to tell a scale."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What explains a quantised weight: rounding of a `version` of the float weight, or the `reason` why nothing does.

    `outputs` and `inputs` are factors that the quantised weight has and the version has not, float64[channels]; None
    for none. Those of outputs may be `off` by this share; if one is off by its whole, the weight is off by `weighs`,
    where 1 in all is too much. `clipped` elements of `elements` lie beyond the codes. The difference is `as_it_is`
    if no steps are known, and it is only small and has nothing of the weight in it.
    """

    version: int = 0
    outputs: Float64Array | None = None
    inputs: Float64Array | None = None
    clipped: int = 0
    elements: int = 0
    reason: str = ""
    as_it_is: bool = False
    off: Float64Array | float = 0.0
    weighs: Float64Array | float = 0.0

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

    def is_loose(self, off: Float64Array | float) -> bool:
        """Whether too little is known of the weight if its factors may be `off` by these shares."""
        return float(np.linalg.norm(self.weighs * off)) > 1

    @property
    def lone_factor(self) -> float | None:
        """The number by which the whole weight is multiplied; None if there is none, or if it differs by channel."""
        if self.outputs is not None and self.inputs is not None:
            return None
        factors = self.outputs if self.inputs is None else self.inputs
        return None if factors is None or not uniform(factors, UNIFORM) else float(factors.mean())

    @property
    def words(self) -> str:
        """What explains the difference, in a line."""
        scaled = [
            f"a scale per {side} channel of {_span(factors)}"
            for side, factors in (("output", self.outputs), ("input", self.inputs))
            if factors is not None
        ]
        clipped = [f"{self.clipped} of {self.elements} elements clipped"] if self.clipped else []
        return ", ".join([AS_IT_IS if self.as_it_is else ROUNDING, *scaled, *clipped])


def explain(
    versions: Sequence[Array],
    quantized: Array,
    grid: Grid | None,
    channels: Channels,
    dtype: npt.DTypeLike | None = None,
    biases: Sequence[Biases | None] = (),
) -> Explanation:
    """What explains `quantized`; `versions` are what the float weight may have become, the likeliest first.

    All arrays have one shape. Without a `grid`, the values of `quantized` tell it, if they lie on one. `dtype` is that
    of the float weight, if the versions have another. `biases` are those of each version, where they are known: they
    tell whether inputs or outputs were scaled.
    """
    noise = NOISE * precision_of(np.dtype(dtype or versions[0].dtype)) * np.abs(np.asarray(quantized, np.float64))
    grids = [each.with_noise(noise) for each in ([grid] if grid else inferred_grids(quantized, channels))]
    found = _alike(versions, quantized) or _as_rounding(versions, quantized, grids)
    found = found or _as_scaled(versions, quantized, grids, channels, [*biases] or [None] * len(versions))
    found = found or _as_chance(versions, quantized, grids, channels)
    return found or Explanation(reason=_difference(versions[0], quantized, grids[0] if grids else None))


def _alike(versions: Sequence[Array], quantized: Array) -> Explanation | None:
    share = max(NEGLIGIBLE, precision_of(quantized.dtype))
    for place, version in enumerate(versions):
        if np.abs(quantized - version).max(initial=0.0) <= share * np.abs(version).max(initial=0.0):
            return Explanation(place, elements=quantized.size)
    return None


def _as_rounding(versions: Sequence[Array], quantized: Array, grids: Sequence[Grid]) -> Explanation | None:
    for place, version in enumerate(versions):
        for grid in grids:
            clipped = _nearest(version, quantized, grid)
            if clipped is not None:
                return Explanation(place, clipped=clipped, elements=quantized.size)
    return None


def _as_scaled(
    versions: Sequence[Array],
    quantized: Array,
    grids: Sequence[Grid],
    channels: Channels,
    biases: Sequence[Biases | None],
) -> Explanation | None:
    """The first version of which the sides of its scales are known; else that of which they are not, a refusal."""
    refused: Explanation | None = None
    for place, version in enumerate(versions):
        for grid in grids:
            scaled = _scaled(version, quantized, grid, channels)
            found = None if scaled is None else _sided(replace(scaled, version=place), channels, biases[place])
            if found is not None and not found.reason:
                return found
            refused = refused or found
    return refused


def _as_chance(
    versions: Sequence[Array], quantized: Array, grids: Sequence[Grid], channels: Channels
) -> Explanation | None:
    narrow = narrowest_precision(quantized) > precision_of(quantized.dtype)
    tried: Sequence[Grid | None] = [*grids, None] if narrow or not grids else grids
    for place, version in enumerate(versions):
        for grid in tried:
            if _unsystematic(version, quantized, grid, channels):
                return Explanation(place, elements=quantized.size, as_it_is=grid is None)
    return None


def _sided(scaled: Explanation, channels: Channels, biases: Biases | None) -> Explanation:
    """`scaled`, with its factors on the sides that `biases` tell; or the reason why these are not known."""
    outputs, inputs = scaled.outputs, scaled.inputs
    ones = np.ones(channels.outputs)
    if outputs is not None and inputs is None and (channels.each == 1 or uniform(outputs, UNIFORM)):
        return _of_one_number(scaled, outputs, channels, biases)
    if outputs is None and inputs is not None and uniform(inputs, UNIFORM):
        one = replace(scaled, inputs=None, off=UNIFORM)
        return _of_one_number(one, ones * inputs.mean(), channels, biases)
    factor = told(biases, ones if outputs is None else outputs, scaled.off)
    if factor is None and outputs is not None and inputs is not None:
        return replace(scaled, reason=BOTH_SIDES.format(_range(outputs), _range(inputs)))
    return _shared(scaled, factor or 1.0, ones)


def _of_one_number(scaled: Explanation, factors: Array, channels: Channels, biases: Biases | None) -> Explanation:
    """Where a factor of outputs and one of inputs do the same to the weight: that of which the biases tell."""
    ones, same = np.ones(channels.outputs), uniform(factors, UNIFORM)
    refused = Explanation(reason=ONE_SIDE.format(f"{factors.mean():.6g}" if same else _range(factors)))
    if biases is not None and biases.factor(factors, scaled.off) == 1.0:
        refined, off = biases.refined(factors, scaled.off, same=same)
        return refused if scaled.is_loose(off) else replace(scaled, outputs=refined)
    factor = told(biases, ones)
    if factor is None or scaled.is_loose(scaled.off) or not (same or channels.outputs == channels.inputs):
        return refused
    inputs = factors if channels.outputs == channels.inputs else np.full(channels.inputs, factors.mean())
    return _shared(replace(scaled, outputs=None, inputs=inputs), factor, ones)


def _shared(scaled: Explanation, factor: float, ones: Array) -> Explanation:
    """`scaled`, with the `factor` moved from its inputs to its outputs."""
    if factor == 1.0:
        return scaled
    outputs = factor * (ones if scaled.outputs is None else scaled.outputs)
    return replace(scaled, outputs=outputs, inputs=None if scaled.inputs is None else scaled.inputs / factor)


def _range(factors: Array) -> str:
    return f"{factors.min():.3g} to {factors.max():.3g}"


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
    bounds = _bounds(weight, quantized, grid)
    rounding = float(np.sqrt(np.broadcast_to(grid.step**2, weight.shape).sum() / 12))
    loosest = LOOSEST * rounding
    everything = np.zeros_like(channels.output)
    sides = ((everything, 1), (channels.output, channels.outputs), (channels.input, channels.inputs))
    for index, count in sides:
        factors, off = _common(*bounds, weight, np.broadcast_to(index, weight.shape), count)
        if factors is None or (channels.each > 1 and np.linalg.norm(weight * off[index]) > loosest):
            continue
        clipped = _nearest(weight * factors[index], quantized, grid)
        if clipped is None:
            continue
        weighs = _norms(weight * factors[index], channels) / loosest
        found = Explanation(clipped=clipped, elements=weight.size, weighs=weighs)
        if index is channels.input:
            return replace(found, inputs=factors)
        shape = (channels.outputs,)
        return replace(found, outputs=np.broadcast_to(factors, shape), off=np.broadcast_to(off / factors, shape))
    return _scaled_twice(weight, quantized, grid, channels, bounds, loosest)


def _norms(weight: Array, channels: Channels) -> Float64Array:
    """The norm of each output channel."""
    index = np.broadcast_to(channels.output, weight.shape).reshape(-1)
    return np.sqrt(np.bincount(index, np.square(weight, dtype=np.float64).reshape(-1), minlength=channels.outputs))


def _scaled_twice(
    weight: Array,
    quantized: Array,
    grid: Grid,
    channels: Channels,
    bounds: tuple[Float64Array, Float64Array],
    loosest: float,
) -> Explanation | None:
    """The scales per output and per input channel that leave nothing but rounding, if there are any."""
    found = both_factors(*bounds, weight, channels)
    if found is None:
        return None
    scaled = weight * found.outputs[channels.output] * found.inputs[channels.input]
    off = np.hypot(found.outputs_off[channels.output], found.inputs_off[channels.input])
    clipped = _nearest(scaled, quantized, grid.with_noise(ARITHMETIC * grid.step))
    if clipped is None or np.linalg.norm(scaled * off) > BOTH * loosest:
        return None
    return Explanation(
        outputs=found.outputs, inputs=found.inputs, clipped=clipped, elements=weight.size, off=found.outputs_off
    )


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
) -> tuple[Float64Array | None, Float64Array]:
    """(the factor of each channel that lies within the bounds of all its elements, None if one has none; how far each
    may be off).
    """
    low, high, size = np.full(count, -np.inf), np.full(count, np.inf), np.zeros(count)
    np.maximum.at(low, index, lowest)
    np.minimum.at(high, index, highest)
    np.add.at(size, index, np.square(weight, dtype=np.float64))
    low, high = (np.where(size > 0, each, 1.0) for each in (low, high))
    low = np.where((low < 0) & (high > 0), 0.0, low)  # a factor is rather positive, and never zero
    if (low > high).any() or not np.isfinite(low + high).all():
        return None, np.full(count, np.inf)
    return (low + high) / 2, (high - low) / 2


def _unsystematic(weight: Array, quantized: Array, grid: Grid | None, channels: Channels) -> bool:
    """Whether the difference is within a step and has nothing of the weight in it, as of learned rounding up or down.

    Without a grid, the difference is only small.
    """
    apart = np.asarray(quantized, np.float64) - weight
    if grid is not None and (np.abs(apart) > grid.step / 2 + grid.room).any():
        return False
    share = float(np.linalg.norm(apart)) / (float(np.linalg.norm(weight)) or 1.0)
    if grid is None and share > FARTHEST:
        return False
    surely = grid is None and share > CLOSE
    inside = np.where(_inside(quantized, channels), apart, 0.0)
    everything = np.zeros_like(channels.output)
    sides = ((everything, 1), (channels.output, channels.outputs), (channels.input, channels.inputs))
    return all(
        _is_chance(inside, (weight, quantized), np.broadcast_to(index, apart.shape), count, surely=surely)
        for index, count in sides
    )


def _inside(quantized: Array, channels: Channels) -> npt.NDArray[np.bool_]:
    """Where no end of the range is, in all or of an output channel, at which elements may have been clipped."""
    index = np.broadcast_to(channels.output, quantized.shape)
    low, high = np.full(channels.outputs, np.inf), np.full(channels.outputs, -np.inf)
    np.minimum.at(low, index, quantized)
    np.maximum.at(high, index, quantized)
    of_channel = (quantized > low[index]) & (quantized < high[index])
    inside: npt.NDArray[np.bool_] = of_channel & (quantized > low.min()) & (quantized < high.max())
    return inside


def _is_chance(apart: Float64Array, weights: Sequence[Array], index: IntArray, count: int, *, surely: bool) -> bool:
    """Whether the differences of channels have no more to do with one of the two `weights` than chance has.

    What is rounded to zero differs by the float weight, but has nothing of the quantised one. By chance, the squared
    correlation in n elements is 1/n on average. `surely` asks for elements enough to tell.
    """
    found = np.min([_correlation(apart, np.asarray(each, np.float64), index, count) ** 2 for each in weights], axis=0)
    elements = np.bincount(index.reshape(-1), (apart != 0).reshape(-1), minlength=count)
    known = elements > 1
    if not known.any():
        return not surely
    chance = 1 + DEVIATIONS * np.sqrt(2 / known.sum())
    limit = chance + SYSTEMATIC**2 * elements[known].mean()
    if surely and limit >= elements[known].mean():
        return False
    alone = np.maximum(SYSTEMATIC**2, DEVIATIONS**2 / elements[known])
    return bool((elements * found)[known].mean() <= limit and (found[known] <= alone).all())


def _correlation(one: Float64Array, other: Float64Array, index: IntArray, count: int) -> Float64Array:
    """The correlation of both in each channel, without their means taken out; 0 where one of them is zero."""
    flat = index.reshape(-1)
    product, mine, theirs = (
        np.bincount(flat, terms.reshape(-1), minlength=count) for terms in (one * other, one**2, other**2)
    )
    size = np.sqrt(mine * theirs)
    found: Float64Array = np.divide(product, size, out=np.zeros(count), where=size > 0)
    return found


def _difference(weight: Array, quantized: Array, grid: Grid | None) -> str:
    """The reason: by how much a weight that nothing explains differs, and what it may be."""
    apart = np.abs(np.asarray(quantized, np.float64) - weight)
    if grid is None:
        share = float(np.linalg.norm(apart)) / (float(np.linalg.norm(weight)) or 1.0)
        size, ways = f"by {share:.1%} of its norm, and its values do not tell their step", STEPLESS
    else:
        beyond = (apart > grid.room).mean()
        steps = np.max(apart / grid.step, initial=0.0)
        size = f"by up to {steps:.3g} steps, and by more than half a step in {beyond:.1%} of its elements"
        ways = ""
    return (
        f"its weight differs from that of the float model {size}; expected rounding to nearest, after at most scales "
        f"of output and input channels; {ways}{WAYS_OUT}"
    )


def _span(factors: Float64Array) -> str:
    """The least and the greatest of `factors`; one figure if they look the same."""
    least, greatest = f"{factors.min():.3g}", f"{factors.max():.3g}"
    return least if least == greatest else f"{least} to {greatest}"


def likeness(weight: Array, quantized: Array, channels: Channels) -> float:
    """How far `quantized` is from `weight` after the best scale per output or per input channel, or per both.

    From 0 to about 1. Unrelated weights are 1 apart on average, however few elements a channel has.
    """
    sides = [(channels.output, channels.outputs), (channels.input, channels.inputs)]
    indices = [(np.broadcast_to(index, weight.shape), count) for index, count in sides]
    apart = [_after_scales(weight, quantized, [each]) for each in indices]
    if channels.each > 1 and weight.size >= FEWEST_EACH * (channels.outputs + channels.inputs):
        apart.append(_after_scales(weight, quantized, indices * SWEEPS))
    return min(apart)


def _after_scales(weight: Array, quantized: Array, indices: Sequence[tuple[IntArray, int]]) -> float:
    """The distance after the best scale of the channels of each of `indices`, one after the other."""
    scaled, free = np.asarray(weight, np.float64), 0
    total = float(np.square(quantized).sum())
    for number, (index, count) in enumerate(indices):
        product, square = (
            np.bincount(index.reshape(-1), np.ravel(terms), minlength=count)
            for terms in (scaled * quantized, scaled**2)
        )
        factors = np.divide(product, square, out=np.zeros(count), where=square > 0)
        scaled = scaled * factors[index]
        free += int(np.count_nonzero(square)) if number < 2 else 0
    if weight.size <= free or total == 0:
        return 1.0
    apart = float(np.square(quantized - scaled).sum())
    return float(np.sqrt(apart / total * weight.size / (weight.size - free)))
