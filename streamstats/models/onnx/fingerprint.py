"""The fingerprints of an ONNX model and of the weights of its layers: those of its constants, however they are stored.

A model that is exported again with equal weights keeps them; one that is trained on does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...errors import require
from ..fingerprints import Fingerprints, fingerprint_of, weight_digest
from .graph import attributes, subgraphs
from .layers import OnnxLayer, survey

if TYPE_CHECKING:
    import onnx

KIND = "onnx"
NO_WEIGHTS = ("INT64", "INT32", "BOOL", "STRING")
"""Types of shapes, indices and texts, which exporters choose and training does not change."""


def fingerprint(model: onnx.ModelProto) -> str:
    """The fingerprint of `model`, over all constants that something reads and that have several elements.

    Single numbers do not count, because exporters move them. Matrices count as [inputs, outputs], whether a Gemm reads
    them so or transposed.
    """
    onnx = require("onnx", "onnx")
    skipped = {getattr(onnx.TensorProto, name) for name in NO_WEIGHTS}
    graphs = [model.graph, *(inner for _, inner in subgraphs(model.graph.node))]
    nodes = [node for graph in graphs for node in graph.node]
    read = {name for node in nodes for name in node.input} | {each.name for graph in graphs for each in graph.output}
    transposed = {node.input[1] for node in nodes if node.op_type == "Gemm" and attributes(node).get("transB", 0)}
    weights = (
        _digest(tensor, transposed=name in transposed)
        for graph in graphs
        for name, tensor in _tensors(graph)
        if name in read and tensor.data_type not in skipped and prod(tensor.dims) > 1
    )
    return fingerprint_of(KIND, weights)


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The initialisers of `graph`, and what its Constant nodes hold, by name."""
    yield from ((each.name, each) for each in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")


def _digest(tensor: onnx.TensorProto, *, transposed: bool) -> bytes:
    if tensor.raw_data and not transposed:
        return weight_digest(str(tensor.data_type), tensor.dims, tensor.raw_data)
    values = require("onnx", "onnx").numpy_helper.to_array(tensor)
    values = np.transpose(values) if transposed else values
    return weight_digest(str(tensor.data_type), values.shape, values)


def fingerprints(model: onnx.ModelProto, layers: Iterable[OnnxLayer] | None = None) -> Fingerprints:
    """The fingerprint of `model`, and those of the weights of its `layers`; matrices count as [inputs, outputs]."""
    found = survey(model)[0] if layers is None else layers
    weights = {each.name: each.weight.T if each.layout == "OI" else each.weight for each in found}
    digests = {name: weight_digest(each.dtype.name, each.shape, each) for name, each in weights.items()}
    return Fingerprints(fingerprint(model), {name: fingerprint_of(KIND, [each]) for name, each in digests.items()})
