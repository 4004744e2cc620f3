"""A quantised model in plain arithmetic: the same codes and the same rounding, but every product in floats.

Kernels that multiply 8-bit codes saturate on processors without VNNI, and runtimes also fuse operators between
DequantizeLinear and QuantizeLinear into such kernels. The inputs and outputs of layers are therefore measured in a
model without operators on codes, run without optimisations: the same values on every machine, up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import require
from .constants import computed_constants
from .graph import attributes, copied, producers, subgraphs
from .layers import OnnxLayer
from .quantized import BIAS, ON_CODES, WEIGHT_SCALE, quantized_layers

if TYPE_CHECKING:
    import onnx

INPUT_SCALE, INPUT_ZERO_POINT = 1, 2
OUTPUT_SCALE = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
INT32 = 6
"""The ONNX number of this tensor type."""


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A model in floats, with names of the quantised model → names in this model.

    `inputs` maps the first output of a linear node to the tensor that its weight multiplies; `outputs` maps any tensor
    to the one that it was rounded from, or to itself.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def plainly(quantized: onnx.ModelProto) -> PlainModel:
    """A copy of `quantized` without operators on codes."""
    layers, _ = quantized_layers(quantized)
    by_output = {layer.node.output[0]: layer for layer in layers}
    made = _Making(quantized)
    model = copied(quantized)
    nodes = [each for node in model.graph.node for each in made.nodes(node, by_output.get(next(iter(node.output), "")))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(made.constants)
    outputs = {name: name for node in nodes if node.op_type not in ON_CODES for name in node.output}
    outputs |= {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    inputs = {name: layer.node.input[0] for name, layer in by_output.items() if layer.node.op_type not in ON_CODES}
    return PlainModel(model, inputs | made.inputs, outputs | made.outputs)


class _Making:
    """The nodes that replace those on codes, and the constants that they read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        on_codes = [node for node in model.graph.node if node.op_type in (*ON_CODES, "MatMulInteger")]
        self._known = computed_constants(model, [name for node in on_codes for name in node.input])
        self.constants: list[Any] = []
        self._wide = set[str]()
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}

    def nodes(self, node: onnx.NodeProto, layer: OnnxLayer | None) -> Iterator[onnx.NodeProto]:
        """`node`, or the nodes that replace it."""
        if node.op_type == "MatMulInteger" and node.input[1] in self._known:
            yield from self._integer_product(node)
        elif node.op_type in ON_CODES and layer is not None and self._is_plain(node):
            yield from self._product(node, layer)
        else:
            yield node

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        bias = self._bias(node)
        return attributes(node).get("alpha", 1.0) == 1.0 and all(
            name in self._known for name in (node.input[INPUT_SCALE], node.input[WEIGHT_SCALE], bias) if name
        )

    def _bias(self, node: onnx.NodeProto) -> str:
        place = BIAS.get(node.op_type, len(node.input))
        return str(node.input[place]) if len(node.input) > place else ""

    def _product(self, node: onnx.NodeProto, layer: OnnxLayer) -> Iterator[onnx.NodeProto]:
        make = require("onnx", "onnx").helper.make_node
        name = node.output[0]
        real, rounded = f"{name}/real", [each for each in node.input[OUTPUT_SCALE[node.op_type] :][:2] if each]
        self.inputs[name] = f"{name}/input"
        self.outputs[name] = real if rounded else name
        reads = [self.inputs[name], self._constant(f"{name}/weight", layer.weight)]
        if bias := self._bias(node):
            scales = self._known[node.input[INPUT_SCALE]].astype(np.float64) * self._known[node.input[WEIGHT_SCALE]]
            reads.append(self._constant(f"{name}/bias", self._known[bias] * scales.reshape(-1)))
        codes, scale, *zero = node.input[: INPUT_ZERO_POINT + 1]
        yield make("DequantizeLinear", [codes, self._of_float32(scale), *zero], [self.inputs[name]])
        yield make(ON_CODES[node.op_type], reads, [self.outputs[name]], name=node.name, **attributes(node))
        if rounded:
            yield make("QuantizeLinear", [real, self._of_float32(rounded[0]), *rounded[1:]], [name])

    def _of_float32(self, scale: str) -> str:
        """The name of a `scale` of float32: reals are of float32 here."""
        value, name = self._known.get(scale), f"{scale}/float32"
        if value is None or value.dtype == np.float32:
            return scale
        if name not in self._wide:
            self._wide.add(self._constant(name, value))
        return name

    def _integer_product(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        make = require("onnx", "onnx").helper.make_node
        name = node.output[0]
        weight = self._known[node.input[1]].astype(np.float64)
        if len(node.input) > 3 and node.input[3]:
            weight = weight - self._known[node.input[3]]
        reads = [node.input[0], self._constant(f"{name}/one", np.float64(1.0)), *filter(None, node.input[2:3])]
        yield make("DequantizeLinear", reads, [f"{name}/input"])
        yield make("MatMul", [f"{name}/input", self._constant(f"{name}/weight", weight)], [f"{name}/real"])
        yield make("Cast", [f"{name}/real"], [name], to=INT32)

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        tensor = require("onnx", "onnx").numpy_helper.from_array(np.asarray(value, np.float32), name)
        self.constants.append(tensor)
        return name


def only(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """`model`, changed in place: with `tensors` as outputs, without the nodes and constants that they do not need."""
    onnx = require("onnx", "onnx")
    wanted = list(dict.fromkeys(tensors))
    needed = _needed(model, wanted)
    kept = [node for node in model.graph.node if needed.intersection(node.output)]
    dropped = [place for place, tensor in enumerate(model.graph.initializer) if tensor.name not in needed]
    for place in reversed(dropped):  # a list of tensors of more than 2 GB cannot be put back
        del model.graph.initializer[place]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(kept)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return model


def _needed(model: onnx.ModelProto, wanted: Iterable[str]) -> set[str]:
    """The tensors that `wanted` depend on, also through subgraphs, and `wanted`."""
    made_by, needed, waiting = producers(model.graph.node), set[str](), list(wanted)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        node = made_by.get(name)
        if node is not None:
            waiting.extend(node.input)
            waiting.extend(each for _, graph in subgraphs([node]) for inner in graph.node for each in inner.input)
    return needed
