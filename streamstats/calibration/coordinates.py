"""Coordinates: arrays that say where values lie, in stores that xarray wrote; they are no activations.

These are the arrays with the name of a dimension, those that `coordinates` attributes of arrays or groups name, and
those that other attributes of CF refer to, such as bounds. A name belongs to the nearest group that has such an array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import zarr

from .attributes import DIMENSIONS
from .sources.finding import Found

REFERRING = ("bounds", "climatology", "grid_mapping", "cell_measures", "formula_terms", "geometry", "node_coordinates")
"""Attributes of CF that name arrays which belong to another one; some give each name after a word and a colon."""


def coordinates(found: Found) -> dict[str, str]:
    """The coordinates among the arrays in `found`, readable or not, with what makes each of them one."""
    names = {*found.arrays, *found.unreadable}
    reasons: dict[str, str] = {}
    for referring, name, reason in _references(found):
        path = _nearest(referring, name, names)
        if path is not None and path != referring:
            reasons.setdefault(path, reason)
    for name, array in found.arrays.items():
        dimensions = dimensions_of(array)
        if array.ndim == 1 and dimensions == (name.rpartition("/")[2],):
            reasons[name] = "it has the name of its dimension"
    return dict(sorted(reasons.items()))


def dimensions_of(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    """The names of the dimensions of `array`, as far as they are known; empty if none is."""
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get(DIMENSIONS)
    return tuple(named) if isinstance(named, list | tuple) else ()


def _references(found: Found) -> Iterator[tuple[str, str, str]]:
    """(array or group that refers to it, name of a coordinate, why it is one)."""
    for array, each in found.arrays.items():
        attributes = each.attrs.asdict()
        for key in ("coordinates", *REFERRING):
            for name in _words(attributes.get(key)):
                yield array, name, f"`{key}` of {array}"
    for group, attributes in found.groups.items():
        for name in _words(attributes.get("coordinates")):
            yield f"{group}/" if group else "", name, f"`coordinates` of {f'group {group}' if group else 'the store'}"


def _words(value: object) -> list[str]:
    """The names in an attribute; of `area: cell_area`, both words, one of which names an array."""
    return [word.rstrip(":") for word in value.split()] if isinstance(value, str) else []


def _nearest(referring: str, name: str, names: Collection[str]) -> str | None:
    """The array called `name` in the group of `referring`, or else in the nearest group above."""
    group = referring.rpartition("/")[0]
    while True:
        path = f"{group}/{name}" if group else name
        if path in names:
            return path
        if not group:
            return None
        group = group.rpartition("/")[0]
