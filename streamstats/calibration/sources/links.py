"""Opening files and folders, with or without following links.

The law: what is opened without following links has exactly the path that was asked for. No part of it may be a link,
not even for a moment: the kernel resolves the path and refuses links in the same call (openat2), or each part is opened
relative to the folder before it. So whoever can write below a folder cannot make a reader leave it.

Hard links are files like others: systems refuse them to users who may not read the file. Pipes, sockets and devices are
refused, too, and never waited for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from stat import S_ISLNK, S_ISREG

READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Without O_NONBLOCK, opening a pipe would wait for a writer."""
LOOKING = getattr(os, "O_PATH", READING) | os.O_CLOEXEC
"""Opens what need not be readable, where the system can."""
OPENAT2 = 437
"""The number of openat2(2), on every architecture."""
NO_LINKS, BENEATH = 0x04, 0x08
"""openat2(2): `resolve`."""
REMEDY = "links in stores are not followed here; replace the link with what it leads to, as `cp -rL` copies it"


class LinkError(OSError):
    """A path leads through a link, and links are not followed."""

    def __init__(self, *_: object) -> None:
        super().__init__(errno.ELOOP, f"it is a link, or lies behind one; {REMEDY}")

    def __str__(self) -> str:
        return str(self.strerror)


def opened_file(path: str, *, follow_links: bool) -> int:
    """The descriptor of the regular file at the absolute `path`.

    Raises `LinkError`, `ValueError` if it is anything but a file, and `OSError`.
    """
    descriptor = opened(path, READING, follow_links=follow_links)
    if S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ValueError("it is not a file")


def opened_folder(path: str, *, follow_links: bool) -> int:
    """The descriptor of the folder at the absolute `path`. Raises `LinkError`, `OSError`."""
    return opened(path, READING | os.O_DIRECTORY, follow_links=follow_links)


@dataclass(frozen=True)
class Listing:
    """The names in a folder: of folders, of links, and of everything else."""

    folders: frozenset[str]
    links: frozenset[str]
    others: frozenset[str]


def names_in(path: str) -> Listing:
    """The names in the folder at the absolute `path`, without following links. Raises `LinkError`, `OSError`."""
    folder = opened_folder(path, follow_links=False)
    try:
        with os.scandir(folder) as entries:
            found = [(each.name, each.is_symlink(), each.is_dir(follow_symlinks=False)) for each in entries]
    finally:
        os.close(folder)
    links = frozenset(name for name, is_link, _ in found if is_link)
    folders = frozenset(name for name, _, is_folder in found if is_folder)
    return Listing(folders, links, frozenset(name for name, *_ in found) - links - folders)


def status_of(path: str, *, follow_links: bool) -> os.stat_result:
    """What `os.stat` says of the absolute `path`. Raises `LinkError`, `OSError`."""
    if follow_links:
        return os.stat(path)
    descriptor = opened(path, LOOKING, follow_links=False)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if S_ISLNK(found.st_mode):  # O_PATH with O_NOFOLLOW opens the link itself
        raise LinkError
    return found


def opened(path: str, flags: int, *, follow_links: bool) -> int:
    """What `os.open` gives for the absolute `path`. Raises `LinkError`, `OSError`."""
    if follow_links:
        return os.open(path, flags)
    if os.pardir in path.split("/") or not os.path.isabs(path):
        raise LinkError
    try:
        return _opened_at_once(path, flags) if has_openat2() else _opened_part_by_part(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LinkError from error
        raise


def how(flags: int, resolve: int) -> bytes:
    """The `struct open_how` of openat2(2)."""
    return struct.pack("=QQQ", flags, 0, resolve)


@cache
def has_openat2() -> bool:
    """Whether the kernel has openat2(2), and does not refuse it."""
    try:
        os.close(_opened_at_once("/", LOOKING))
    except (OSError, AttributeError):
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _opened_at_once(path: str, flags: int) -> int:
    asked = how(flags, NO_LINKS)
    number, nowhere, size = map(ctypes.c_long, (OPENAT2, -1, len(asked)))
    descriptor: int = _library().syscall(number, nowhere, os.fsencode(path), asked, size)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return descriptor


def _opened_part_by_part(path: str, flags: int) -> int:
    *above, last = [part for part in path.split("/") if part] or ["."]
    folder = os.open("/", LOOKING | os.O_DIRECTORY)
    try:
        for part in above:
            below = _opened_part(part, LOOKING | os.O_DIRECTORY, folder)
            os.close(folder)
            folder = below
        return _opened_part(last, flags, folder)
    finally:
        os.close(folder)


def _opened_part(name: str, flags: int, folder: int) -> int:
    """What `name` is in `folder`. Raises `LinkError`, `OSError`."""
    flags |= os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=folder)
    except NotADirectoryError as error:  # it may be a link: only the message depends on it
        with suppress(FileNotFoundError):
            if S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise LinkError from error
        raise
