"""What optimisers fold into a linear layer: the constant factors and offsets behind it.

Batch normalisation, Mul, Div, Add and Sub by constants per channel are affine maps of the layer's outputs, so a layer
may take over any number of those that follow it, as long as nothing else reads what is between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .constants import computed_constants
from .graph import attributes
from .layers import OnnxLayer
from .quantized import layer_biases

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
FOLDED = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Identity")


@dataclass(frozen=True, eq=False)
class Fold:
    """A layer with what was folded into it: its weight times `factor`, float64[outputs], computes the tensor `output`.

    `bias`, float64[outputs], is what the layer then adds, None if it is not constant.
    """

    factor: Float64Array
    bias: Float64Array | None
    output: str

    def behind(self, factor: Array, offset: Array, output: str) -> Fold:
        """With `· factor + offset` folded in, too."""
        bias = None if self.bias is None else self.bias * factor + offset
        return Fold(self.factor * factor, bias, output)


def folds(model: onnx.ModelProto, layers: Sequence[OnnxLayer]) -> dict[str, list[Fold]]:
    """Layer → the layer as it is, and with one, two, … of the operators behind it folded in."""
    readers = _only_readers(model)
    chains = {layer.name: list(_chain(layer.node.output[0], readers)) for layer in layers}
    names = [name for nodes in chains.values() for node in nodes for name in node.input]
    known, biases = computed_constants(model, names), layer_biases(model, layers)
    return {layer.name: list(_folds(layer, chains[layer.name], known, biases)) for layer in layers}


def _only_readers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensor → the node that reads it, if it is the only one."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return {name: nodes[0] for name, nodes in readers.items() if len(nodes) == 1}


def _chain(tensor: str, readers: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The operators behind `tensor` that may be folded."""
    while (node := readers.get(tensor)) is not None and node.op_type in FOLDED:
        yield node
        tensor = node.output[0]


def _folds(
    layer: OnnxLayer, chain: Sequence[onnx.NodeProto], known: Mapping[str, Array], biases: Mapping[str, Float64Array]
) -> Iterator[Fold]:
    fold = Fold(np.ones(layer.outputs), biases.get(layer.node.output[0]), layer.node.output[0])
    yield fold
    for node in chain:
        found = _affine(node, layer, fold.output, known)
        if found is None:
            return
        fold = fold.behind(*found, node.output[0])
        yield fold


def _affine(
    node: onnx.NodeProto, layer: OnnxLayer, tensor: str, known: Mapping[str, Array]
) -> tuple[Array, Array] | None:
    """(factor, offset) of `node` per output channel of `layer`, whose outputs are `tensor`; None if it has none."""
    if node.op_type == "Identity":
        return np.ones(1), np.zeros(1)
    if node.op_type == "BatchNormalization":
        return _normalisation(node, layer, known)
    first = node.input[0] == tensor
    value = known.get(node.input[1 if first else 0])
    each = None if value is None else _per_output(np.asarray(value, np.float64), layer)
    if each is None or (node.op_type == "Div" and not (first and each.all())):
        return None
    sign = 1.0 if first else -1.0
    return {
        "Mul": (each, np.zeros(1)),
        "Div": (1 / np.where(each == 0, 1, each), np.zeros(1)),
        "Add": (np.ones(1), each),
        "Sub": (np.full(1, sign), -sign * each),
    }[node.op_type]


def _normalisation(node: onnx.NodeProto, layer: OnnxLayer, known: Mapping[str, Array]) -> tuple[Array, Array] | None:
    if any(name not in known or known[name].size != layer.outputs for name in node.input[1:5]):
        return None
    scale, shift, mean, variance = (known[name].astype(np.float64) for name in node.input[1:5])
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    return factor, shift - mean * factor


def _per_output(value: Float64Array, layer: OnnxLayer) -> Float64Array | None:
    """`value`, one or one per output channel, as it is added to the outputs of `layer`; None for other shapes."""
    if value.size == 1:
        return value.reshape(1)
    axis = layer.weight.ndim - 2 if layer.weight.ndim > 2 else 0
    place = value.ndim - 1 - axis
    fits = place >= 0 and value.shape[place] == value.size == layer.outputs
    return value.reshape(-1) if fits else None
