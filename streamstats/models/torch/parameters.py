"""Which layer a tensor is the weight of: a parameter of the model, its transpose, or a slice of a stack of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...storage.names import layer_names
from .layers import ModelLayer, plain_path

if TYPE_CHECKING:
    import torch

Key = tuple[int, tuple[int, ...], tuple[int, ...]]
PARTS = ("weight_g", "weight_v")
"""Parameters that `weight_norm` computes the weight of a module from."""
LOOKING = frozenset(
    (
        "__get__",
        "__set__",
        "__hash__",
        "__repr__",
        "size",
        "dim",
        "numel",
        "detach",
        "data_ptr",
        "is_floating_point",
        "stride",
        "type",
    )
)
"""Functions that only look at a parameter."""
HARMLESS = frozenset(
    ("add", "__add__", "__radd__", "add_", "__iadd__", "cat", "embedding", "expand", "repeat", "stack")
)
"""Functions that multiply no channels by a parameter."""


@dataclass(frozen=True)
class Use:
    """How a model multiplies by a parameter: the `layout` of that weight, its `groups`, and the path of the parameter
    that the same call adds as its bias, empty if there is none.
    """

    layout: str
    bias: str
    groups: int = 1


@dataclass(frozen=True, eq=False)
class LooseParameter:
    """A parameter of two or more extents that is the weight of no known module: its layer's name, and its place."""

    name: str
    path: str
    module: torch.nn.Module
    parameter: Any

    @property
    def place(self) -> str:
        """What it is, for people."""
        return f"parameter {list(self.parameter.shape)} of a {type(self.module).__name__}"


class ParameterIndex:
    """The weights of a model, by identity and memory; `seen` is in which functions loose parameters were arguments."""

    def __init__(self, model: torch.nn.Module, layers: list[ModelLayer]) -> None:
        known = {
            id(layer.parameter): layer.name
            for layer in reversed(layers)
            if not layer.whole and layer.parameter is not None
        }
        self.loose = loose_parameters(model, layers)
        self.seen: dict[str, set[str]] = {each.name: set() for each in self.loose}
        self._taken: dict[str, set[str]] = {}
        self._uses: dict[str, set[Use]] = {each.name: set() for each in self.loose}
        self._paths = {id(each): plain_path(path) for path, each in model.named_parameters()}
        self._names = known | {id(each.parameter): each.name for each in self.loose}
        parameters = {id(each): each for each in model.parameters()}
        views = [view for at, name in self._names.items() for view in _views(name, parameters.get(at), at in known)]
        self._views = dict(views)
        self._stacks = {key: each.name for each in self.loose for key in _stacks(each.parameter)}

    def layer(self, weight: Any) -> tuple[str, bool] | None:
        """The name of the layer with this `weight`, and whether it is its transpose; None for other tensors."""
        if name := self._names.get(id(weight)):
            return name, False
        return self._views.get(key) if (key := _key(weight)) else None

    def stack(self, weights: Any) -> str | None:
        """The name of the loose parameter that holds these `weights` of several experts, or their transposes."""
        key = _key(weights)
        return None if key is None else self._stacks.get(key)

    def note(self, function: str, arguments: tuple[Any, ...]) -> None:
        """Remember that loose parameters among the `arguments` were given to `function`."""
        for each in arguments:
            name = self._names.get(id(each))
            if name in self.seen:
                self.seen[name].add(function)
            elif name is not None and function not in LOOKING:
                self._taken.setdefault(name, set()).add(function)

    def why_not_called(self, name: str) -> str:
        """Which functions took the weight of the layer `name` without a call of its module; empty for none."""
        taken = ", ".join(sorted(self._taken.get(name, ())))
        return f"its module was never called; {taken} took its weight, out of reach" if taken else ""

    def note_use(self, name: str, layout: str, bias: Any, groups: int = 1) -> None:
        """Remember how a product uses the loose parameter `name`, and the `bias` that it adds."""
        if name in self._uses:
            self._uses[name].add(Use(layout, self._paths.get(id(bias), ""), groups))

    def use(self, name: str) -> Use | None:
        """How all products use the loose parameter `name`; None if they differ, or if there are none."""
        uses = self._uses.get(name, set())
        return next(iter(uses)) if len(uses) == 1 else None

    def only_harmless(self, name: str) -> bool:
        """Whether the loose parameter `name` was seen, in functions that multiply no channels by it."""
        return bool(self.seen[name]) and self.seen[name] <= HARMLESS


def loose_parameters(model: torch.nn.Module, layers: list[ModelLayer]) -> list[LooseParameter]:
    """The parameters of `model` with two or more extents above 1 that belong to none of its `layers`."""
    known = {id(layer.parameter) for layer in layers} | _parts(layers)
    found: dict[int, LooseParameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = sum(extent > 1 for extent in parameter.shape) > 1
            if matrix and name not in PARTS and id(parameter) not in known:
                place = f"{plain_path(path)}.{name}".strip(".")
                found.setdefault(id(parameter), LooseParameter(place.replace(".", "/"), place, module, parameter))
    taken = [layer.name for layer in layers]
    names = layer_names([*taken, *(each.name for each in found.values())])[len(taken) :]
    return [replace(each, name=name) for name, each in zip(names, found.values(), strict=True)]


def _parts(layers: list[ModelLayer]) -> set[int]:
    """The ids of the parameters that modules compute their weights from."""
    computed = [layer.module for layer in layers if layer.parameter is None]
    return {id(each) for module in computed for inner in module.children() for each in inner.parameters()}


def _views(name: str, parameter: Any, known: bool) -> Iterator[tuple[Key, tuple[str, bool]]]:
    """Keys of views of `parameter` that multiply like a layer: itself, its transpose, the slices of a stack."""
    key = _key(parameter)
    if key is None:
        return
    yield key, (name, False)
    if parameter.ndim == 2:
        yield _transposed(key), (name, True)
    if parameter.ndim == 3 and not known:
        for number, part in enumerate(parameter.detach().unbind()):
            inner = _key(part)
            if inner is not None:
                yield inner, (f"{name}/{number}", False)
                yield _transposed(inner), (f"{name}/{number}", True)


def _stacks(parameter: Any) -> list[Key]:
    """Keys of a stack of matrices, and of the stack of their transposes; none for other parameters."""
    key = _key(parameter) if parameter.ndim == 3 else None
    if key is None:
        return []
    address, (count, *shape), (step, *strides) = key
    return [key, (address, (count, *shape[::-1]), (step, *strides[::-1]))]


def _transposed(key: Key) -> Key:
    address, shape, strides = key
    return address, shape[::-1], strides[::-1]


def _key(tensor: Any) -> Key | None:
    """What is the same for two tensors that are the same view of the same memory; None without memory of its own."""
    try:
        address = int(tensor.data_ptr())
        return (address, tuple(tensor.shape), tuple(tensor.stride())) if address else None
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
