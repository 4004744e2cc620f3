"""The contract of a reader, and the choice of one: files are read directly where their encoding is known.

The law: `FileReader` gives the bits that `ZarrReader` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy.typing as npt

from ...coverage import Rows
from ...statistics.statistics import StatisticsAccumulator
from ..layer import Layer, Selection
from ..sources.identities import Identity
from .file_reader import FileReader
from .zarr_reader import ZarrReader


class Reader(Protocol):
    """Reads blocks of one layer, for one thread.

    `filled` lists the rows of parts that are not stored and got the fill value, in the order they were read.
    `identified` (key → identity) and `contents` (key → content) have the files that were opened, if the reader opens
    files itself.
    """

    filled: list[Rows]
    identified: dict[str, Identity]
    contents: dict[str, int]

    def expect(self, selections: Iterable[Selection]) -> None:
        """Announce the selections that will be read next, in order."""

    def read(self, selection: Selection) -> npt.NDArray[Any]:
        """The values of `selection`, C-contiguous; the next read of this thread overwrites them.

        Raises `DataError`, naming layer, chunk and rows, if a chunk cannot be read or decoded.
        """

    def measure(self, selection: Selection, accumulator: StatisticsAccumulator) -> None:
        """Add the values of `selection` to `accumulator`. Raises as `read`."""

    def close(self) -> None:
        """Release what the reader holds."""


def opened_reader(layer: Layer, *, fill: bool = False) -> Reader:
    """A reader of `layer`; with `fill`, parts that are not stored get the fill value. Raises `DataError`."""
    encoding, keys = layer.encoding, layer.keys
    folder = layer.source.folder(layer.path, encoding.most_file_bytes) if encoding else None
    if encoding is None or keys is None or folder is None:
        return ZarrReader(layer, fill=fill)
    return FileReader(layer, encoding, keys, folder, fill=fill)


@contextmanager
def open_reader(layer: Layer, *, fill: bool = False) -> Iterator[Reader]:
    """An `opened_reader`, closed at the end."""
    reader = opened_reader(layer, fill=fill)
    try:
        yield reader
    finally:
        reader.close()
