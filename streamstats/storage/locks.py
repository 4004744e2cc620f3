"""Locks: one process at a time works in a folder; the error that others get names that process.

The operating system holds a lock and releases it when its process ends. Where it cannot, as in object stores, a claim
stands for the lock; what it says of its process tells whether that has ended, on the same host.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..address import local_path
from ..errors import OutputError, UsageError
from .files import create_folders, remove

ATTEMPTS = 10
"""Times to try to take a lock."""
WAIT = "wait for it, stop it, or choose another output"


def _nothing_to_check(_left: Mapping[str, Any]) -> None:
    """Whoever left a lock behind, it is free."""


@contextlib.contextmanager
def locked(
    path: Path,
    document: Mapping[str, Any],
    keep: Callable[[], bool],
    *,
    remedy: str = WAIT,
    check_left: Callable[[Mapping[str, Any]], None] = _nothing_to_check,
    needs_room: bool = True,
) -> Iterator[Callable[[], bool]]:
    """Hold a lock on the file at `path`, which contains `document`, while the `with` block runs; then remove the file.

    The block gets a function that says whether the lock still is the one at `path`. If the block fails and `keep()` is
    true, the file stays, as a record of the work. It blocks no other process: the operating system holds the lock and
    releases it when the process ends. `check_left` is called with what a process has left in the file that held the
    lock and was killed; it may raise. A lock that does not need room is held on a full disk, too, without its document.
    Raises `OutputError`, naming the holder, if another process holds the lock, and
    `UsageError` if the file cannot be created.
    """
    owner = os.getpid()
    while True:
        try:
            create_folders([local_path(path).parent])
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OutputError(_why_not(path, error, remedy)) from error
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # the last holder has removed this file; lock the new one
    try:
        check_left(_document(path))
        content = (json.dumps(document, sort_keys=True) + "\n").encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except OSError as error:
            if needs_room:
                remove(path)
                raise OutputError(f"cannot write {path}: {error.strerror or error}; make room") from error
        failed = True
        try:
            yield lambda: _is_at(path, descriptor)
            failed = False
        finally:
            forked = os.getpid() != owner  # the parent still holds the lock
            if not forked and not (failed and keep()) and _is_at(path, descriptor):
                remove(path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Take the lock; retry for a moment, because `is_locked` briefly holds one, too. Raises `OSError`."""
    for _ in range(ATTEMPTS - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _why_not(path: Path, error: OSError, remedy: str) -> str:
    if not isinstance(error, BlockingIOError):
        return f"cannot lock {path}: {error.strerror or error}; choose a folder on a file system that supports locks"
    return f"{path.parent} is in use by {said_of(_document(path))}; {remedy}"


def _document(path: Path) -> dict[str, Any]:
    """What the file at `path` says of its process; nothing if it is not whole."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def said_of(holder: Mapping[str, Any]) -> str:
    """Who the holder of a lock or claim is, in words."""
    try:
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except KeyError:
        return "another process"


def this_process() -> dict[str, Any]:
    """What a lock or claim says of this process: its host, its number, and what tells it from others of that number."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since, "begun": _begun(os.getpid())}


def has_ended(holder: Mapping[str, Any]) -> bool:
    """Whether the process of a lock or claim has ended for certain: it was on this host, which has it no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("process"), int):
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return bool(holder.get("begun")) and holder["begun"] != _begun(holder["process"])


def _begun(process: int) -> str:
    """The boot and the tick at which `process` began; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on the file at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
