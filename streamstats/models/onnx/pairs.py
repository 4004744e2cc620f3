"""Which layer of the float model each layer of a quantised model was made from, and what lies between their weights.

A quantised layer belongs to the float layer whose weight is nearest to its own; names only decide between equals,
because optimisers rename, fuse and fold. A pair is used only if its difference is explained: by rounding, after what
was folded into the layer, or a scale per channel, is undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...layouts import TRANSPOSED
from ..explaining import Explanation, explain, likeness
from ..linear import FARTHEST, LinearLayer
from ..sides import Biases
from .folding import Fold, folds
from .layers import LeftOut, OnnxLayer
from .quantized import Stored

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

UNMATCHED = "no layer of the float model has a weight that is close to its own"
SCALED = "no tensor of the float model has its outputs: a scale was folded into its weight that the float model lacks"
"""Why a layer cannot be judged."""
CORNER, UNLIKE = 64, 0.97
"""The extent of the corners that are compared first; how far they are apart, at least, if they are unrelated."""
SUSPICIOUS = 0.5
"""The distance of weights, as a share of their norm, from which there may be a scale between them."""
UNDONE = 0.05
"""How far from 1 the product of two factors may be that undo each other."""
NEAR = 1e-6
"""The distance of a weight that was only copied, or folded in float32, as a share of its norm."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the quantised model and the layer of the float model that it was made from.

    `weight` is what `quantized.weight` stands for, in the same layout: the float layer's weight, with what was folded
    in and with the scales that were found. `output` is the float model's tensor that the outputs of the quantised
    layer stand for: behind what was folded in; empty if there is none. `bias`, float64[outputs], is what the layer adds
    before its bias is rounded, `weight_step`, float64[outputs], the step of the stored weight; None if not known.
    `input_factors`, float64[channels], are those of the weight's input channels, by which the inputs of the quantised
    layer were divided; None for none. `explained` says how the weights differ; `lone_factor` is a number by which the
    whole weight is multiplied, None for none.
    """

    quantized: OnnxLayer
    original: OnnxLayer
    weight: Array
    output: str
    weight_step: Float64Array | None = None
    bias: Float64Array | None = None
    input_factors: Float64Array | None = None
    explained: str = ""
    lone_factor: float | None = None

    @property
    def name(self) -> str:
        """The layer's name in the float model, in its calibration store and in its results."""
        return self.original.name

    @property
    def layer(self) -> LinearLayer:
        """The quantised layer, under the name of the float layer."""
        return replace(self.quantized, name=self.name)

    @property
    def recorded_layer(self) -> LinearLayer:
        """The quantised layer, reading what the float layer reads: its padding may have been a node of its own."""
        return replace(self.quantized, name=self.name, node=self.original.node, geometry=self.original.geometry)

    @property
    def same_weight(self) -> bool:
        """Whether the quantiser left the weight in float."""
        apart = float(np.linalg.norm(np.asarray(self.quantized.weight, np.float64) - self.weight))
        return self.weight_step is None and apart <= NEAR * float(np.linalg.norm(self.weight))

    @property
    def padded_apart(self) -> bool:
        """Whether padding that is a node of its own in one model is part of the layer in the other."""
        here, there = self.quantized.known_geometry, self.original.known_geometry
        return here is not None and there is not None and here.pads != there.pads

    def for_recorded(self, weight: Array) -> Array:
        """`weight`, of the quantised layer, for the inputs of the float layer."""
        if self.input_factors is None:
            return weight
        each: Array = np.asarray(weight, np.float64) / self.input_factors[self.quantized.channels().input]
        return each


def pairs(
    original: onnx.ModelProto,
    layers: Sequence[OnnxLayer],
    quantized: Sequence[OnnxLayer],
    stored: Mapping[str, Stored] = MappingProxyType({}),
) -> tuple[list[Pair], list[LeftOut]]:
    """(each of the `quantized` layers with its float layer among `layers`; those left out: no float layer, or one from
    which it differs by more than rounding).

    A float layer belongs to at most one quantised layer. The nearest weights are paired first; among layers that share
    a weight, those of the same name or output, then those in the same order. `stored` says how the quantised layers
    are stored, by output.
    """
    folded = folds(original, layers)
    found = _matched(layers, quantized, folded)
    every = [
        _pair(layer, found.get(place), folded, stored.get(layer.node.output[0], Stored()))
        for place, layer in enumerate(quantized)
    ]
    return [each for each in every if isinstance(each, Pair)], [each for each in every if isinstance(each, LeftOut)]


def _pair(
    quantized: OnnxLayer, layer: OnnxLayer | None, folds_of: Mapping[str, Sequence[Fold]], stored: Stored
) -> Pair | LeftOut:
    """The pair of the two layers, or why there is none that can be used."""
    if layer is None:
        return LeftOut(quantized.name, quantized.op, UNMATCHED)
    folded = folds_of[layer.name]
    versions = _versions(quantized, layer, folded, stored)
    weights = [version.weight for version in versions]
    biases = [_biases(version.fold, stored) for version in versions]
    explanation = explain(weights, quantized.weight, stored.grid, quantized.channels(), layer.weight.dtype, biases)
    if explanation.reason:
        return LeftOut(layer.name, quantized.op, explanation.reason, quantized=stored.grid is not None)
    fold, weight = versions[explanation.version]
    scaled = explanation.outputs is not None
    return Pair(
        quantized,
        layer,
        _with_scales(quantized, weight, explanation),
        "" if scaled else fold.output,
        stored.step,
        None if scaled else fold.bias,
        explanation.inputs,
        explanation.words,
        explanation.lone_factor,
    )


def kept_factors(found: Sequence[Pair]) -> dict[str, float]:
    """Layer → the number by which its whole weight is multiplied, where no other layer undoes it.

    A factor is undone by one of another layer with which its product is 1.
    """
    every = {pair.name: pair.lone_factor for pair in found if pair.lone_factor is not None}
    return {
        name: factor
        for name, factor in every.items()
        if not any(abs(factor * other - 1) <= UNDONE for layer, other in every.items() if layer != name)
    }


def _biases(fold: Fold, stored: Stored) -> Biases | None:
    if fold.bias is None or stored.bias is None:
        return None
    return Biases(fold.bias, stored.bias, 0.0 if stored.bias_step is None else stored.bias_step)


def _with_scales(quantized: OnnxLayer, weight: Array, explanation: Explanation) -> Array:
    channels = quantized.channels()
    for factors, index in ((explanation.outputs, channels.output), (explanation.inputs, channels.input)):
        weight = weight if factors is None else np.asarray(weight * factors[index])
    return weight


class _Version(NamedTuple):
    """What a float layer may have become, and its weight in the layout of the quantised layer."""

    fold: Fold
    weight: Array


def _versions(quantized: OnnxLayer, layer: OnnxLayer, folded: Sequence[Fold], stored: Stored) -> list[_Version]:
    """What `layer` may have become, in the layout of `quantized`: the nearest weight first, then the nearest bias."""
    found = [_Version(fold, weight) for fold in folded if (weight := _folded(quantized, layer, fold)) is not None]
    return sorted(found, key=lambda each: (_apart(each.weight, quantized.weight), _bias_apart(each.fold, stored)))


def _folded(quantized: OnnxLayer, layer: OnnxLayer, fold: Fold) -> Array | None:
    weight = layer.scaled(fold.factor) * (layer.factor / (quantized.factor or 1.0))
    return _in_layout_of(quantized, layer, weight)


def _apart(weight: Array, other: Array) -> float:
    """The distance between weights, as a share of their norm, to a few digits: equals are told apart by other means."""
    norm = float(np.linalg.norm(weight)) or 1.0
    return round(float(np.linalg.norm(weight - other)) / norm, 6)


def _bias_apart(fold: Fold, stored: Stored) -> float:
    if fold.bias is None or stored.bias is None:
        return np.inf
    return float(np.abs(fold.bias - stored.bias).max(initial=0.0))


def _matched(
    layers: Sequence[OnnxLayer], quantized: Sequence[OnnxLayer], folded: Mapping[str, Sequence[Fold]]
) -> dict[int, OnnxLayer]:
    """Place of a quantised layer → its float layer."""
    found: dict[int, OnnxLayer] = {}
    taken: set[int] = set()
    for each in sorted(_candidates(layers, quantized, folded)):
        if each.place not in found and each.other not in taken:
            found[each.place] = layers[each.other]
            taken.add(each.other)
    return found


class _Candidate(NamedTuple):
    """A quantised layer, by its place, and a float layer that it may come from, ranked by its fields."""

    distance: float
    other_name: bool
    apart: int
    place: int
    other: int


def _candidates(
    layers: Sequence[OnnxLayer], quantized: Sequence[OnnxLayer], folded: Mapping[str, Sequence[Fold]]
) -> Iterator[_Candidate]:
    for place, stored in enumerate(quantized):
        for other, layer in enumerate(layers):
            distance = _distance(stored, layer, folded[layer.name])
            if distance < FARTHEST:
                yield _Candidate(distance, not _same_name(stored, layer), abs(place - other), place, other)


def _distance(stored: OnnxLayer, layer: OnnxLayer, folded: Sequence[Fold]) -> float:
    """How far the stored weight is from the nearest version of the layer's; scales between them count as half."""
    if _unlike(stored, layer):
        return np.inf
    weights = [version.weight for version in _versions(stored, layer, folded, Stored())]
    near = min((_apart(weight, stored.weight) for weight in weights), default=np.inf)
    if near < SUSPICIOUS or not weights:
        return near
    alike = likeness(weights[0], stored.weight, stored.channels())
    return SUSPICIOUS * (1 + alike) if alike < SUSPICIOUS else near


def _unlike(stored: OnnxLayer, layer: OnnxLayer) -> bool:
    """Whether a corner of two large weights tells that they are unrelated, whatever their scales."""
    weight = _in_layout_of(stored, layer, layer.weight)
    if weight is None:
        return True
    corner = tuple(slice(0, CORNER) for _ in weight.shape)
    mine, theirs = stored.weight[corner], weight[corner]
    if mine.size < CORNER**2 or not (mine.any() and theirs.any()):
        return False
    return likeness(theirs, mine, stored.channels().within(CORNER)) > UNLIKE


def _same_name(stored: OnnxLayer, layer: OnnxLayer) -> bool:
    names = {layer.node.name, layer.node.output[0]} - {""}
    mine = {stored.node.name, stored.node.name.removesuffix("_quant"), stored.node.output[0]}
    return bool(names & {*mine, stored.node.output[0].removesuffix("_quantized")})


def _in_layout_of(stored: OnnxLayer, layer: OnnxLayer, weight: Array) -> Array | None:
    """`weight` of `layer` in the layout of `stored`, None if the two cannot be the same operation."""
    if {stored.layout, layer.layout} == {"OI", "IO"}:
        weight = weight.T
    elif _kernel(stored) != _kernel(layer):
        return None
    return weight if weight.shape == stored.weight.shape else None


def _kernel(layer: OnnxLayer) -> tuple[str, int, tuple[int, ...]]:
    """What two layers that are the same operation have in common, besides the weight."""
    return layer.layout, layer.groups, layer.geometry.strides if layer.layout in TRANSPOSED else ()
