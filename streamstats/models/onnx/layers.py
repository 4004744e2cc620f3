"""The linear layers of an ONNX graph: the input, the weight and the output channels of each, and its name.

Recording and correcting both start here, so a layer has one name in the store, in the correctors and in the model.
Every linear operator is either a layer or left out with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import require
from ...layouts import TRANSPOSED, Geometry, Kernel
from ...quantization import fake_quantize, quantization_step, weight_codes
from ...storage.names import layer_names, safe_name
from ..grids import Channels, channels_of
from ..linear import LinearLayer
from .constants import computed_constants
from .geometry import depends_on_extents, geometry_over, stated_geometry
from .graph import STANDARD_DOMAINS, attributes, constants, label
from .operators import Operator, operators
from .unsupported import LOOKUP, PRODUCT, unsupported

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

WEIGHT_DTYPES = ("float16", "float32", "float64")
CONVOLUTION_LAYOUTS = {3: "OIW", 4: "OIHW", 5: "OIDHW"}
TRANSPOSED_LAYOUTS = {3: "IOW", 4: "IOHW", 5: "IODHW"}


@dataclass(frozen=True, eq=False, kw_only=True)
class OnnxLayer(LinearLayer):
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    `input` is the tensor whose channels, on `channel_axis`, the weight multiplies. `weight_name` is the name of the
    weight's initializer or Constant output; `output_axis` is the weight's axis of output channels (those of one group,
    for a transposed convolution).
    """

    node: onnx.NodeProto
    input: str
    channel_axis: int
    weight_name: str
    output_axis: int
    geometry: Geometry

    @property
    def op(self) -> str:
        """The operator: Conv, ConvTranspose, Gemm or MatMul."""
        return str(self.node.op_type)

    @property
    def outputs(self) -> int:
        """Output channels over all groups."""
        channels: int = self.weight.shape[self.output_axis]
        return channels * self.groups if self.op == "ConvTranspose" else channels

    @property
    def known_geometry(self) -> Geometry | None:
        """As `LinearLayer.known_geometry`."""
        return None if depends_on_extents(self.node) else self.geometry

    def kernel_over(self, extents: Sequence[int]) -> Kernel:
        """The kernel that moves over an input of these spatial `extents`; that of a matrix has no taps."""
        taps = self.weight.shape[2:]
        if not taps:
            return Kernel()
        return Kernel(taps, geometry_over(self.node, taps, extents), self.layout in TRANSPOSED, self.groups)

    def with_weight(self, weight: Array) -> OnnxLayer:
        """The same layer with another `weight`, of the same shape."""
        return replace(self, weight=weight)

    def scaled(self, factors: Array) -> Array:
        """The weight with each output channel multiplied by its factor, float64; `factors` float64[outputs]."""
        weight = self.weight.astype(np.float64)
        if self.op != "ConvTranspose":
            return weight * factors.reshape([-1 if axis == self.output_axis else 1 for axis in range(weight.ndim)])
        spatial = (1,) * (weight.ndim - 2)
        return (self._by_group(weight) * factors.reshape(self.groups, 1, -1, *spatial)).reshape(weight.shape)

    def channels(self) -> Channels:
        """The channels of each element of the weight."""
        return channels_of(self.weight.shape, self.layout, self.groups)

    def fake_quantized(self, bits: int, *, per_channel: bool, symmetric: bool, weight_range: str) -> Array:
        """The weight on `2^bits` levels, per tensor or per output channel; same shape and dtype.

        Raises `UsageError` as `fake_quantize` does.
        """
        weight, axis = self._ranged(per_channel=per_channel)
        rounded = fake_quantize(weight, bits, axis=axis, symmetric=symmetric, weight_range=weight_range)
        return rounded.reshape(self.weight.shape)

    def weight_step(self, bits: int, *, per_channel: bool, symmetric: bool, weight_range: str) -> Array:
        """The distance between these levels, float64[outputs]."""
        weight, axis = self._ranged(per_channel=per_channel)
        step = quantization_step(weight, bits, axis=axis, symmetric=symmetric, weight_range=weight_range).reshape(-1)
        return np.broadcast_to(step, self.outputs).copy() if step.size == 1 else step

    def weight_codes(
        self, bits: int, *, per_channel: bool, symmetric: bool, weight_range: str
    ) -> tuple[Array, Array, Array]:
        """(step, lowest code, highest code) of these levels, float64, each of the shape of the weight."""
        weight, axis = self._ranged(per_channel=per_channel)
        found = weight_codes(weight, bits, axis=axis, symmetric=symmetric, weight_range=weight_range)
        step, lowest, highest = (np.broadcast_to(each, weight.shape).reshape(self.weight.shape) for each in found)
        return step, lowest, highest

    def _ranged(self, *, per_channel: bool) -> tuple[Array, int | tuple[int, ...] | None]:
        """(the weight, the axes of which each index has a range of its own)."""
        if not per_channel:
            return self.weight, None
        if self.op != "ConvTranspose":
            return self.weight, self.output_axis
        return self._by_group(self.weight), (0, 2)

    def _by_group(self, weight: Array) -> Array:
        """The weight of a transposed convolution with its groups on an axis of their own, the first."""
        return weight.reshape(self.groups, -1, *weight.shape[1:])


@dataclass(frozen=True)
class LeftOut:
    """An operator that is not handled, and why; `quantized` if its weight is known to be stored as codes.

    `weights` names the matrices that it reads. `multiplies` is false for an operator without a weight to multiply by.
    `uncorrected` is as in `LayerCorrection`.
    """

    name: str
    op: str
    reason: str
    quantized: bool = False
    weights: tuple[str, ...] = ()
    multiplies: bool = True
    uncorrected: str = ""


class _NotALayerError(Exception):
    """Carries the reason from where it is found to `survey`; `multiplies` as in `LeftOut`."""

    def __init__(self, reason: str, *, multiplies: bool = True) -> None:
        super().__init__(reason)
        self.multiplies = multiplies


class Weight(NamedTuple):
    """A constant second input: the name of its initializer or Constant output, or its own if computed; its value."""

    name: str
    value: Array


def survey(model: onnx.ModelProto, besides: Container[str] = ()) -> tuple[list[OnnxLayer], list[LeftOut]]:
    """(layers of the main graph, operators left out): together every operator of the model that has weights.

    The caller knows better what the nodes with the first outputs in `besides` are.
    """
    every = [*operators(model)]
    linear = [each for each in every if _is_linear(each.node) and not each.place]
    names = layer_names([label(each.node) for each in linear])
    weights = linear_weights(model, [each.node for each in linear])
    found = [_describe(each, name, weights) for each, name in zip(linear, names, strict=True)]
    layers = [layer for layer in found if isinstance(layer, OnnxLayer)]
    left_out = [layer for layer in found if isinstance(layer, LeftOut)]
    others = [
        each
        for each in every
        if (each.place and (each.weights or _is_linear(each.node)))
        or (each.weights and not _is_linear(each.node) and each.node.output[0] not in besides)
    ]
    return layers, [*left_out, *_others(others, names)]


def _others(found: Sequence[Operator], taken: Sequence[str]) -> Iterator[LeftOut]:
    """Each operator in `found`, left out under a name that is not `taken`."""
    names = set(taken)
    for each in found:
        name = unused = safe_name(label(each.node))
        number = 2
        while unused in names:
            unused, number = f"{name}_{number}", number + 1
        names.add(unused)
        reason = unsupported(each)
        multiplies = reason not in (PRODUCT, LOOKUP)
        yield LeftOut(unused, each.node.op_type, reason, each.is_quantized, tuple(each.weights), multiplies)


def linear_weights(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, Weight]:
    """The second input of each of `nodes`, if it is constant → its value."""
    known = constants(model.graph.initializer, model.graph.node)
    names = {node.input[1] for node in nodes if len(node.input) > 1}
    to_array = require("onnx", "onnx").numpy_helper.to_array
    direct = {
        name: Weight(known[name].name, np.asarray(to_array(known[name].tensor))) for name in names if name in known
    }
    computed = computed_constants(model, names - set(direct))
    return direct | {name: Weight(name, value) for name, value in computed.items()}


def build_layer(op: str, node: onnx.NodeProto, name: str, weight_name: str, weight: Array) -> OnnxLayer | LeftOut:
    """The layer that `node` is, which does what `op` does, with this weight."""
    try:
        return _BUILDERS[op](node, name, weight_name, weight)
    except _NotALayerError as reason:
        return LeftOut(name, node.op_type, str(reason))


def _is_linear(node: onnx.NodeProto) -> bool:
    return node.op_type in _BUILDERS and node.domain in STANDARD_DOMAINS


def _describe(each: Operator, name: str, weights: Mapping[str, Weight]) -> OnnxLayer | LeftOut:
    node = each.node
    try:
        return _BUILDERS[node.op_type](node, name, *_weight(each, weights))
    except _NotALayerError as error:
        found = tuple(each.weights)
        return LeftOut(name, node.op_type, str(error), each.is_quantized, found, error.multiplies)


def _weight(each: Operator, weights: Mapping[str, Weight]) -> Weight:
    """The second input. Raises `_NotALayerError` unless it is constant and real, and the first is not constant."""
    node = each.node
    if len(node.input) < 2:
        raise _NotALayerError("it has fewer than two inputs")
    if node.input[0] in each.constants:
        raise _NotALayerError(f"its first input, {node.input[0]}, is the constant; expected a constant second input")
    if node.input[1] not in each.constants:
        raise _NotALayerError(PRODUCT, multiplies=False)
    if node.input[1] not in weights:
        raise _NotALayerError(f"onnxruntime cannot compute its weight {node.input[1]} from the constants of the model")
    weight = weights[node.input[1]]
    if weight.value.dtype.name not in WEIGHT_DTYPES:
        expected = ", ".join(WEIGHT_DTYPES)
        raise _NotALayerError(f"its weight {weight.name} is {weight.value.dtype.name}; expected {expected}")
    return weight


def _convolution(node: onnx.NodeProto, name: str, weight_name: str, weight: Array) -> OnnxLayer:
    layout = _layout(weight, CONVOLUTION_LAYOUTS)
    return _with_kernel(node, name, weight_name, weight, layout, side="output")


def _transposed(node: onnx.NodeProto, name: str, weight_name: str, weight: Array) -> OnnxLayer:
    layout = _layout(weight, TRANSPOSED_LAYOUTS)
    return _with_kernel(node, name, weight_name, weight, layout, side="input")


def _with_kernel(
    node: onnx.NodeProto, name: str, weight_name: str, weight: Array, layout: str, *, side: str
) -> OnnxLayer:
    """A convolution, whose groups divide the channels of this `side`, on the weight's first axis."""
    groups = int(attributes(node).get("group", 1))
    if groups < 1 or weight.shape[0] % groups:
        raise _NotALayerError(f"its {weight.shape[0]} {side} channels do not divide into {groups} groups")
    return OnnxLayer(
        name=name,
        node=node,
        input=node.input[0],
        channel_axis=1,
        weight_name=weight_name,
        weight=weight,
        layout=layout,
        output_axis=layout.index("O"),
        groups=groups,
        geometry=stated_geometry(node, weight.ndim - 2),
    )


def _gemm(node: onnx.NodeProto, name: str, weight_name: str, weight: Array) -> OnnxLayer:
    found = attributes(node)
    if found.get("transA", 0):
        raise _NotALayerError("transA=1: its samples are not on axis 0")
    layout = "OI" if found.get("transB", 0) else "IO"
    return _matrix(node, name, weight_name, weight, layout, found.get("alpha", 1.0))


def _matmul(node: onnx.NodeProto, name: str, weight_name: str, weight: Array) -> OnnxLayer:
    return _matrix(node, name, weight_name, weight, "IO")


def _matrix(
    node: onnx.NodeProto, name: str, weight_name: str, weight: Array, layout: str, factor: float = 1.0
) -> OnnxLayer:
    return OnnxLayer(
        name=name,
        node=node,
        input=node.input[0],
        channel_axis=-1,
        weight_name=weight_name,
        weight=weight,
        layout=_layout(weight, {2: layout}),
        output_axis=layout.index("O"),
        geometry=Geometry(),
        factor=factor,
    )


_BUILDERS: Mapping[str, Callable[[Any, str, str, Array], OnnxLayer]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _layout(weight: Array, layouts: Mapping[int, str]) -> str:
    if weight.ndim not in layouts:
        expected = " or ".join(map(str, layouts))
        raise _NotALayerError(f"its weight has the shape {weight.shape}; expected {expected} axes")
    return layouts[weight.ndim]
