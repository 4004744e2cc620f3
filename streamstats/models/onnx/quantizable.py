"""The tensors that onnxruntime's static quantiser calibrates: it quantises them, so it needs a range for each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ...errors import require


def quantizable_tensors(path: str | Path) -> list[str]:
    """The tensors of the model at `path` that `quantize_static` calibrates if it is not told otherwise, in graph order.

    They are the float inputs and outputs of all operators that it quantises. onnxruntime itself chooses them.
    """
    onnx = require("onnx", "onnx")
    calibrate = require("onnxruntime.quantization.calibrate", "onnx")
    registry = require("onnxruntime.quantization.registry", "onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), format="protobuf", load_external_data=False))
    operators = SimpleNamespace(op_types_to_calibrate=[*{**registry.QLinearOpsRegistry, **registry.QDQRegistry}])
    chosen, _ = calibrate.CalibraterBase.select_tensors_to_calibrate(operators, model)
    graph = model.graph
    order = [*(each.name for each in graph.input), *(name for node in graph.node for name in node.output)]
    return [name for name in dict.fromkeys(order) if name in chosen]
