"""Locks: one process at a time works in a folder; the error that others get names that process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..address import local_path
from ..errors import OutputError, UsageError
from .files import remove

ATTEMPTS = 10
"""Times to try to take a lock."""


@contextlib.contextmanager
def locked(path: Path, document: Mapping[str, Any], keep: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock on the file at `path`, which contains `document`, while the `with` block runs; then remove the file.

    If the block fails and `keep()` is true, the file stays, as a record of the work. It blocks no other process: the
    operating system holds the lock and releases it when the process ends. Raises `OutputError`, naming the holder, if
    another process holds the lock, and `UsageError` if the file cannot be created.
    """
    while True:
        try:
            local_path(path).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OutputError(_who_holds(path, error)) from error
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # the last holder has removed this file; lock the new one
    try:
        content = (json.dumps(document, sort_keys=True) + "\n").encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except OSError as error:
            remove(path)
            raise OutputError(f"cannot write {path}: {error.strerror or error}; make room") from error
        failed = True
        try:
            yield
            failed = False
        finally:
            if not (failed and keep()):
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


def _who_holds(path: Path, error: OSError) -> str:
    if not isinstance(error, BlockingIOError):
        return f"cannot lock {path}: {error.strerror or error}; choose a folder on a file system that supports locks"
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{path.parent} is in use by {who}; wait for it, stop it, or choose another output"


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
