"""Places: where the arrays of a job lie, and which of them are one layer.

The stores of a job follow each other in the order in which it names them. In a store, what lies outside parts comes
first, then its parts, in the order of their names. The rows of a layer follow each other in that order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zarr

from ..errors import MismatchError, UsageError
from .addresses import Address, part_path, placed
from .coordinates import coordinates
from .describing import names_in, part_in
from .layer import Layer, arrays_of
from .sources.choose import is_url, source_of
from .sources.source import Source


@dataclass(frozen=True)
class Place:
    """The arrays of one part of a `store`, or those outside parts, by the names that they have there.

    `unreadable` are arrays that nobody can read, by their paths, with the reasons; `note` is that of `Found`.
    `coordinates` say where the values of others lie: why each is one.
    """

    store: Source
    address: Address
    arrays: dict[str, zarr.Array[Any]]
    unreadable: dict[str, str] = field(default_factory=dict)
    note: str = ""
    coordinates: dict[str, str] = field(default_factory=dict)

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """The layers that read each array."""
        return {name: names_in(name, array) for name, array in self.arrays.items()}

    def naming(self, array: str) -> str:
        """What messages call `array`."""
        return self.address.naming(array)

    @property
    def real_location(self) -> str:
        """Where the arrays lie, whatever links lead to the store and the part."""
        location, below = self.store.location, part_path(self.address.part) if self.address.part else ""
        if is_url(location):
            return f"{location.rstrip('/')}/{below}".rstrip("/")
        return os.path.realpath(os.path.join(location, below))


def places_of(source: str | Path | Sequence[str | Path], *, follow_links: bool = True) -> list[Place]:
    """The places of the store at `source`, or of several.

    Raises as `Source.find`, and `UsageError` for a store named twice, and for what is no name of a store.
    """
    if isinstance(source, str | Path):
        return _places(source_of(source, follow_links=follow_links), "")
    if not isinstance(source, Sequence) or not all(isinstance(each, str | Path) for each in source):
        raise UsageError(
            f"the source is a {type(source).__name__}; expected the path or URL of a store, or a list of them; to "
            "count arrays in memory, append them to a `Meter`"
        )
    stores = [str(each) for each in source]
    _check_stores(stores)
    places = []
    for each in stores:
        places += _places(source_of(each, follow_links=follow_links), each if len(stores) > 1 else "")
    _check_places(places)
    return places


def _check_stores(stores: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for store in stores:
        location = source_of(store).location
        if location in seen:
            raise UsageError(f"`source` names {store} twice ({seen[location]}); name each store once")
        seen[location] = store
    if not stores:
        raise UsageError("`source` names no store; expected one, or a list of some")


def _check_places(places: Sequence[Place]) -> None:
    """Raise `UsageError` for arrays that would count twice: those of a store and a link to it, or to a part of it."""
    seen: dict[str, Place] = {}
    for place in places:
        first = seen.setdefault(place.real_location, place)
        if first is not place and place.arrays and first.arrays:
            raise UsageError(
                f"`source` names {place.address} twice: it is {first.address}; name each store once, and either a "
                "store or parts of it"
            )


def _places(store: Source, named: str) -> list[Place]:
    found = store.find()
    by_part: dict[str, dict[str, zarr.Array[Any]]] = {"": {}}
    for path, array in found.arrays.items():
        part, name = placed(path)
        is_part = bool(part) and part_in(array) == part
        by_part.setdefault(part if is_part else "", {})[name if is_part else path] = array
    of_root = (found.unreadable, found.note, coordinates(found))
    return [
        Place(store, Address(named, part), arrays, *(of_root if not part else ()))
        for part, arrays in sorted(by_part.items())
    ]


def in_order(layers: Sequence[Layer]) -> list[Layer]:
    """`layers` by name; the arrays of one layer, in their order, get names that tell them apart.

    Raises `MismatchError` unless the arrays of a layer fit together.
    """
    found = []
    for name, arrays in sorted(arrays_of(layers).items()):
        named = [_named(array, name) for array in arrays]
        for array in named[1:]:
            _check_fits(array, named[0])
        found += named
    _check_names(found)
    return found


def _named(array: Layer, name: str) -> Layer:
    """`array` with a name of its own, if it is not all that its layer can have."""
    own = array.address.naming(name)
    return array if own == name else replace(array, name=own, of=name, at=array.path)


def _check_fits(array: Layer, first: Layer) -> None:
    """Raise `MismatchError` unless rows of `array` can follow those of `first`, as if both were one array."""
    where = str(first.address) or "the store, outside its parts,"
    remedy = f"make `{array.address}` agree, or count them in outputs of their own"
    array.check_continues(first, f"{where} has", remedy)
    pairs = {"kernel": (array.read_by, first.read_by), "meaning of its rows": (array.rows_are, first.rows_are)}
    pairs["missing values"] = (array.meaning, first.meaning)
    for what, (mine, others) in pairs.items():
        if mine != others:
            raise MismatchError(
                f"layer {array.name}: the {what} differs between {where} and {array.address}; {remedy}"
                + ("; `geometry` in the configuration gives both a kernel" if what == "kernel" else "")
            )


def _check_names(layers: Sequence[Layer]) -> None:
    """Raise `UsageError` for an array that is called like another one."""
    seen: set[str] = set()
    for layer in layers:
        if layer.name in seen:
            raise UsageError(f"two arrays of {layer.store} would be called {layer.name}; rename the layer")
        seen.add(layer.name)
