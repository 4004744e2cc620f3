"""Editing an ONNX graph: adding constants and nodes, removing what nothing uses any more, keeping every name unique.

A constant is never changed in place. Its users stop reading it, it is removed if no user is left, and the new constant
takes its name if that is free by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import require
from .graph import Constant, constants, subgraphs

if TYPE_CHECKING:
    import onnx

NEWEST_IR_WITH_INITIALIZERS_AS_INPUTS = 3


class GraphEdit:
    """The main graph of `model` while it is edited; `finish` returns the model, changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = model.graph
        self._nodes = list(model.graph.node)
        self._by_output: dict[str, onnx.NodeProto] = {node.output[0]: node for node in self._nodes if node.output}
        self._names = set(_tensor_names(model.graph))

    def node(self, output: str) -> onnx.NodeProto:
        """The node whose first output was `output` before the edit."""
        return self._by_output[output]

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of the tensor `name`, or None if it is not constant."""
        found = self._constants().get(name)
        return None if found is None else np.asarray(require("onnx", "onnx").numpy_helper.to_array(found.tensor))

    def replace_input(self, nodes: Sequence[onnx.NodeProto], index: int, value: npt.NDArray[Any], label: str) -> None:
        """Make all `nodes` read the constant `value` at input `index`, under a name like `label`."""
        before = []
        for node in nodes:
            node.input.extend([""] * (index + 1 - len(node.input)))
            before.append(node.input[index])
            node.input[index] = ""
        for name in filter(None, dict.fromkeys(before)):
            self._drop_unused(name)
        name = self._add_constant(value, label)
        for node in nodes:
            node.input[index] = name

    def add_before(self, node: onnx.NodeProto, index: int, value: npt.NDArray[Any], label: str) -> None:
        """Add the constant `value` to the tensor at input `index` of `node`."""
        total = self._fresh(f"{label}.sum")
        self._insert_add(self._place(node), node.input[index], self._add_constant(value, label), total)
        node.input[index] = total

    def add_behind(self, node: onnx.NodeProto, value: npt.NDArray[Any], label: str) -> None:
        """Add the constant `value` to the first output of `node`; the sum takes the output's name."""
        output = node.output[0]
        node.output[0] = self._fresh(f"{output}.without_bias")
        self._insert_add(self._place(node) + 1, node.output[0], self._add_constant(value, label), output)

    def users(self, name: str) -> int:
        """How many node inputs, subgraph inputs and graph outputs read the tensor `name`."""
        readers = [each for node in self._nodes for each in node.input]
        inner = [each for _, graph in subgraphs(self._nodes) for node in graph.node for each in node.input]
        return [*readers, *inner, *(output.name for output in self._graph.output)].count(name)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that outputs the tensor `name`, if there is one."""
        return next((node for node in self._nodes if name in node.output), None)

    def insert_before(
        self, node: onnx.NodeProto, op: str, inputs: Sequence[str | npt.NDArray[Any]], label: str, **attributes: Any
    ) -> str:
        """Insert a node before `node`; the name of its output, like `label`. Inputs are names, or constants."""
        names = [
            each if isinstance(each, str) else self._add_constant(each, f"{label}.{place}")
            for place, each in enumerate(inputs)
        ]
        output = self._fresh(label)
        made = require("onnx", "onnx").helper.make_node(op, names, [output], name=f"{output}.{op}", **attributes)
        self._nodes.insert(self._place(node), made)
        return output

    def rewire(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Make input `index` of `node` read the tensor `name`, and drop what nothing reads any more."""
        node.input.extend([""] * (index + 1 - len(node.input)))
        before, node.input[index] = node.input[index], name
        if before:
            self._drop_unread(before)

    def _drop_unread(self, name: str) -> None:
        """If nothing reads `name`, remove the node that outputs it, and what only that node reads."""
        producer = self.producer(name)
        if producer is None:
            self._drop_unused(name)
        elif self.users(name) == 0 and len(producer.output) == 1:
            self._nodes = [node for node in self._nodes if node is not producer]
            for source in dict.fromkeys(producer.input):
                self._drop_unread(source)

    def replace(self, node: onnx.NodeProto, op: str, inputs: Sequence[str]) -> None:
        """Replace `node` by another operation with the same outputs."""
        position = self._place(node)
        made = require("onnx", "onnx").helper.make_node(op, list(inputs), list(node.output), name=node.name)
        before = [name for name in node.input if name not in inputs]
        self._nodes[position] = made
        for name in filter(None, dict.fromkeys(before)):
            self._drop_unused(name)

    def _constants(self) -> dict[str, Constant]:
        return constants(self._graph.initializer, self._nodes)

    def finish(self) -> onnx.ModelProto:
        """The edited model."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        return self._model

    def _insert_add(self, place: int, left: str, right: str, output: str) -> None:
        self._nodes.insert(
            place, require("onnx", "onnx").helper.make_node("Add", [left, right], [output], name=f"{right}.add")
        )

    def _place(self, node: onnx.NodeProto) -> int:
        return next(place for place, other in enumerate(self._nodes) if other is node)

    def _fresh(self, label: str) -> str:
        name, number = label, 2
        while name in self._names:
            name, number = f"{label}_{number}", number + 1
        self._names.add(name)
        return name

    def _add_constant(self, value: npt.NDArray[Any], label: str) -> str:
        onnx = require("onnx", "onnx")
        contiguous = np.asarray(value, order="C")  # np.ascontiguousarray makes a scalar a vector
        tensor = onnx.numpy_helper.from_array(contiguous, self._fresh(label))
        self._graph.initializer.append(tensor)
        if self._model.ir_version <= NEWEST_IR_WITH_INITIALIZERS_AS_INPUTS:
            self._graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return str(tensor.name)

    def _drop_unused(self, name: str) -> None:
        """Remove `name` if it is a constant that nothing uses, and the constant that it is the Identity of."""
        if name not in self._constants() or name in _uses(self._graph, self._nodes):
            return
        for kind in (self._graph.initializer, self._graph.input, self._graph.value_info):
            for place in reversed([place for place, entry in enumerate(kind) if entry.name == name]):
                del kind[place]
        self._names.discard(name)
        for node in [node for node in self._nodes if list(node.output) == [name]]:
            self._nodes = [other for other in self._nodes if other is not node]
            for source in node.input:
                self._drop_unused(source)


def _uses(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """The tensors that a node, a subgraph or the caller of the model reads."""
    used = {output.name for output in graph.output}
    for node in nodes:
        used.update(node.input)
        for _, inner in subgraphs([node]):
            used.update(output.name for output in inner.output)
            used.update(name for inner_node in inner.node for name in inner_node.input)
    return used


def _tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of all tensors in `graph` and its subgraphs."""
    for each in [graph, *(inner for _, inner in subgraphs(graph.node))]:
        for entry in [*each.initializer, *each.input, *each.output, *each.value_info]:
            yield entry.name
        yield from (sparse.values.name for sparse in each.sparse_initializer)
        for node in each.node:
            yield from [*node.input, *node.output]
