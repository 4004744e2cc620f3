"""Which layer a tensor is the weight of: a parameter of the model, its transpose, or a slice of a stack of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...storage.names import layer_names
from .layers import ModelLayer, plain_path

if TYPE_CHECKING:
    import torch

Key = tuple[int, tuple[int, ...], tuple[int, ...]]
HARMLESS = frozenset(
    ("add", "__add__", "__radd__", "add_", "__iadd__", "cat", "embedding", "expand", "repeat", "stack")
)
"""Functions that multiply no channels by a parameter."""


@dataclass(frozen=True, eq=False)
class LooseParameter:
    """A parameter of two or more extents that is the weight of no known module: its layer's name, and its place."""

    name: str
    module: torch.nn.Module
    parameter: Any

    @property
    def place(self) -> str:
        """What it is, for people."""
        return f"parameter {list(self.parameter.shape)} of a {type(self.module).__name__}"


class ParameterIndex:
    """The weights of a model, by identity and memory; `seen` is in which functions loose parameters were arguments."""

    def __init__(self, model: torch.nn.Module, layers: list[ModelLayer]) -> None:
        known = {id(layer.parameter): layer.name for layer in reversed(layers) if not layer.whole}
        self.loose = loose_parameters(model, layers)
        self.seen: dict[str, set[str]] = {each.name: set() for each in self.loose}
        self._names = known | {id(each.parameter): each.name for each in self.loose}
        parameters = {id(each): each for each in model.parameters()}
        views = [view for at, name in self._names.items() for view in _views(name, parameters.get(at), at in known)]
        self._views = dict(views)

    def layer(self, weight: Any) -> tuple[str, bool] | None:
        """The name of the layer with this `weight`, and whether it is its transpose; None for other tensors."""
        if name := self._names.get(id(weight)):
            return name, False
        return self._views.get(key) if (key := _key(weight)) else None

    def note(self, function: str, arguments: tuple[Any, ...]) -> None:
        """Remember that loose parameters among the `arguments` were given to `function`."""
        for each in arguments:
            name = self._names.get(id(each))
            if name in self.seen:
                self.seen[name].add(function)

    def only_harmless(self, name: str) -> bool:
        """Whether the loose parameter `name` was seen, in functions that multiply no channels by it."""
        return bool(self.seen[name]) and self.seen[name] <= HARMLESS


def loose_parameters(model: torch.nn.Module, layers: list[ModelLayer]) -> list[LooseParameter]:
    """The parameters of `model` with two or more extents above 1 that belong to none of its `layers`."""
    known, taken = {id(layer.parameter) for layer in layers}, [layer.name for layer in layers]
    found = [
        (f"{plain_path(path)}.{name}".strip(".").replace(".", "/"), module, parameter)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in known and sum(extent > 1 for extent in parameter.shape) > 1
    ]
    found = list({id(parameter): (name, module, parameter) for name, module, parameter in reversed(found)}.values())
    names = layer_names([*taken, *(name for name, _, _ in reversed(found))])[len(taken) :]
    parts = zip(names, reversed(found), strict=True)
    return [LooseParameter(name, module, parameter) for name, (_, module, parameter) in parts]


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
