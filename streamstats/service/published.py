"""The results of a job as readers see them: sets that never change, numbered, the newest of them the current one.

A run writes its results file by file. When all of them are written, they get a second name in a folder of a new number,
and one small file, replaced as a whole, says which number is current. So a reader always has one set, of one moment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from ..outputs.manifest import MANIFEST, FileEntry, read_manifest
from ..storage.files import link, read_json, remove, remove_folder, write_json

CURRENT = "current.json"
RESULTS = "results"
KEPT_SECONDS = 120.0
"""For how long a set stays that is no longer current: somebody may be fetching its files."""


def publish(job: Path, files: Mapping[str, Path]) -> int:
    """Make `files` (their names → where they are) the current set of `job`; its number. Raises `OutputError`."""
    number = max(numbers(job), default=0) + 1
    folder = job / RESULTS / str(number)
    link({folder / name: path for name, path in files.items()})
    write_json(job / CURRENT, {"number": number})
    for old in numbers(job):
        path = job / RESULTS / str(old)
        if old < number - 1 and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            remove_folder(path)
            remove(archive_of(path))
    return number


def result_files(output: Path) -> dict[str, Path]:
    """The files that a run left in `output`, by their names in it: those of the manifest, and that."""
    manifest = read_manifest(output)
    entries = manifest.layers.values() if manifest else ()
    files = [each for entry in entries for each in (entry.state, entry.corrector) if isinstance(each, FileEntry)]
    return {name: output / name for name in [*(each.file for each in files), MANIFEST]}


def numbers(job: Path) -> list[int]:
    """The numbers of the sets that are there, in order."""
    folder = job / RESULTS
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdigit()) if folder.is_dir() else []


def current(job: Path) -> int | None:
    """The number of the current set, None where there is none yet."""
    if not (job / CURRENT).exists():
        return None
    number = read_json(job / CURRENT).get("number")
    if type(number) is not int:
        raise DataError(f"{job / CURRENT} says that {number!r} is current, expected a number; run the job again")
    return number


def archive_of(folder: Path) -> Path:
    """Where the archive of a set is, once somebody wanted it."""
    return folder.with_name(f"{folder.name}.zip")


def folder_of(job: Path, number: int) -> Path | None:
    """The folder of a set, None where it is no longer there."""
    folder = job / RESULTS / str(number)
    return folder if folder.is_dir() else None
