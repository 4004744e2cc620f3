"""How far the mean outputs of each layer of a quantised ONNX model are from those of the float model, by onnxruntime.

Each layer is computed with the stored weights and biases from what the float model hands to it. The models are compared
by the names of their tensors; scales, codes and folded operators are read from the graphs by their definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ON_CODES = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
OUTPUT_SCALE = {
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QGemm": 7,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QLinearConcat": 0,
    "QLinearSigmoid": 3,
    "QLinearSoftmax": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearAveragePool": 3,
}
"""Operator on codes → which of its inputs is the scale of its output."""
BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
SAME_CODES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity", "Slice", "Gather")
"""Operators whose outputs are codes of the scale of their input."""
LIMITS = ("Relu", "Clip")
"""Operators that a range of codes may take over."""
SUFFIXES = ("_quantized", "_QuantizeLinear_Input")
FOLDED = ("BatchNormalization", "Add", "Mul", "Div", "Sub", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
FLOAT32 = 1e-5
"""The error of float32 in means of outputs, as a share of the largest output."""


@dataclass(frozen=True)
class Shift:
    """The largest distance between the mean outputs of one layer in both models, and the `step` of its bias there.

    `tolerance` is the error of floats; a bias of floats has the step 0.
    """

    layer: str
    distance: float
    step: float
    tolerance: float

    @property
    def errors(self) -> float:
        """The distance, as a multiple of what rounding the bias once, and floats, may leave."""
        return self.distance / (self.step / 2 + self.tolerance)

    @property
    def is_undone(self) -> bool:
        """Whether no more is left than rounding the bias once leaves."""
        return self.errors <= 1


def linear_nodes(path: Path) -> list[str]:
    """The names of all nodes of a float model that multiply by constant matrices or kernels."""
    model = onnx.load(path)
    constants = folded(model)
    return [each.name for each in model.graph.node if multiplies(each, constants)]


def multiplies(node: Any, constants: Iterable[str]) -> bool:
    """Whether `node` multiplies something that varies by a constant."""
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return True
    if node.op_type not in (*PRODUCTS, "Einsum"):
        return False
    return node.input[1] in constants and node.input[0] not in constants


def activations(path: Path, x: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of the float model at `path` over the samples `x`."""
    model = onnx.load(path)
    constants = folded(model)
    names = [name for node in model.graph.node for name in node.output if name and name not in constants]
    outputs = ran(with_outputs(model, names), x)
    return {**x, **{name: value for name, value in outputs.items() if value is not None}}


def shifts(
    float_path: Path, quantized_path: Path, tensors: Mapping[str, Array], x: Mapping[str, Array] | None = None
) -> dict[str, Shift]:
    """Name of a node of the float model → the shift of its mean outputs in the quantised model.

    With samples `x`, the whole quantised model runs, so that each layer reads what earlier ones make of them.
    """
    run_as_it_is = None if x is None else activations(quantized_path, x)
    original = onnx.load(float_path)
    limits = {node.output[0]: node.input[0] for node in original.graph.node if node.op_type in LIMITS}
    graph, owners, found = Plain(onnx.load(quantized_path), tensors, limits), owners_of(original), {}
    for node in graph.products():
        output = graph.known_behind(node)
        wanted = output if output in owners else limits.get(output or "")
        if output is None or wanted not in owners:
            continue
        value = graph.value_of(output) if run_as_it_is is None else _unrounded(run_as_it_is, output)
        axis = 1 if node.op_type.startswith("Conv") else -1
        distance = np.abs(means(value, axis) - means(tensors[wanted], axis)).max()
        tolerance = FLOAT32 * float(np.abs(tensors[wanted]).max())
        found[owners[wanted]] = Shift(owners[wanted], float(distance), graph.steps.get(node.output[0], 0.0), tolerance)
    return found


def _unrounded(tensors: Mapping[str, Array], name: str) -> Array:
    """The tensor `name` before its rounding to codes, if it is rounded."""
    return next(tensors[each] for each in (name + SUFFIXES[1], name) if each in tensors)


def means(values: Array, axis: int) -> Array:
    """The mean of each channel."""
    axes = tuple(each for each in range(values.ndim) if each != axis % values.ndim)
    return values.astype(np.float64).mean(axis=axes)


def owners_of(model: Any) -> dict[str, str]:
    """Tensor of a float model → the node whose products it is, with or without what follows and may be folded."""
    constants, owners, count = folded(model), {}, {}
    for node in model.graph.node:
        for name in node.input:
            count[name] = count.get(name, 0) + 1
        variable = [name for name in node.input if name and name not in constants]
        if multiplies(node, constants):
            owners[node.output[0]] = node.name
        elif node.op_type in FOLDED and len(variable) == 1 and variable[0] in owners:
            owners[node.output[0]] = owners[variable[0]]
    return owners


class Plain:
    """A quantised model without the rounding of activations: reals take the place of codes.

    `tensors` are those of the float model; `limits` its operators that codes may limit by their range instead.
    """

    def __init__(self, model: Any, tensors: Mapping[str, Array], limits: Mapping[str, str]) -> None:
        self.constants, self.tensors = folded(model), tensors
        made = {name.removesuffix("_quantized") for node in model.graph.node for name in node.output}
        self._limited = {before: after for after, before in limits.items() if after not in made}
        self.opsets = model.opset_import
        self.steps: dict[str, float] = {}
        self._scales: dict[str, Array] = {}
        self._codes = dict(_coded(model))
        self._names: dict[str, str] = {}
        self._known: dict[str, Array] = dict(self.constants)
        self.nodes = [
            each for node in model.graph.node if node.output[0] not in self.constants for each in self._of(node)
        ]
        self.made_by = {name: node for node in self.nodes for name in node.output}

    def products(self) -> list[Any]:
        """The nodes that multiply by constants."""
        return [node for node in self.nodes if multiplies(node, self._known)]

    def known_behind(self, node: Any) -> str | None:
        """The first tensor behind `node` that the float model has, too."""
        name = node.output[0]
        while name not in self.tensors:
            readers = [each for each in self.nodes if name in each.input]
            if len(readers) != 1:
                return None
            name = readers[0].output[0]
        return name

    def value_of(self, output: str) -> Array:
        """The tensor `output`, computed from the nearest ones that the float model has."""
        nodes, inputs, wanted = [], set(), [output]
        while wanted:
            node = self.made_by[wanted.pop()]
            if node in nodes:
                continue
            nodes.append(node)
            for name in filter(None, node.input):
                if name in self._known:
                    continue
                if name in self.tensors:
                    inputs.add(name)
                else:
                    wanted.append(name)
        ordered = [node for node in self.nodes if node in nodes]
        used = {name for node in ordered for name in node.input}
        given = {name: self.tensors[name] for name in inputs}
        model = small_model(ordered, {n: v for n, v in self._known.items() if n in used}, given, [output], self.opsets)
        return ran(model, given)[output]

    def _of(self, node: Any) -> Iterable[Any]:
        """What `node` is on reals."""
        kind = node.op_type
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            yield from self._alias(node)
            return
        if kind in OUTPUT_SCALE:
            self._scales[node.output[0]] = self.constants[node.input[OUTPUT_SCALE[kind]]]
        if kind in ON_CODES and node.input[3] in self.constants:
            yield self._product(node)
            return
        if kind == "MatMulInteger" and node.input[1] in self.constants:
            yield from self._integers(node)
            return
        if kind in SAME_CODES and (scale := self._scale_of(node.input[0])) is not None:
            self._scales[node.output[0]] = scale
        made = onnx.NodeProto.FromString(node.SerializeToString())
        made.input[:] = [self._read(name) for name in node.input]
        made.output[:] = [self._real(name) for name in node.output]
        if kind in BIAS and len(node.input) > 2 and node.input[2] in self._codes:
            self.steps[made.output[0]] = float(np.max(self.constants[self._codes[node.input[2]]]))
        yield made

    def _alias(self, node: Any) -> Iterable[Any]:
        """Codes of a tensor, or what they stand for, are that tensor; one under a new name gets its old one."""
        name, output = self._real(node.input[0]), self._real(node.output[0])
        self._scales[node.output[0]] = self.constants[node.input[1]]
        if name not in self.tensors and output in self.tensors:
            yield helper.make_node("Identity", [name], [output])
        else:
            self._names[node.output[0]] = name

    def _product(self, node: Any) -> Any:
        """The operator on reals that `node` is on codes."""
        values = [self.constants.get(name) for name in node.input]
        x_scale, codes, scale, zero = values[1], values[3], values[4], values[5]
        kind, output = ON_CODES[node.op_type], self._real(node.output[0])
        axis = 0 if kind == "Conv" or any(each.name == "transB" and each.i for each in node.attribute) else -1
        weight = (codes.astype("f8") - along(zero, axis, codes.ndim)) * along(scale, axis, codes.ndim)
        place = {"Conv": 8, "Gemm": 6}.get(kind, len(node.input))
        inputs = [self._read(node.input[0]), self._constant(f"{output}/weight", weight)]
        if len(node.input) > place and node.input[place]:
            step = float(np.max(x_scale)) * scale.astype("f8").reshape(-1)
            inputs.append(self._constant(f"{output}/bias", self.constants[node.input[place]] * step))
            self.steps[output] = float(step.max())
        made = helper.make_node(kind, inputs, [output], name=node.name)
        made.attribute.extend(node.attribute)
        return made

    def _integers(self, node: Any) -> Iterable[Any]:
        """A product of codes without their scales."""
        codes, zero = self.constants[node.input[1]], self.constants[node.input[3]]
        scale = self._constant(f"{node.output[0]}/scale", 1 / self._scales[node.input[0]].astype("f8").reshape(-1)[:1])
        weight = self._constant(f"{node.output[0]}/weight", codes.astype("f8") - along(zero, -1, codes.ndim))
        yield helper.make_node("Mul", [self._read(node.input[0]), scale], [f"{node.output[0]}/x"])
        yield helper.make_node("MatMul", [f"{node.output[0]}/x", weight], [node.output[0]], name=node.name)

    def _scale_of(self, codes: str) -> Array | None:
        """The scale of `codes`; that of constant ones has the name that onnxruntime gives it."""
        return self._scales.get(codes, self.constants.get(f"{codes.removesuffix('_quantized')}_scale"))

    def _constant(self, name: str, value: Array) -> str:
        self._known[name] = value.astype(np.float32)
        return name

    def _read(self, name: str) -> str:
        """The tensor of reals that a reader of `name` gets: limited, if only the range of its codes does that."""
        seen = self._real(name)
        return self._limited.get(seen, seen)

    def _real(self, name: str) -> str:
        """The tensor of reals that `name` stands for."""
        seen = self._names.get(name, name)
        for suffix in SUFFIXES:
            if seen not in self.tensors and seen.removesuffix(suffix) in self.tensors:
                return seen.removesuffix(suffix)
        return seen


def _coded(model: Any) -> Iterable[tuple[str, str]]:
    """Output → scale of every DequantizeLinear."""
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            yield node.output[0], node.input[1]


def along(values: Array, axis: int, ndim: int) -> Array:
    """`values` as they broadcast along `axis`."""
    values = np.asarray(values, np.float64)
    return values.reshape([-1 if each == axis % ndim else 1 for each in range(ndim)] if values.size > 1 else ())


def folded(model: Any) -> dict[str, Array]:
    """Every tensor of `model` that does not depend on its inputs, computed by onnxruntime."""
    known = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    constant, nodes = set(known), []
    for node in model.graph.node:
        if all(name in constant for name in node.input if name) and not any(each.g.node for each in node.attribute):
            nodes.append(node)
            constant.update(filter(None, node.output))
    names = [name for node in nodes for name in node.output if name]
    if not names:
        return known
    used = {name: value for name, value in known.items() if any(name in node.input for node in nodes)}
    return known | ran(small_model(nodes, used, {}, names, model.opset_import), {})


def small_model(
    nodes: Sequence[Any], constants: Mapping[str, Array], x: Mapping[str, Array], outputs: Sequence[str], opsets: Any
) -> Any:
    """A model of `nodes`."""
    graph = helper.make_graph(
        list(nodes),
        "part",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in x.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=10)


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """`model` with the tensors `names` as its outputs."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def ran(model: Any, x: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of `model`, run as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: v for k, v in x.items() if k in inputs}), strict=True))
