"""The files of a layer: their numbers, their names, the rows they hold, and their identities.

Files are numbered in C order of their grid, so those that hold a range of rows follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import product
from math import prod

import numpy as np

from ..coverage import Rows
from .encoding.content import UNSAMPLED
from .layer import Layer
from .sources.identities import FILE_COLUMNS, Files, Identity


def files_a_row(layer: Layer) -> int:
    """How many files lie side by side along the axes after the first."""
    return prod(_sample_grid(layer))


def file_range(layer: Layer, start: int, stop: int) -> range:
    """The numbers of the files that hold rows `start` to `stop`."""
    beside = files_a_row(layer)
    return range(start // layer.shards[0] * beside, -(-stop // layer.shards[0]) * beside)


def file_count(layer: Layer) -> int:
    """How many files hold the rows of `layer`."""
    return len(file_range(layer, 0, layer.rows))


def rows_of_file(layer: Layer, number: int) -> tuple[int, int]:
    """The rows (start, stop) that file `number` has room for."""
    first = number // files_a_row(layer) * layer.shards[0]
    return first, first + layer.shards[0]


def file_key(layer: Layer, number: int) -> str:
    """The name of file `number` in the folder of its array, or its number if only zarr knows the naming scheme."""
    return next(_keys(layer, range(number, number + 1)))


def identities(
    layer: Layer,
    files: range,
    opened: Mapping[str, Identity] | None = None,
    known: Mapping[str, int] | None = None,
) -> Files:
    """The identity of each of `files`: as it was when `opened` (key → identity), else as it is now.

    Its content is that in `known` (key → content), else UNSAMPLED. The files of an archive that only zarr can read
    have the identity of the archive; those that their source cannot identify are UNKNOWN. Raises `StoreError` if an
    object store does not respond.
    """
    found = np.full((len(files), FILE_COLUMNS), UNSAMPLED, np.int64)
    folder = None if layer.keys is None else layer.source.folder(layer.path)
    if folder is None:
        found[:, :2] = layer.source.identity()
        return found
    each = folder.identities(_keys(layer, files), opened)
    found[:, :2] = np.fromiter(each, np.dtype((np.int64, 2)), len(files))
    if known:
        found[:, 2] = [known.get(key, UNSAMPLED) for key in _keys(layer, files)]
    return found


def contents(layer: Layer, numbers: Sequence[int]) -> list[int]:
    """The contents of the files `numbers`, as far as they can be read: UNSAMPLED for all others."""
    folder = None if layer.keys is None else layer.source.folder(layer.path)
    if folder is None:
        return [UNSAMPLED] * len(numbers)
    with closing(folder):
        return [*folder.contents(file_key(layer, number) for number in numbers)]


def sampled(layer: Layer, files: range) -> Files:
    """The identities of `files` as they are now, with their contents. Raises as `identities`."""
    found = identities(layer, files)
    found[:, 2] = contents(layer, files)
    return found


def mask_identities(layer: Layer, rows: Rows) -> tuple[int, Files]:
    """(number of the first, identities and contents) of the files that hold the mask of `rows`; none without a mask."""
    if layer.mask is None:
        return 0, np.empty((0, FILE_COLUMNS), np.int64)
    files = file_range(layer.mask, *rows)
    return files.start, sampled(layer.mask, files)


def _keys(layer: Layer, files: range) -> Iterator[str]:
    """The names of `files`, in order."""
    if not files:
        return
    beside, grid = files_a_row(layer), _sample_grid(layer)
    for first in range(files.start // beside, -(-files.stop // beside)):
        for number, rest in enumerate(product(*map(range, grid)), start=first * beside):
            if number in files:
                yield str(number) if layer.keys is None else layer.keys.key((first, *rest))


def _sample_grid(layer: Layer) -> tuple[int, ...]:
    """How many files lie along each axis after the first."""
    return tuple(-(-extent // shard) for extent, shard in zip(layer.shape[1:], layer.shards[1:], strict=True))
