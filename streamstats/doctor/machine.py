"""What a process may use of this machine: cores, memory, folders. Limits of containers are read on Linux.

Files of the system are looked for below `root`, which is another folder only in tests.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from ..jobs.cores import ROOT, allowed_cores, cgroups, content, cpu_quota, usable_cores


@dataclass(frozen=True)
class Cores:
    """The cores of the machine; those that this process may run on; how many of them it may keep busy, by its cgroup,
    if that is limited; and how many are busy on average over the last minute, where the system says so.
    """

    machine: int
    allowed: int
    quota: float | None
    load: float | None

    @property
    def usable(self) -> int:
        """How many threads can run at once."""
        return usable_cores(self.allowed, self.quota)


@dataclass(frozen=True)
class Memory:
    """The bytes of the machine, and those that the cgroup of this process may use, if that is fewer."""

    machine: int | None
    limit: int | None


@dataclass(frozen=True)
class Place:
    """A folder: why it cannot be written, or "" if it can; its free bytes; its file system, or "" if unknown."""

    path: str
    refused: str
    free: int | None
    file_system: str


def cores(root: Path = ROOT) -> Cores:
    """The cores of this machine and of this process."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Cores(os.cpu_count() or 1, allowed_cores(), cpu_quota(root), load)


def memory(root: Path = ROOT) -> Memory:
    """The memory of this machine and of this process."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    texts = (content(folder / name) for folder in cgroups(root, "memory") for name in MEMORY_LIMITS)
    least = min((int(text) for text in texts if text.isdigit()), default=None)
    return Memory(machine, None if least is None or (machine and least >= machine) else least)


MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Files of cgroups, versions 2 and 1."""


def place(path: Path, root: Path = ROOT) -> Place:
    """What is known of the folder at `path`."""
    try:
        with tempfile.TemporaryFile(dir=path):
            free = disk_usage(path).free
    except OSError as error:
        return Place(str(path), str(error), None, _file_system(path, root))
    return Place(str(path), "", free, _file_system(path, root))


def _file_system(path: Path, root: Path) -> str:
    """The type of the file system that holds `path`: that of the longest mount point above it."""
    found = {}
    for line in content(root / "proc/self/mountinfo").splitlines():
        mounted, _, kind = line.partition(" - ")
        found[Path(mounted.split()[4].replace("\\040", " "))] = kind.split()[0]
    resolved = path.resolve()
    above = [point for point in found if resolved.is_relative_to(point)]
    return found[max(above, key=lambda point: len(point.parts))] if above else ""
