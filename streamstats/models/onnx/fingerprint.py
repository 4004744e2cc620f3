"""The fingerprint of an ONNX model: that of its constants, however they are stored.

A model that is exported again with equal weights keeps it; one that is trained on does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from ...errors import require
from ..fingerprints import fingerprint_of, weight_digest
from .graph import subgraphs

if TYPE_CHECKING:
    import onnx

KIND = "onnx"
NO_WEIGHTS = ("INT64", "INT32", "BOOL", "STRING")
"""Types of shapes, indices and texts, which exporters choose and training does not change."""


def fingerprint(model: onnx.ModelProto) -> str:
    """The fingerprint over all constants of several elements; exporters move single numbers about."""
    onnx = require("onnx", "onnx")
    skipped = {getattr(onnx.TensorProto, name) for name in NO_WEIGHTS}
    weights = (each for each in _tensors(model.graph) if each.data_type not in skipped and prod(each.dims) > 1)
    to_array = onnx.numpy_helper.to_array
    return fingerprint_of(
        KIND, (weight_digest(str(each.data_type), each.dims, each.raw_data or to_array(each)) for each in weights)
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initialisers of `graph` and of the graphs inside it, and what their Constant nodes hold."""
    for each in (graph, *(inner for _, inner in subgraphs(graph.node))):
        yield from each.initializer
        constant = (node for node in each.node if node.op_type == "Constant")
        yield from (entry.t for node in constant for entry in node.attribute if entry.name == "value")
