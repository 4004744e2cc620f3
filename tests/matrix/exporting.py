"""Exporting the networks of the matrix with both exporters of torch. Importing this imports torch."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

EXPORTERS = ("TorchScript", "dynamo")


def export(network: Any, x: Mapping[str, Any], path: Path, exporter: str) -> None:
    """Write `network`, whose first axes vary, to `path`."""
    options: dict[str, Any] = {"input_names": list(x), "output_names": ["result"]}
    if exporter == "dynamo":
        batch = torch.export.Dim("batch", min=1, max=1024)
        options |= {"dynamo": True, "dynamic_shapes": tuple({0: batch} for _ in x), "external_data": False}
    else:
        options |= {"dynamo": False, "dynamic_axes": {name: {0: "batch"} for name in x}, "opset_version": 17}
        options["training"] = torch.onnx.TrainingMode.PRESERVE  # keeps batch normalisation apart
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        torch.onnx.export(network, tuple(each[:4] for each in x.values()), path, **options)
        torch.backends.mha.set_fastpath_enabled(fast)
