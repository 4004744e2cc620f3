"""Backups: a copy of a service's folder, taken while the service runs, from which a service can start.

The order makes the parts fit. The database comes first: jobs that it does not know are left out. A job's folder is
copied before the stores, so it has counted no row that the copy of its store lacks. In a store, metadata come before
chunks, so all rows that they commit are there; the journals of the keys come last, so all these rows have a key. What
is newer than the copied database is settled when a service starts on the copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, UsageError, counted
from ..storage.files import (
    TEMPORARY,
    copy_file,
    make_durable,
    make_private_folder,
    remove_folder,
    rename_folder,
    temporary_beside,
)
from ..storage.names import V3_METADATA
from . import published
from .database import DATABASE, Database
from .hooks import FOLDER as HOOKS
from .job_table import JobTable
from .journal import FOLDER as JOURNALS
from .messages import JobView
from .processes import INPUTS
from .runner import RECORDED, REQUEST, STORE
from .settings import ENDED
from .tokens import TOKEN

PASSING = (TEMPORARY, ".lock")
"""How files end that are of no use to others than the process that made them."""
MOST_TRIES = 5
"""Times to copy what is replaced while it is copied."""


@dataclass
class Copied:
    """What a backup holds."""

    jobs: int = 0
    stores: int = 0
    uploads: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        parts = counted(self.jobs, "job"), counted(self.stores, "store"), counted(self.uploads, "upload")
        return f"{', '.join(parts)}, {self.bytes:,} bytes"


def back_up(data: Path, target: Path) -> Copied:
    """Copy the folder `data` of a service, which may be running, to the new folder `target`.

    The folder appears when it is complete and on the disk. Raises `UsageError` if `data` is not the folder of a service
    or `target` exists, `DataError` for a damaged database, `OutputError`.
    """
    if not (data / DATABASE).is_file():
        raise UsageError(f"{data} is not the folder of a service: it has no {DATABASE}; check `data`")
    if target.exists():
        raise UsageError(f"{target} exists; name a new folder for the backup")
    if target.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"{target} is inside {data}; name a folder elsewhere, best on another disk")
    unfinished = temporary_beside(target)
    try:
        copied = _Backup(data, unfinished).made()
        rename_folder(unfinished, target)
    except BaseException:
        remove_folder(unfinished)
        raise
    return copied


@dataclass(frozen=True)
class _Backup:
    data: Path
    target: Path
    copied: Copied = field(default_factory=Copied)

    def made(self) -> Copied:
        make_private_folder(self.target)
        Database.copy(self.data / DATABASE, self.target / DATABASE)
        if (self.data / TOKEN).exists():
            self._copy(Path(TOKEN))
        for secret in _names(self.data / HOOKS):
            self._copy(Path(HOOKS, secret))
        with closing(Database(self.target / DATABASE)) as database:
            jobs = JobTable(database).all()
        for job in jobs:
            self._copy_job(job)
        for upload in _names(self.data / "uploads"):
            self.copied.uploads += self._copy(Path("uploads", upload))
        for store in _names(self.data / "stores"):
            self._copy_store(Path("stores", store))
        make_durable([self.target / DATABASE])
        return self.copied

    def _copy_job(self, job: JobView) -> None:
        """Copy a job's folder; a job of the kind `onnx` that has not ended starts again from its inputs."""
        folder = Path("jobs", job.id)
        if job.kind == "onnx" and job.state not in ENDED:
            self._copy_all(folder / INPUTS)
        else:
            self._copy_results(folder)
            self._copy_all(folder, without=(published.RESULTS, published.CURRENT, STORE, RECORDED, REQUEST))
        self.copied.jobs += 1

    def _copy_results(self, folder: Path) -> None:
        """Copy the retained result sets, the current one first: others may be removed meanwhile."""
        for _ in range(MOST_TRIES):
            current = published.current(self.data / folder)
            if current is None:
                return
            sets = folder / published.RESULTS
            self._copy_all(sets / str(current))
            if (self.data / sets / str(current)).exists():  # all of it was there
                for number in published.numbers(self.data / folder):
                    self._copy_all(sets / str(number))
                published.make_current(self.target / folder, current)
                return
        raise DataError(f"the results of {folder} are replaced faster than they can be copied; try again later")

    def _copy_store(self, store: Path) -> None:
        """Copy a store; one that is deleted meanwhile is left out."""
        for _ in range(MOST_TRIES):
            identity = _identity(self.data / store)
            self._copy_all(store, only=lambda name: name == V3_METADATA)
            self._copy_all(store, only=lambda name: name != V3_METADATA, without=(JOURNALS,))
            self._copy_all(store / JOURNALS)
            if _identity(self.data / store) == identity:  # it is the same store, not one of the same name
                self.copied.stores += identity is not None
                return
            remove_folder(self.target / store)
        raise DataError(f"store {store.name} is replaced faster than it can be copied; try again later")

    def _copy_all(
        self, folder: Path, *, only: Callable[[str], bool] = lambda _: True, without: Sequence[str] = ()
    ) -> None:
        """Copy the files below `folder` whose name is among `only`, except the entries `without` in it."""
        for path in _files(self.data / folder, without):
            if only(path.name):
                self._copy(path.relative_to(self.data))

    def _copy(self, file: Path) -> bool:
        """Whether a file was copied; one that was removed meanwhile is not."""
        if (self.target / file).exists():
            return False
        size = copy_file(self.data / file, self.target / file)
        self.copied.bytes += size or 0
        return size is not None


def _files(folder: Path, without: Sequence[str]) -> Iterator[Path]:
    """The files below `folder` that are not temporary, except the entries `without` in it."""
    for here, folders, names in os.walk(folder):
        left_out = without if Path(here) == folder else ()
        folders[:] = [name for name in folders if name not in left_out]
        yield from (Path(here, name) for name in names if not name.endswith(PASSING) and name not in left_out)


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith(".")) if folder.is_dir() else []


def _identity(folder: Path) -> int | None:
    """Tells a folder from a later one of the same name; None if there is none."""
    try:
        return folder.stat().st_ino if (folder / V3_METADATA).exists() else None
    except FileNotFoundError:
        return None
