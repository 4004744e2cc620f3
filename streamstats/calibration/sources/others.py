"""Every other URL that zarr can open, through fsspec: `https://…`, `file://…`, `simplecache::…`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar
from urllib.parse import unquote

from zarr.abc.store import Store
from zarr.storage import FsspecStore

from ...errors import DataError, StoreError, UsageError, first_line
from ...storage.names import METADATA_NAMES
from .finding import Found, Names, find_arrays, find_listed
from .identities import UNKNOWN, Identity
from .local import OPENING_BYTES
from .retrying import without_secrets
from .source import Folder


@dataclass(frozen=True)
class UrlSource:
    """The store at the URL `location`. See `Source`."""

    location: str
    follow_links: ClassVar[bool] = True
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        check_url(self.location)
        try:
            return FsspecStore.from_url(self.location, read_only=True)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"cannot open {self.location}: {first_line(error)}; install what it needs, or correct the URL"
            ) from error

    def find(self) -> Found:
        """As `Source.find`; where nothing can be listed, the arrays are those that consolidated metadata lists."""
        store, tree = self.zarr_store(), _UrlTree(self.location)
        if METADATA_NAMES & tree.names("").files:
            return find_arrays(tree, store, self.location)
        return find_listed(_UnlistedTree(tree), store, self.location)

    def folder(self, name: str, largest: int = 0) -> Folder | None:
        """None: zarr reads what lies behind other URLs."""
        return None

    def identity(self) -> Identity:
        """UNKNOWN: changes to files go unnoticed."""
        return UNKNOWN

    def fetched_bytes(self, largest: int) -> int:
        """None: nothing is fetched ahead."""
        return 0


@dataclass(frozen=True)
class _UrlTree:
    """What fsspec lists below the URL `location`. See `Tree`."""

    location: str
    threads: ClassVar[int] = 16

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path of the root in it."""
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(self.location)
        return fs, root.rstrip("/")

    def names(self, folder: str) -> Names:
        """As `Tree.names`; nothing, if the folder does not exist or cannot be listed.

        What a server lists that does not lie in the folder, such as the folder above, is not followed.
        """
        fs, root = self._opened
        place = f"{root}/{folder}" if folder else root
        try:
            found = fs.ls(f"{place}/", detail=True)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return Names(frozenset(), ())
        except Exception as error:
            raise _fails(self.location, error) from error
        by_kind: dict[bool, list[str]] = {True: [], False: []}
        for entry in found:
            above, _, name = entry["name"].rstrip("/").rpartition("/")
            if unquote(name) not in (".", "..") and unquote(above).rstrip("/") == unquote(place).rstrip("/"):
                by_kind[entry["type"] == "directory"].append(name)
        return Names(frozenset(by_kind[False]), tuple(dict.fromkeys(by_kind[True])))

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        found = self.content_or_none(path)
        if found is None:
            raise DataError(f"{path.rpartition('/')[2]} was listed, but does not exist")
        if len(found) > most:
            raise DataError(f"{path.rpartition('/')[2]} has {len(found):,} bytes; expected at most {most:,}")
        return found

    def content_or_none(self, path: str) -> bytes | None:
        """The content of the file at `path`; None if it does not exist. Raises `StoreError`."""
        fs, root = self._opened
        try:
            return bytes(fs.cat_file(f"{root}/{path}"))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except Exception as error:
            raise _fails(self.location, error) from error


@dataclass(frozen=True)
class _UnlistedTree:
    """The same where nothing is listed: of each folder, the metadata that exists. See `Tree`."""

    tree: _UrlTree
    threads: ClassVar[int] = 16
    _read: dict[str, bytes] = field(default_factory=dict)

    def names(self, folder: str) -> Names:
        """As `Tree.names`."""
        paths = {f"{folder}/{name}" if folder else name: name for name in sorted(METADATA_NAMES)}
        found = {path: self.tree.content_or_none(path) for path in paths}
        self._read.update({path: content for path, content in found.items() if content is not None})
        return Names(frozenset(name for path, name in paths.items() if path in self._read), ())

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        return self._read.pop(path)


def _fails(location: str, error: Exception) -> StoreError:
    return StoreError(f"{location} does not respond as it should: {without_secrets(error)}; run again when it does")


def check_url(location: str) -> None:
    """Raise `UsageError`, without showing it, if the URL `location` has credentials, a query or a fragment."""
    scheme, _, rest = location.rpartition("://")
    if re.search(r"[?#]|:[^@]*@|^[^/]*@", rest) or "@" in scheme:
        raise UsageError(
            f"the URL {scheme.split('@')[0][:20]}://… has credentials or options in it, which would be written to the "
            "results; put them into the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )
