"""Removing a layer from a store in a folder, at once: readers see all of it or nothing."""

from __future__ import annotations

from pathlib import Path

from ..storage.files import move_away, remove_folder
from ..storage.names import V3_METADATA


def move_layer_away(store: Path, layer: str, into: Path) -> Path:
    """Move the array `layer`, which nobody records into, out of `store` and into the folder `into`; its new path.

    Groups that have nothing left are removed, so that a layer can have their names. Raises `OutputError`.
    """
    path = store / layer
    gone = move_away(path, into)
    for group in path.parents:
        if group == store or [each.name for each in group.iterdir()] != [V3_METADATA]:
            break
        remove_folder(group)
    return gone
