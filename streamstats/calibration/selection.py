"""Selection: which arrays of a store are the layers of a job, and what the job's rules say of each.

Rules are tried in order, and the first match wins. Without rules, every array is a layer, as its attributes describe
it; with rules, arrays that no rule matches are skipped.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zarr

from ..errors import UsageError, listed
from ..layouts import Kernel
from ..quantization import Quantization
from ..statistics.kinds import check_refusals, kinds_of
from .describing import describe, describe_array, mask_name, masked_layer
from .layer import Layer
from .masking import with_mask
from .sources.choose import source_of
from .sources.source import Source


@dataclass(frozen=True)
class LayerRule:
    """What a job says of the layers whose names match the glob `match` (`*` also matches `/`).

    Where `channel_axis`, `quantization` or `kernel` is None, the attributes of the store decide. `statistics` names the
    kinds in `KINDS` to count in addition to those that are always counted. A job that counts fewer than `min_rows` rows
    of a layer, or fewer finite values in one of its channels, is incomplete. `mask` names the array of the store that
    says which positions count; where it is None, the attributes of the store decide.
    """

    match: str
    channel_axis: int | None = None
    quantization: Quantization | None = None
    statistics: tuple[str, ...] = ()
    kernel: Kernel | None = None
    min_rows: int = 0
    mask: str | None = None

    def apply(self, layer: Layer, mask: Layer | None = None) -> Layer:
        """`layer`, with `mask`, as this rule describes it. Raises `UsageError`, `MismatchError`."""
        quantization = layer.quantization if self.quantization is None else self.quantization
        if self.channel_axis is not None:
            layer = layer.with_channel_axis(self.channel_axis)
        layer = layer.with_quantization(quantization).with_kernel(self.kernel or layer.kernel)
        if mask is not None:
            layer = with_mask(layer, mask)
        described = replace(layer, kinds=kinds_of(self.statistics), min_rows=self.min_rows)
        check_refusals(layer.name, described.kinds, described.space, described.quantization)
        return described


@dataclass(frozen=True)
class Selected:
    """The layers of a job, in the order of their names, and the names of the arrays that its rules skip.

    Arrays that are masks of others are neither.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]


def select_layers(source: str | Path, rules: Sequence[LayerRule] = ()) -> Selected:
    """The layers of the calibration store at `source` that `rules` choose.

    Raises `UsageError` for a source that is not a zarr group with arrays, an array that cannot be a layer, and a
    rule that matches nothing; `DataError`, `StoreError`.
    """
    store = source_of(source)
    arrays = store.arrays()
    for rule in rules:
        if not any(fnmatch.fnmatchcase(name, rule.match) for name in arrays):
            raise UsageError(f"no layer of {source} matches {rule.match!r}; the store has {listed(arrays)}")
    chosen = {name: _first_match(name, rules) for name in arrays}
    masks = {name: rule.mask if rule and rule.mask else mask_name(arrays[name]) for name, rule in chosen.items()}
    masked = [name for name in chosen if name in masks.values() or masked_layer(arrays[name])]
    layers = {name: rule for name, rule in chosen.items() if name not in masked}
    if not any(layers.values()):
        raise UsageError(
            f"{source} has no layers, only masks of layers: {listed(masked)}; restore the layers, or match them in "
            "`layers`"
        )
    return Selected(
        layers=tuple(
            rule.apply(describe(store, name, arrays[name]), _mask(store, name, masks[name], arrays))
            for name, rule in layers.items()
            if rule
        ),
        left_out=tuple(name for name, rule in layers.items() if rule is None),
    )


def _mask(store: Source, layer: str, name: str | None, arrays: Mapping[str, zarr.Array[Any]]) -> Layer | None:
    """The array `name`, the mask of `layer`; None if it has none."""
    if name is None:
        return None
    if name not in arrays:
        raise UsageError(
            f"layer {layer}: its mask {name} is not in the store, which has {listed(arrays)}; restore it, or name "
            "another one under `mask`"
        )
    return describe_array(store, name, arrays[name])


def _first_match(name: str, rules: Sequence[LayerRule]) -> LayerRule | None:
    if not rules:
        return LayerRule("*")
    return next((rule for rule in rules if fnmatch.fnmatchcase(name, rule.match)), None)
