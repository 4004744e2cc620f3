"""ONNX models: find their linear layers, record what goes into them, correct their biases, run them.

`onnx` and `onnxruntime` are optional and imported when a function here first needs them; without them it
raises `MissingDependencyError`. This page is the public face of the modules `onnx_*` beside it.
"""

from __future__ import annotations

from .onnx_correct import LayerCorrection, correct
from .onnx_graph import LeftOut, LinearLayer, load_model, survey
from .onnx_record import RecordedLayer, record
from .onnx_repair import correct_quantized
from .onnx_run import run_model

__all__ = [
    "LayerCorrection",
    "LeftOut",
    "LinearLayer",
    "RecordedLayer",
    "correct",
    "correct_quantized",
    "load_model",
    "record",
    "run_model",
    "survey",
]
