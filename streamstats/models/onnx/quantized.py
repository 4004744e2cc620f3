"""Models that a quantiser wrote: their linear layers, and the steps of the weights that they store.

Quantisers write 8- and 4-bit models in two forms, and both are read: operators between QuantizeLinear and
DequantizeLinear (QDQ), and operators on codes (QLinearConv, QLinearMatMul, QGemm). The weight of a layer is the stored
one, converted back to real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...storage.names import layer_names
from .constants import computed_constants
from .graph import attributes, label, producers
from .layers import LeftOut, OnnxLayer, build_layer, survey

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
ON_CODES = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
"""Operator on codes → its operator on reals. All of them read codes, scale, zero point; those of the weight; …"""
WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT = 3, 4, 5
BIAS = {"QLinearConv": 8, "QGemm": 6, "Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operator → which of its inputs is the bias."""


def quantized_layers(model: onnx.ModelProto) -> tuple[list[OnnxLayer], list[LeftOut]]:
    """(linear layers of a quantised model, their stored weights as real numbers; linear operators left out)."""
    on_codes = [node for node in model.graph.node if node.op_type in ON_CODES]
    wanted = {name for node in on_codes for name in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]}
    known = computed_constants(model, wanted)
    names = layer_names([label(node) for node in on_codes])
    described = [_on_codes(node, name, known) for node, name in zip(on_codes, names, strict=True)]
    layers, left_out = survey(model)
    left_out = [each for each in left_out if each.op not in ON_CODES]
    found = [*layers, *(each for each in described if isinstance(each, OnnxLayer))]
    order = {node.output[0]: place for place, node in enumerate(model.graph.node) if node.output}
    found.sort(key=lambda layer: order[layer.node.output[0]])
    return found, [*left_out, *(each for each in described if isinstance(each, LeftOut))]


def _on_codes(node: onnx.NodeProto, name: str, known: Mapping[str, Array]) -> OnnxLayer | LeftOut:
    parts = [known.get(each) for each in node.input[WEIGHT : WEIGHT_ZERO_POINT + 1]]
    if any(part is None for part in parts):
        return LeftOut(name, node.op_type, f"its weight {node.input[WEIGHT]} is computed, not constant")
    codes, scale, zero_point = (np.asarray(part, np.float64) for part in parts)
    op = ON_CODES[node.op_type]
    axis = 0 if op == "Conv" or attributes(node).get("transB", 0) else codes.ndim - 1
    real = (codes - _along(axis, zero_point, codes.ndim)) * _along(axis, scale, codes.ndim)
    return build_layer(op, node, name, node.input[WEIGHT], real)


def _along(axis: int, values: Array, ndim: int) -> Array:
    """`values` shaped to broadcast along `axis` of `ndim` axes, or to a scalar if there is only one."""
    return values.reshape([-1 if place == axis else 1 for place in range(ndim)] if values.size > 1 else ())


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a linear layer of `model` stores its weight as codes."""
    return bool(weight_steps(model, quantized_layers(model)[0]))


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
        name: np.broadcast_to(known[scale].astype(np.float64).reshape(-1), outputs[name])
        for name, scale in scales.items()
        if scale in known and known[scale].size in (1, outputs[name])
    }
