"""Integrity: chunks that must be there and are not. zarr reads a missing chunk as its fill value, without a word.

A chunk that equals the fill value need not be stored, so absence proves a loss only where every chunk is known to
have been written, as our recorder does.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import zarr

from .layer import Layer


def lost_chunk(layer: Layer, array: zarr.Array[Any], selection: tuple[slice, ...]) -> str | None:
    """The key of a stored chunk (or shard) of `selection` that is missing or empty, None if all are there."""
    folder = Path(layer.store) / layer.name
    grid = [range(part.start // n, -(-part.stop // n)) for part, n in zip(selection, layer.shards, strict=True)]
    for coordinates in product(*grid):
        key = array.metadata.encode_chunk_key(coordinates)
        path = folder / key
        if not path.is_file() or path.stat().st_size == 0:
            return key
    return None
