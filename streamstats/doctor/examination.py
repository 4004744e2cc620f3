"""The examination: the facts about this machine, and about streamstats on it."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..compiled import cache
from ..errors import DISTRIBUTION, first_line
from .machine import Cores, Memory, Place, cores, memory, place
from .trial import Rate, trial

LIBRARIES = ("numpy", "dask", "zarr", "numba", "llvmlite")
FOR_DEVELOPERS = ("benchmark", "test")
BLAS_VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Loops:
    """The folder that caches compiled loops, if there can be one; how many it had, and how many the trial compiled."""

    folder: str | None
    cached: int
    compiled: int
    refused: str = ""


@dataclass(frozen=True)
class Facts:
    """What was found. `extras` has the missing distributions of each extra; `failed` says why there are no `rates`."""

    versions: dict[str, str]
    extras: dict[str, tuple[str, ...]]
    cores: Cores
    memory: Memory
    loops: Loops
    places: dict[str, Place]
    blas: dict[str, str]
    rates: dict[str, Rate]
    failed: str = ""

    def document(self) -> dict[str, Any]:
        """The facts, for JSON."""
        extras = {
            name: {"installed": not missing, "install": install(name)} for name, missing in sorted(self.extras.items())
        }
        return asdict(self) | {"cores": asdict(self.cores) | {"usable": self.cores.usable}, "extras": extras}


def examine() -> Facts:
    """Find the facts, in a few seconds."""
    found_cores = cores()
    places = {"output": place(Path.cwd()), "temporary": place(_temporary_folder())}
    folder, refused = _cache_folder()
    if folder is not None:
        places["cache"] = place(folder)
    before = cache.kept(folder) if folder else set()
    rates, failed = _tried(found_cores.usable)
    compiled = len(cache.kept(folder) - before) if folder else 0
    return Facts(
        versions={"streamstats": __version__, "python": platform.python_version()} | _versions(),
        extras=_extras(),
        cores=found_cores,
        memory=memory(),
        loops=Loops(str(folder) if folder else None, len(before), compiled, refused),
        places=places,
        blas={name: os.environ[name] for name in BLAS_VARIABLES if name in os.environ},
        rates=rates,
        failed=failed,
    )


def _temporary_folder() -> Path:
    """The folder for temporary files, even if it cannot be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # Python has tried some, and the current folder
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _cache_folder() -> tuple[Path | None, str]:
    """(the folder of the cache, why it cannot be written)."""
    try:
        return cache.writable_folder(), ""
    except (OSError, RuntimeError) as error:
        return None, first_line(error)


def _tried(threads: int) -> tuple[dict[str, Rate], str]:
    """(the rates of the trial, why it failed)."""
    try:
        return trial(threads), ""
    except Exception as error:  # whatever it is, it would also end a run
        return {}, f"{type(error).__name__}: {first_line(error)}"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def install(extra: str) -> str:
    """The command that installs `extra`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def _extras() -> dict[str, tuple[str, ...]]:
    """Extra → the distributions that it needs and that are not installed. Empty if streamstats is not installed."""
    try:
        ours = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    names = [name for name in ours.get_all("Provides-Extra") or () if name not in FOR_DEVELOPERS]
    needs = [_requirement(each) for each in metadata.requires(DISTRIBUTION) or ()]
    return {name: tuple(sorted({need for need in _needs(name, needs) if not _installed(need)})) for name in names}


def _requirement(text: str) -> tuple[str, list[str], str]:
    """(distribution, its extras, the extra of ours that needs it or ""), of `name[a,b]>=1; extra == "c"`."""
    name, _, more = text.partition(";")
    extra = re.search(r"extra == ['\"](.+?)['\"]", more)
    wanted = re.search(r"\[(.*?)\]", name)
    return re.split(r"[^\w.-]", name)[0], wanted[1].split(",") if wanted else [], extra[1] if extra else ""


def _needs(extra: str, needs: list[tuple[str, list[str], str]]) -> Iterator[str]:
    for name, inner, owner in needs:
        if owner == extra and name == DISTRIBUTION:
            for each in inner:
                yield from _needs(each, needs)
        elif owner == extra:
            yield name


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
