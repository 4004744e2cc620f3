"""Models that somebody else has quantised: what their layers store, and which layer of the float model each of them is.

Both forms are read in which quantisers write 8- and 4-bit models: operators between QuantizeLinear and DequantizeLinear
(QDQ), and operators on codes (QLinearConv, QLinearMatMul, QGemm). The weight of a layer is what is really stored, taken
back to real numbers. It belongs to the float layer whose weight is nearest to it; names only decide between equals,
because optimisers rename, fuse and fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...storage.names import layer_names
from .constants import computed_constants
from .graph import LeftOut, LinearLayer, attributes, build_layer, survey

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
ON_CODES = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
"""Operator on codes → the one it stands for. The inputs of all: codes, scale, zero point; the same of the weight; …"""
WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT = 3, 4, 5
BIAS = {"QLinearConv": 8, "QGemm": 6, "Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operator → which of its inputs is the bias."""
FARTHEST = 1.0
"""Distance of weights, as a share of their norm, from which on they are not the same layer's; unrelated ones: 1.4."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the quantised model and the layer of the float model that it was made from.

    `weight` is what `quantized.weight` stands for, in the same layout: that of the float layer, or with the batch
    normalisation behind it folded in. `output` is the float model's tensor that the layer's outputs stand for: where
    something was folded in, that behind it. `weight_step` float64[outputs] is the step of the stored weight, None where
    it is not known.
    """

    quantized: LinearLayer
    original: LinearLayer
    weight: Array
    output: str
    weight_step: Float64Array | None = None


def quantized_layers(model: onnx.ModelProto) -> tuple[list[LinearLayer], list[LeftOut]]:
    """(the linear layers of a quantised model, with the weights that it stores taken to real numbers; others)."""
    on_codes = [node for node in model.graph.node if node.op_type in ON_CODES]
    wanted = {name for node in on_codes for name in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]}
    known = computed_constants(model, wanted)
    names = layer_names([node.name or node.output[0] for node in on_codes])
    described = [_on_codes(node, name, known) for node, name in zip(on_codes, names, strict=True)]
    layers, left_out = survey(model)
    left_out = [each for each in left_out if each.op not in ON_CODES]
    found = [*layers, *(each for each in described if isinstance(each, LinearLayer))]
    order = {node.output[0]: place for place, node in enumerate(model.graph.node) if node.output}
    found.sort(key=lambda layer: order[layer.node.output[0]])
    return found, [*left_out, *(each for each in described if isinstance(each, LeftOut))]


def _on_codes(node: onnx.NodeProto, name: str, known: Mapping[str, Array]) -> LinearLayer | LeftOut:
    parts = [known.get(each) for each in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]]
    if any(part is None for part in parts):
        return LeftOut(name, node.op_type, f"its weight {node.input[WEIGHT]} is computed, not constant")
    codes, scale, zero_point = (np.asarray(part, np.float64) for part in parts)
    op = ON_CODES[node.op_type]
    axis = 0 if op == "Conv" or attributes(node).get("transB", 0) else codes.ndim - 1
    shape = [-1 if place == axis else 1 for place in range(codes.ndim)]
    real = (codes - zero_point.reshape(shape if zero_point.size > 1 else ())) * scale.reshape(
        shape if scale.size > 1 else ()
    )
    return build_layer(op, node, name, node.input[WEIGHT], real)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a linear layer of `model` has a weight of codes."""
    return bool(weight_steps(model, quantized_layers(model)[0]))


def weight_steps(model: onnx.ModelProto, layers: Sequence[LinearLayer]) -> dict[str, Float64Array]:
    """First output of each of `layers` whose weight is stored as codes → their step, float64[outputs]."""
    producers = {output: node for node in model.graph.node for output in node.output}
    scales = {}
    for layer in layers:
        node = producers.get(layer.node.input[1])
        if layer.node.op_type in ON_CODES:
            scales[layer.node.output[0]] = layer.node.input[WEIGHT_SCALE]
        elif node is not None and node.op_type == "DequantizeLinear":
            scales[layer.node.output[0]] = node.input[1]
    known = computed_constants(model, scales.values())
    outputs = {layer.node.output[0]: layer.outputs for layer in layers}
    return {
        name: np.broadcast_to(known[scale].astype(np.float64).reshape(-1), outputs[name])
        for name, scale in scales.items()
        if scale in known and known[scale].size in (1, outputs[name])
    }


# Pairs


def pairs(
    original: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    quantized: Sequence[LinearLayer],
    steps: Mapping[str, Float64Array] = MappingProxyType({}),
) -> tuple[list[Pair], list[LinearLayer]]:
    """(each of the `quantized` layers with the one of `layers` it was made from, those for which there is none).

    A float layer belongs to one quantised layer at most. Nearest weights first; of layers that share a weight, those of
    the same name or output, and then those in the same order. `steps` are those of the stored weights, by output.
    """
    behind = _behind(original, layers)
    candidates = []
    for place, stored in enumerate(quantized):
        for other, layer in enumerate(layers):
            distance, version = _nearest(stored, layer, behind.get(layer.name))
            if distance < FARTHEST:
                candidates.append((distance, not _same_name(stored, layer), abs(place - other), place, other, version))
    found: dict[int, Pair] = {}
    taken: set[int] = set()
    for *_, place, other, version in sorted(candidates, key=lambda each: each[:5]):
        if place not in found and other not in taken:
            found[place] = Pair(quantized[place], layers[other], *version, steps.get(quantized[place].node.output[0]))
            taken.add(other)
    without = [layer for place, layer in enumerate(quantized) if place not in found]
    return [found[place] for place in sorted(found)], without


def _same_name(stored: LinearLayer, layer: LinearLayer) -> bool:
    names = {layer.node.name, layer.node.output[0]} - {""}
    mine = {stored.node.name, stored.node.name.removesuffix("_quant"), stored.node.output[0]}
    return bool(names & {*mine, stored.node.output[0].removesuffix("_quantized")})


def _nearest(stored: LinearLayer, layer: LinearLayer, behind: _Behind | None) -> tuple[float, tuple[Array, str]]:
    """The distance of the stored weight to the layer's, as it is or folded; that weight, and the output it makes."""
    output = layer.node.output[0]
    versions = [(layer.weight, output)]
    if behind is not None and behind.weight is None and _has_bias(stored):
        versions = [(layer.weight, behind.output)]
    elif behind is not None and behind.weight is not None:
        versions.append((behind.weight, behind.output))
    best: tuple[float, tuple[Array, str]] = (np.inf, (layer.weight, output))
    for weight, made in versions:
        fitting = _in_layout_of(stored, layer, np.asarray(weight, np.float64))
        if fitting is not None:
            norm = float(np.linalg.norm(fitting)) or 1.0
            distance = float(np.linalg.norm(fitting - stored.weight)) / norm
            best = min(best, (distance, (fitting, made)), key=lambda each: each[0])
    return best


def _in_layout_of(stored: LinearLayer, layer: LinearLayer, weight: Array) -> Array | None:
    """`weight` of `layer` in the layout of `stored`, None where it cannot be the same operation."""
    if {stored.layout, layer.layout} == {"OI", "IO"}:
        weight = weight.T
    elif (stored.layout, stored.groups, stored.strides) != (layer.layout, layer.groups, layer.strides):
        return None
    return weight if weight.shape == stored.weight.shape else None


def _has_bias(layer: LinearLayer) -> bool:
    place = BIAS.get(layer.node.op_type)
    return place is not None and len(layer.node.input) > place and layer.node.input[place] != ""


class _Behind(NamedTuple):
    """What alone reads a layer's output and may have been folded into it: the weight then, None where it stays."""

    weight: Array | None
    output: str


def _behind(model: onnx.ModelProto, layers: Sequence[LinearLayer]) -> dict[str, _Behind]:
    """Layer → the batch normalisation behind it, or what is added to a MatMul."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    behind = {layer.name: readers.get(layer.node.output[0], []) for layer in layers}
    only = {name: nodes[0] for name, nodes in behind.items() if len(nodes) == 1}
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
        found[layer.name] = _Behind(_scaled(layer, np.asarray(factor, np.float64)), node.output[0])
    return found


def _scaled(layer: LinearLayer, factor: Array) -> Array:
    """The layer's weight, each output channel times its `factor`, float64."""
    weight = layer.weight.astype(np.float64)
    if layer.op != "ConvTranspose":
        shape = [-1 if axis == layer.output_axis else 1 for axis in range(weight.ndim)]
        return weight * factor.reshape(shape)
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    spatial = (1,) * (weight.ndim - 2)
    return (grouped * factor.reshape(layer.groups, 1, -1, *spatial)).reshape(weight.shape)
