"""Where recordings are written, and by whom: a folder of this machine, or a place in an object store.

The law: a place has one writer at a time, and a second one is refused with the name of the first. In a folder, the
operating system holds the lock, and releases it when the writer ends. In an object store, the writer creates an object,
which no other can create while it is there; the object stays if the writer is killed. A writer that finds that its
place is not its own any more writes nothing more.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, ObjectStore

from ...errors import OutputError, StoreError, UsageError
from ...storage.files import remove_folder, sync_folders, write_whole
from ...storage.locks import has_ended, locked, said_of, this_process
from .choose import is_url
from .objects import SCHEMES, PatientStore, object_store, root_files
from .retrying import retried, retried_async

LOCK, CLAIM = ".recorder.lock", ".recorder.json"
OWN_PART = "wait for it, stop it, or record into a part of your own (`part` of a Recorder, `--part` of `record`)"
MOST_TRIES = 5
"""Times to claim a place whose claim comes and goes."""

IsOwn = Callable[[], bool]
"""Whether the place still belongs to the writer that claimed it."""


class Target(Protocol):
    """A place to record into. Making one contacts nobody."""

    @property
    def location(self) -> str:
        """The path or URL at which the recording is read."""

    def zarr_store(self, *, durable: bool = False) -> Store | str:
        """What zarr opens to write; if `durable`, files are on the disk before they get their names."""

    def files(self) -> frozenset[str]:
        """The names of the files at its root."""

    def exists(self) -> bool:
        """Whether there is anything."""

    def claimed(self) -> AbstractContextManager[IsOwn]:
        """Be the only writer. Raises `OutputError`, naming the other one, if there is one."""

    def sync(self, keys: Sequence[str]) -> None:
        """Make sure that the names of the files `keys`, written durably, outlive a power failure. Raises `OSError`."""

    def remove(self) -> None:
        """Remove everything. Raises `OutputError`, `StoreError`."""


def target_of(place: str | Path) -> Target:
    """The target at the path or URL `place`. Raises `UsageError` for one that cannot be written."""
    text = str(place)
    if text.split(":/")[0] in SCHEMES and "://" not in text:
        raise UsageError(f"cannot record into {text}: a Path folds the slashes of a URL; give the URL as text")
    if not is_url(text):
        return LocalTarget(text)
    if urlsplit(text).scheme not in SCHEMES:
        raise UsageError(f"cannot record into {text}; expected a folder, or a URL such as s3://bucket/recorded.zarr")
    return ObjectTarget(text)


@dataclass(frozen=True)
class LocalTarget:
    """The folder at `location`. See `Target`."""

    location: str

    def zarr_store(self, *, durable: bool = False) -> Store | str:
        """As `Target.zarr_store`."""
        return DurableStore(self.location) if durable else self.location

    def files(self) -> frozenset[str]:
        """As `Target.files`."""
        with suppress(OSError):
            return frozenset(os.listdir(self.location))
        return frozenset()

    def exists(self) -> bool:
        """As `Target.exists`."""
        return os.path.exists(self.location)

    @contextmanager
    def claimed(self) -> Iterator[IsOwn]:
        """As `Target.claimed`."""
        path = Path(self.location, LOCK)
        holding = locked(path, this_process(), lambda: False, remedy=OWN_PART, check_left=self._check_left)
        with ExitStack() as held:
            try:
                is_own = held.enter_context(holding)
            except UsageError as error:
                raise OutputError(str(error)) from error
            yield is_own

    def _check_left(self, holder: Mapping[str, Any]) -> None:
        """Raise `OutputError` for a lock that was left on another host, where locks may not reach."""
        if holder and holder.get("host") != this_process()["host"]:
            raise _left(self.location, Path(self.location, LOCK), holder)

    def sync(self, keys: Sequence[str]) -> None:
        """As `Target.sync`."""
        sync_folders([Path(self.location, key) for key in keys], Path(self.location).parent)

    def remove(self) -> None:
        """As `Target.remove`."""
        remove_folder(Path(self.location))


@dataclass(frozen=True)
class ObjectTarget:
    """What lies below the URL `location` of an object store. See `Target`."""

    location: str

    @property
    def _store(self) -> Any:
        return object_store(self.location)

    def zarr_store(self, *, durable: bool = False) -> Store:
        """As `Target.zarr_store`."""
        return WritableStore(self._store)

    def files(self) -> frozenset[str]:
        """As `Target.files`. Raises `StoreError`."""
        return root_files(self._store)

    def exists(self) -> bool:
        """As `Target.exists`. Raises `StoreError`."""
        import obstore

        return bool(retried(lambda: next(iter(obstore.list(self._store, chunk_size=1)), [])))

    @contextmanager
    def claimed(self) -> Iterator[IsOwn]:
        """As `Target.claimed`. Raises `StoreError`."""
        mine, owner = {**this_process(), "token": uuid.uuid4().hex}, os.getpid()
        self._claim(mine)
        try:
            yield lambda: self._claimant()[0].get("token") == mine["token"]
        finally:
            with suppress(StoreError):  # it stays, and the next writer on this host sees that this one has ended
                if os.getpid() == owner and self._claimant()[0].get("token") == mine["token"]:
                    self._delete([CLAIM])

    def _claim(self, mine: Mapping[str, Any]) -> None:
        """Create the claim, or replace that of a writer that has ended. Raises `OutputError`, `StoreError`."""
        holder: Mapping[str, Any] = {}
        for _ in range(MOST_TRIES):
            if self._put(mine, "create"):
                return
            holder, version = self._claimant()
            if holder.get("token") == mine["token"]:  # the answer to the first request was lost
                return
            if holder and not has_ended(holder):
                break
            if version and self._put(mine, version):
                return
        raise _left(self.location, f"{self.location}/{CLAIM}", holder)

    def _put(self, claim: Mapping[str, Any], mode: Any) -> bool:
        """Write `claim`, if `mode` allows it. Raises `OutputError` where the store cannot tell."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, NotSupportedError, PreconditionError

        content = json.dumps(claim, sort_keys=True).encode()

        def request() -> bool:
            try:
                obstore.put(self._store, CLAIM, content, mode=mode)
            except (AlreadyExistsError, PreconditionError, NotFoundError):
                return False
            except (NotSupportedError, NotImplementedError) as error:
                raise OutputError(
                    f"{self.location} does not support conditional writes, so that several writers cannot be told "
                    "apart; record into a folder, and copy it there"
                ) from error
            return True

        return retried(request)

    def _claimant(self) -> tuple[dict[str, Any], dict[str, str]]:
        """(what the claim says, its version); nothing if there is none. Raises `StoreError`."""
        import obstore

        def request() -> tuple[bytes, dict[str, str]]:
            try:
                found = obstore.get(self._store, CLAIM)
                version = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                return bytes(found.bytes()), {key: text for key, text in version.items() if text}
            except FileNotFoundError:
                return b"{}", {}

        content, version = retried(request)
        try:
            document = json.loads(content)
        except ValueError:
            document = {"process": "unknown"}
        return document, version

    def _delete(self, keys: Sequence[str]) -> None:
        import obstore

        retried(lambda: obstore.delete(self._store, list(keys)))

    def sync(self, keys: Sequence[str]) -> None:
        """As `Target.sync`: an object that was written is there."""

    def remove(self) -> None:
        """As `Target.remove`."""
        import obstore

        found = retried(lambda: [meta["path"] for batch in obstore.list(self._store) for meta in batch])
        if found:
            self._delete(found)


class DurableStore(LocalStore):
    """A folder through which zarr writes whole files, whose contents are on the disk before they get their names.

    After a power failure, a file that was replaced is the old one or the new one, never an empty one. The names
    themselves are on the disk once `LocalTarget.sync` has returned.
    """

    async def set(self, key: str, value: Buffer) -> None:
        """As `zarr.abc.store.Store.set`."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """As `zarr.abc.store.Store.set_if_not_exists`."""
        with suppress(FileExistsError):
            await asyncio.to_thread(self._write, key, value, is_new=True)

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `LocalStore.set_sync`, through which some versions of zarr write."""
        self._write(key, value)

    def _write(self, key: str, value: Buffer, *, is_new: bool = False) -> None:
        write_whole(self.root / key, value.to_bytes(), is_new=is_new)


class WritableStore(PatientStore):
    """An object store through which zarr writes; it retries requests that fail."""

    async def set(self, key: str, value: Buffer) -> None:
        """As `zarr.abc.store.Store.set`."""
        await retried_async(lambda: ObjectStore.set(self, key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """As `zarr.abc.store.Store.set_if_not_exists`."""
        await retried_async(lambda: ObjectStore.set_if_not_exists(self, key, value))


def _left(location: str, path: str | Path, holder: Mapping[str, Any]) -> OutputError:
    if holder.get("host") == this_process()["host"]:
        return OutputError(f"{location} is in use by {said_of(holder)}; {OWN_PART}")
    return OutputError(
        f"{location} is in use by {said_of(holder)}, whose end cannot be seen from here; {OWN_PART}; if it has ended, "
        f"remove {path}"
    )
