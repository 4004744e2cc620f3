"""Layers in the graph of an exported model, as the `pt2e` flow of torchao quantises it.

Such a model has no modules that run: the nodes of its graph multiply by constants, and each remembers the module that
it was exported from. Importing this module imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import MismatchError
from .library import Array, reals
from .places import Heard, Place
from .weights import ComputedWeight

CONVOLUTIONS = (
    *("convolution", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
PRODUCTS = {**dict.fromkeys(("linear", *CONVOLUTIONS), (1, 2, 0)), "addmm": (2, 0, 1)}
"""Operator → places of the weight, the bias and the input among its arguments."""


def products_by_path(model: Any) -> dict[str, list[Any]] | None:
    """Path of a module → the products in the graph that came from it; None if `model` is no exported model."""
    graph = getattr(model, "graph", None)
    if not isinstance(model, torch.fx.GraphModule) or graph is None:
        return None
    exported = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if not exported:
        return None
    found: dict[str, list[Any]] = {}
    for node in exported:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack and _operator(node) in PRODUCTS and not {"alpha", "beta"} & set(node.kwargs):
            found.setdefault(stack[-1][0], []).append(node)
    return found


@dataclass(frozen=True, eq=False)
class GraphPlace(Place):
    """The products in the graph of `model` that came from the calls of one module."""

    model: Any
    nodes: Sequence[Any]
    hears = True

    def weight(self) -> ComputedWeight:
        """The constant that all the products have."""
        found = [self._weight(node) for node in self.nodes]
        if not all(_equal(each, found[0]) for each in found[1:]):
            raise MismatchError(f"its {len(found)} calls have different weights in the exported graph")
        return ComputedWeight(found[0], quantises=_argument(self.nodes[0], "weight").op != "get_attr")

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphPlace:
        """The place in a copy of the model, whose nodes have the same names."""
        model = copy.deepcopy(self.model, memo)
        named = {node.name: node for node in model.graph.nodes}
        return GraphPlace(model, [named[node.name] for node in self.nodes])

    def nearest(self, weight: Array) -> GraphPlace:
        """The products among these whose weight is nearest to `weight`: a module may make several of its own.

        Raises `MismatchError` if none has its shape.
        """
        found = [(node, self._weight(node)) for node in self.nodes]
        fitting = [each for _, each in found if each.shape == weight.shape]
        if not fitting:
            raise MismatchError(f"no product of its module in the exported graph has a weight of {weight.shape}")
        best = min(fitting, key=lambda each: float(np.linalg.norm(each - weight)))
        return GraphPlace(self.model, [node for node, each in found if _equal(each, best)])

    def _weight(self, node: Any) -> Array:
        return reals(self._constant(_argument(node, "weight")))

    def add(self, term: Array) -> str:
        """Add `term` to the bias of each product."""
        changed = {bias: self._add(bias, nodes, term) for bias, nodes in self._by_bias()}
        return ", ".join(dict.fromkeys(changed.values()))

    def bias(self) -> Array | None:
        """The bias of the products; None if they have different ones."""
        found = {_argument(node, "bias") for node in self.nodes}
        if len(found) > 1:
            return None
        bias = found.pop()
        return np.zeros(1) if bias is None else reals(self._constant(bias))

    def listen(self, heard: Heard, *, inputs: bool = False) -> Callable[[], None]:
        """Hear the products, by a module in the graph behind each."""
        self.model.add_submodule(name := _free_place(self.model), _Listener(heard))
        ears = []
        for node in self.nodes:
            with self.model.graph.inserting_after(node):
                ears.append(self.model.graph.call_module(name, (_argument(node, "input") if inputs else node,)))
        self.model.recompile()
        return lambda: self._unheard(name, ears)

    def _unheard(self, name: str, ears: Sequence[Any]) -> None:
        for ear in ears:
            self.model.graph.erase_node(ear)
        self.model.delete_submodule(name)
        self.model.recompile()

    def _by_bias(self) -> Iterator[tuple[Any, list[Any]]]:
        biases = [_argument(node, "bias") for node in self.nodes]
        for bias in dict.fromkeys(biases):
            yield bias, [node for node, each in zip(self.nodes, biases, strict=True) if each is bias]

    def _add(self, bias: Any, nodes: list[Any], term: Array) -> str:
        """Give `nodes`, whose bias is `bias`, one with `term` added; other nodes keep theirs."""
        old = None if bias is None else self._constant(bias)
        values = torch.from_numpy(term) if old is None else torch.from_numpy(reals(old) + term)
        dtype = torch.float32 if old is None or not old.dtype.is_floating_point else old.dtype
        name = _free_name(self.model)
        parameter = torch.nn.Parameter(values.to(_device(self.model), dtype), requires_grad=False)
        self.model.register_parameter(name, parameter)
        with self.model.graph.inserting_before(nodes[0]):
            given = self.model.graph.get_attr(name)
        for node in nodes:
            place = PRODUCTS[_operator(node)][1]
            node.args = (*node.args[:place], given, *node.args[place + 1 :])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
        self.model.recompile()
        return "bias added" if bias is None else "bias changed"

    def _constant(self, node: Any) -> Any:
        """The value of `node`, which depends on no input. Raises `MismatchError` if it does."""
        if not isinstance(node, torch.fx.Node):
            return node
        if node.op == "get_attr":
            return _attribute(self.model, node.target)
        if node.op not in ("call_function", "call_module"):
            raise MismatchError(f"its weight in the exported graph depends on the input {node.name}")
        function = node.target if node.op == "call_function" else _alone(self.model, node.target)
        arguments = [self._constant(each) for each in node.args]
        with torch.no_grad():
            return function(*arguments, **{key: self._constant(each) for key, each in node.kwargs.items()})


def _operator(node: Any) -> str:
    return str(node.target._schema.name).removeprefix("aten::")


def _argument(node: Any, name: str) -> Any:
    """The weight, the bias or the input of a product; None if it has no such argument."""
    place = PRODUCTS[_operator(node)][("weight", "bias", "input").index(name)]
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _attribute(model: Any, target: str) -> Any:
    value = model
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _alone(model: Any, target: str) -> Any:
    """A copy of the module at `target`, so that an observer in it sees nothing twice."""
    return copy.deepcopy(_attribute(model, target))


def _device(model: Any) -> Any:
    return next((each.device for each in (*model.parameters(), *model.buffers())), None)


class _Listener(torch.nn.Module):  # type: ignore[misc]
    """Hands what it is called with to `heard`."""

    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self._heard = heard

    def forward(self, output: Any) -> None:
        """Hand `output` on."""
        self._heard(output)


def _free_place(model: Any) -> str:
    return f"heard_{sum(name.startswith('heard_') for name, _ in model.named_children())}"


def _free_name(model: Any) -> str:
    number = sum(name.startswith("corrected_bias_") for name, _ in model.named_parameters(recurse=False))
    return f"corrected_bias_{number}"
