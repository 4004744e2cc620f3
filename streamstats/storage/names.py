"""Names of layers: which names are usable, how a model's labels become names, and which paths a layer's files have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from ..errors import UsageError

LONGEST_NAME = 255
"""Maximum bytes of a file name on common file systems."""
V3_METADATA = "zarr.json"
V2_METADATA = (".zgroup", ".zarray", ".zattrs", ".zmetadata")
METADATA_NAMES = frozenset((V3_METADATA, *V2_METADATA))
"""The names of zarr's own files: no part of the name of a recorded layer can be one of them."""


def check_layer_name(layer: str) -> str:
    """Return `layer` if it can safely name an array and a file; raise `UsageError` otherwise.

    It refuses an empty name, a leading or trailing `/`, a part that is empty, `.` or `..`, and unprintable characters,
    such as a newline.
    """
    parts = layer.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(not char.isprintable() for char in layer):
        raise UsageError(
            f"layer name {layer!r} is not usable: expected parts joined by single '/', none of them empty, '.' or "
            "'..', each of printable characters; rename the layer"
        )
    return layer


def check_recorded_name(layer: str) -> str:
    """Return `layer` if it can name a layer that is recorded; raise `UsageError` otherwise.

    Beside the layers of a store lie files and folders whose names begin with `.`: its parts, claims and journals. No
    part of a layer's name does.
    """
    parts = check_layer_name(layer).split("/")
    if "\\" in layer:
        raise UsageError(f"layer name {layer!r} is not usable: zarr reads \\ as /; rename the layer")
    if METADATA_NAMES.intersection(parts):
        raise UsageError(f"layer name {layer!r} is not usable: zarr uses it for its own files; rename the layer")
    if any(part.startswith(".") for part in parts):
        raise UsageError(
            f"layer name {layer!r} is not usable: names that begin with '.' are reserved for what a store holds "
            "besides its layers; rename the layer"
        )
    return layer


def network_order(order: int | None, layer: str) -> tuple[object, ...]:
    """A key that sorts layers as they are recorded, by `order`; those without one follow, numbers in names by value.

    >>> sorted(["block10", "block2", "stem"], key=lambda name: network_order(0 if name == "stem" else None, name))
    ['stem', 'block2', 'block10']
    """
    parts = re.split(r"([0-9]+)", layer)
    natural = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
    return order is None, order or 0, natural, layer


def layer_path(folder: Path, layer: str, suffix: str = ".safetensors") -> Path:
    """The path of the file of `layer` below `folder`: `/` separates folders, unsafe characters are percent-encoded.

    Different layers have different paths, and no layer's file is a folder above another's. Raises `UsageError` for a
    name that `check_layer_name` refuses, and for a part that is too long.

    >>> layer_path(Path("out"), "block 1/conv").as_posix()
    'out/block%201/conv.safetensors'
    """
    *folders, name = (quote(part, safe="") for part in check_layer_name(layer).split("/"))
    longest = max(map(len, (*folders, name + suffix)))
    if longest > LONGEST_NAME:
        raise UsageError(
            f"layer name {layer[:40]!r}… is too long: one of its parts becomes a file name of {longest} characters; "
            f"expected at most {LONGEST_NAME}; rename the layer"
        )
    return folder.joinpath(*(_unlike_a_file(part, suffix) for part in folders), name + suffix)


def layer_of(folder: Path, path: Path, suffix: str = ".safetensors") -> str:
    """The layer whose file below `folder` is at `path`: the inverse of `layer_path`.

    >>> layer_of(Path("out"), Path("out/block%201/conv.safetensors"))
    'block 1/conv'
    """
    return "/".join(map(unquote, path.relative_to(folder).parts)).removesuffix(suffix)


def _unlike_a_file(part: str, suffix: str) -> str:
    """A folder name that no layer's file can have, so that layers `a` and `a.safetensors/b` can coexist."""
    return part.removesuffix(suffix) + suffix.replace(".", "%2E") if part.endswith(suffix) else part


def layer_names(labels: Sequence[str]) -> list[str]:
    """A usable name for each operator label of a model: safe, unique, and never a folder of another name.

    The first label with a name keeps it. A repeated name, or one that is a folder of others, gets a number.

    >>> layer_names(["/features/0/Conv", "a", "a", "block", "block/fc", "../x"])
    ['features/0/Conv', 'a', 'a_2', 'block_2', 'block/fc', '__/x']
    """
    wanted = [safe_name(label) for label in labels]
    folders = {name[:end] for name in wanted for end, char in enumerate(name) if char == "/"}
    taken: dict[str, None] = {}
    for name in wanted:
        free = name not in taken and name not in folders
        taken[name if free else _numbered(name, {*wanted, *folders, *taken})] = None
    return list(taken)


def safe_name(label: str) -> str:
    """`label` without a leading `/`, and with `_` in place of what `check_recorded_name` refuses."""
    printable = "".join(char if char.isprintable() and char != "\\" else "_" for char in label)
    return "/".join(_safe_part(part) for part in (printable.lstrip("/") or "_").split("/"))


def _safe_part(part: str) -> str:
    if part in ("", ".", ".."):
        return "_" * max(1, len(part))
    if part.startswith("."):
        return f"_{part[1:]}"
    return part.replace(".", "_") if part in METADATA_NAMES else part


def _numbered(name: str, refused: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in refused:
        number += 1
    return f"{name}_{number}"
