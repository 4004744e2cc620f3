"""Selection: which arrays of a store are the layers of a job, and what the job's rules say of each.

Rules are tried in order, and the first match wins. Without rules, or by the rule `*`, every array that can be a layer
is one, and all others are named; other rules choose arrays, which must be layers. Arrays that no rule matches are
skipped. Rules describe the layers of the model: of an array that several of them read, each may have its own rule, and
what any of these asks for is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..errors import DataError, MismatchError, UsageError, listed
from ..layouts import Kernel
from ..quantization import Quantization
from ..statistics.kinds import check_refusals, checked_names, kinds_for, kinds_of
from .attributes import USES
from .coordinates import coordinates
from .describing import describe, describe_array, mask_name, masked_layer, names_in
from .layer import Layer, unfit_values
from .masking import with_mask
from .readers import Readers
from .sources.choose import source_of
from .sources.finding import Found
from .sources.source import Source


@dataclass(frozen=True)
class LayerRule:
    """What a job says of the layers whose names match the glob `match` (`*` also matches `/`).

    If no layer has the name of an array, that name stands for all layers that read the array.

    Where `channel_axis`, `quantization` or `kernel` is None, the attributes of the store decide. `statistics` names the
    kinds in `KINDS` to count in addition to those that are always counted. A job that counts fewer than `min_rows` rows
    of a layer, or fewer finite values in one of its channels, is incomplete. `mask` names the array of the store that
    says which positions count; where it is None, the attributes of the store decide. `attributes` says what to do
    about attributes of CF, such as `scale_factor` and `_FillValue`: "apply" them, or "ignore" them.
    Raises `UsageError` for statistics that are one text.
    """

    match: str
    channel_axis: int | None = None
    quantization: Quantization | None = None
    statistics: tuple[str, ...] = ()
    kernel: Kernel | None = None
    min_rows: int = 0
    mask: str | None = None
    attributes: str = "apply"

    def __post_init__(self) -> None:
        checked_names(self.statistics)
        if self.attributes not in USES:
            raise UsageError(f"attributes is {self.attributes!r}; expected {' or '.join(map(repr, USES))}")


@dataclass(frozen=True)
class Selected:
    """The layers of a job, in the order of their names, and the names of the layers and arrays that its rules skip.

    Of the arrays that no rule chooses, or only that for all, `unfit` are those that cannot be layers, and `unreadable`
    those that nobody can read, with the reasons. `coordinates` say where the values of others lie: no entry names them.
    Arrays that are masks of others are none of these. `note` is that of `Found`.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    coordinates: Mapping[str, str] = field(default_factory=dict)


ALL = "*"
"""The rule for all other layers: it chooses none, so that one that cannot be read does not stop the others."""


def select_layers(source: str | Path, rules: Sequence[LayerRule] = ()) -> Selected:
    """The layers of the calibration store at `source` that `rules` choose.

    Raises `UsageError` for a source that is not a zarr group with arrays, an array that cannot be a layer, and a
    rule that matches nothing; `DataError` for an unreadable array that a rule matches, or if there are no others;
    `StoreError`.
    """
    store = source_of(source)
    found, aside = _without_coordinates(store.find(), rules)
    _check_readable(source, found, rules)
    arrays = found.arrays
    _check_not_only_coordinates(source, found, aside)
    readers = {array: names_in(array, each) for array, each in arrays.items()}
    _check_matched(source, rules, readers, aside)
    matches = {array: _first_matches(array, names, rules) for array, names in readers.items()}
    mask_of = {array: _asked(array, "mask", by) or mask_name(arrays[array]) for array, by in matches.items()}
    _check_not_own_mask(mask_of)
    masks = {array for array in arrays if array in mask_of.values() or masked_layer(arrays[array])}
    chosen = {array for array, by in matches.items() if any(rule.match != ALL for rule in by.values())}
    unfit = _unfit({array: arrays[array] for array, by in matches.items() if by and array not in masks | chosen})
    candidates = {array: by for array, by in matches.items() if array not in masks and array not in unfit}
    _check_not_only_masks(source, masks, candidates)
    _check_not_only_unfit(unfit, candidates)
    layers, wrong = _described(store, arrays, mask_of, candidates, candidates if len(candidates) == 1 else chosen)
    _check_once(layers)
    takes_all = not rules or any(rule.match == ALL for rule in rules)
    left_out = [*_skipped(readers, candidates), *(() if takes_all else found.unreadable)]
    unreadable = {**(found.unreadable if takes_all else {}), **wrong}
    return Selected(tuple(layers), tuple(sorted(left_out)), unfit, unreadable, found.note, aside)


def _without_coordinates(found: Found, rules: Sequence[LayerRule]) -> tuple[Found, dict[str, str]]:
    """(`found` without coordinates, these with the reasons); those that a rule names, or has as a mask, stay."""
    named = {name for rule in rules for name in (rule.match, rule.mask)}
    named |= {mask_name(array) for array in found.arrays.values()}
    aside = {name: reason for name, reason in coordinates(found).items() if name not in named}
    arrays = {name: array for name, array in found.arrays.items() if name not in aside}
    unreadable = {name: reason for name, reason in found.unreadable.items() if name not in aside}
    return replace(found, arrays=arrays, unreadable=unreadable), aside


def _check_not_only_coordinates(source: str | Path, found: Found, aside: Mapping[str, str]) -> None:
    if not found.arrays and not found.unreadable:
        raise UsageError(
            f"{source} has no layers, only coordinates: {listed(aside)}; name those to count under `layers`"
        )


def _described(
    store: Source,
    arrays: Mapping[str, zarr.Array[Any]],
    mask_of: Mapping[str, str | None],
    candidates: Mapping[str, Mapping[str, LayerRule]],
    strict: Collection[str],
) -> tuple[list[Layer], dict[str, str]]:
    """(the `candidates` that have rules, as these describe them; array → what is wrong with it).

    What is wrong with those in `strict` is raised, `DataError` or `UsageError`, and so is what the rules ask in vain.
    """
    layers, wrong = [], {}
    for array, rules in candidates.items():
        if not rules:
            continue
        try:
            layer = describe(store, array, arrays[array], _asked(array, "attributes", rules))
        except (DataError, UsageError) as error:
            if array in strict:
                raise
            wrong[array] = str(error).removeprefix(f"layer {array}: ")
        else:
            layers.append(_by_rules(layer, _mask(store, array, mask_of[array], arrays), rules))
    return layers, wrong


def _check_readable(source: str | Path, found: Found, rules: Sequence[LayerRule]) -> None:
    """Raise `DataError` for an unreadable array that a rule chooses, or if no other was found."""
    for name, reason in found.unreadable.items():
        if not found.arrays or any(rule.match != ALL and fnmatchcase(name, rule.match) for rule in rules):
            raise DataError(f"{source}: array {name} cannot be read: {reason}; repair it, or leave it out of `layers`")


def _unfit(arrays: Mapping[str, zarr.Array[Any]]) -> dict[str, str]:
    """Those of `arrays` that cannot be layers, with the reasons."""
    found = {name: unfit_values(np.dtype(array.dtype), array.shape) for name, array in arrays.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _check_not_only_unfit(unfit: Mapping[str, str], candidates: Mapping[str, Mapping[str, LayerRule]]) -> None:
    """Raise `UsageError` if all arrays that the job takes are `unfit`."""
    if unfit and not any(candidates.values()):
        name, reason = next(iter(unfit.items()))
        raise UsageError(f"layer {name}: {reason}; no array of the store can be a layer")


def _check_not_only_masks(
    source: str | Path, masks: Collection[str], candidates: Mapping[str, Mapping[str, LayerRule]]
) -> None:
    """Raise `UsageError` if there are `masks`, and no layers among the `candidates`."""
    if masks and not any(candidates.values()):
        raise UsageError(
            f"{source} has no layers, only masks of layers: {listed(sorted(masks))}; restore the layers, or match them "
            "in `layers`"
        )


def _check_not_own_mask(mask_of: Mapping[str, str | None]) -> None:
    """Raise `UsageError` for an array that is named as the mask of itself, and of no other one."""
    for array, mask in mask_of.items():
        if array == mask and [*mask_of.values()].count(mask) == 1:
            raise UsageError(
                f"layer {array} is named as its own mask; expected another array of its shape without the channel "
                "axis: name that array under `mask`, or leave `mask` out"
            )


def _check_matched(
    source: str | Path, rules: Sequence[LayerRule], readers: Mapping[str, Sequence[str]], aside: Collection[str]
) -> None:
    """Raise `UsageError` for a rule that matches none of the `readers`, array → names of layers; coordinates are
    `aside`.
    """
    for rule in rules:
        matching = [name for name in aside if fnmatchcase(name, rule.match)]
        if matching and not any(_matches(rule, *each, name) for each in readers.items() for name in each[1]):
            raise UsageError(
                f"{rule.match!r} matches no layer of {source}, only coordinates: {listed(matching)}; to count one, "
                "give its name in full under `match`"
            )
        if not any(_matches(rule, array, names, name) for array, names in readers.items() for name in names):
            raise UsageError(f"no layer of {source} matches {rule.match!r}; the store has {listed(readers)}")


def _skipped(readers: Mapping[str, Sequence[str]], matches: Mapping[str, Mapping[str, LayerRule]]) -> tuple[str, ...]:
    """The arrays in `matches` without a rule, and the layers without one that read the others; sorted."""
    found = [name for array, by in matches.items() if by for name in readers[array] if name not in by]
    return tuple(sorted([*found, *(array for array, by in matches.items() if not by)]))


def _matches(rule: LayerRule, array: str, readers: Sequence[str], name: str) -> bool:
    """Whether `rule` describes the layer `name`, one of the `readers` of `array`."""
    return fnmatchcase(name, rule.match) or (array not in readers and fnmatchcase(array, rule.match))


def _mask(store: Source, layer: str, name: str | None, arrays: Mapping[str, zarr.Array[Any]]) -> Layer | None:
    """The array `name`, the mask of `layer`; None if it has none."""
    if name is None:
        return None
    if not arrays.get(name, arrays[layer]).shape:
        raise MismatchError(f"layer {layer}: its mask {name} is a single value; expected one for each position")
    if name not in arrays:
        raise UsageError(
            f"layer {layer}: its mask {name} is not in the store, which has {listed(arrays)}; restore it, or name "
            "another one under `mask`"
        )
    return describe_array(store, name, arrays[name])


def _first_matches(array: str, names: Sequence[str], rules: Sequence[LayerRule]) -> dict[str, LayerRule]:
    """The first rule for each of the `names` of the layers that read `array`, if it has one."""
    if not rules:
        return dict.fromkeys(names, LayerRule("*"))
    found = {name: next((rule for rule in rules if _matches(rule, array, names, name)), None) for name in names}
    return {name: rule for name, rule in found.items() if rule is not None}


def _by_rules(layer: Layer, mask: Layer | None, rules: Mapping[str, LayerRule]) -> Layer:
    """`layer`, with `mask`, as the `rules` of the layers that read it describe it; others do not read it here.

    Raises `UsageError`, `MismatchError`.
    """
    axis, quantization = _asked(layer.name, "channel_axis", rules), _asked(layer.name, "quantization", rules)
    readers = Readers.of(
        {name: rules[name].kernel or layer.read_by.kernel_of(name) for name in layer.read_by.names if name in rules}
    )
    if axis is not None:
        layer = layer.with_channel_axis(axis)
    layer = layer.with_quantization(layer.quantization if quantization is None else quantization)
    layer = layer.with_readers(readers)
    if mask is not None:
        layer = with_mask(layer, mask)
    asked = kinds_of([name for rule in rules.values() for name in rule.statistics])
    kinds = kinds_for(asked, layer.space, layer.quantization)
    described = replace(layer, kinds=kinds, min_rows=max(rule.min_rows for rule in rules.values()))
    check_refusals(layer.name, described.kinds, described.space, described.quantization)
    return described


def _asked(array: str, key: str, rules: Mapping[str, LayerRule]) -> Any:
    """What the `rules` of the layers that read `array` say under `key`. Raises `UsageError` if they differ."""
    asked = {name: getattr(rule, key) for name, rule in rules.items()}
    found = list(asked.values()) or [None]
    if any(each != found[0] for each in found):
        said = ", ".join(f"{name}: {value}" for name, value in asked.items())
        raise UsageError(
            f"layer {array}: the layers that read it have different `{key}` values in the configuration ({said}); "
            "expected one value, because they read the same array"
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
