"""Where a layer of a float model is in a quantised copy of it: what it multiplies by there, and the bias beside it.

Fusing moves a convolution from `conv` to `conv.0` or back, `QuantWrapper` puts it below `module`, attention of
`torch.ao` has a module for each projection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import MismatchError
from .layers import PROJECTIONS, ModelLayer, layout_of, plain_path
from .library import Array, library, reals

if TYPE_CHECKING:
    import torch

    from .weights import ComputedWeight

Heard = Callable[[Any], None]
"""What is called with an output of a layer."""
WRAPPERS = ("QuantWrapper", "DataParallel", "DistributedDataParallel")
"""Modules whose attribute `module` is the model."""


class MissingPlaceError(MismatchError):
    """The quantised model has nothing where the names of a layer lead."""


class Place(ABC):
    """A layer in a quantised model."""

    @abstractmethod
    def weight(self) -> ComputedWeight:
        """What it computes with, in the layout of the float layer. Raises `MismatchError` if that is unknown."""

    @abstractmethod
    def add(self, term: Array) -> str:
        """Add `term`, float64[outputs], to its bias; what changed."""

    def bias(self) -> Array | None:
        """The bias of what `listen` hears, float64[outputs]; None if nothing can be heard there."""
        return None

    hears: ClassVar[bool] = False
    """Whether `listen` is possible."""

    def listen(self, heard: Heard, *, inputs: bool = False) -> Callable[[], None]:
        """Call `heard` with each output, or with the `inputs`, from now on; returns what ends that."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ModulePlace(Place):
    """A module with a weight."""

    module: Any
    hears = True

    def weight(self) -> ComputedWeight:
        """The weight that the module computes with."""
        from .weights import computed_weight

        if not hasattr(self.module, "bias"):
            raise MismatchError(f"a {type(self.module).__name__} has no attribute `bias`; give it one, or None")
        return computed_weight(self.module)

    def add(self, term: Array) -> str:
        """Add `term` to the module's bias, or to that of the batch normalisation that it holds."""
        return add_to_bias(self.module, term)

    def bias(self) -> Array | None:
        """The module's bias; None for modules that do more than a product: an activation, or a norm of their own."""
        module = self.module
        if "ReLU" in type(module).__name__ or hasattr(module, "bn"):
            return None
        bias = module.bias() if callable(module.bias) else module.bias
        return np.zeros(1) if bias is None else reals(bias)

    def listen(self, heard: Heard, *, inputs: bool = False) -> Callable[[], None]:
        """Hear the module's calls."""
        if inputs:
            hook = self.module.register_forward_pre_hook(
                lambda _module, given, named: heard(given[0] if given else next(iter(named.values()))), with_kwargs=True
            )
        else:
            hook = self.module.register_forward_hook(lambda _module, _given, output: heard(output))
        remove: Callable[[], None] = hook.remove
        return remove


@dataclass(frozen=True, eq=False)
class ProjectionPlace(Place):
    """A projection in a `MultiheadAttention`: `rows` of the parameter `name`, and `bias_rows` of its bias."""

    module: Any
    name: str
    rows: slice
    bias_rows: slice

    def weight(self) -> ComputedWeight:
        """The rows of the parameter."""
        from .weights import ComputedWeight

        parameter = getattr(self.module, self.name)
        plain = type(parameter) in (library().Tensor, library().nn.Parameter)
        return ComputedWeight(reals(parameter)[self.rows], quantises=not plain)

    def add(self, term: Array) -> str:
        """Add `term` to the rows of the bias, which begins as zeros if there is none."""
        torch = library()
        bias, change = self.module.in_proj_bias, "bias changed"
        if bias is None:
            zeros = torch.zeros(3 * self.module.embed_dim).to(_like_bias(getattr(self.module, self.name)))
            bias = self.module.in_proj_bias = torch.nn.Parameter(zeros, requires_grad=False)
            change = "bias added"
        with torch.no_grad():
            bias[self.bias_rows] += torch.from_numpy(term).to(bias)
        return change


@dataclass(frozen=True, eq=False)
class JoinedPlace(Place):
    """Several places whose outputs, one after the other, are those of one layer."""

    places: Sequence[Place]

    def weight(self) -> ComputedWeight:
        """The weights of all, along the outputs."""
        from .weights import ComputedWeight

        found = [each.weight() for each in self.places]
        return ComputedWeight(np.concatenate([each.values for each in found]), any(each.quantises for each in found))

    def add(self, term: Array) -> str:
        """Add to each its share of `term`."""
        shares = np.split(term, len(self.places))
        return ", ".join(dict.fromkeys(place.add(share) for place, share in zip(self.places, shares, strict=True)))


@dataclass(frozen=True, eq=False)
class ParameterPlace(Place):
    """A parameter of no linear module, and the `bias` that its calls add."""

    parameter: Any
    bias: Any

    def weight(self) -> ComputedWeight:
        """The parameter."""
        from .weights import ComputedWeight

        return ComputedWeight(reals(self.parameter), quantises=False)

    def add(self, term: Array) -> str:
        """Add `term` to the bias."""
        torch = library()
        with torch.no_grad():
            self.bias.add_(torch.from_numpy(term).to(self.bias))
        return "bias changed"


class Copy:
    """The modules of a quantised copy, by the names that they have in the float model."""

    def __init__(self, model: torch.nn.Module) -> None:
        from .exported import products_by_path

        self._model, self._products = model, products_by_path(model)
        self._modules = {_inner_path(model, path): module for path, module in model.named_modules()}

    def has_norm(self, path: str) -> bool:
        """Whether there is a batch normalisation at `path`."""
        return is_norm(self._modules.get(plain_path(path)))

    def place(self, layer: ModelLayer) -> Place:
        """The place of `layer`. Raises `MismatchError` if there is none."""
        path = plain_path(layer.path)
        if self._products is not None:
            return self._in_graph(layer, path, self._products)
        if layer.is_projection:
            return self._projection(layer, self._modules.get(path))
        if found := self._weighted(path):
            return ModulePlace(found)
        raise MissingPlaceError("the quantised model has no module of its name with a weight")

    def unnamed(self, layers: Sequence[ModelLayer]) -> list[Place]:
        """The modules with matrices to which the name of none of the `layers` leads."""
        if self._products is not None:
            return []
        named = {id(self._weighted(plain_path(layer.path))) for layer in layers if not layer.is_projection}
        every = {id(each): each for each in _weighted_within(self._model)}
        return [ModulePlace(each) for at, each in every.items() if at not in named and _makes_products(each)]

    def _in_graph(self, layer: ModelLayer, path: str, products: dict[str, list[Any]]) -> Place:
        from .exported import GraphPlace

        if path in products and not layer.is_projection:
            return GraphPlace(self._model, products[path])
        around, _, name = path.rpartition(".")
        attention = path if layer.is_projection else around if name == "out_proj" else None
        if attention not in products:
            raise MismatchError("the exported graph has no product that came from its module")
        weight = reals(getattr(layer.module, layer.weight))[layer.rows or slice(None)]
        return GraphPlace(self._model, products[attention]).nearest(weight)

    def _weighted(self, path: str) -> Any:
        """The module with the weight of that at `path`: it, the only one inside it, or the fused module around it."""
        module = self._modules.get(path)
        if module is None or not hasattr(module, "weight"):
            inner = list(_weighted_within(module)) if module is not None else []
            module = inner[0] if len(inner) == 1 else None
        around = self._modules.get(path.removesuffix(".0")) if path.endswith(".0") else None
        return module if module is not None or not hasattr(around, "weight") else around

    def _projection(self, layer: ModelLayer, module: Any) -> Place:
        if module is None:
            raise MismatchError("the quantised model has no attention of its name")
        number = {name: at for at, name in enumerate(PROJECTIONS)}.get(layer.name.rpartition("/")[2])
        parts = [getattr(module, f"linear_{each}", None) for each in "QKV"]
        if all(hasattr(each, "weight") for each in parts):
            places = [ModulePlace(each) for each in parts]
            return JoinedPlace(places) if number is None else places[number]
        if getattr(module, layer.weight, None) is None:
            raise MismatchError(f"the {type(module).__name__} of the quantised model has no {layer.weight}")
        extent = module.embed_dim
        every = slice(None) if number is None else slice(number * extent, (number + 1) * extent)
        return ProjectionPlace(module, layer.weight, layer.rows or slice(None), every)


def _inner_path(model: Any, path: str) -> str:
    parts = plain_path(path).split(".")
    return ".".join(parts[1:] if type(model).__name__ in WRAPPERS and parts[0] == "module" else parts)


def _makes_products(module: Any) -> bool:
    """Whether a module with a weight may be a layer: it packs its weight, or is linear itself."""
    return callable(module.weight) or layout_of(module) is not None


def _weighted_within(module: Any) -> Iterator[Any]:
    for each in module.modules():
        weight = getattr(each, "weight", None)
        if callable(weight) or getattr(weight, "ndim", 0) > 1:
            yield each


def is_norm(module: Any) -> bool:
    """Whether `module` is a batch normalisation that keeps statistics."""
    norm = library().nn.modules.batchnorm._BatchNorm
    return isinstance(module, norm) and module.running_var is not None


def add_to_bias(module: Any, term: Array) -> str:
    """Add `term`, float64[outputs], to the bias of `module`, in place; what changed."""
    torch = library()
    if callable(module.weight):  # packed: weight and bias are set together
        weight, bias = module.weight(), module.bias()
        base = torch.zeros(len(term), dtype=torch.float32) if bias is None else bias.detach()
        module.set_weight_bias(weight, base + torch.from_numpy(term).to(base))
        return "bias added" if bias is None else "bias changed"
    if is_norm(getattr(module, "bn", None)):  # trained with quantisation: the weight is scaled as the norm scales
        module = module.bn
    with torch.no_grad():
        if module.bias is None:
            like = _like_bias(module.weight)
            module.bias = torch.nn.Parameter(torch.from_numpy(term).to(like), requires_grad=False)
            return "bias added"
        module.bias += torch.from_numpy(term).to(module.bias)
    return "bias changed"


def _like_bias(weight: Any) -> Any:
    """An empty tensor on the device and of the dtype of a bias beside `weight`."""
    torch = library()
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)
