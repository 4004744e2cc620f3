"""Where the files of an array come from: what a reader needs of them, and a folder of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from stat import S_ISREG
from typing import Protocol

from ..encoding.chunks import Bytes
from ..reading.gathering import Gathered, gather

Identity = tuple[int, int]
"""Bytes, and what changes with every writing: nanoseconds since 1970, or a hash of an object's tag."""
MISSING: Identity = (-2, -2)
"""Of a file that is not there."""


class File(Protocol):
    """A file that is open."""

    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """Fill `out` from byte `start` on. Raises `ValueError` where the file is too short."""

    def close(self) -> None:
        """Let go of it."""


class Folder(Protocol):
    """The files of an array, by key."""

    def file(self, key: str) -> File | None:
        """The file called `key`, None if there is none. Raises `ValueError` for what is no file."""

    def expect(self, keys: Iterable[str]) -> None:
        """The files that will be opened next, in order."""

    def close(self) -> None:
        """Let go of it."""


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def gather(self, keys: Sequence[str], buffer: Bytes, most: int) -> Gathered:
        """As `gathering.gather`."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        return gather(self._descriptor, keys, buffer, most)

    def file(self, key: str) -> LocalFile | None:
        """As `Folder.file`."""
        try:
            descriptor = os.open(f"{self._path}/{key}", os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
        except FileNotFoundError:
            return None
        found = os.fstat(descriptor)
        if not S_ISREG(found.st_mode):
            os.close(descriptor)
            raise ValueError("it is not a file")
        return LocalFile(descriptor, found.st_size, (found.st_size, found.st_mtime_ns))

    def expect(self, keys: Iterable[str]) -> None:
        """As `Folder.expect`: the operating system reads ahead."""

    def close(self) -> None:
        """As `Folder.close`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass
class LocalFile:
    """A file of this machine."""

    descriptor: int
    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`."""
        done = 0
        while done < out.size:
            count = os.preadv(self.descriptor, [out[done:].data], start + done)
            if not count:
                raise ValueError(f"it ends at byte {start + done}, expected {start + out.size} or more")
            done += count

    def close(self) -> None:
        """As `File.close`."""
        os.close(self.descriptor)
