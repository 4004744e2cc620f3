"""Models that a quantiser wrote: their linear layers, and how their weights and biases are stored.

Quantisers write 8- and 4-bit models in two forms, and both are read: operators between QuantizeLinear and
DequantizeLinear (QDQ), and operators on codes (QLinearConv, QLinearMatMul, QGemm). The weight of a layer is the stored
one, converted back to real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...storage.names import layer_names
from ..grids import Grid
from .constants import computed_constants
from .graph import attributes, label, producers, subgraphs
from .layers import LeftOut, OnnxLayer, build_layer, survey
from .operators import operators
from .unsupported import PRODUCT, is_channels_last

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
ON_CODES = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
"""Operator on codes → its operator on reals. All of them read codes, scale, zero point; those of the weight; …"""
ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul")
"""Operators that round activations to codes."""
ON_THE_FLY = "DynamicQuantize"
"""How the names of operators begin that find the step of activations in the batch at hand."""
WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT = 3, 4, 5
BIAS = {"QLinearConv": 8, "QGemm": 6, "Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operator → which of its inputs is the bias."""
INPUT_SCALE = 1


def quantized_layers(model: onnx.ModelProto) -> tuple[list[OnnxLayer], list[LeftOut]]:
    """(linear layers of a quantised model, their stored weights as real numbers; linear operators left out)."""
    on_codes = [node for node in model.graph.node if node.op_type in ON_CODES and not is_channels_last(node)]
    wanted = {name for node in on_codes for name in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]}
    known = computed_constants(model, wanted)
    names = layer_names([label(node) for node in on_codes])
    described = [_on_codes(node, name, known) for node, name in zip(on_codes, names, strict=True)]
    layers, left_out = survey(model, besides={node.output[0] for node in on_codes})
    found = [*layers, *(each for each in described if isinstance(each, OnnxLayer))]
    order = {node.output[0]: place for place, node in enumerate(model.graph.node) if node.output}
    found.sort(key=lambda layer: order[layer.node.output[0]])
    return found, [*left_out, *(each for each in described if isinstance(each, LeftOut))]


def _on_codes(node: onnx.NodeProto, name: str, known: Mapping[str, Array]) -> OnnxLayer | LeftOut:
    parts = [known.get(each) for each in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]]
    if parts[0] is None and node.op_type == "QLinearMatMul":
        return LeftOut(name, node.op_type, PRODUCT, quantized=False, multiplies=False)
    if any(part is None for part in parts):
        reason = f"its weight {node.input[WEIGHT]}, or its scale, is not constant"
        return LeftOut(name, node.op_type, reason, quantized=True)
    codes, scale, zero_point = (np.asarray(part, np.float64) for part in parts)
    op = ON_CODES[node.op_type]
    axis = 0 if op == "Conv" or attributes(node).get("transB", 0) else codes.ndim - 1
    real = (codes - _along(axis, zero_point, codes.ndim)) * _along(axis, scale, codes.ndim)
    made = build_layer(op, node, name, node.input[WEIGHT], real)
    return replace(made, quantized=True) if isinstance(made, LeftOut) else made


def _along(axis: int, values: Array, ndim: int) -> Array:
    """`values` shaped to broadcast along `axis` of `ndim` axes, or to a scalar if there is only one."""
    return values.reshape([-1 if place == axis else 1 for place in range(ndim)] if values.size > 1 else ())


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether an operator of `model` multiplies by a weight that is stored as codes."""
    return any(each.is_quantized and not each.is_lookup for each in operators(model))


def multiplies_codes(model: onnx.ModelProto) -> bool:
    """Whether a runtime may multiply codes by codes in `model`: weights and activations are rounded to them."""
    return is_quantized(model) and any(node.op_type in (*ROUNDING, *ON_CODES) for node in model.graph.node)


def rounds_by_batch(model: onnx.ModelProto) -> bool:
    """Whether `model` finds steps of activations in what it is run on, so that its outputs depend on the batch."""
    found = [*model.graph.node, *(node for _, inner in subgraphs(model.graph.node) for node in inner.node)]
    return any(node.op_type.startswith(ON_THE_FLY) for node in found)


@dataclass(frozen=True, eq=False)
class Stored:
    """How a layer of a quantised model is stored; None for what is not known.

    `step`, float64[outputs], is that of its weight, `grid` the values that the weight's codes can be, in the weight's
    layout. `bias`, float64[outputs], is its bias in reals: zeros if it has none. `bias_step`, float64[outputs], is that
    of a bias of codes.
    """

    step: Float64Array | None = None
    grid: Grid | None = None
    bias: Float64Array | None = None
    bias_step: Float64Array | None = None


def stored_layers(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, Stored]:
    """First output of each of `layers` → how it is stored."""
    steps, grids, biases = weight_steps(model, layers), weight_grids(model, layers), layer_biases(model, layers)
    outputs, bias_steps = [layer.node.output[0] for layer in layers], layer_bias_steps(model, layers)
    return {name: Stored(steps.get(name), grids.get(name), biases.get(name), bias_steps.get(name)) for name in outputs}


def weight_grids(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, Grid]:
    """First output of each of `layers` whose weight is stored as codes → the values that its codes can be."""
    made_by = producers(model.graph.node)
    sources = {layer.node.output[0]: _codes_of(layer, made_by.get(layer.node.input[1])) for layer in layers}
    coded = {name: source for name, source in sources.items() if source is not None}
    known = computed_constants(model, [name for source in coded.values() for name in source.names])
    grids = {
        layer.node.output[0]: _grid(coded[layer.node.output[0]], layer, known)
        for layer in layers
        if layer.node.output[0] in coded
    }
    return {name: grid for name, grid in grids.items() if grid is not None}


@dataclass(frozen=True)
class _Codes:
    """The names of a weight's scale and zero point (or none); the axis of several scales, and their blocks."""

    names: Sequence[str]
    axis: int
    block: int = 0


def _codes_of(layer: OnnxLayer, behind: onnx.NodeProto | None) -> _Codes | None:
    if layer.node.op_type in ON_CODES:
        return _Codes(layer.node.input[WEIGHT_SCALE : WEIGHT_ZERO_POINT + 1], layer.output_axis)
    if behind is None or behind.op_type != "DequantizeLinear":
        return None
    found = attributes(behind)
    return _Codes([name for name in behind.input[1:] if name], found.get("axis", 1), found.get("block_size", 0))


def _grid(source: _Codes, layer: OnnxLayer, known: Mapping[str, Array]) -> Grid | None:
    scale, *zeros = (known.get(name) for name in source.names)
    if scale is None:
        return None
    zero = zeros[0] if zeros and zeros[0] is not None else np.zeros(scale.shape)
    step, zero = (_spread(np.asarray(each, np.float64), source, layer.weight.shape) for each in (scale, zero))
    codes = np.rint(layer.weight / step) + zero
    ends = [(end - zero) * step for end in (codes.min(), codes.max())]  # scales of 4-bit codes may be negative
    return Grid(np.abs(step), np.minimum(*ends), np.maximum(*ends))


def _spread(values: Array, source: _Codes, shape: tuple[int, ...]) -> Array:
    """`values`, one or one per index of the axis or per block on it, broadcastable to `shape`."""
    if source.block and values.ndim == len(shape):
        blocks = np.repeat(values, source.block, axis=source.axis)
        return blocks.take(np.arange(shape[source.axis]), axis=source.axis)
    return _along(source.axis % len(shape), values, len(shape))


def layer_biases(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, Float64Array]:
    """First output of each of `layers` whose bias is constant → the bias in reals: zeros where there is none."""
    names = {layer.node.output[0]: bias_name(layer.node) for layer in layers}
    scales = [layer.node.input[place] for layer in layers for place in _bias_scales(layer)]
    known = computed_constants(model, [*filter(None, names.values()), *scales])
    found = {layer.node.output[0]: _real_bias(layer, names[layer.node.output[0]], known) for layer in layers}
    return {name: bias for name, bias in found.items() if bias is not None}


def layer_bias_steps(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, Float64Array]:
    """First output of each of `layers` whose bias is stored as codes → the step of the bias, float64[outputs]."""
    made_by = producers(model.graph.node)
    scales = {layer.node.output[0]: _scales_of_bias(layer, made_by.get(bias_name(layer.node))) for layer in layers}
    known = computed_constants(model, [name for names in scales.values() for name in names])
    found: dict[str, Float64Array] = {}
    for layer in layers:
        factors = [known[name] for name in scales[layer.node.output[0]] if name in known]
        if factors and len(factors) == len(scales[layer.node.output[0]]):
            step = math.prod((np.asarray(each, np.float64).reshape(-1) for each in factors), start=np.ones(1))
            if step.size in (1, layer.outputs):
                found[layer.node.output[0]] = np.broadcast_to(step, layer.outputs)
    return found


def _scales_of_bias(layer: OnnxLayer, behind: onnx.NodeProto | None) -> list[str]:
    """The names of the scales whose product is the step of the bias of `layer`, which `behind` makes; or none."""
    if behind is not None and behind.op_type == "DequantizeLinear":
        return [behind.input[1]]
    return [layer.node.input[place] for place in _bias_scales(layer)] if bias_name(layer.node) else []


def bias_name(node: onnx.NodeProto) -> str:
    """The input of `node` that is its bias, empty if there is none."""
    place = BIAS.get(node.op_type, len(node.input))
    return str(node.input[place]) if len(node.input) > place else ""


def _bias_scales(layer: OnnxLayer) -> tuple[int, ...]:
    """The inputs whose product is the step of the bias of a layer on codes."""
    return (INPUT_SCALE, WEIGHT_SCALE) if layer.node.op_type in ON_CODES else ()


def _real_bias(layer: OnnxLayer, name: str, known: Mapping[str, Array]) -> Float64Array | None:
    if not name:
        return np.zeros(layer.outputs)
    scales = [known.get(layer.node.input[place]) for place in _bias_scales(layer)]
    if name not in known or any(scale is None for scale in scales):
        return None
    bias = known[name].astype(np.float64).reshape(-1)
    for scale in scales:
        bias = bias * np.asarray(scale, np.float64).reshape(-1)
    if layer.node.op_type == "Gemm":
        bias = bias * attributes(layer.node).get("beta", 1.0)
    return np.broadcast_to(bias, layer.outputs) if bias.size in (1, layer.outputs) else None


def weight_steps(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, Float64Array]:
    """First output of each of `layers` whose weight is stored as codes → their step, float64[outputs]."""
    made_by = producers(model.graph.node)
    scales = {}
    for layer in layers:
        node = made_by.get(layer.node.input[1])
        if layer.node.op_type in ON_CODES:
            scales[layer.node.output[0]] = layer.node.input[WEIGHT_SCALE]
        elif node is not None and node.op_type == "DequantizeLinear":
            scales[layer.node.output[0]] = node.input[1]
    known = computed_constants(model, scales.values())
    outputs = {layer.node.output[0]: layer.outputs for layer in layers}
    return {
        name: np.broadcast_to(np.abs(known[scale].astype(np.float64).reshape(-1)), outputs[name])
        for name, scale in scales.items()
        if scale in known and known[scale].size in (1, outputs[name])
    }
