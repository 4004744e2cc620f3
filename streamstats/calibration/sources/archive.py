"""A zip archive that holds a zarr group: one file for all arrays, which zarr reads."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from zipfile import BadZipFile, ZipFile, is_zipfile

from zarr.abc.store import Store
from zarr.storage import ZipStore

from ...errors import DataError, UsageError, first_line
from .finding import Found, Names, find_arrays
from .identities import Identity
from .local import OPENING_BYTES, identity_of
from .source import Folder


@dataclass(frozen=True)
class ArchiveSource:
    """The store in the zip archive at the absolute path `location`. See `Source`."""

    location: str
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        if not is_zipfile(self.location):  # ZipStore would find out only when it reads
            raise UsageError(
                f"calibration store {self.location} is a file, but not a zip archive; give a zarr group, as a folder, "
                "a zip archive or a URL"
            )
        return ZipStore(Path(self.location), mode="r", read_only=True)

    def find(self) -> Found:
        """As `Source.find`."""
        store = self.zarr_store()
        with ZipFile(self.location) as archive:
            return find_arrays(_ArchiveTree.of(archive), store, self.location)

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """None: zarr reads archives."""
        return None

    def identity(self) -> Identity:
        """That of the archive: any change to it changes every file."""
        return identity_of(self.location)

    def fetched_bytes(self, largest: int) -> int:
        """None: nothing is fetched ahead."""
        return 0


@dataclass(frozen=True)
class _ArchiveTree:
    """The members of an open archive: folder → the names of the files, and of the folders, in it. See `Tree`."""

    archive: ZipFile
    files: Mapping[str, set[str]]
    folders: Mapping[str, set[str]]
    threads: ClassVar[int] = 1

    @classmethod
    def of(cls, archive: ZipFile) -> Self:
        """The tree of `archive`, from its central directory."""
        files: dict[str, set[str]] = defaultdict(set)
        folders: dict[str, set[str]] = defaultdict(set)
        for member in archive.namelist():
            folder, _, name = member.rpartition("/")
            if name:
                files[folder].add(name)
            while folder and folder.rpartition("/")[2] not in folders[folder.rpartition("/")[0]]:
                above, _, name = folder.rpartition("/")
                folders[above].add(name)
                folder = above
        return cls(archive, files, folders)

    def names(self, folder: str) -> Names:
        """As `Tree.names`."""
        return Names(frozenset(self.files.get(folder, ())), tuple(self.folders.get(folder, ())))

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        name, size = path.rpartition("/")[2], self.archive.getinfo(path).file_size
        if size > most:
            raise DataError(f"{name} has {size:,} bytes; expected at most {most:,}")
        try:
            return self.archive.read(path)
        except (BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
            raise DataError(f"{name} cannot be read: {first_line(error)}") from error
