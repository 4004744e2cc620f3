"""The linear layers of an ONNX graph: the input, the weight and the output channels of each, and its name.

Recording and correcting both start here, so a layer has one name in the store, in the correctors and in the
model. Every linear operator is either a layer or left out with a reason; none is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UsageError, first_line, require
from ...layouts import Geometry
from ...quantization import fake_quantize
from ...storage.names import layer_names, safe_name
from .constants import computed_constants

if TYPE_CHECKING:
    import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
WEIGHT_DTYPES = ("float16", "float32", "float64")
CONVOLUTION_LAYOUTS = {3: "OIW", 4: "OIHW", 5: "OIDHW"}
TRANSPOSED_LAYOUTS = {3: "IOW", 4: "IOHW", 5: "IODHW"}
UNSUPPORTED_OPS = frozenset(
    {
        "ConvInteger",
        "DeformConv",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "LSTM",
        "MatMulInteger",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    }
)


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    `input` is the tensor whose channels, on `channel_axis`, the weight multiplies. `weight` (floating-point)
    is in `layout`, a word of `MeanBiasCorrector.calculate`, as are `groups` and `strides` (None unless
    transposed). `weight_name` is that of the initializer or of the Constant's output; `output_axis` is the
    weight's axis of output channels (of a group, for a transposed convolution).
    """

    name: str
    node: onnx.NodeProto
    input: str
    channel_axis: int
    weight_name: str
    weight: npt.NDArray[Any]
    layout: str
    output_axis: int
    groups: int = 1
    strides: tuple[int, ...] | None = None

    @property
    def op(self) -> str:
        """The operator: Conv, ConvTranspose, Gemm or MatMul."""
        return str(self.node.op_type)

    @property
    def outputs(self) -> int:
        """Output channels over all groups."""
        channels: int = self.weight.shape[self.output_axis]
        return channels * self.groups if self.op == "ConvTranspose" else channels

    def geometry(self, extents: Sequence[int]) -> Geometry | None:
        """How its kernel goes over an input of these `extents` of space; None for a matrix."""
        return geometry(self.node, self.weight.shape[2:], extents) if self.weight.ndim > 2 else None

    def with_weight(self, weight: npt.NDArray[Any]) -> LinearLayer:
        """The same layer with another `weight`, of the same shape."""
        return replace(self, weight=weight)

    def weight_by_output(self) -> npt.NDArray[Any]:
        """The weight with its output channels over all groups on axis 0, and all that each multiplies on axis 1."""
        if self.op != "ConvTranspose":
            return np.moveaxis(self.weight, self.output_axis, 0).reshape(self.outputs, -1)
        grouped = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        return np.moveaxis(grouped, 2, 1).reshape(self.outputs, -1)

    def fake_quantized(self, bits: int, *, per_channel: bool, symmetric: bool) -> npt.NDArray[Any]:
        """The weight on `2^bits` levels for the tensor or for each output channel; same shape and dtype.

        A grouped transposed convolution keeps its output channels as (group, channel of the group), so the
        groups are put on an axis of their own. Raises `UsageError` as `fake_quantize` does.
        """
        if not per_channel:
            return fake_quantize(self.weight, bits, symmetric=symmetric)
        if self.op != "ConvTranspose":
            return fake_quantize(self.weight, bits, axis=self.output_axis, symmetric=symmetric)
        grouped = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        return fake_quantize(grouped, bits, axis=(0, 2), symmetric=symmetric).reshape(self.weight.shape)


@dataclass(frozen=True)
class LeftOut:
    """A linear operator that is not handled, and why."""

    name: str
    op: str
    reason: str


class _NotALayerError(Exception):
    """Carries the reason from where it is noticed to `survey`."""


class Weight(NamedTuple):
    """A constant second input: the name of its initializer or Constant output, or its own if computed; its value."""

    name: str
    value: npt.NDArray[Any]


class Constant(NamedTuple):
    """A tensor that does not change: the name of its initializer or Constant output, and its value."""

    name: str
    tensor: onnx.TensorProto


def load_model(path: str | Path) -> onnx.ModelProto:
    """Read the ONNX file at `path` with its external data. Raises `UsageError`, `MissingDependencyError`."""
    library = require("onnx", "onnx")
    try:
        model: onnx.ModelProto = library.load(str(path), format="protobuf")
    except OSError as error:
        raise UsageError(f"cannot read the ONNX model {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:
        raise UsageError(f"{path} is not an ONNX model, or its data is missing: {first_line(error)}") from error
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise UsageError(f"{path} is not an ONNX model: it has no version, operator set or graph with outputs")
    return model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model to change."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def survey(model: onnx.ModelProto) -> tuple[list[LinearLayer], list[LeftOut]]:
    """(layers of the main graph, linear operators left out): together every linear operator of the model."""
    nodes = [node for node in model.graph.node if _is_linear(node)]
    names = layer_names([node.name or _first_output(node) or node.op_type for node in nodes])
    weights = linear_weights(model, nodes)
    fixed = {*weights, *constants(model.graph.initializer, model.graph.node)}
    found = [_describe(node, name, weights, fixed) for node, name in zip(nodes, names, strict=True)]
    layers = [layer for layer in found if isinstance(layer, LinearLayer)]
    skipped = [layer for layer in found if isinstance(layer, LeftOut)]
    return layers, [*skipped, *_nested(model)]


def linear_weights(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, Weight]:
    """Second input of each of `nodes`, where it is constant → what it is."""
    known = constants(model.graph.initializer, model.graph.node)
    names = {node.input[1] for node in nodes if len(node.input) > 1}
    to_array = require("onnx", "onnx").numpy_helper.to_array
    direct = {
        name: Weight(known[name].name, np.asarray(to_array(known[name].tensor))) for name in names if name in known
    }
    computed = computed_constants(model, names - set(direct))
    return direct | {name: Weight(name, value) for name, value in computed.items()}


def _is_linear(node: onnx.NodeProto) -> bool:
    return node.op_type in UNSUPPORTED_OPS or (node.op_type in _BUILDERS and node.domain in STANDARD_DOMAINS)


def _first_output(node: onnx.NodeProto) -> str:
    return next((str(name) for name in node.output if name), "")


def constants(initializers: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> dict[str, Constant]:
    """Tensor name → constant: initializers, Constant nodes, and what Identity nodes hand on of them."""
    found = {tensor.name: Constant(tensor.name, tensor) for tensor in initializers}
    for node in nodes:
        if node.op_type == "Constant":
            name = node.output[0]
            found |= {name: Constant(name, entry.t) for entry in node.attribute if entry.name == "value"}  # noqa: B035
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _describe(
    node: onnx.NodeProto, name: str, weights: Mapping[str, Weight], fixed: Container[str]
) -> LinearLayer | LeftOut:
    try:
        if node.op_type in UNSUPPORTED_OPS:
            raise _NotALayerError(f"{node.op_type} is not supported")
        return _BUILDERS[node.op_type](node, name, *_weight(node, weights, fixed))
    except _NotALayerError as reason:
        return LeftOut(name, node.op_type, str(reason))


def _weight(node: onnx.NodeProto, weights: Mapping[str, Weight], fixed: Container[str]) -> Weight:
    """The second input. Raises `_NotALayerError` unless it is constant and real, and the first is neither."""
    if len(node.input) < 2:
        raise _NotALayerError("it has fewer than two inputs")
    if node.input[0] in fixed:
        raise _NotALayerError(f"its input {node.input[0]} is a constant")
    if node.input[1] not in weights:
        raise _NotALayerError(f"its weight {node.input[1]} is computed, not constant; fold the constants on exporting")
    weight = weights[node.input[1]]
    if weight.value.dtype.name not in WEIGHT_DTYPES:
        expected = ", ".join(WEIGHT_DTYPES)
        raise _NotALayerError(f"its weight {weight.name} is {weight.value.dtype.name}; expected {expected}")
    return weight


def _convolution(node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any]) -> LinearLayer:
    layout, groups = _layout(weight, CONVOLUTION_LAYOUTS), int(attributes(node).get("group", 1))
    _check_groups(groups, weight.shape[0], "output")
    return LinearLayer(
        name=name,
        node=node,
        input=node.input[0],
        channel_axis=1,
        weight_name=weight_name,
        weight=weight,
        layout=layout,
        output_axis=0,
        groups=groups,
    )


def _transposed(node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any]) -> LinearLayer:
    layout, groups = _layout(weight, TRANSPOSED_LAYOUTS), int(attributes(node).get("group", 1))
    _check_groups(groups, weight.shape[0], "input")
    strides = tuple(attributes(node).get("strides", (1,) * (weight.ndim - 2)))
    return LinearLayer(
        name=name,
        node=node,
        input=node.input[0],
        channel_axis=1,
        weight_name=weight_name,
        weight=weight,
        layout=layout,
        output_axis=1,
        groups=groups,
        strides=strides,
    )


def _gemm(node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any]) -> LinearLayer:
    if attributes(node).get("transA", 0):
        raise _NotALayerError("transA=1: its samples are not on axis 0")
    layout = "OI" if attributes(node).get("transB", 0) else "IO"
    return _matrix(node, name, weight_name, weight, layout)


def _matmul(node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any]) -> LinearLayer:
    return _matrix(node, name, weight_name, weight, "IO")


def _matrix(node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any], layout: str) -> LinearLayer:
    return LinearLayer(
        name=name,
        node=node,
        input=node.input[0],
        channel_axis=-1,
        weight_name=weight_name,
        weight=weight,
        layout=_layout(weight, {2: layout}),
        output_axis=layout.index("O"),
    )


_BUILDERS: Mapping[str, Callable[[Any, str, str, npt.NDArray[Any]], LinearLayer]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def geometry(node: onnx.NodeProto, kernel: Sequence[int], extents: Sequence[int]) -> Geometry:
    """Strides, padding and dilations of a convolution over an input of these `extents`, whatever says them."""
    found, spatial = attributes(node), len(kernel)
    strides, dilations = (tuple(found.get(name, (1,) * spatial)) for name in ("strides", "dilations"))
    ends = tuple(found.get("output_padding", (0,) * spatial))
    pads = tuple(found.get("pads", (0,) * 2 * spatial))
    automatic = found.get("auto_pad", b"NOTSET").decode()
    if automatic == "VALID":
        pads = (0,) * 2 * spatial
    transposed = node.op_type == "ConvTranspose"
    if automatic.startswith("SAME") or (transposed and "output_shape" in found):
        axes = zip(kernel, extents, strides, dilations, ends, strict=True)
        if transposed:
            wanted = found.get("output_shape", [n * s for n, s in zip(extents, strides, strict=True)])[-spatial:]
            reached = [s * (n - 1) + e + d * (k - 1) + 1 for k, n, s, d, e in axes]
            totals = [max(0, r - w) for r, w in zip(reached, wanted, strict=True)]
        else:
            totals = [max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n) for k, n, s, d, _ in axes]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        # SAME_LOWER, and a transposed convolution without auto_pad, have the larger half at the beginning
        first = less if automatic == "SAME_UPPER" else more
        pads = (*first, *(more if first is less else less))
    return Geometry(strides, pads, dilations, ends)


def build_layer(
    op: str, node: onnx.NodeProto, name: str, weight_name: str, weight: npt.NDArray[Any]
) -> LinearLayer | LeftOut:
    """The layer that `node` is, which does what `op` does, with this weight."""
    try:
        return _BUILDERS[op](node, name, weight_name, weight)
    except _NotALayerError as reason:
        return LeftOut(name, node.op_type, str(reason))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of `node`, name → value."""
    value = require("onnx", "onnx").helper.get_attribute_value
    return {attribute.name: value(attribute) for attribute in node.attribute}


def _layout(weight: npt.NDArray[Any], layouts: Mapping[int, str]) -> str:
    if weight.ndim not in layouts:
        expected = " or ".join(map(str, layouts))
        raise _NotALayerError(f"its weight has the shape {weight.shape}; expected {expected} axes")
    return layouts[weight.ndim]


def _check_groups(groups: int, channels: int, side: str) -> None:
    if groups < 1 or channels % groups:
        raise _NotALayerError(f"its {channels} {side} channels do not divide into {groups} groups")


def _nested(model: onnx.ModelProto) -> Iterator[LeftOut]:
    """Linear operators in the branches of If, the bodies of Loop and Scan, and the model's own functions."""
    for owner, graph in subgraphs(model.graph.node):
        yield from _unreached(
            graph.node, f"it is in a subgraph of the {owner.op_type} {owner.name or _first_output(owner)}"
        )
    for function in model.functions:
        yield from _unreached(function.node, f"it is in the function {function.name}; inline functions on exporting")


def _unreached(nodes: Sequence[onnx.NodeProto], reason: str) -> Iterator[LeftOut]:
    for node in filter(_is_linear, nodes):
        yield LeftOut(safe_name(node.name or _first_output(node) or node.op_type), node.op_type, reason)


def subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[onnx.NodeProto, onnx.GraphProto]]:
    """(node, graph) for every graph that a node of `nodes` holds, at any depth."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield node, inner
                yield from subgraphs(inner.node)
