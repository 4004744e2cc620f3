"""Why operators with weights are not layers, and what helps, if anything does.

A remedy is named only where it makes a layer of the operator.
"""

from __future__ import annotations

from .graph import STANDARD_DOMAINS
from .operators import Operator

PRODUCT = "it multiplies two tensors that depend on the inputs of the model: it has no constant weight"
LOOKUP = "a look-up: it reads rows of a matrix and multiplies nothing, so it has no input mean"
DYNAMIC = frozenset({"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"})
"""Operators whose inputs are quantised while the model runs, as `quantize_dynamic` writes them."""
ON_CODES = frozenset({"QGemm", "QLinearConv", "QLinearMatMul"})
"""Operators on codes that quantised models are read with; the float model has none."""
PACKED = frozenset({"MatMulBnb4", "MatMulNBits"})


def unsupported(operator: Operator) -> str:
    """Why `operator` is left out: it reads matrices of constants, or multiplies where nothing is recorded."""
    op, own = operator.node.op_type, operator.node.domain not in STANDARD_DOMAINS
    if operator.is_lookup:
        return LOOKUP
    if operator.place and not operator.constants:
        return PRODUCT
    if operator.place.startswith("the function"):
        return f"it is in {operator.place}; inline functions first, with onnx.inliner.inline_local_functions"
    if operator.place:
        return f"it is in {operator.place}, whose inputs are not recorded"
    if op in DYNAMIC:
        return (
            f"{op} is not supported: its inputs are quantised while the model runs (dynamic quantisation); quantise "
            "the float model with quantize_static of onnxruntime"
        )
    if op in PACKED:
        return (
            f"{op} is not supported: its weight is packed in a form of its own; quantise the float model to "
            "DequantizeLinear and MatMul, with QuantFormat.QDQ"
        )
    if op in ON_CODES:
        return f"{op} is not supported: its weight is stored as codes; give the float model that was quantised"
    if own and operator.node.domain == "com.microsoft" and op.removeprefix("Q").startswith(FUSED):
        return f"{op} is not supported: onnxruntime's optimiser fused it; take the model as it was before the optimiser"
    return f"{op} is not supported: its weight is used inside the operator"


FUSED = ("Attention", "EmbedLayerNormalization", "Fused", "MultiHeadAttention", "Nhwc")
"""How the names of operators begin that onnxruntime's optimiser makes of Conv, Gemm, MatMul and what is around them."""
