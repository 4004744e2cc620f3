"""Selection: which arrays of a store are the layers of a job, and what the job's rules say of each.

Rules are tried in order, and the first match wins. Without rules, or by the rule `*`, every array that can be a layer
is one, and all others are named; other rules choose arrays, which must be layers. Arrays that no rule matches are
skipped. Rules describe the layers of the model: of an array that several of them read, each may have its own rule, and
what any of these asks for is counted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from ..errors import DataError, MismatchError, UsageError, listed, suggestion
from ..layouts import Kernel
from ..quantization import Quantization
from ..statistics.kinds import ALWAYS, checked_names, kinds_for, kinds_of, refusal, refusals
from .addresses import placed
from .attributes import USES
from .describing import describe, describe_array, mask_name, masked_layer
from .layer import Layer, unfit_values
from .masking import has_positions, looks_like_mask, with_mask
from .places import Place, in_order, places_of
from .readers import Readers


@dataclass(frozen=True)
class LayerRule:
    """What a job says of the layers whose names match the glob `match` (`*` also matches `/`).

    If no layer has the name of an array, that name stands for all layers that read the array.

    Where `channel_axis`, `quantization` or `kernel` is None, the attributes of the store decide. `statistics` names the
    kinds in `KINDS` to count in addition to those that are always counted. A job that counts fewer than `min_rows` rows
    of a layer, or fewer finite values in one of its channels, is incomplete. `mask` names the array of the store that
    says which positions count; where it is None, the attributes of the store decide; with False, every position counts.
    `attributes` says what to do about attributes of CF, such as `scale_factor` and `_FillValue`: "apply" them, or
    "ignore" them.
    Raises `UsageError` for statistics that are one text, and a mask that is no name.

    >>> rule = ss.LayerRule("f*", channel_axis=1, statistics=("squares",))
    >>> ss.reduce("calibration.zarr", layers=[rule])["fc"].variance
    array([ 5., 14.])
    """

    match: str
    channel_axis: int | None = None
    quantization: Quantization | None = None
    statistics: tuple[str, ...] = ()
    kernel: Kernel | None = None
    min_rows: int = 0
    mask: str | Literal[False] | None = None
    attributes: str = "apply"

    def __repr__(self) -> str:
        """What it chooses, and what differs from the defaults."""
        given = [each for each in fields(self)[1:] if getattr(self, each.name) != each.default]
        return f"LayerRule({', '.join([repr(self.match), *(f'{g.name}={getattr(self, g.name)!r}' for g in given)])})"

    def __post_init__(self) -> None:
        checked_names(self.statistics)
        if self.mask is not None and self.mask is not False and not (isinstance(self.mask, str) and self.mask):
            found = "empty" if isinstance(self.mask, str) else f"of type {type(self.mask).__name__}"
            raise UsageError(
                f"the mask of {self.match!r} is {found}; expected the name of an array in the store, such as 'words', "
                "or False to count every position"
            )
        if self.attributes not in USES:
            raise UsageError(f"attributes is {self.attributes!r}; expected {' or '.join(map(repr, USES))}")


@dataclass(frozen=True)
class Selected:
    """The layers of a job, in the order of their names, and the names of the layers and arrays that its rules skip.

    A layer that has several arrays is there several times, once for each, in the order in which their rows follow each
    other.

    Of the arrays that no rule chooses, or only that for all, `unfit` are those that cannot be layers, and `unreadable`
    those that nobody can read, with the reasons. `coordinates` say where the values of others lie: no entry names them.
    Arrays that are masks of others are none of these. `maybe_masks` are arrays, counted or not, that look like masks
    of layers that have none, with the names of these. `note` is that of `Found`.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    coordinates: Mapping[str, str] = field(default_factory=dict)
    maybe_masks: Mapping[str, Collection[str]] = field(default_factory=dict)


ALL = "*"
"""The rule for all other layers: it chooses none, so that one that cannot be read does not stop the others."""


def rules_of(layers: str | LayerRule | Sequence[str | LayerRule]) -> tuple[LayerRule, ...]:
    """The rules that `layers` are: a rule or a glob, which is a rule that only chooses, or several of them.

    Raises `UsageError` for anything else.
    """
    each_of = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    for each in each_of:
        if not isinstance(each, str | LayerRule):
            raise UsageError(
                f"`layers` is or holds the {type(each).__name__} {each!r}; expected names and rules, as in "
                '[ss.LayerRule("enc/*", mask="words")]'
            )
    return tuple(LayerRule(each) if isinstance(each, str) else each for each in each_of)


def also_counting(
    layers: str | LayerRule | Sequence[str | LayerRule], statistics: Sequence[str]
) -> tuple[LayerRule, ...]:
    """The rules of `layers`, or that for all layers if there are none, which also count `statistics`.

    Raises `UsageError` for statistics that are one text.
    """
    added = checked_names(statistics)
    return tuple(replace(each, statistics=(*each.statistics, *added)) for each in rules_of(layers) or [LayerRule(ALL)])


def select_layers(
    source: str | Path | Sequence[str | Path],
    layers: str | LayerRule | Sequence[str | LayerRule] = (),
    *,
    follow_links: bool = True,
) -> Selected:
    """What `layers`, globs and rules, choose in the calibration store at `source`, or in several, one after the other.

    Without `follow_links`, arrays behind links of this machine cannot be read.

    A layer that several stores have, or several parts of one, has an array in each. Raises `UsageError` for a source
    that is not a zarr group with arrays, an array that cannot be a layer, and a rule that matches nothing; `DataError`
    for an unreadable array that a rule matches, or if there are no others; `MismatchError` for arrays of one layer that
    do not fit together; `StoreError`.
    """
    rules = rules_of(layers)
    found = [_without_coordinates(place, rules) for place in places_of(source, follow_links=follow_links)]
    places = [place for place, _ in found]
    aside = {place.naming(name): reason for place, those in found for name, reason in those.items()}
    _check_readable(places, rules)
    where = ", ".join(dict.fromkeys(place.store.location for place in places))
    _check_not_only_coordinates(where, places, aside)
    _check_matched(where, rules, {name: names for place in places for name, names in place.readers.items()}, aside)
    candidates = [_candidates(place, rules) for place in places]
    _check_not_only_masks(where, candidates)
    _check_not_only_unfit(candidates)
    only = sum(len(each.rules) for each in candidates) == 1
    described = [_described(each, strict=each.rules if only else each.chosen) for each in candidates]
    chosen = in_order([layer for those, _ in described for layer in those])
    takes_all = not rules or any(rule.match == ALL for rule in rules)
    left_out = {name for each in candidates for name in each.left_out}
    unreadable = {name: reason for _, wrong in described for name, reason in wrong.items()}
    for place in places:
        unread = {
            f"{name} of {store}" if (store := place.address.store) else name: why
            for name, why in place.unreadable.items()
        }
        if takes_all:
            unreadable |= unread
        else:
            left_out.update(unread)
    unfit = {each.place.naming(name): reason for each in candidates for name, reason in each.unfit.items()}
    notes = dict.fromkeys(place.note for place in places if place.note)
    maybe: dict[str, dict[str, None]] = {}
    for each, (those, _) in zip(candidates, described, strict=True):
        for name, masked in _maybe_masks(each, those):
            maybe.setdefault(name, {})[masked] = None
    return Selected(tuple(chosen), tuple(sorted(left_out)), unfit, unreadable, "; ".join(notes), aside, maybe)


@dataclass(frozen=True)
class _Candidates:
    """The arrays of a `place` by name: those that are `masks`, those that are `unfit`, and the `rules` of all others.

    `mask_of` names the mask of each array; `chosen` are those that a rule other than that for all chooses.
    """

    place: Place
    masks: Collection[str]
    unfit: Mapping[str, str]
    rules: Mapping[str, Mapping[str, LayerRule]]
    mask_of: Mapping[str, str | None]
    chosen: Collection[str]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names that no rule matches."""
        return _skipped(self.place.readers, self.rules)


def _candidates(place: Place, rules: Sequence[LayerRule]) -> _Candidates:
    """What `rules` say of the arrays of `place`."""
    arrays = place.arrays
    matches = {array: _first_matches(array, names, rules) for array, names in place.readers.items()}
    recorded = {array: mask_name(arrays[array]) for array in arrays}
    asked = {array: _asked(array, "mask", by) for array, by in matches.items()}
    mask_of = {array: recorded[array] if name is None else name or None for array, name in asked.items()}
    _check_not_own_mask(mask_of)
    named = {*mask_of.values(), *recorded.values()}
    masks = {array for array in arrays if array in named or masked_layer(arrays[array])}
    chosen = {array for array, by in matches.items() if any(rule.match != ALL for rule in by.values())}
    unfit = _unfit({array: arrays[array] for array, by in matches.items() if by and array not in masks | chosen})
    candidates = {array: by for array, by in matches.items() if array not in masks and array not in unfit}
    return _Candidates(place, masks, unfit, candidates, mask_of, chosen)


def _without_coordinates(place: Place, rules: Sequence[LayerRule]) -> tuple[Place, dict[str, str]]:
    """(`place` without coordinates, these with the reasons); those that a rule names, or has as a mask, stay."""
    named = {name for rule in rules for name in (rule.match, rule.mask)}
    named |= {mask_name(array) for array in place.arrays.values()}
    aside = {name: reason for name, reason in place.coordinates.items() if name not in named}
    arrays = {name: array for name, array in place.arrays.items() if name not in aside}
    unreadable = {name: reason for name, reason in place.unreadable.items() if name not in aside}
    return replace(place, arrays=arrays, unreadable=unreadable), aside


def _check_not_only_coordinates(where: str, places: Sequence[Place], aside: Mapping[str, str]) -> None:
    if aside and not any(place.arrays or place.unreadable for place in places):
        raise UsageError(
            f"{where} has no layers, only coordinates: {listed(aside)}; name those to count under `layers`"
        )


def _described(candidates: _Candidates, strict: Collection[str]) -> tuple[list[Layer], dict[str, str]]:
    """(those `candidates` that have rules, as these describe them; array → what is wrong with it).

    What is wrong with those in `strict` is raised, `DataError` or `UsageError`, and so is what the rules ask in vain.
    """
    place, layers, wrong = candidates.place, [], {}
    for array, rules in candidates.rules.items():
        if not rules:
            continue
        try:
            layer = describe(place.store, array, place.arrays[array], _asked(array, "attributes", rules))
        except (DataError, UsageError) as error:
            if array in strict:
                raise
            wrong[place.naming(array)] = str(error).removeprefix(f"layer {array}: ")
        else:
            mask = _mask(place, array, candidates.mask_of[array])
            layers.append(replace(_by_rules(layer, mask, rules), address=place.address))
    _check_once(layers)
    _check_refusals(layers)
    return layers, wrong


def _maybe_masks(candidates: _Candidates, layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """(an array, one of `layers` whose mask it looks like), by name; not of layers of which a rule says something."""
    unmasked = [
        layer
        for layer in layers
        if layer.mask is None
        and layer.dtype.kind != "b"
        and _asked(layer.name, "mask", candidates.rules[layer.name]) is None
    ]
    for name, array in sorted(candidates.place.arrays.items()):
        if name in candidates.masks or not looks_like_mask(name, np.dtype(array.dtype)):
            continue
        for layer in unmasked:
            if layer.name != name and has_positions(array.shape, layer):
                yield name, layer.name


def _check_readable(places: Sequence[Place], rules: Sequence[LayerRule]) -> None:
    """Raise `DataError` for an unreadable array that a rule chooses, or if no other was found."""
    none = not any(place.arrays for place in places)
    globs = [rule.match for rule in rules if rule.match != ALL]
    for place in places:
        for name, reason in place.unreadable.items():
            if none or any(fnmatchcase(placed(name)[1], glob) for glob in globs):
                raise DataError(
                    f"{place.store.location}: array {name} cannot be read: {reason}; repair it, or leave it out of "
                    "`layers`"
                )


def _unfit(arrays: Mapping[str, zarr.Array[Any]]) -> dict[str, str]:
    """Those of `arrays` that cannot be layers, with the reasons."""
    found = {name: unfit_values(np.dtype(array.dtype), array.shape) for name, array in arrays.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def _check_not_only_unfit(candidates: Sequence[_Candidates]) -> None:
    """Raise `UsageError` if all arrays that the job takes are unfit."""
    unfit = [each for each in candidates if each.unfit]
    if unfit and not any(by for each in candidates for by in each.rules.values()):
        name, reason = next(iter(unfit[0].unfit.items()))
        raise UsageError(f"layer {name}: {reason}; no array of the store can be a layer")


def _check_not_only_masks(where: str, candidates: Sequence[_Candidates]) -> None:
    """Raise `UsageError` if there are masks, and no layers among the `candidates`."""
    masks = {name for each in candidates for name in each.masks}
    if masks and not any(by for each in candidates for by in each.rules.values()):
        raise UsageError(
            f"{where} has no layers, only masks of layers: {listed(sorted(masks))}; restore the layers, or match them "
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
    source: str, rules: Sequence[LayerRule], readers: Mapping[str, Sequence[str]], aside: Collection[str]
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
            has = f"{listed(readers)}{suggestion(rule.match, readers)}"
            raise UsageError(f"no layer of {source} matches {rule.match!r}; the store has {has}")


def _skipped(readers: Mapping[str, Sequence[str]], matches: Mapping[str, Mapping[str, LayerRule]]) -> tuple[str, ...]:
    """The arrays in `matches` without a rule, and the layers without one that read the others; sorted."""
    found = [name for array, by in matches.items() if by for name in readers[array] if name not in by]
    return tuple(sorted([*found, *(array for array, by in matches.items() if not by)]))


def _matches(rule: LayerRule, array: str, readers: Sequence[str], name: str) -> bool:
    """Whether `rule` describes the layer `name`, one of the `readers` of `array`."""
    return fnmatchcase(name, rule.match) or (array not in readers and fnmatchcase(array, rule.match))


def _mask(place: Place, layer: str, name: str | None) -> Layer | None:
    """The array `name`, the mask of `layer`; None if it has none."""
    arrays = place.arrays
    if name is None:
        return None
    if not arrays.get(name, arrays[layer]).shape:
        raise MismatchError(f"layer {layer}: its mask {name} is a single value; expected one for each position")
    if name in place.unreadable:
        raise DataError(f"layer {layer}: its mask {name} cannot be read: {place.unreadable[name]}; repair it")
    if name not in arrays:
        raise UsageError(
            f"layer {layer}: its mask {name} is not in the store, which has {listed(arrays)}; restore it, or name "
            "another one under `mask`"
        )
    mask = describe_array(place.store, name, arrays[name])
    return replace(mask, recorded=masked_layer(arrays[name]) == layer)


def _first_matches(array: str, names: Sequence[str], rules: Sequence[LayerRule]) -> dict[str, LayerRule]:
    """The first rule for each of the `names` of the layers that read `array`, if it has one."""
    if not rules:
        return dict.fromkeys(names, LayerRule("*"))
    found = {name: next((rule for rule in rules if _matches(rule, array, names, name)), None) for name in names}
    return {name: rule for name, rule in found.items() if rule is not None}


def _by_rules(layer: Layer, mask: Layer | None, rules: Mapping[str, LayerRule]) -> Layer:
    """`layer`, with `mask`, as the `rules` of the layers that read it describe it; others do not read it here.

    Its statistics are not checked. Raises `UsageError`, `MismatchError`.
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
    return replace(layer, kinds=kinds, min_rows=max(rule.min_rows for rule in rules.values()))


def _check_refusals(layers: Sequence[Layer]) -> None:
    """Raise `UsageError` if a layer cannot have a statistic that it should: the first such layer, and what to write."""
    refused = [(layer, found) for layer in layers if (found := refusals(layer.kinds, layer.space, layer.quantization))]
    if not refused:
        return
    entries = listed(_without(layer, found) for layer, found in refused)
    layer, found = refused[0]
    name, why = next(iter(found.items()))
    raise UsageError(
        f"{refusal(layer.name, name, why)}. To count the rest, begin `layers` in the configuration with {entries}; "
        "without other entries, end it with {match: '*'}"
    )


def _without(layer: Layer, refused: Collection[str]) -> str:
    """The entry of `layers` that requests the statistics of `layer` except those `refused`."""
    kept = [kind.name for kind in layer.kinds if not kind.unasked and kind.name not in (*ALWAYS, *refused)]
    return f"{{match: {json.dumps(layer.name, ensure_ascii=False)}, statistics: [{', '.join(kept)}]}}"


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
