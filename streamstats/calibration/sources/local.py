"""A folder of this machine: its files are opened one by one, or many small ones in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import ClassVar, Self

from zarr.abc.store import Store
from zarr.storage import LocalStore

from ...errors import DataError, UsageError
from ..encoding.content import UNSAMPLED, content_of
from ..encoding.decoders import Bytes
from .finding import Found, Names, find_arrays
from .gathering import Gathered, can_gather, gather
from .identities import MISSING, UNKNOWN, Identity
from .links import opened_file, opened_folder, status_of
from .unlinked import UnlinkedStore, UnlinkedTree

OPENING_BYTES = 4 * 2**10
"""Bytes that are decoded in the time that opening a file takes."""
PATTERN = ", which is no pattern: list the stores that it should name"
"""What else to do about a store whose path looks like a glob."""


@dataclass(frozen=True)
class LocalSource:
    """The store in the folder at the absolute path `location`. See `Source`."""

    location: str
    follow_links: bool = True
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        exists = os.path.exists if self.follow_links else os.path.lexists
        if not exists(self.location):
            remedy = "check `source`" + (PATTERN if set(self.location) & set("*?[") else "")
            raise UsageError(f"calibration store {self.location} does not exist; {remedy}")
        return LocalStore(self.location, read_only=True) if self.follow_links else UnlinkedStore(self.location)

    def find(self) -> Found:
        """As `Source.find`."""
        tree = _LocalTree if self.follow_links else UnlinkedTree
        return find_arrays(tree(Path(self.location)), self.zarr_store(), self.location)

    def folder(self, name: str, largest: int = 0) -> LocalFolder:
        """As `Source.folder`."""
        return LocalFolder(f"{self.location}/{name}", self.follow_links)

    def identity(self) -> Identity:
        """UNKNOWN: each file has its own identity, and one whose name only zarr knows has none."""
        return UNKNOWN

    def fetched_bytes(self, largest: int) -> int:
        """None: the operating system reads ahead."""
        return 0


@dataclass(frozen=True)
class _LocalTree:
    """The folders below `root`, also behind links. See `Tree`."""

    root: Path
    threads: ClassVar[int] = 1

    def names(self, folder: str) -> Names:
        """As `Tree.names`; a link to a folder that was passed on the way to it is refused."""
        here = self.root / folder
        try:
            with os.scandir(here) as entries:
                found = list(entries)
        except OSError as error:
            raise DataError(f"{here} cannot be listed: {error.strerror}; check its permissions") from error
        refused = {entry.name: reason for entry in found if (reason := self._refused(entry, folder))}
        entered = [entry for entry in found if entry.name not in refused]
        folders = tuple(entry.name for entry in entered if entry.is_dir())
        return Names(frozenset(entry.name for entry in entered).difference(folders), folders, refused)

    def _refused(self, entry: os.DirEntry[str], folder: str) -> str:
        """Why not to follow the `entry` of a `folder`, or nothing."""
        try:
            is_loop = entry.is_symlink() and entry.is_dir() and self._passed(entry.path, folder)
        except OSError as error:
            return f"it is a link that cannot be followed: {error.strerror}; repair or remove it"
        return "it is a link to a folder that contains it; remove the link" if is_loop else ""

    def _passed(self, link: str, folder: str) -> bool:
        """Whether `link` leads to a folder on the way to `folder`, or to one that contains such a folder."""
        target, way = Path(link).resolve(), (Path(folder), *Path(folder).parents)
        return any((self.root / each).resolve().is_relative_to(target) for each in way)

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        file = self.root / path
        try:
            found = file.stat()
            if not S_ISREG(found.st_mode):
                raise DataError(f"{file.name} is not a file")
            if found.st_size > most:
                raise DataError(f"{file.name} has {found.st_size:,} bytes; expected at most {most:,}")
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file.name} cannot be read: {error.strerror}") from error


class LocalFolder:
    """The folder of an array, opened when it is needed. See `Folder`."""

    def __init__(self, path: str, follow_links: bool) -> None:
        self._path, self._follow_links = path, follow_links
        self._descriptor: int | None = None

    @property
    def gathers(self) -> bool:
        """As `Folder.gathers`."""
        return can_gather(follow_links=self._follow_links)

    def gather(self, keys: Sequence[str], buffer: Bytes, most: int) -> Gathered:
        """As `Folder.gather`."""
        if self._descriptor is None:
            self._descriptor = opened_folder(self._path, follow_links=self._follow_links)
        return gather(self._descriptor, keys, buffer, most, follow_links=self._follow_links)

    def file(self, key: str) -> LocalFile | None:
        """As `Folder.file`. Raises `LinkError`."""
        try:
            return LocalFile.opened(f"{self._path}/{key}", follow_links=self._follow_links)
        except FileNotFoundError:
            return None

    def expect(self, keys: Iterable[str]) -> None:
        """As `Folder.expect`: the operating system reads ahead."""

    def identities(self, keys: Iterable[str], opened: Mapping[str, Identity] | None = None) -> Iterator[Identity]:
        """As `Folder.identities`."""
        known = opened or {}
        return (known.get(key) or self._identity(key) for key in keys)

    def _identity(self, key: str) -> Identity:
        return identity_of(f"{self._path}/{key}", follow_links=self._follow_links)

    def contents(self, keys: Iterable[str]) -> Iterator[int]:
        """As `Folder.contents`."""
        return map(self._content, keys)

    def _content(self, key: str) -> int:
        try:
            file = self.file(key)
        except (OSError, ValueError):
            return UNSAMPLED
        if file is None:
            return UNSAMPLED
        try:
            return file.content()
        except (OSError, ValueError):
            return UNSAMPLED
        finally:
            file.close()

    def close(self) -> None:
        """As `Folder.close`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass
class LocalFile:
    """An open file of this machine. See `File`."""

    descriptor: int
    size: int
    identity: Identity

    @classmethod
    def opened(cls, path: str, *, follow_links: bool) -> Self:
        """The file at the absolute `path`. Raises as `opened_file`."""
        descriptor = opened_file(path, follow_links=follow_links)
        found = os.fstat(descriptor)
        return cls(descriptor, found.st_size, (found.st_size, found.st_mtime_ns))

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`."""
        done = 0
        while done < out.size:
            count = os.preadv(self.descriptor, [out[done:].data], start + done)
            if not count:
                raise ValueError(f"it ends at byte {start + done}, expected {start + out.size} or more")
            done += count

    def content(self) -> int:
        """As `File.content`."""
        return content_of(self.size, self.read)

    def close(self) -> None:
        """As `File.close`."""
        os.close(self.descriptor)


def identity_of(path: str, *, follow_links: bool) -> Identity:
    """Size and time of the last change of the file at `path`; MISSING if there is no regular file."""
    try:
        found = status_of(path, follow_links=follow_links)
    except OSError:
        return MISSING
    return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else MISSING
