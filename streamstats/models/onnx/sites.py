"""Which layers of two models have the same outputs, and where the quantised one adds a bias; weights play no part.

Layers are matched by the names of their tensors, else by those of their nodes, else by their order if as many are left
in both models and their channels agree. A layer of an operator that is not known is matched by the name of its output,
and gets an addition behind it. Values then decide which tensor of the float model the outputs stand for: the layer's
own, or one behind the constant factors and offsets that may have been folded into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import counted
from ...storage.names import layer_names
from .folding import folds
from .graph import label, producers
from .layers import LeftOut, OnnxLayer, survey
from .quantized import quantized_layers

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
ROUNDING = ("QuantizeLinear", "DequantizeLinear", "Identity")
BEHIND = (*ROUNDING, "Cast", "Mul", "Add", "Reshape")
"""Operators that may lie between the product of an unknown operator and the tensor that the float model has, too."""
NEAR_BEST = 1.5
"""Tensors whose distance is at most this many times the least one are told apart by their names."""
ROUNDED = 0.01
"""How far outputs may be from those of the float model, as in `distance`, before a scale is looked for."""
EXPLAINED = 0.05
"""What a scale leaves of that at most. One number per channel undoes far less of rounding."""
TELLING = 8
"""Rows that are needed to tell: one number per channel explains whatever is between two rows."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer of the float model, and where the quantised model computes its outputs.

    `product` is the first output of the node that the bias belongs to; `quantized` is its layer, None if its operator
    is not known. `names` are those that the outputs have in the quantised model, `candidates` the tensors of the float
    model that they may stand for.
    """

    original: OnnxLayer
    product: str
    quantized: OnnxLayer | None
    names: frozenset[str]
    candidates: tuple[str, ...]

    @property
    def name(self) -> str:
        """The layer's name in the float model."""
        return self.original.name

    @property
    def axis(self) -> int:
        """The axis of the channels of its outputs."""
        return 1 if self.original.weight.ndim > 2 else -1


def find_sites(original: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[list[Site], list[LeftOut]]:
    """(the layers of both models that have the same outputs, in the order of the quantised model; those without)."""
    layers, _ = survey(original)
    stored, unknown = quantized_layers(quantized)
    behind = {name: tuple(fold.output for fold in found) for name, found in folds(original, layers).items()}
    search = _Search(layers, behind, quantized)
    rest = search.by_name(stored, search.tensors, search.names)
    rest = search.by_name(rest, _node_names, lambda layer: [layer.node.name])
    search.by_output({layer.node.output[0] for layer in rest})
    left = search.by_order(rest)
    order = {output: place for place, node in enumerate(quantized.graph.node) for output in node.output}
    sites = sorted(search.sites, key=lambda site: order[site.product])
    without = search.without_counterpart({site.name for site in sites}, {each.name for each in left})
    return sites, [*_not_reached(unknown, quantized, sites), *left, *without]


class _Search:
    """Matches layers one way after another; what is matched is in `sites`."""

    def __init__(
        self, layers: Sequence[OnnxLayer], behind: Mapping[str, tuple[str, ...]], quantized: onnx.ModelProto
    ) -> None:
        self._layers, self._behind = layers, behind
        self._made_by = producers(quantized.graph.node)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in quantized.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.sites: list[Site] = []

    @property
    def _free(self) -> list[OnnxLayer]:
        taken = {site.name for site in self.sites}
        return [layer for layer in self._layers if layer.name not in taken]

    def names(self, layer: OnnxLayer) -> Sequence[str]:
        """The tensors that the outputs of a float layer may be: its own, and those behind what may be folded in."""
        return self._behind[layer.name]

    def tensors(self, layer: OnnxLayer) -> Iterable[str]:
        """The names that the outputs of a layer of the quantised model have."""
        product = layer.node.output[0]
        return [*self._aliases(product), product.removesuffix("_quantized")]

    def by_name(
        self,
        stored: Sequence[OnnxLayer],
        theirs: Callable[[OnnxLayer], Iterable[str]],
        mine: Callable[[OnnxLayer], Iterable[str]],
    ) -> list[OnnxLayer]:
        """Match the layers of which `theirs`, a name in the quantised model, is among `mine`; the layers left over."""
        rest = []
        for layer in stored:
            names = {*theirs(layer)} - {""}
            found = [each for each in self._free if names.intersection(mine(each))]
            if len(found) == 1 and found[0].outputs == layer.outputs:
                self._add(found[0], layer.node.output[0], layer)
            else:
                rest.append(layer)
        return rest

    def by_output(self, known: set[str]) -> None:
        """Match float layers with tensors of the same name that nodes of unknown operators compute."""
        known = known | {site.product for site in self.sites}
        for layer in self._free:
            nodes = {name: self._made_by[name] for name in self.names(layer) if name in self._made_by}
            for name, node in nodes.items():
                if node.output[0] == name and node.op_type not in ROUNDING and not self._comes_from(name, known):
                    self._add(layer, name, None)
                    break

    def _comes_from(self, name: str, products: set[str]) -> bool:
        """Whether the tensor is one of `products`, with no more behind it than scales, offsets and other shapes."""
        node = self._made_by.get(name)
        if name in products or node is None or node.op_type not in BEHIND:
            return name in products
        return any(self._comes_from(each, products) for each in node.input)

    def by_order(self, stored: Sequence[OnnxLayer]) -> list[LeftOut]:
        """Match what is left in the order of both graphs; the reasons if that cannot be."""
        free = self._free
        reason = ""
        if len(stored) != len(free):
            found = f"{counted(len(stored), 'layer')} of the quantised model for {len(free):,} of the float model"
            reason = (
                f"no name of it is that of a layer of the float model, and its order does not tell: left are {found}"
            )
        for layer, other in zip(stored, free, strict=False) if not reason else ():
            if layer.outputs != other.outputs:
                reason = (
                    f"no name of it is that of a layer of the float model, and in their order {layer.name} with "
                    f"{layer.outputs:,} outputs would be {other.name} with {other.outputs:,}"
                )
        if reason:
            return [LeftOut(layer.name, layer.op, reason) for layer in stored]
        for layer, other in zip(stored, free, strict=True):
            self._add(other, layer.node.output[0], layer)
        return []

    def without_counterpart(self, matched: set[str], told: set[str]) -> list[LeftOut]:
        """The float layers that nothing was matched with."""
        reason = "no output of the quantised model could be matched with its own"
        names = matched | told
        return [LeftOut(layer.name, layer.op, reason) for layer in self._layers if layer.name not in names]

    def _add(self, original: OnnxLayer, product: str, quantized: OnnxLayer | None) -> None:
        aliases = frozenset(self._aliases(product))
        self.sites.append(Site(original, product, quantized, aliases, self._behind[original.name]))

    def _aliases(self, product: str) -> Iterator[str]:
        """The names of a tensor, also once it is rounded or has another shape."""
        yield product
        for node in self._readers.get(product, ()):
            if node.op_type in (*ROUNDING, "Reshape") and node.input[0] == product:
                yield from self._aliases(node.output[0])


def _node_names(layer: OnnxLayer) -> Iterable[str]:
    return (layer.node.name, layer.node.name.removesuffix("_quant"))


def _not_reached(unknown: Sequence[LeftOut], model: onnx.ModelProto, sites: Sequence[Site]) -> list[LeftOut]:
    """Those of the `unknown` operators whose products are the outputs of none of `sites`."""
    made_by, reached = producers(model.graph.node), set[str]()
    for site in sites:
        waiting = [site.product] if site.quantized is None else []
        while waiting:
            node = made_by.get(waiting.pop())
            if node is None:
                continue
            reached.update([label(node), *layer_names([label(node)])])
            waiting += node.input if node.op_type in BEHIND else ()
    return [each for each in unknown if each.name not in reached]


def nearest(site: Site, found: Array, candidates: Mapping[str, Array]) -> str | None:
    """Which of the tensors of the float model, by name, the outputs `found` stand for; None if none has their size.

    The correction may be for an offset, so distances are taken without the means of channels; among equals, the name
    tells, and then the distance with them.
    """
    fitting = {name: values for name, values in candidates.items() if _fits(values, found, site.axis)}
    if not fitting:
        return None
    apart = {name: distance(found, values, site.axis) for name, values in fitting.items()}
    least = min(apart.values())
    close = [name for name, each in apart.items() if each <= NEAR_BEST * least + np.finfo(np.float32).eps]

    def rank(name: str) -> tuple[bool, float]:
        error = found.reshape(-1).astype(np.float64) - fitting[name].reshape(-1)
        return name not in site.names, float(np.square(error).sum())

    return min(close, key=rank)


def _fits(values: Array, found: Array, axis: int) -> bool:
    """Whether both are of the same size; rows may have been merged into fewer axes."""
    if axis != -1:
        return values.shape == found.shape and values.size > 0
    return values.size == found.size > 0 and min(values.ndim, found.ndim) > 0 and values.shape[-1] == found.shape[-1]


def distance(found: Array, wanted: Array, axis: int) -> float:
    """The variance of the difference as a share of that of `wanted`, both without the means of channels on `axis`.

    Infinite if a value is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        mine, theirs = (_centred(values, axis) for values in (found, wanted))
        noise, signal = float(np.square(mine - theirs).mean()), float(np.square(theirs).mean())
    if signal == 0 and noise == 0:
        return 0.0
    return noise / signal if signal > 0 and np.isfinite(noise / signal) else np.inf


def factors(found: Array, wanted: Array, axis: int) -> Array | None:
    """What the channels of `found` are those of `wanted` times, one number each; None if that is not the difference.

    A scale leaves next to nothing once it is undone. So does, rarely, rounding, if one direction rules the inputs.
    """
    mine, theirs = (_centred(values, axis) for values in (found, wanted))
    power = np.square(theirs).sum(axis=0)
    times = np.divide((mine * theirs).sum(axis=0), power, out=np.ones_like(power), where=power > 0)
    apart, left = float(np.square(mine - theirs).sum()), float(np.square(mine - times * theirs).sum())
    scaled = len(mine) >= TELLING and apart > ROUNDED * power.sum() and left < EXPLAINED * apart
    return times if scaled else None


def _centred(values: Array, axis: int) -> Array:
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)
    centred: Array = rows - rows.mean(axis=0)
    return centred
