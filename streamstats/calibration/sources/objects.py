"""Object stores: S3, Google Cloud Storage, Azure.

Objects are fetched whole, several ahead of the one that a reader wants, so that it waits for the latency of requests
once and not each time; large objects are read in ranges. A request that fails is retried, and so is one for an object
that comes back shorter than it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import islice
from threading import Event
from typing import Any, ClassVar
from urllib.parse import quote

import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from ...errors import DataError, UsageError, require
from ...interrupts import check_wanted
from ..encoding.content import UNSAMPLED
from ..encoding.decoders import Bytes
from .finding import Found, Names, find_arrays
from .gathering import Gathered
from .identities import MISSING, UNKNOWN, Identity
from .others import check_url
from .retrying import retried, retried_async, without_secrets
from .source import File, MemoryFile

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
OPENING_BYTES = 2**20
"""Bytes that are decoded in the time that a request for an object takes."""
AHEAD_BYTES = 2**25
"""Of objects that are fetched, per reader, before it wants them."""
MOST_AHEAD = 16
"""Objects, likewise."""
WHOLE_BYTES = 2**26
"""Objects that may be larger are read in ranges."""
MOST_NAMES = 100_000
"""In one group: a larger store would take hours to open, one request per name."""
MOST_ASKED = 1000
"""Objects that a listing lacks and that are asked for: a store may leave out chunks of fill values."""
FETCHERS = 64
"""Requests that a process makes at once."""
REQUEST_SECONDS = 30
"""For one request and its response."""
WAIT_SECONDS = 0.5
"""Between two checks whether the run still wants the object that a reader waits for."""


@dataclass(frozen=True)
class ObjectSource:
    """The store below the URL `location` of an object store. See `Source`."""

    location: str
    follow_links: ClassVar[bool] = True
    opening_bytes: ClassVar[int] = OPENING_BYTES

    def zarr_store(self) -> Store:
        """As `Source.zarr_store`."""
        return PatientStore(object_store(self.location), read_only=True)

    def find(self) -> Found:
        """As `Source.find`; consolidated metadata is not believed, as whoever appends leaves it behind."""
        return find_arrays(_ObjectTree(object_store(self.location)), self.zarr_store(), self.location)

    def folder(self, name: str, largest: int = 0) -> ObjectFolder:
        """As `Source.folder`."""
        return ObjectFolder(self.location, name, largest)

    def identity(self) -> Identity:
        """UNKNOWN: each object has its own identity, and one whose name only zarr knows has none."""
        return UNKNOWN

    def fetched_bytes(self, largest: int) -> int:
        """As `Source.fetched_bytes`: the object that is read, and those that are fetched ahead."""
        ahead = objects_ahead(largest)
        return (ahead + 1) * largest if ahead else 0


@dataclass(frozen=True)
class _ObjectTree:
    """The prefixes of an obstore. See `Tree`."""

    store: Any
    threads: ClassVar[int] = 16

    def names(self, folder: str) -> Names:
        """As `Tree.names`; objects that stand for a folder itself are left out."""
        import obstore

        found = retried(lambda: obstore.list_with_delimiter(self.store, folder or None))
        paths = [meta["path"] for meta in found["objects"]]
        if len(paths) + len(found["common_prefixes"]) > MOST_NAMES:
            raise DataError(f"it has more than {MOST_NAMES:,} members; give a smaller group as the source")
        below = [path for path in paths if path.startswith(f"{folder}/") or not folder]
        return Names(frozenset(map(_name, below)), tuple(map(_name, found["common_prefixes"])))

    def content(self, path: str, most: int) -> bytes:
        """As `Tree.content`."""
        import obstore

        def request() -> bytes | int | None:
            try:
                found = obstore.get(self.store, path)
            except FileNotFoundError:
                return None
            size: int = found.meta["size"]
            return size if size > most else bytes(found.bytes())

        content = retried(request)
        if content is None:
            raise DataError(f"{_name(path)} was listed, but does not exist")
        if isinstance(content, int):
            raise DataError(f"{_name(path)} has {content:,} bytes; expected at most {most:,}")
        return content


def root_files(store: Any) -> frozenset[str]:
    """The names of the objects at the root of `store`, an obstore. Raises `StoreError`."""
    return _ObjectTree(store).names("").files


def _name(path: str) -> str:
    return path.rpartition("/")[2]


S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""The variables that name an endpoint of S3."""


@cache
def object_store(location: str) -> Any:
    """The obstore for the URL `location`; credentials and endpoint come from the environment.

    Raises `UsageError` for a malformed URL, or one that contains credentials.
    """
    check_url(location)
    store = require("obstore.store", "cloud")
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"  # which the options would override
    insecure = [name for name in S3_ENDPOINTS if os.environ.get(name, "").lower().startswith("http://")]
    if location.startswith("s3://") and insecure and not plain:
        raise UsageError(
            f"{insecure[0]} begins with http://, so requests would not be encrypted; use https, or allow that with "
            "AWS_ALLOW_HTTP=true"
        )
    options = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": "10s", "allow_http": plain}
    try:
        return store.from_url(_literal(location), client_options=options, retry_config={"max_retries": 0})
    except Exception as error:
        raise UsageError(
            f"cannot open {location} as an object store: {without_secrets(error)}; correct the URL"
        ) from error


def _literal(location: str) -> str:
    """The URL that means the keys of objects as `location` writes them: from_url decodes percent signs."""
    scheme, _, rest = location.partition("://")
    bucket, slash, key = rest.partition("/")
    return f"{scheme}://{bucket}{slash}{quote(key)}"


def objects_ahead(largest: int) -> int:
    """How many objects of at most `largest` bytes are fetched ahead: 0 if they are read in ranges."""
    return 0 if largest > WHOLE_BYTES else max(1, min(MOST_AHEAD, AHEAD_BYTES // max(1, largest)))


class ObjectFolder:
    """The objects below `path` in the store at `location`, each of at most `largest` bytes. See `Folder`."""

    gathers: ClassVar[bool] = False

    def __init__(self, location: str, path: str, largest: int) -> None:
        self._store = object_store(location)
        self._path = path
        self._largest = largest
        self._whole = largest <= WHOLE_BYTES
        self._ahead = objects_ahead(largest)
        self._expected: Iterator[str] = iter(())
        self._fetched: dict[str, Future[File | None]] = {}
        self._closed = Event()

    def gather(self, keys: Sequence[str], buffer: Bytes, most: int) -> Gathered:
        """As `Folder.gather`: none, as objects are fetched ahead one by one."""
        return Gathered.nothing()

    def file(self, key: str) -> File | None:
        """As `Folder.file`. Raises `StoreError`."""
        if not self._whole:
            return retried(lambda: self._head(key))
        future = self._fetched.pop(key, None) or self._fetch(key)
        self._go_ahead()
        while not wait([future], timeout=WAIT_SECONDS).done:
            check_wanted()
        return future.result()

    def expect(self, keys: Iterable[str]) -> None:
        """As `Folder.expect`."""
        if self._whole:
            for future in self._fetched.values():
                future.cancel()
            self._fetched.clear()
            self._expected = iter(keys)
            self._go_ahead()

    def identities(self, keys: Iterable[str], opened: Mapping[str, Identity] | None = None) -> Iterator[Identity]:
        """As `Folder.identities`; without `opened`, the objects are listed. Raises `StoreError`.

        Some stores list objects late, so those that are not listed are asked for, one by one, unless they are many.
        """
        if opened is not None:
            return (opened.get(key, MISSING) for key in keys)
        wanted, known = list(keys), dict(retried(self._list))
        unlisted = [key for key in wanted if key not in known]
        if len(unlisted) <= MOST_ASKED:
            heads = _fetchers().map(lambda key: retried(lambda: self._head(key)), unlisted)
            known |= {key: file.identity for key, file in zip(unlisted, heads, strict=True) if file is not None}
        return (known.get(key, MISSING) for key in wanted)

    def contents(self, keys: Iterable[str]) -> Iterator[int]:
        """As `Folder.contents`: unknown without fetching the objects, whose tags tell most copies."""
        return (UNSAMPLED for _ in keys)

    def close(self) -> None:
        """As `Folder.close`: objects that were fetched and not read are dropped."""
        self._closed.set()
        self.expect(())

    def _go_ahead(self) -> None:
        for key in islice(self._expected, self._ahead - len(self._fetched)):
            self._fetched[key] = self._fetch(key)

    def _fetch(self, key: str) -> Future[File | None]:
        return _fetchers().submit(retried, lambda: self._get(key), self._closed)

    def _get(self, key: str) -> File | None:
        import obstore

        path = f"{self._path}/{key}"
        try:
            found = obstore.get(self._store, path)
            if found.meta["size"] > self._largest:  # it is damaged, and may not fit into memory
                return RangedFile(self._store, path, found.meta["size"], identity_of(found.meta))
            content = np.frombuffer(memoryview(found.bytes()), np.uint8)
        except FileNotFoundError:
            return None
        if len(content) != found.meta["size"]:
            raise OSError(f"received {len(content)} of {found.meta['size']} bytes")
        return MemoryFile(content, len(content), identity_of(found.meta))

    def _list(self) -> dict[str, Identity]:
        """The identities of all objects of the folder, by key."""
        import obstore

        found = obstore.list(self._store, prefix=f"{self._path}/")
        return {meta["path"].removeprefix(f"{self._path}/"): identity_of(meta) for batch in found for meta in batch}

    def _head(self, key: str) -> RangedFile | None:
        import obstore

        path = f"{self._path}/{key}"
        try:
            meta = obstore.head(self._store, path)
        except FileNotFoundError:
            return None
        return RangedFile(self._store, path, meta["size"], identity_of(meta))


@cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCHERS, "streamstats-fetch")


class PatientStore(ObjectStore[Any]):
    """An object store through which zarr finds arrays; it retries requests that fail."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As `zarr.abc.store.Store.get`."""
        return await retried_async(lambda: ObjectStore.get(self, key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """As `zarr.abc.store.Store.exists`."""
        return await retried_async(lambda: ObjectStore.exists(self, key))

    async def getsize(self, key: str) -> int:
        """As `zarr.abc.store.Store.getsize`. Raises `FileNotFoundError`."""
        found = await retried_async(lambda: self._size(key))
        if found is None:
            raise FileNotFoundError(key)
        return found

    async def _size(self, key: str) -> int | None:
        try:
            return await ObjectStore.getsize(self, key)
        except FileNotFoundError:
            return None


def identity_of(meta: Any) -> Identity:
    """The identity of an object from its obstore metadata: its size, and its tag or the second of its last change.

    A listing has no versions, and finer times than the response to a request for the object: neither counts.
    """
    tag = meta.get("e_tag") or meta["last_modified"].replace(microsecond=0).isoformat()
    return int(meta["size"]), int.from_bytes(sha256(tag.encode()).digest()[:8], "little") >> 1


@dataclass
class RangedFile:
    """An object that is read in ranges."""

    store: Any
    path: str
    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`."""
        import obstore

        if start + out.size > self.size:
            raise ValueError(f"it ends at byte {self.size}, expected {start + out.size} or more")

        def request() -> Bytes:
            content = memoryview(obstore.get_range(self.store, self.path, start=start, length=out.size))
            found: Bytes = np.frombuffer(content, np.uint8)
            if found.size != out.size:
                raise OSError(f"received {found.size} of {out.size} bytes")
            return found

        out[:] = retried(request)

    def content(self) -> int:
        """As `File.content`: unknown, as each piece would be a request."""
        return UNSAMPLED

    def close(self) -> None:
        """As `File.close`."""
