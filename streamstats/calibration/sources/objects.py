"""Object stores: S3, Google Cloud Storage, Azure.

Objects are fetched whole, several ahead of the one that is wanted, so the latency of their requests is waited for once
and not each time; large ones are read in ranges. What fails is tried again, with growing pauses; so is an object that
comes back shorter than it is.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import islice
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from ...errors import DataError, StoreError, UsageError, first_line, require
from ...interrupts import check_wanted
from ..encoding.chunks import Bytes
from .files import File, Identity

T = TypeVar("T")
SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
AHEAD_BYTES = 2**25
"""Of objects that are fetched before they are wanted, for a reader."""
MOST_AHEAD = 16
"""Objects, likewise."""
WHOLE_BYTES = 2**26
"""Objects that may be larger are read in ranges."""
MOST_NAMES = 100_000
"""In one group: a store of more would take hours to open, a request for each."""
FEWER = "give a group of fewer as the source"
FETCHERS = 64
"""Requests that a process makes at once."""
REQUEST_SECONDS = 30
"""For one request and its answer."""
WAIT_SECONDS = 0.5
"""Between two looks whether an object that is waited for is still wanted."""
TRIES = 6
FIRST_PAUSE = 0.1
"""Seconds; each pause is twice as long as the one before, and less by up to a half, so that readers spread."""


def is_object_store(location: str) -> bool:
    """Whether `location` is the URL of an object store that is read without zarr."""
    return urlsplit(location).scheme in SCHEMES


@cache
def object_store(location: str) -> Any:
    """The obstore of the URL `location`; credentials and endpoint come from the environment.

    Raises `UsageError` for a URL that is none, or has credentials in it.
    """
    check_url(location)
    store = require("obstore.store", "cloud")
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"  # which the options would override
    options = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": "10s", "allow_http": plain}
    try:
        return store.from_url(location, client_options=options, retry_config={"max_retries": 0})  # `_patiently` does it
    except Exception as error:
        raise UsageError(f"{location} cannot be opened as an object store: {without_secrets(error)}") from error


def check_url(location: str) -> None:
    """Raise `UsageError` for a URL with credentials, a query or a fragment in it, and do not show them."""
    scheme, _, rest = location.rpartition("://")
    if re.search(r"[?#]|:[^@]*@|^[^/]*@", rest) or "@" in scheme:
        raise UsageError(
            f"the URL {scheme.split('@')[0][:20]}://… has credentials or options in it, which would be written to the "
            "results; put them into the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )


def without_secrets(error: BaseException) -> str:
    """The first line of `error` without what stands before `@` and after `?` in URLs: names, keys, signatures."""
    return re.sub(r"\?[^\s\"')]*", "?…", re.sub(r"://[^\s@]*@", "://…@", first_line(error)))


def objects_ahead(largest: int) -> int:
    """How many objects of at most `largest` bytes are fetched ahead: 0 where they are read in ranges."""
    return 0 if largest > WHOLE_BYTES else max(1, min(MOST_AHEAD, AHEAD_BYTES // max(1, largest)))


class ObjectFolder:
    """The objects below a URL. `largest` is the most bytes that one of them has."""

    def __init__(self, location: str, path: str, largest: int) -> None:
        self._store = object_store(location)
        self._path = path
        self._largest = largest
        self._whole = largest <= WHOLE_BYTES
        self._ahead = objects_ahead(largest)
        self._expected: Iterator[str] = iter(())
        self._fetched: dict[str, Future[File | None]] = {}
        self._closed = Event()

    def file(self, key: str) -> File | None:
        """As `Folder.file`."""
        if not self._whole:
            return _patiently(lambda: self._head(key))
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

    def close(self) -> None:
        """As `Folder.close`: what was fetched and not wanted is dropped."""
        self._closed.set()
        self.expect(())

    def _go_ahead(self) -> None:
        for key in islice(self._expected, self._ahead - len(self._fetched)):
            self._fetched[key] = self._fetch(key)

    def _fetch(self, key: str) -> Future[File | None]:
        return _fetchers().submit(_patiently, lambda: self._get(key), self._closed)

    def _get(self, key: str) -> File | None:
        import obstore

        path = f"{self._path}/{key}"
        try:
            found = obstore.get(self._store, path)
            if found.meta["size"] > self._largest:  # it is damaged, and not to be had in memory
                return RangedFile(self._store, path, found.meta["size"], identity_of(found.meta))
            content = np.frombuffer(memoryview(found.bytes()), np.uint8)
        except FileNotFoundError:
            return None
        if len(content) != found.meta["size"]:
            raise OSError(f"{len(content)} of {found.meta['size']} bytes came back")
        return FetchedFile(content, len(content), identity_of(found.meta))

    def _head(self, key: str) -> RangedFile | None:
        import obstore

        path = f"{self._path}/{key}"
        try:
            meta = obstore.head(self._store, path)
        except FileNotFoundError:
            return None
        return RangedFile(self._store, path, meta["size"], identity_of(meta))


def listed(location: str, path: str) -> dict[str, Identity]:
    """The identities of the objects below `path`, by key. Raises `StoreError`."""
    import obstore

    def request() -> dict[str, Identity]:
        found = obstore.list(object_store(location), prefix=f"{path}/")
        return {meta["path"].removeprefix(f"{path}/"): identity_of(meta) for batch in found for meta in batch}

    return _patiently(request)


@cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCHERS, "streamstats-fetch")


def _patiently(request: Callable[[], T], unwanted: Event | None = None) -> T:
    """What `request` returns, tried again after a pause where the store or the network fails, until it is `unwanted`.

    Raises `StoreError`.
    """
    pauses = _pauses()
    while True:
        try:
            return request()
        except Exception as error:
            pause = _pause_after(error, pauses)
        check_wanted()
        if unwanted is None:
            time.sleep(pause)
        elif unwanted.wait(pause):
            raise CancelledError


async def _patiently_async(request: Callable[[], Awaitable[T]]) -> T:
    """As `_patiently`."""
    pauses = _pauses()
    while True:
        try:
            return await request()
        except Exception as error:
            pause = _pause_after(error, pauses)
        await asyncio.sleep(pause)


def _pauses() -> Iterator[float]:
    return (FIRST_PAUSE * 2**number * random.uniform(0.5, 1) for number in range(TRIES - 1))


def _pause_after(error: Exception, pauses: Iterator[float]) -> float:
    """How many seconds to wait before trying again. Raises `StoreError` where that is of no use."""
    import obstore.exceptions as refused

    if not isinstance(error, (refused.BaseError, OSError)):
        raise error
    if isinstance(error, (refused.PermissionDeniedError, refused.UnauthenticatedError)):
        raise StoreError(f"the object store refuses it: {without_secrets(error)}; check the credentials") from error
    pause = next(pauses, None)
    if pause is None:
        raise StoreError(
            f"the object store failed {TRIES} times: {without_secrets(error)}; what was counted is saved: run again "
            "when it answers"
        ) from error
    return pause


class PatientStore(ObjectStore[Any]):
    """An object store for zarr to find arrays in, which does not give up at the first failure."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As `zarr.abc.store.Store.get`."""
        return await _patiently_async(lambda: ObjectStore.get(self, key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """As `zarr.abc.store.Store.exists`."""
        return await _patiently_async(lambda: ObjectStore.exists(self, key))

    async def getsize(self, key: str) -> int:
        """As `zarr.abc.store.Store.getsize`. Raises `FileNotFoundError`."""
        found = await _patiently_async(lambda: self._size(key))
        if found is None:
            raise FileNotFoundError(key)
        return found

    async def _size(self, key: str) -> int | None:
        try:
            return await ObjectStore.getsize(self, key)
        except FileNotFoundError:
            return None

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """As `zarr.abc.store.Store.list_dir`."""

        async def whole() -> list[str]:
            names = []
            async for name in ObjectStore.list_dir(self, prefix):
                names.append(name)
                if len(names) > MOST_NAMES:
                    raise DataError(f"{prefix or 'the store'} has more than {MOST_NAMES:,} members; {FEWER}")
            return names

        for name in await _patiently_async(whole):
            yield name


def identity_of(meta: Any) -> Identity:
    """What identifies an object as it is described by obstore: its tag, or the second of its last change.

    A listing has no version and finer times than the answer to a request for the object.
    """
    tag = meta.get("e_tag") or meta["last_modified"].replace(microsecond=0).isoformat()
    return int(meta["size"]), int.from_bytes(sha256(tag.encode()).digest()[:8], "little") >> 1


@dataclass
class FetchedFile:
    """An object in memory."""

    content: Bytes
    size: int
    identity: Identity

    def read(self, start: int, out: Bytes) -> None:
        """As `File.read`."""
        if start + out.size > self.size:
            raise ValueError(f"it ends at byte {self.size}, expected {start + out.size} or more")
        out[:] = self.content[start : start + out.size]

    def close(self) -> None:
        """As `File.close`."""


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
                raise OSError(f"{found.size} of {out.size} bytes came back")
            return found

        out[:] = _patiently(request)

    def close(self) -> None:
        """As `File.close`."""
