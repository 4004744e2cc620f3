"""The operators of a model that have weights: all that read a matrix of constants, also in subgraphs and functions.

A constant is what depends on initializers and Constant nodes alone, so a weight is found behind DequantizeLinear, Cast,
Transpose or whatever else an exporter puts there. What counts is that a matrix is read, not the operator: an unknown
one is found, too. Only operators that move values, or combine them one by one, do not multiply by what they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from .graph import STANDARD_DOMAINS, attributes, label

if TYPE_CHECKING:
    import onnx

LOOKUPS = frozenset(
    {
        *("EmbedLayerNormalization", "Gather", "GatherBlockQuantized", "GatherElements", "GatherND"),
        "QEmbedLayerNormalization",
    }
)
"""They read rows of a matrix, and multiply nothing."""
ONE_BY_ONE = frozenset(
    {
        *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater"),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub"),
        *("Sum", "Where", "Xor", "QLinearAdd", "QLinearMul", "QLinearWhere", "QuickGelu", "BiasAdd", "FastGelu"),
        *("BatchNormalization", "GroupNorm", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("RMSNormalization", "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "DequantizeLinear", "QuantizeLinear", "RotaryEmbedding"),
    }
)
MOVES = frozenset(
    {
        *("Cast", "CastLike", "CenterCropPad", "Compress", "Concat", "Expand", "GridSample", "Identity", "Pad"),
        *("QLinearConcat", "Reshape", "Resize", "RoiAlign", "Scatter", "ScatterElements", "ScatterND", "Slice"),
        *("SequenceConstruct", "SequenceInsert", "Split", "Squeeze", "TensorScatter", "Tile", "Transpose", "Unsqueeze"),
        *("Upsample", "NonMaxSuppression", "Shape", "Size", "If", "Loop", "Scan"),
    }
)
WEIGHTLESS_ATTENTION = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "PagedAttention"})
"""They read masks and tables of angles; the one of com.microsoft named Attention has weights."""

FLOAT_TYPES, CODE_TYPES = frozenset({1, 10, 11, 16}), frozenset({2, 3, 4, 5})
"""The ONNX numbers of float32, float16, float64 and bfloat16; of integers of 8 and 16 bits."""
FIRST_NARROW_TYPE = 17
"""From this number on, tensor types have at most 8 bits."""


class Kind(IntEnum):
    """What a constant is; of several, the largest counts."""

    OTHER = 0
    PACKED = 1
    FLOATS = 2
    CODES = 3


@dataclass(frozen=True, eq=False)
class Operator:
    """A node whose outputs depend on the inputs of the model.

    `constants` says of each constant input what it is. `place` says where the node is unless in the main graph.
    """

    node: onnx.NodeProto
    constants: Mapping[str, Kind]
    place: str = ""

    @property
    def weights(self) -> list[str]:
        """The matrices of constants that it multiplies by or looks up; packed ones are in a form of its own domain."""
        if self._only_moves:
            return []
        fewest = Kind.FLOATS if self.node.domain in STANDARD_DOMAINS else Kind.PACKED
        return [name for name, kind in self.constants.items() if kind >= fewest]

    @property
    def is_lookup(self) -> bool:
        """Whether it reads rows of its matrices, and multiplies nothing."""
        return self.node.op_type in LOOKUPS

    @property
    def is_quantized(self) -> bool:
        """Whether a matrix that it reads is stored as codes."""
        return any(self.constants[name] in (Kind.CODES, Kind.PACKED) for name in self.weights)

    @property
    def _only_moves(self) -> bool:
        op, own = self.node.op_type, self.node.domain not in STANDARD_DOMAINS
        return op in ONE_BY_ONE or op in MOVES or (op in WEIGHTLESS_ATTENTION and not (own and op == "Attention"))


def operators(model: onnx.ModelProto) -> Iterator[Operator]:
    """Every operator of `model`; those of a function once for each kind of constants that it is called with."""
    yield from _Walk(model).graph(model.graph, {}, "")


class _Walk:
    """One pass over all nodes of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {(each.domain, each.name): each for each in model.functions}
        self._seen: set[tuple[str, str, frozenset[tuple[str, Kind]]]] = set()

    def graph(self, graph: onnx.GraphProto, outer: Mapping[str, Kind], place: str) -> Iterator[Operator]:
        """The operators of `graph`, which sees the constants of its `outer` graphs unless its inputs hide them."""
        hidden = {each.name for each in graph.input}
        known = {name: kind for name, kind in outer.items() if name not in hidden}
        known |= {tensor.name: _kind(tensor) for tensor in graph.initializer}
        yield from self._nodes(graph.node, known, place)

    def _nodes(self, nodes: Sequence[onnx.NodeProto], known: dict[str, Kind], place: str) -> Iterator[Operator]:
        for node in nodes:
            inner = [graph for each in node.attribute for graph in ([each.g] if each.HasField("g") else each.graphs)]
            for graph in inner:
                yield from self.graph(graph, known, f"a subgraph of the {node.op_type} {label(node)}")
            constants = {name: known[name] for name in node.input if name in known}
            if (node.domain, node.op_type) in self._functions:
                yield from self._function(node, constants)
            elif not inner and len(constants) == len({*filter(None, node.input)}) and _is_fixed(node):
                known |= dict.fromkeys(filter(None, node.output), _made(node, constants))
            else:
                yield Operator(node, constants, place)

    def _function(self, node: onnx.NodeProto, constants: Mapping[str, Kind]) -> Iterator[Operator]:
        """The operators of the function that `node` calls."""
        function = self._functions[node.domain, node.op_type]
        bound = {formal: constants[name] for formal, name in zip(function.input, node.input) if name in constants}  # noqa: B905
        call = (node.domain, node.op_type, frozenset(bound.items()))
        if call not in self._seen:
            self._seen.add(call)
            yield from self._nodes(function.node, bound, f"the function {function.name}")


def _is_fixed(node: onnx.NodeProto) -> bool:
    """Whether `node`, which reads constants alone, has the same outputs whenever it runs: it is not a random number."""
    return bool(node.input) or node.op_type == "Constant"


def _made(node: onnx.NodeProto, constants: Mapping[str, Kind]) -> Kind:
    """What the constant that `node` makes is."""
    if node.op_type == "Constant":
        return _kind(value) if (value := attributes(node).get("value")) is not None else Kind.OTHER
    if node.op_type in ("Shape", "Size"):
        return Kind.OTHER
    kind = max(constants.values(), default=Kind.OTHER)
    return Kind.CODES if kind == Kind.FLOATS and node.op_type == "QuantizeLinear" else kind


def _kind(tensor: onnx.TensorProto) -> Kind:
    is_code = tensor.data_type in CODE_TYPES or tensor.data_type >= FIRST_NARROW_TYPE
    if len(tensor.dims) < 2:
        return Kind.PACKED if is_code and sum(tensor.dims) > 1 else Kind.OTHER
    if is_code:
        return Kind.CODES
    return Kind.FLOATS if tensor.data_type in FLOAT_TYPES else Kind.OTHER
