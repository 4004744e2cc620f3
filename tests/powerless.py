"""A disk that loses its power: what a folder would hold if only what was flushed had reached the disk.

A file has the content of its last fsync, a folder the names of its last fsync. The other extreme: all names have
reached the disk, and no content that was not flushed has, so a file that was renamed too early is empty.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("replace", "link", "mkdir", "unlink")


class Disk:
    """Watches the folder `root` until `patch` ends; `moment` is called after each change, flush or not."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, moment: Callable[[Disk], None] = lambda _: None) -> None:
        self._root, self._moment = root, moment
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, list[str]] = {}
        self._open: list[int] = []  # so that no number of a file is given to another one
        self._lock = threading.RLock()
        self._copying = False
        for folder, _, files in os.walk(root):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                self._flushed(os.open(path, os.O_RDONLY))
        patch.setattr(os, "fsync", self._watched(os.fsync, flushes=True))
        for name in CHANGES:
            patch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, function: Callable[..., Any], *, flushes: bool = False) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                found = function(*arguments, **options)
                if not self._copying:
                    if flushes:
                        self._flushed(os.dup(arguments[0]))
                    self._moment(self)
                return found

        return watched

    def _flushed(self, descriptor: int) -> None:
        self._open.append(descriptor)
        number, path = os.fstat(descriptor).st_ino, f"/proc/self/fd/{descriptor}"
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._names[number] = os.listdir(descriptor)
        else:
            self._contents[number] = Path(path).read_bytes()

    def without_power(self, target: Path, *, all_names: bool) -> Path:
        """Write to `target` what is on the disk: with all names, or with those that were flushed."""
        with self._lock:
            self._copying = True
            self._copy(self._root, target, all_names)
            self._copying = False
        return target

    def _copy(self, folder: Path, target: Path, all_names: bool) -> None:
        target.mkdir()
        names = os.listdir(folder) if all_names else self._names.get(folder.stat().st_ino, [])
        for name in names:
            path = folder / name
            if not path.exists() or "sqlite-" in name:
                continue
            if path.is_dir():
                self._copy(path, target / name, all_names)
            elif name.endswith(".sqlite"):  # which flushes what it commits; not with our functions
                with sqlite3.connect(path) as source, sqlite3.connect(target / name) as copy:
                    source.backup(copy)
                source.close()
                copy.close()
            else:
                (target / name).write_bytes(self._contents.get(path.stat().st_ino, b""))

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
