"""Selection: which arrays of a store are the layers of a job, and what the job's rules say of each.

Rules are tried in order, and the first match wins. Without rules, every array is a layer, as its attributes describe
it; with rules, arrays that no rule matches are skipped. Rules describe the layers of the model: of an array that
several of them read, each may have its own rule, and what any of these asks for is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TypeVar

from ..errors import UsageError, listed
from ..layouts import Kernel
from ..quantization import Quantization
from ..statistics.kinds import check_refusals, kinds_of
from .describing import describe, names_in
from .layer import Layer
from .readers import Readers
from .sources.choose import source_of

T = TypeVar("T")


@dataclass(frozen=True)
class LayerRule:
    """What a job says of the layers whose names match the glob `match` (`*` also matches `/`).

    The name of an array that is not that of a layer stands for all layers that read it.

    Where `channel_axis`, `quantization` or `kernel` is None, the attributes of the store decide. `statistics` names the
    kinds in `KINDS` to count in addition to those that are always counted. A job that counts fewer than `min_rows` rows
    of a layer, or fewer finite values in one of its channels, is incomplete.
    """

    match: str
    channel_axis: int | None = None
    quantization: Quantization | None = None
    statistics: tuple[str, ...] = ()
    kernel: Kernel | None = None
    min_rows: int = 0


@dataclass(frozen=True)
class Selected:
    """The layers of a job, in the order of their names, and the names of the layers and arrays that its rules skip."""

    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]


def select_layers(source: str | Path, rules: Sequence[LayerRule] = ()) -> Selected:
    """The layers of the calibration store at `source` that `rules` choose.

    Raises `UsageError` for a source that is not a zarr group with arrays, an array that cannot be a layer, and a
    rule that matches nothing; `DataError`, `StoreError`.
    """
    store = source_of(source)
    arrays = store.arrays()
    names = {name: names_in(name, array) for name, array in arrays.items()}
    for rule in rules:
        if not any(_matches(rule, array, readers, name) for array, readers in names.items() for name in readers):
            raise UsageError(f"no layer of {source} matches {rule.match!r}; the store has {listed(arrays)}")
    chosen = {array: _first_matches(array, readers, rules) for array, readers in names.items()}
    layers = tuple(_by_rules(describe(store, name, arrays[name]), found) for name, found in chosen.items() if found)
    _check_once(layers)
    skipped = [[name for name in names[array] if name not in found] for array, found in chosen.items() if found]
    return Selected(
        layers, left_out=tuple(sorted([*(each for each, found in chosen.items() if not found), *chain(*skipped)]))
    )


def _matches(rule: LayerRule, array: str, readers: Sequence[str], name: str) -> bool:
    """Whether `rule` describes the layer `name`, one of the `readers` of `array`."""
    return fnmatchcase(name, rule.match) or (array not in readers and fnmatchcase(array, rule.match))


def _first_matches(array: str, names: Sequence[str], rules: Sequence[LayerRule]) -> dict[str, LayerRule]:
    """The first rule for each of the `names` of the layers that read `array`, if it has one."""
    if not rules:
        return dict.fromkeys(names, LayerRule("*"))
    found = {name: next((rule for rule in rules if _matches(rule, array, names, name)), None) for name in names}
    return {name: rule for name, rule in found.items() if rule is not None}


def _by_rules(layer: Layer, rules: Mapping[str, LayerRule]) -> Layer:
    """`layer` as the `rules` of the layers that read it describe it, by name; other layers do not read it here.

    Raises `UsageError`, `MismatchError`.
    """
    axis = _common(layer, "channel_axis", {name: rule.channel_axis for name, rule in rules.items()})
    quantization = _common(layer, "quantization", {name: rule.quantization for name, rule in rules.items()})
    readers = Readers.of(
        {name: rules[name].kernel or layer.read_by.kernel_of(name) for name in layer.read_by.names if name in rules}
    )
    if axis is not None:
        layer = layer.with_channel_axis(axis)
    layer = layer.with_quantization(layer.quantization if quantization is None else quantization).with_readers(readers)
    kinds = kinds_of([name for rule in rules.values() for name in rule.statistics])
    described = replace(layer, kinds=kinds, min_rows=max(rule.min_rows for rule in rules.values()))
    check_refusals(layer.name, described.kinds, described.space, described.quantization)
    return described


def _common(layer: Layer, key: str, asked: Mapping[str, T | None]) -> T | None:
    """What is asked of every layer that reads `layer`. Raises `UsageError` if they are asked for different values."""
    found = list(asked.values())
    if any(each != found[0] for each in found):
        said = ", ".join(f"{name}: {value}" for name, value in asked.items())
        raise UsageError(
            f"layer {layer.name}: the layers that read it have different `{key}` in the configuration ({said}); "
            "expected the same, because they read the same array"
        )
    return found[0]


def _check_once(layers: Sequence[Layer]) -> None:
    """Raise `UsageError` for a layer of the model that two arrays are said to be the input of."""
    seen: dict[str, str] = {}
    for layer in layers:
        for name in layer.names:
            if name in seen:
                raise UsageError(
                    f"layer {name} reads two arrays of {layer.store}, {seen[name]} and {layer.name}; expected one: "
                    "leave the layer out of `layers`, or record into another store"
                )
            seen[name] = layer.name
