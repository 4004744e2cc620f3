"""What tells whether the files of an array are those that were counted: size and time of the last change.

The files of an array are numbered in C order of their grid, so those of a range of rows follow each other. A zip
archive is one file for all of them. Of an object, the tag and the time count. Of other stores nothing is known, and
nothing can be noticed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .layer import Layer, is_folder, is_url
from .sources.files import MISSING, Identity
from .sources.objects import is_object_store, listed

Identities = npt.NDArray[np.int64]
"""int64[files, 2]: bytes and nanoseconds since 1970; UNCOUNTED, ABSENT or UNKNOWN in both."""

IDENTITY_BYTES = 16
"""Of a file."""
UNCOUNTED, UNKNOWN = -1, -3
ABSENT = MISSING[0]


def files_a_row(layer: Layer) -> int:
    """Files that lie beside each other along the axes after the first."""
    return prod(-(-extent // shard) for extent, shard in zip(layer.shape[1:], layer.shards[1:], strict=True))


def file_range(layer: Layer, start: int, stop: int) -> range:
    """The numbers of the files that hold rows `start` to `stop`."""
    beside = files_a_row(layer)
    return range(start // layer.shards[0] * beside, -(-stop // layer.shards[0]) * beside)


def file_count(layer: Layer) -> int:
    """How many files the rows of `layer` lie in."""
    return len(file_range(layer, 0, layer.rows))


def rows_of_file(layer: Layer, number: int) -> tuple[int, int]:
    """The rows that the file `number` has room for."""
    first = number // files_a_row(layer) * layer.shards[0]
    return first, first + layer.shards[0]


def file_key(layer: Layer, number: int) -> str:
    """The name of the file `number` in the folder of its array; its number where names are not known."""
    return next(_keys(layer, range(number, number + 1)))


def identities(layer: Layer, files: range, opened: Mapping[str, Identity] | None = None) -> Identities:
    """What identifies each of `files` now, or did when it was `opened` (key → identity); objects are listed."""
    if layer.keys is not None and is_object_store(layer.store):
        known = listed(layer.store, layer.name) if opened is None else opened
        return _array((known.get(key, MISSING) for key in _keys(layer, files)), files)
    if layer.keys is not None and is_folder(layer.store):
        known, folder = opened or {}, f"{layer.store}/{layer.name}/"
        return _array((known.get(key) or _identity(folder + key) for key in _keys(layer, files)), files)
    is_archive = not is_url(layer.store) and Path(layer.store).is_file()
    return np.full((len(files), 2), _identity(layer.store) if is_archive else UNKNOWN, np.int64)


def _array(found: Iterator[Identity], files: range) -> Identities:
    return np.fromiter(found, np.dtype((np.int64, 2)), len(files))


def _identity(path: str) -> Identity:
    try:
        found = os.stat(path)
    except OSError:
        return MISSING
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else MISSING


def _keys(layer: Layer, files: range) -> Iterator[str]:
    beside = files_a_row(layer)
    if not files:
        return
    grid = [-(-extent // shard) for extent, shard in zip(layer.shape[1:], layer.shards[1:], strict=True)]
    for first in range(files.start // beside, -(-files.stop // beside)):
        for number, rest in enumerate(product(*map(range, grid)), start=first * beside):
            if number in files:
                yield str(number) if layer.keys is None else layer.keys.key((first, *rest))
