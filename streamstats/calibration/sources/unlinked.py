"""A folder of this machine whose links are not followed: what is found in it, and what zarr reads of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import ClassVar, NoReturn

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from ...errors import DataError
from ...storage.names import METADATA_NAMES
from .finding import Names
from .links import LinkError, names_in, opened_file, status_of


@dataclass(frozen=True)
class UnlinkedTree:
    """The folders below `root`. See `Tree`."""

    root: Path
    threads: ClassVar[int] = 1

    def names(self, folder: str) -> Names:
        """As `Tree.names`; links are refused. Those in the place of metadata are refused when they are read."""
        here = self.root / folder
        try:
            found = names_in(str(here))
        except LinkError as error:
            raise DataError(f"{here} is not looked into: {error}") from error
        except OSError as error:
            raise DataError(f"{here} cannot be listed: {error.strerror}; check its permissions") from error
        refused = {name: str(LinkError()) for name in found.links - METADATA_NAMES}
        return Names(found.others | (found.links & METADATA_NAMES), tuple(found.folders), refused)

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        name = path.rpartition("/")[2]
        try:
            descriptor = opened_file(str(self.root / path), follow_links=False)
        except ValueError as error:
            raise DataError(f"{name} is not a file") from error
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror}") from error
        with open(descriptor, "rb") as file:
            found = file.read(most + 1)
        if len(found) > most:
            raise DataError(f"{name} has more than {most:,} bytes, the most that is read")
        return found


class UnlinkedStore(Store):
    """The folder at the absolute path `root`, for zarr to read; it raises `LinkError` for what lies behind a link.

    It inherits nothing that opens files.
    """

    supports_writes = supports_deletes = supports_partial_writes = supports_listing = False

    def __init__(self, root: str) -> None:
        super().__init__(read_only=True)
        self._root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnlinkedStore) and other._root == self._root

    def __hash__(self) -> int:
        return hash(self._root)

    def __str__(self) -> str:
        return f"file://{self._root}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As `zarr.abc.store.Store.get`."""
        found = await asyncio.to_thread(self._content, key, byte_range)
        return None if found is None else prototype.buffer.from_bytes(found)

    def _content(self, key: str, wanted: ByteRequest | None) -> bytes | None:
        """The `wanted` bytes of the file `key`; None if there is no such file."""
        try:
            descriptor = opened_file(f"{self._root}/{key}", follow_links=False)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        with open(descriptor, "rb") as file:
            start, stop = _bounds(wanted, os.fstat(descriptor).st_size)
            file.seek(start)
            return file.read(max(0, stop - start))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `zarr.abc.store.Store.get_partial_values`."""
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        """As `zarr.abc.store.Store.exists`."""
        try:
            await self.getsize(key)
        except (FileNotFoundError, ValueError):
            return False
        return True

    async def getsize(self, key: str) -> int:
        """As `zarr.abc.store.Store.getsize`. Raises `FileNotFoundError`, and `ValueError` for what is no file."""
        try:
            found = status_of(f"{self._root}/{key}", follow_links=False)
        except NotADirectoryError as error:
            raise FileNotFoundError(key) from error
        if not S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        return found.st_size

    async def set(self, key: str, value: Buffer) -> None:
        """As `zarr.abc.store.Store.set`: it is read-only."""
        self._refuse()

    async def delete(self, key: str) -> None:
        """As `zarr.abc.store.Store.delete`: it is read-only."""
        self._refuse()

    def list(self) -> AsyncIterator[str]:
        """As `zarr.abc.store.Store.list`: `UnlinkedTree` lists it."""
        self._refuse()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """As `list`."""
        self._refuse()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """As `list`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(f"{self} is only read")


def _bounds(wanted: ByteRequest | None, size: int) -> tuple[int, int]:
    """Start and stop of the `wanted` bytes of a file of `size` bytes."""
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, min(wanted.end, size)
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, size
    if isinstance(wanted, SuffixByteRequest):
        return max(0, size - wanted.suffix), size
    return 0, size
