"""A layer's name: which names can be one, and where the files of a layer lie."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

from ..errors import UsageError

LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems in use."""


def check_layer_name(layer: str) -> str:
    """Return `layer` if it can safely name an array and a file; raise `UsageError` otherwise.

    Refused: empty, a leading or trailing `/`, an empty, `.` or `..` part, and characters that do not print,
    such as a newline.
    """
    parts = layer.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(not char.isprintable() for char in layer):
        raise UsageError(
            f"layer name {layer!r} is not usable: expected parts joined by single '/', none of them empty, "
            "'.' or '..', of printable characters; rename the layer"
        )
    return layer


def layer_path(folder: Path, layer: str, suffix: str = ".safetensors") -> Path:
    """Where the file of `layer` lies below `folder`: `/` makes folders, unsafe characters are percent codes.

    Different layers have different paths, and none is a folder on the way to another. Raises `UsageError` for
    a name that `check_layer_name` refuses.

    >>> layer_path(Path("out"), "block 1/conv").as_posix()
    'out/block%201/conv.safetensors'
    """
    *folders, name = (quote(part, safe="") for part in check_layer_name(layer).split("/"))
    longest = max(map(len, (*folders, name + suffix)))
    if longest > LONGEST_NAME:
        raise UsageError(
            f"layer name {layer[:40]!r}… is too long: a part of it needs {longest} characters in a file's name; "
            f"expected at most {LONGEST_NAME}; rename the layer"
        )
    return folder.joinpath(*(_unlike_a_file(part, suffix) for part in folders), name + suffix)


def layer_of(folder: Path, path: Path, suffix: str = ".safetensors") -> str:
    """The layer whose file below `folder` is `path`: the inverse of `layer_path`.

    >>> layer_of(Path("out"), Path("out/block%201/conv.safetensors"))
    'block 1/conv'
    """
    return "/".join(map(unquote, path.relative_to(folder).parts)).removesuffix(suffix)


def _unlike_a_file(part: str, suffix: str) -> str:
    """A folder's name that no layer's file can have: the layers `a` and `a.safetensors/b` must both fit."""
    return part.removesuffix(suffix) + suffix.replace(".", "%2E") if part.endswith(suffix) else part
