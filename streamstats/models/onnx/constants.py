"""Constants that have to be computed: tensors of a graph that depend on initializers alone.

The runtime itself computes them, so a weight is what the model will use, however it is stored: behind Transpose,
Reshape or Identity, or as codes of 4 or 8 bits behind DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import MissingDependencyError, require
from .graph import producers
from .run import open_session

if TYPE_CHECKING:
    import onnx


def computed_constants(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Name → value, for the tensors in `names` that are constant and that the runtime can compute."""
    made_by = producers(model.graph.node)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    to_array = require("onnx", "onnx").numpy_helper.to_array
    constant = constant_names(model, filter(None, dict.fromkeys(names)))
    found = {name: np.asarray(to_array(initializers[name])) for name in constant if name in initializers}
    left = [name for name in constant if name not in found]
    if not left:
        return found
    needed = _sources(left, made_by)
    nodes = [node for node in model.graph.node if any(output in needed for output in node.output)]
    tensors = [initializers[name] for name in needed if name in initializers]
    return found | _computed(model, nodes, tensors, left)


def constant_names(model: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """Those of `names` that are the same whatever the inputs of the model."""
    made_by = producers(model.graph.node)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    return [name for name in names if _is_constant(name, made_by, initializers)]


def _is_constant(name: str, made_by: Mapping[str, onnx.NodeProto], initializers: Mapping[str, Any]) -> bool:
    waiting, seen = [name], set[str]()
    while waiting:
        each = waiting.pop()
        if each in seen or not each or each in initializers:
            continue
        seen.add(each)
        node = made_by.get(each)
        if node is None or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return False
        if not node.input and node.op_type != "Constant":  # random numbers
            return False
        waiting.extend(node.input)
    return True


def _sources(names: Iterable[str], made_by: Mapping[str, onnx.NodeProto]) -> list[str]:
    """The tensors that `names` depend on, `names` included."""
    needed: dict[str, None] = {}
    waiting = list(reversed(list(names)))
    while waiting:
        each = waiting.pop()
        if each and each not in needed:
            needed[each] = None
            waiting.extend(made_by[each].input if each in made_by else ())
    return list(needed)


def _computed(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], wanted: list[str]
) -> dict[str, npt.NDArray[Any]]:
    onnx = require("onnx", "onnx")
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    try:
        graph = onnx.helper.make_graph(nodes, "constants", [], outputs, tensors)
        part = onnx.helper.make_model(graph, ir_version=model.ir_version, opset_imports=list(model.opset_import))
        values = open_session(part.SerializeToString(), Path()).run(wanted, {})
    except MissingDependencyError:
        raise
    except Exception:  # an operator that the runtime does not know, or more than 2 GB: one by one
        if len(wanted) == 1:
            return {}
        return {name: value for each in wanted for name, value in computed_constants(model, [each]).items()}
    return {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}
