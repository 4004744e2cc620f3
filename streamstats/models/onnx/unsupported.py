"""Why operators with weights are not layers, and what helps, if anything does.

A remedy is named only where it makes a layer of the operator, or corrects it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graph import STANDARD_DOMAINS, attributes
from .operators import Operator

if TYPE_CHECKING:
    import onnx

PRODUCT = "it multiplies two tensors that depend on the inputs of the model: it has no constant weight"
LOOKUP = "a look-up: it reads rows of a matrix and multiplies nothing, so it has no input mean"
DYNAMIC = frozenset({"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
"""Operators whose inputs are quantised while the model runs, as `quantize_dynamic` writes them."""
ON_CODES = frozenset({"QGemm", "QLinearConv", "QLinearMatMul"})
"""Operators on codes that quantised models are read with; the float model has none."""
PACKED = frozenset({"MatMulBnb4", "MatMulNBits"})
FUSED = ("Attention", "Fused", "Nhwc")
"""How the names of operators begin that onnxruntime's optimiser makes of Conv, Gemm, MatMul and what is around them."""
BLOCKED = "com.microsoft.nchwc"
"""The domain of convolutions whose channels onnxruntime's optimiser put into blocks."""


def unsupported(operator: Operator) -> str:
    """Why `operator` is left out: it reads matrices of constants, or multiplies where nothing is recorded."""
    if operator.is_lookup:
        return LOOKUP
    if not operator.place:
        return f"{operator.node.op_type} is not supported: {_of_its_kind(operator.node)}"
    if not operator.constants:
        return PRODUCT
    if operator.place.startswith("the function"):
        return f"it is in {operator.place}; inline functions first, with onnx.inliner.inline_local_functions(model)"
    return f"it is in {operator.place}, whose inputs are not recorded"


def _of_its_kind(node: onnx.NodeProto) -> str:
    if node.op_type in DYNAMIC:
        return (
            "its inputs are quantised while the model runs (dynamic quantisation); correct from mean outputs (`correct "
            "--outputs`), or quantise the float model with quantize_static of onnxruntime"
        )
    if node.op_type in PACKED:
        return (
            "its weight is packed in a form of its own; correct from mean outputs (`correct --outputs`), or quantise "
            "the float model with MatMulNBitsQuantizer and quant_format=QuantFormat.QDQ, which writes DequantizeLinear "
            "and MatMul"
        )
    if is_fused(node):
        return "onnxruntime's optimiser made it; take the model as it was before the optimiser"
    if node.op_type in ON_CODES:
        return "its weight is stored as codes; give the float model that was quantised"
    return "its weight is used inside the operator"


def is_fused(node: onnx.NodeProto) -> bool:
    """Whether onnxruntime's optimiser made `node` of others."""
    made = node.domain not in STANDARD_DOMAINS and node.op_type.removeprefix("Q").startswith(FUSED)
    return made or node.domain == BLOCKED or is_channels_last(node)


def is_channels_last(node: onnx.NodeProto) -> bool:
    """Whether `node` is a convolution on codes whose channels onnxruntime's optimiser moved to the last axis."""
    return node.op_type == "QLinearConv" and bool(attributes(node).get("channels_last", 0))
