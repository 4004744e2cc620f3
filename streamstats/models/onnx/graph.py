"""Reading an ONNX graph: its file, its constants, its subgraphs, the attributes of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UsageError, first_line, require

if TYPE_CHECKING:
    import onnx


STANDARD_DOMAINS = ("", "ai.onnx")
OLDEST_OPSET = 7
"""The first operator set whose operators broadcast."""
GOOD_OPSET = 13
"""The first operator set in which all that quantisers write is valid."""
CONVERT = f"convert {{}} with onnx.version_converter.convert_version(model, {GOOD_OPSET})"
CONSTANTS_NEED_NO_INPUT = 4
"""The first IR version in which initializers need not be among the inputs of the graph."""


class Constant(NamedTuple):
    """A tensor that does not change: the name of its initializer or Constant output, and its value."""

    name: str
    tensor: onnx.TensorProto


def load_model(path: str | Path) -> onnx.ModelProto:
    """Read the ONNX file at `path` with its external data. Raises `UsageError`, `MissingDependencyError`.

    A model of IR version 3 must list its initializers among its inputs; one that does not, as quantisers write it, is
    read as IR version 4, where it means the same.
    """
    library = require("onnx", "onnx")
    try:
        model: onnx.ModelProto = library.load(str(path), format="protobuf")
    except OSError as error:
        raise UsageError(f"cannot read the ONNX model {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:
        raise UsageError(f"{path} is not an ONNX model, or its data is missing: {first_line(error)}") from error
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise UsageError(f"{path} is not an ONNX model: it has no version, operator set or graph with outputs")
    if model.ir_version < CONSTANTS_NEED_NO_INPUT:
        inputs = {each.name for each in model.graph.input}
        if any(tensor.name not in inputs for tensor in model.graph.initializer):
            model.ir_version = CONSTANTS_NEED_NO_INPUT
    return model


def check_opset(model: onnx.ModelProto, path: str | Path, oldest: int = OLDEST_OPSET) -> None:
    """Raise `UsageError` unless the operator set of `model` is the `oldest` or a later one."""
    version = opset(model)
    if version < oldest:
        fails = ", which fails where operators broadcast: then export it again" if version < OLDEST_OPSET else ""
        raise UsageError(
            f"{path} has the operator set {version}; expected {oldest} or later: {CONVERT.format('it')}{fails}"
        )


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators of `model`; the oldest if it has none."""
    return next((each.version for each in model.opset_import if each.domain in STANDARD_DOMAINS), OLDEST_OPSET)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model`, to change."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def constants(initializers: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> dict[str, Constant]:
    """Tensor name → constant: initializers, Constant nodes, and either of them behind Identity nodes."""
    found = {tensor.name: Constant(tensor.name, tensor) for tensor in initializers}
    for node in nodes:
        if node.op_type == "Constant":
            name = node.output[0]
            found |= {name: Constant(name, entry.t) for entry in node.attribute if entry.name == "value"}  # noqa: B035
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of `node`, name → value."""
    value = require("onnx", "onnx").helper.get_attribute_value
    return {attribute.name: value(attribute) for attribute in node.attribute}


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, onnx.GraphProto]]:
    """(node, graph) for every graph inside one of `nodes`, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield node, inner
                yield from subgraphs(inner.node)


def producers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Tensor name → the node that outputs it."""
    return {output: node for node in nodes for output in node.output if output}


def label(node: onnx.NodeProto) -> str:
    """What `node` is called: its name, its first output, or its operator."""
    return str(node.name or next(filter(None, node.output), "") or node.op_type)
