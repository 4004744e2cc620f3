"""Which layer of the float model each layer of a quantised model was made from.

A quantised layer belongs to the float layer whose weight is nearest to its own; names only decide between equals,
because optimisers rename, fuse and fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...layouts import TRANSPOSED
from ..linear import FARTHEST, LinearLayer
from .constants import computed_constants
from .graph import attributes
from .layers import OnnxLayer
from .quantized import BIAS

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the quantised model and the layer of the float model that it was made from.

    `weight` is what `quantized.weight` stands for, in the same layout: the float layer's weight, possibly with the
    following batch normalisation folded in. `output` is the float model's tensor that the outputs of the quantised
    layer stand for: behind what was folded in. `weight_step`, float64[outputs], is the step of the stored weight, None
    if it is not known.
    """

    quantized: OnnxLayer
    original: OnnxLayer
    weight: Array
    output: str
    weight_step: Float64Array | None = None

    @property
    def name(self) -> str:
        """The layer's name in the float model, in its calibration store and in its results."""
        return self.original.name

    @property
    def layer(self) -> LinearLayer:
        """The quantised layer, under the name of the float layer."""
        return replace(self.quantized, name=self.name)


def pairs(
    original: onnx.ModelProto,
    layers: Sequence[OnnxLayer],
    quantized: Sequence[OnnxLayer],
    steps: Mapping[str, Float64Array] = MappingProxyType({}),
) -> tuple[list[Pair], list[OnnxLayer]]:
    """(each of the `quantized` layers with its float layer among `layers`; quantised layers without one).

    A float layer belongs to at most one quantised layer. The nearest weights are paired first; among layers that share
    a weight, those of the same name or output, then those in the same order. `steps` are the steps of the stored
    weights, by output.
    """
    found: dict[int, Pair] = {}
    taken: set[int] = set()
    for each in sorted(_candidates(original, layers, quantized), key=lambda each: each[:5]):
        if each.place not in found and each.other not in taken:
            stored = quantized[each.place]
            step = steps.get(stored.node.output[0])
            found[each.place] = Pair(stored, layers[each.other], each.weight, each.output, step)
            taken.add(each.other)
    without = [layer for place, layer in enumerate(quantized) if place not in found]
    return [found[place] for place in sorted(found)], without


class _Candidate(NamedTuple):
    """A quantised layer, by its place, and a float layer that it may come from; the first five fields rank it."""

    distance: float
    other_name: bool
    apart: int
    place: int
    other: int
    weight: Array
    output: str


def _candidates(
    original: onnx.ModelProto, layers: Sequence[OnnxLayer], quantized: Sequence[OnnxLayer]
) -> Iterator[_Candidate]:
    behind = _behind(original, layers)
    for place, stored in enumerate(quantized):
        for other, layer in enumerate(layers):
            distance, weight, output = _nearest(stored, layer, behind.get(layer.name))
            if distance < FARTHEST:
                named = _same_name(stored, layer)
                yield _Candidate(distance, not named, abs(place - other), place, other, weight, output)


def _same_name(stored: OnnxLayer, layer: OnnxLayer) -> bool:
    names = {layer.node.name, layer.node.output[0]} - {""}
    mine = {stored.node.name, stored.node.name.removesuffix("_quant"), stored.node.output[0]}
    return bool(names & {*mine, stored.node.output[0].removesuffix("_quantized")})


def _nearest(stored: OnnxLayer, layer: OnnxLayer, behind: _Behind | None) -> tuple[float, Array, str]:
    """The distance of the stored weight to the layer's, plain or folded; that weight, and the output it computes."""
    best: tuple[float, Array, str] = (np.inf, layer.weight, layer.node.output[0])
    for weight, output in _versions(stored, layer, behind):
        fitting = _in_layout_of(stored, layer, np.asarray(weight, np.float64))
        if fitting is not None:
            norm = float(np.linalg.norm(fitting)) or 1.0
            distance = float(np.linalg.norm(fitting - stored.weight)) / norm
            best = min(best, (distance, fitting, output), key=lambda each: each[0])
    return best


def _versions(stored: OnnxLayer, layer: OnnxLayer, behind: _Behind | None) -> list[tuple[Array, str]]:
    """The weights that may have become the stored one, each with the output it computes."""
    plain = (layer.weight, layer.node.output[0])
    if behind is None:
        return [plain]
    if behind.weight is not None:
        return [plain, (behind.weight, behind.output)]
    return [(layer.weight, behind.output)] if _has_bias(stored) else [plain]


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


def _has_bias(layer: OnnxLayer) -> bool:
    place = BIAS.get(layer.node.op_type)
    return place is not None and len(layer.node.input) > place and layer.node.input[place] != ""


class _Behind(NamedTuple):
    """The only reader of a layer's output, which may have been folded in: the folded weight, None if unchanged."""

    weight: Array | None
    output: str


def _behind(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, _Behind]:
    """Layer → the batch normalisation behind it, or the addition to a MatMul."""
    only = _only_readers(model, layers)
    normalisations = {name: node for name, node in only.items() if node.op_type == "BatchNormalization"}
    known = computed_constants(model, [name for node in normalisations.values() for name in node.input[1:5]])
    found = {}
    for layer in layers:
        if layer.op == "MatMul" and layer.name in only and only[layer.name].op_type == "Add":
            found[layer.name] = _Behind(None, only[layer.name].output[0])
        node = normalisations.get(layer.name)
        if node is None or any(name not in known for name in node.input[1:5]):
            continue
        factor = known[node.input[1]] / np.sqrt(known[node.input[4]] + attributes(node).get("epsilon", 1e-5))
        found[layer.name] = _Behind(layer.scaled(np.asarray(factor, np.float64)), node.output[0])
    return found


def _only_readers(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, onnx.NodeProto]:
    """Layer → the node that reads its output, if it is the only one."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    behind = {layer.name: readers.get(layer.node.output[0], []) for layer in layers}
    return {name: nodes[0] for name, nodes in behind.items() if len(nodes) == 1}
