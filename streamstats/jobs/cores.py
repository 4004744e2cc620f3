"""How many cores this process may keep busy: those that it may run on, or fewer by the quota of its cgroup.

A container with a quota of two cores sees all those of its host. More threads than that use up the quota early in each
period, and the kernel suspends all of them until the next one.

Files of the system are looked for below `root`, which is another folder only in tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def available_cores() -> int:
    """How many threads of this process can run at once."""
    return usable_cores(allowed_cores(), cpu_quota(ROOT))


def usable_cores(allowed: int, quota: float | None) -> int:
    """How many threads can run at once on `allowed` cores, of which `quota` may be busy: whole cores, at least one.

    >>> usable_cores(64, 2.5), usable_cores(64, 0.5), usable_cores(4, None)
    (2, 1, 4)
    """
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def allowed_cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path) -> float | None:
    """The least number of cores that a cgroup of this process may keep busy; None without a limit."""
    found = []
    for folder in cgroups(root, "cpu"):
        share = content(folder / "cpu.max").split()  # version 2
        share = share or [content(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if len(share) == 2 and all(each.isdecimal() and int(each) for each in share):  # not "max", -1, or missing
            found.append(int(share[0]) / int(share[1]))
    return min(found, default=None)


def cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the cgroups that this process is in, each with those above it."""
    for line in content(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon:
            continue
        if controllers in ("", controller) or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controllers and controller)
            folder = top / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def content(path: Path) -> str:
    """The text in a file of the system, or "" if there is none to read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
