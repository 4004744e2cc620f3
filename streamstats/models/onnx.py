"""ONNX models: find their linear layers, record what goes into them, correct their biases, run them.

`onnx` and `onnxruntime` are optional and imported when a function here first needs them; without them it
raises `MissingDependencyError`. This page is the public face of the modules `onnx_*` beside it.
"""

from __future__ import annotations

from .onnx_correct import Correction, How, correct, correct_quantized
from .onnx_files import check_alone
from .onnx_graph import LeftOut, LinearLayer, load_model, survey
from .onnx_iterative import Iterative
from .onnx_judge import HeldOut, Judgement, Quality
from .onnx_record import RecordedLayer, record
from .onnx_repair import LayerCorrection
from .onnx_run import run_model

__all__ = [
    "Correction",
    "HeldOut",
    "How",
    "Iterative",
    "Judgement",
    "LayerCorrection",
    "LeftOut",
    "LinearLayer",
    "Quality",
    "RecordedLayer",
    "check_alone",
    "correct",
    "correct_quantized",
    "load_model",
    "record",
    "run_model",
    "survey",
]
