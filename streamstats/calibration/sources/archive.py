"""A zip archive that holds a zarr group: one file for all arrays.

Members are found in the central directory, which is read once, and read at their place in the archive. (Format: the
.ZIP file format specification, local file headers.)
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import RLock
from typing import BinaryIO, ClassVar, Self
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo, is_zipfile

import numpy as np
from isal.isal_zlib import crc32
from zarr.abc.store import Store
from zarr.storage import ZipStore

from ...errors import DataError, UsageError, first_line
from ...storage.names import METADATA_NAMES
from ..encoding.content import UNSAMPLED, content_of
from ..encoding.decoders import Bytes
from .finding import INTO_A_STORE, Found, Names, find_arrays
from .gathering import Gathered
from .identities import MISSING, Identity
from .links import LinkError, opened_file
from .local import OPENING_BYTES, LocalFile, identity_of
from .source import File, Folder, MemoryFile

LOCAL_HEADER_BYTES, LOCAL_HEADER = 30, b"PK\3\4"
ENCRYPTED = 1
"""The flag of a member that needs a password."""
NOT_AS_EXPECTED = (BadZipFile, ValueError, EOFError, RuntimeError, struct.error, zlib.error, lzma.LZMAError)
"""What reading an archive raises where it is damaged, or needs a version of the format that is not known."""
ABSOLUTE = "its name begins with /, so it lies in no group; pack the archive from inside the folder of the store"
OPEN_ARCHIVES = 4
"""Whose directories a process keeps."""


@dataclass(frozen=True)
class ArchiveSource:
    """The store in the zip archive at the absolute path `location`. See `Source`."""

    location: str
    follow_links: bool = True
    opening_bytes: ClassVar[int] = OPENING_BYTES

    @property
    def _place(self) -> _Place:
        return _Place(self.location, self.follow_links)

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        if not self._place.has_archive():  # ZipStore would find out only when it reads
            raise UsageError(
                f"calibration store {self.location} is a file, but not a zip archive; give a zarr group, as a folder, "
                f"a zip archive or a URL; {INTO_A_STORE}"
            )
        return _ArchiveStore(self._place)

    def find(self) -> Found:
        """As `Source.find`."""
        store = self.zarr_store()
        with self._place.archive() as archive:
            return find_arrays(_ArchiveTree.of(archive), store, self.location)

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """As `Source.folder`; None if the archive has members that are compressed by anything but DEFLATE."""
        return ArchiveFolder(self._place, name, largest) if self._place.directory().is_simple else None

    def identity(self) -> Identity:
        """That of the archive: any change to it changes every file that only zarr can read."""
        return self._place.identity()

    def fetched_bytes(self, largest: int) -> int:
        """As `Source.fetched_bytes`: a compressed member is read as a whole, and decompressed."""
        return 2 * largest if self._place.directory().is_compressed else 0


@dataclass(frozen=True)
class _Place:
    """Where an archive lies. Everything that opens it does so here."""

    location: str
    follow_links: bool

    def file(self) -> BinaryIO:
        """The archive, open. Raises as `opened_file`."""
        return open(opened_file(self.location, follow_links=self.follow_links), "rb")

    def has_archive(self) -> bool:
        """Whether it is a zip archive. Raises `UsageError` if it is not looked at."""
        try:
            with self.file() as file:
                return is_zipfile(file)
        except LinkError as error:
            raise UsageError(f"calibration store {self.location} is not read: {error}") from error
        except (OSError, ValueError):
            return False

    def archive(self) -> ZipFile:
        """The archive, its central directory read. Raises `DataError` if it cannot be."""
        try:
            file = self.file()
            try:
                return _Archive(file)
            except BaseException:
                file.close()
                raise
        except (*NOT_AS_EXPECTED, OSError) as error:
            raise DataError(f"the archive {self.location} cannot be read: {first_line(error)}; repair it") from error

    def identity(self) -> Identity:
        """That of the archive as a whole."""
        return identity_of(self.location, follow_links=self.follow_links)

    def directory(self) -> _Directory:
        """Its central directory. Raises `DataError` if it cannot be read."""
        return _read_directory(self, self.identity())


class _Archive(ZipFile):
    """An archive that closes its file."""

    def close(self) -> None:
        """As `ZipFile.close`, which leaves a file open that it was given."""
        file = self.fp
        super().close()
        if file is not None:
            file.close()


class ArchiveFolder:
    """The members below `path` in the archive at `place`, each of at most `largest` bytes. See `Folder`.

    The identity of a member is its size and its CRC-32, so that another copy of the archive is the same.
    """

    gathers: ClassVar[bool] = False

    def __init__(self, place: _Place, path: str, largest: int) -> None:
        self._archive = place.identity()
        self._members = _read_directory(place, self._archive).members
        self._place, self._path, self._largest = place, path, largest
        self._descriptor: int | None = None

    def gather(self, keys: Sequence[str], buffer: Bytes, most: int) -> Gathered:
        """As `Folder.gather`: none."""
        return Gathered.nothing()

    def file(self, key: str) -> File | None:
        """As `Folder.file`. Raises `ValueError` for a member that cannot be read."""
        member = self._members.get(f"{self._path}/{key}")
        if member is None:
            return None
        if member.flag_bits & ENCRYPTED:
            raise ValueError("it is encrypted")
        stored = _StoredMember.of(self._opened(), member)
        return stored if member.compress_type == ZIP_STORED else stored.inflated(member, self._largest)

    def expect(self, keys: Iterable[str]) -> None:
        """As `Folder.expect`: the operating system reads ahead."""

    def identities(self, keys: Iterable[str], opened: Mapping[str, Identity] | None = None) -> Iterator[Identity]:
        """As `Folder.identities`."""
        known = opened or {}
        return (known.get(key) or self._identity(key) for key in keys)

    def _identity(self, key: str) -> Identity:
        member = self._members.get(f"{self._path}/{key}")
        return MISSING if member is None else (member.file_size, member.CRC)

    def contents(self, keys: Iterable[str]) -> Iterator[int]:
        """As `Folder.contents`."""
        return map(self._content, keys)

    def _content(self, key: str) -> int:
        try:
            file = self.file(key)
            return UNSAMPLED if file is None else file.content()
        except (*NOT_AS_EXPECTED, OSError):
            return UNSAMPLED

    def _opened(self) -> int:
        """The descriptor of the archive. Raises `ValueError` if it is not the one whose directory was read."""
        if self._descriptor is None:
            self._descriptor = opened_file(self._place.location, follow_links=self._place.follow_links)
            found = os.fstat(self._descriptor)
            if (found.st_size, found.st_mtime_ns) != self._archive:
                raise ValueError("the archive was replaced while it was read; run again")
        return self._descriptor

    def close(self) -> None:
        """As `Folder.close`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass
class _StoredMember:
    """A member's bytes in the archive, from `start` on: those of a file, unless the member is compressed."""

    archive: LocalFile
    start: int
    size: int
    identity: Identity

    @classmethod
    def of(cls, descriptor: int, member: ZipInfo) -> Self:
        """The bytes of `member` in the open archive. Raises `ValueError` if there are none."""
        archive = LocalFile(descriptor, os.fstat(descriptor).st_size, MISSING)
        header = np.empty(LOCAL_HEADER_BYTES, np.uint8)
        archive.read(member.header_offset, header)
        if header[:4].tobytes() != LOCAL_HEADER:
            raise ValueError(f"the archive has no member at byte {member.header_offset}")
        name, extra = header[26:].view("<u2").tolist()
        start = member.header_offset + LOCAL_HEADER_BYTES + name + extra
        return cls(archive, start, member.compress_size, (member.file_size, member.CRC))

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`; bytes that are read as a whole have the stored CRC-32, or `ValueError` is raised."""
        if start + out.size > self.size:
            raise ValueError(f"it ends at byte {self.size}, expected {start + out.size} or more")
        self.archive.read(self.start + start, out)
        if out.size == self.size == self.identity[0] and crc32(out.data) != self.identity[1]:
            raise ValueError("its CRC-32 is not the stored one")

    def content(self) -> int:
        """As `File.content`."""
        return content_of(self.size, self.read)

    def close(self) -> None:
        """As `File.close`: the folder closes the archive."""

    def inflated(self, member: ZipInfo, most: int) -> MemoryFile:
        """The content of a compressed member. Raises `ValueError` if it is damaged, or has more than `most` bytes."""
        if max(member.file_size, self.size) > most:
            raise ValueError(f"it has {member.file_size:,} bytes, expected at most {most:,}")
        packed = np.empty(self.size, np.uint8)
        self.archive.read(self.start, packed)
        content = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(packed.data, member.file_size + 1)
        if len(content) != member.file_size or crc32(content) != member.CRC:
            raise ValueError("it does not decompress to what was stored")
        return MemoryFile(np.frombuffer(content, np.uint8), len(content), self.identity)


@dataclass(frozen=True)
class _Directory:
    """The members of an archive by name; of several with one name, the last."""

    members: Mapping[str, ZipInfo]

    @cached_property
    def is_simple(self) -> bool:
        """Whether all members are stored as they are, or compressed by DEFLATE."""
        return all(member.compress_type in (ZIP_STORED, ZIP_DEFLATED) for member in self.members.values())

    @cached_property
    def is_compressed(self) -> bool:
        """Whether members are compressed."""
        return any(member.compress_type != ZIP_STORED for member in self.members.values())


@lru_cache(OPEN_ARCHIVES)
def _read_directory(place: _Place, identity: Identity) -> _Directory:  # noqa: ARG001 - another identity, another archive
    with place.archive() as archive:
        return _Directory({member.filename: member for member in archive.infolist()})


class _ArchiveStore(ZipStore):
    """An archive through which zarr reads what it alone can read; sizes come from the central directory."""

    def __init__(self, place: _Place) -> None:
        super().__init__(Path(place.location), mode="r", read_only=True)
        self._place = place

    def _sync_open(self) -> None:
        self._lock = RLock()
        self._zf = self._place.archive()
        self._is_open = True

    async def getsize(self, key: str) -> int:
        """As `zarr.abc.store.Store.getsize`. Raises `FileNotFoundError`."""
        member = self._place.directory().members.get(key)
        if member is None:
            raise FileNotFoundError(key)
        return member.file_size


@dataclass(frozen=True)
class _ArchiveTree:
    """The members of an open archive: folder → the names of the files, and of the folders, in it. See `Tree`."""

    archive: ZipFile
    files: Mapping[str, set[str]]
    folders: Mapping[str, set[str]]
    absolute: Mapping[str, str]
    threads: ClassVar[int] = 1

    @classmethod
    def of(cls, archive: ZipFile) -> Self:
        """The tree of `archive`, from its central directory."""
        files: dict[str, set[str]] = defaultdict(set)
        folders: dict[str, set[str]] = defaultdict(set)
        absolute: dict[str, str] = {}
        for member in archive.namelist():
            folder, _, name = member.rpartition("/")
            if member.startswith("/"):
                absolute |= {folder or "/": ABSOLUTE} if name in METADATA_NAMES else {}
                continue
            if name:
                files[folder].add(name)
            while folder:
                above, _, name = folder.rpartition("/")
                if name in folders[above]:
                    break
                folders[above].add(name)
                folder = above
        return cls(archive, files, folders, absolute)

    def names(self, folder: str) -> Names:
        """As `Tree.names`."""
        refused = {} if folder else self.absolute
        return Names(frozenset(self.files.get(folder, ())), tuple(self.folders.get(folder, ())), refused)

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        name, size = path.rpartition("/")[2], self.archive.getinfo(path).file_size
        if size > most:
            raise DataError(f"{name} has {size:,} bytes; expected at most {most:,}")
        try:
            return self.archive.read(path)
        except (*NOT_AS_EXPECTED, OSError) as error:
            raise DataError(f"{name} cannot be read: {first_line(error)}") from error
