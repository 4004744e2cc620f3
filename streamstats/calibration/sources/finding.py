"""Finding the arrays of a store: every folder is looked into, whether or not it has the metadata of a group.

An array that cannot be read keeps no other from being found: it is named, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import StorePath

from ...errors import DataError, EmptyStoreError, StoreError, UsageError, counted, first_line
from ...storage.names import V3_METADATA

MOST_ARRAYS = 100_000
MOST_FOLDERS = 1_000_000
"""That are looked into: chunks of an array whose metadata is missing look like folders."""
DEEPEST = 64
"""Folders inside each other."""
LONGEST_METADATA = 2**24
V2_ARRAY, V2_GROUP, V2_ATTRIBUTES, V2_CONSOLIDATED = ".zarray", ".zgroup", ".zattrs", ".zmetadata"
INTO_A_STORE = "arrays of other formats, such as .npy, go into a store by `Recorder`"
"""What to do about what is no zarr group at all."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What lies in a folder: names of files and of folders. `refused` has folders not to look into, and the reason."""

    files: frozenset[str]
    folders: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


class Tree(Protocol):
    """The folders of a store; paths are relative to its root, which is the empty path."""

    @property
    def threads(self) -> int:
        """How many folders to look into at once."""

    def names(self, folder: str) -> Names:
        """What lies in `folder`. Raises `StoreError`."""

    def content(self, path: str, most: int) -> bytes:
        """The content of the file at `path`. Raises `DataError` unless it is a file of at most `most` bytes."""


@dataclass(frozen=True)
class Found:
    """The arrays of a store by name, in the order of the names, and the `unreadable` ones with the reason.

    `note` says what a user should know of how they were found; it may be empty. `groups` has the attributes of groups,
    by path, as far as they have any.
    """

    arrays: dict[str, zarr.Array[Any]]
    unreadable: dict[str, str] = field(default_factory=dict)
    note: str = ""
    groups: Mapping[str, Document] = field(default_factory=dict)


@dataclass(frozen=True)
class _Node:
    """A folder: the folders below it to look into; the array that it is, if any; what cannot be read, and why; the
    attributes of the group that it is."""

    below: tuple[str, ...] = ()
    array: zarr.Array[Any] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    attributes: Document = field(default_factory=dict)


def find_arrays(tree: Tree, store: Store, location: str) -> Found:
    """The arrays in `tree`, which `store` reads; `location` is for messages. Raises as `Source.find`."""
    root = _read_root(tree, location)
    arrays: dict[str, zarr.Array[Any]] = {}
    unreadable: dict[str, str] = {}
    groups: dict[str, Document] = {}
    waiting, looked, depth = [""], 0, 0
    with ThreadPoolExecutor(tree.threads, "streamstats-find") as pool:
        while waiting:
            looked += len(waiting)
            _check_bounds(location, waiting[0], depth, looked)
            paths, waiting, depth = waiting, [], depth + 1
            for path, node in zip(paths, pool.map(lambda path: _look(tree, store, path), paths), strict=True):
                waiting += node.below
                unreadable |= node.unreadable
                if node.array is not None:
                    arrays[path] = node.array
                if node.attributes:
                    groups[path] = node.attributes
                _check_number(location, len(arrays), MOST_ARRAYS, "array")
    known = {**arrays, **unreadable}
    unreadable |= {name: _ONLY_CONSOLIDATED for name in consolidated_names(root) if name not in known}
    return _found(location, Found(arrays, unreadable, groups=groups))


def find_listed(tree: Tree, store: Store, location: str) -> Found:
    """The arrays in `tree` that its consolidated metadata lists, each as its own metadata describes it.

    For trees whose folders cannot be listed: `names` gives files alone. Raises as `Source.find`.
    """
    root = _read_root(tree, location)
    names = consolidated_names(root)
    if not names:
        raise UsageError(
            f"{location} cannot be listed, and has no consolidated metadata that lists arrays; consolidate it with "
            "zarr.consolidate_metadata, or copy it to a folder"
        )
    with ThreadPoolExecutor(tree.threads, "streamstats-find") as pool:
        nodes = dict(zip(names, pool.map(lambda name: _look(tree, store, name), names), strict=True))
    arrays = {name: node.array for name, node in nodes.items() if node.array is not None}
    unreadable = {name: node.unreadable.get(name, _ONLY_CONSOLIDATED) for name, node in nodes.items() if not node.array}
    note = "it cannot be listed: only arrays in its consolidated metadata are known"
    return _found(location, Found(arrays, unreadable, note, consolidated_groups(root)))


_ONLY_CONSOLIDATED = "only the consolidated metadata of the store lists it; its own metadata is missing"


def _found(location: str, found: Found) -> Found:
    """`found`, sorted. Raises `UsageError` if it has nothing."""
    if not found.arrays and not found.unreadable:
        raise EmptyStoreError(f"{location} is a zarr group without arrays; record activations into it first")
    return replace(found, arrays=dict(sorted(found.arrays.items())), unreadable=dict(sorted(found.unreadable.items())))


def _read_root(tree: Tree, location: str) -> Document:
    """The consolidated metadata of the group at the root, or its own. Raises `UsageError` if there is no group."""
    files = tree.names("").files
    try:
        document = _document(tree, V3_METADATA) if V3_METADATA in files else {}
        consolidated = _document(tree, V2_CONSOLIDATED) if V2_CONSOLIDATED in files else document
    except DataError as error:
        raise DataError(f"{location}: {error}; repair the store") from error
    if document.get("node_type") == "array" or (V2_ARRAY in files and not document):
        raise UsageError(f"{location} is a zarr array; give the group above it as the source")
    if not document and V2_GROUP not in files:
        raise UsageError(
            f"{location} is not a zarr group (it has no {V3_METADATA} or {V2_GROUP}); give the folder of a zarr group "
            f"as the source; {INTO_A_STORE}"
        )
    return consolidated


def consolidated_names(document: Document) -> list[str]:
    """The arrays that consolidated metadata lists: `document` is .zmetadata, or the zarr.json of a group."""
    whole = document.get("consolidated_metadata") or document
    nodes = whole.get("metadata") if isinstance(whole, dict) else None
    if not isinstance(nodes, dict):
        return []
    version_2 = [path.removesuffix(f"/{V2_ARRAY}") for path in nodes if path.endswith(f"/{V2_ARRAY}")]
    kinds = {path: node.get("node_type") for path, node in nodes.items() if isinstance(node, dict)}
    return [*version_2, *(path for path, kind in kinds.items() if kind == "array")]


def consolidated_groups(document: Document) -> dict[str, Document]:
    """The attributes of the groups that consolidated metadata lists, and of the group itself; by path."""
    found = {"": document.get("attributes")}
    whole = document.get("consolidated_metadata") or document
    listed = whole.get("metadata") if isinstance(whole, dict) else None
    nodes = listed if isinstance(listed, dict) else {}
    for path, node in nodes.items():
        folder, _, name = path.rpartition("/")
        if name == V2_ATTRIBUTES and _joined(folder, V2_ARRAY) not in nodes:
            found[folder] = node
        elif isinstance(node, dict) and node.get("node_type") == "group":
            found[path] = node.get("attributes")
    return {path: each for path, each in found.items() if isinstance(each, dict) and each}


def _check_bounds(location: str, folder: str, depth: int, folders: int) -> None:
    if depth > DEEPEST:
        raise DataError(
            f"{location}: {folder} lies more than {DEEPEST} groups deep; give a group further down as the source"
        )
    _check_number(location, folders, MOST_FOLDERS, "folder")


def _check_number(location: str, number: int, most: int, what: str) -> None:
    if number > most:
        raise DataError(f"{location} has more than {counted(most, what)}; give a smaller group as the source")


def _look(tree: Tree, store: Store, path: str) -> _Node:
    """What the folder at `path` is; the folders below an array are its chunks."""
    try:
        names = tree.names(path)
        three = _document(tree, _joined(path, V3_METADATA)) if V3_METADATA in names.files else {}
        document = _array_document(tree, path, names.files, three)
        if document is not None:
            return _Node(array=_opened(store, path, document))
        attributes = _group_attributes(tree, path, names.files, three)
    except DataError as error:
        return _Node(unreadable={path: str(error)})
    refused = {_joined(path, name): reason for name, reason in names.refused.items()}
    below = tuple(_joined(path, name) for name in sorted(names.folders))
    return _Node(below, unreadable=refused, attributes=attributes)


def _opened(store: Store, path: str, document: Document) -> zarr.Array[Any]:
    """The array at `path` with the metadata `document`. Raises `DataError` if zarr cannot open it."""
    try:
        array = zarr.Array.from_dict(StorePath(store, path), document)
        _ = np.dtype(array.dtype), array.shape, array.chunks, array.shards, array.fill_value, array.attrs.asdict()
    except StoreError:
        raise
    except Exception as error:  # whatever zarr, a codec or a plug-in raises says that they cannot read it
        raise DataError(
            f"zarr {zarr.__version__} cannot open it: {type(error).__name__}: {first_line(error)}"
        ) from error
    return array


def _array_document(tree: Tree, path: str, files: frozenset[str], three: Document) -> Document | None:
    """The metadata of the array at `path`, as zarr prefers it; None if there is no array. Raises `DataError`.

    `three` is that of zarr v3, empty if there is none.
    """
    is_array = three.get("node_type") == "array"
    if V2_ARRAY not in files:
        return three if is_array else None
    two = _document(tree, _joined(path, V2_ARRAY))
    if three and three.get("shape") != two.get("shape"):
        raise DataError(f"{V3_METADATA} and {V2_ARRAY} describe different arrays; remove the one that is out of date")
    if is_array:
        return three
    attributes = _document(tree, _joined(path, V2_ATTRIBUTES)) if V2_ATTRIBUTES in files else {}
    return two | {"attributes": attributes}


def _group_attributes(tree: Tree, path: str, files: frozenset[str], three: Document) -> Document:
    """The attributes of the group at `path`; empty if it has none, or none that can be read: its arrays count.

    `three` is its metadata of zarr v3, empty if there is none.
    """
    found = three.get("attributes")
    if not three and V2_ATTRIBUTES in files:
        try:
            found = _document(tree, _joined(path, V2_ATTRIBUTES))
        except DataError:
            return {}
    return found if isinstance(found, dict) else {}


def _document(tree: Tree, path: str) -> Document:
    """The JSON object in the file at `path`. Raises `DataError`."""
    name = path.rpartition("/")[2]
    try:
        found = json.loads(tree.content(path, LONGEST_METADATA))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{name} holds {type(found).__name__}; expected a JSON object")
    return found


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
