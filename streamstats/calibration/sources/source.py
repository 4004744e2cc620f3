"""What a place that holds calibration stores must offer: the `Source` protocol, and the folders and files it opens.

A source finds arrays, opens the folder of an array where its files can be read one by one, identifies files, and says
what opening one costs. `source_of` chooses it once, by the location; nothing else asks where a store lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from zarr.abc.store import Store

from ..encoding.content import contents_in
from ..encoding.decoders import Bytes
from .finding import Found
from .gathering import Gathered
from .identities import Identity


class File(Protocol):
    """An open file."""

    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """Fill `out` from byte `start` on. Raises `ValueError` if the file is too short."""

    def content(self) -> int:
        """Its content in one number, as `content_of`; UNSAMPLED if finding it costs too much. Raises as `read`."""

    def close(self) -> None:
        """Close the file."""


@dataclass
class MemoryFile:
    """A file in memory: its `stored` bytes. See `File`."""

    stored: Bytes
    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`."""
        if start + out.size > self.size:
            raise ValueError(f"it ends at byte {self.size}, expected {start + out.size} or more")
        out[:] = self.stored[start : start + out.size]

    def content(self) -> int:
        """As `File.content`."""
        return int(contents_in(self.stored, np.array([[0, self.size]]))[0])

    def close(self) -> None:
        """As `File.close`."""


class Folder(Protocol):
    """The files of one array, by key."""

    @property
    def gathers(self) -> bool:
        """Whether `gather` saves time."""

    def gather(self, keys: Sequence[str], buffer: Bytes, most: int) -> Gathered:
        """Read the small files `keys` into `buffer`, in order, up to the first that must be opened by itself.

        A file of more than `most` bytes is one of those. `gather` never says what is wrong with a file.
        """

    def file(self, key: str) -> File | None:
        """Open the file `key`; None if it does not exist. Raises `ValueError` if `key` is not a regular file."""

    def expect(self, keys: Iterable[str]) -> None:
        """Announce the files that will be opened next, in order."""

    def identities(self, keys: Iterable[str], opened: Mapping[str, Identity] | None = None) -> Iterator[Identity]:
        """The identity of each of `keys`: as it was when `opened` (key → identity), else as it is now."""

    def contents(self, keys: Iterable[str]) -> Iterator[int]:
        """The content of each of the files `keys`, as `File.content`; UNSAMPLED if there is no such file."""

    def close(self) -> None:
        """Release what the folder holds."""


class Source(Protocol):
    """A place that holds one calibration store. Making one costs next to nothing and contacts nobody."""

    @property
    def location(self) -> str:
        """The URL, or the absolute path: it names the same store in every process that sees it."""

    @property
    def follow_links(self) -> bool:
        """Whether what links of this machine lead to is read, too."""

    @property
    def opening_bytes(self) -> int:
        """How many bytes are decoded in the time that opening one file takes."""

    def zarr_store(self) -> Store | str:
        """What zarr opens, read-only. Raises `UsageError` if the location is not usable."""

    def find(self) -> Found:
        """Every array of the store.

        Raises `UsageError` if the location is not a zarr group or has no arrays, `DataError` if the group's metadata is
        damaged, or if there is too much to look into, `StoreError` if the store does not respond.
        """

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """The folder of the array `name`, whose files have at most `largest` bytes; None if only zarr can read it."""

    def identity(self) -> Identity:
        """The identity of every file that no folder identifies: that of the archive around them, else UNKNOWN."""

    def fetched_bytes(self, largest: int) -> int:
        """Bytes of files in memory, per reader, while it reads files of at most `largest` bytes."""
