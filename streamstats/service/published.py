"""The results of a job as readers see them: numbered sets that never change, of which the newest is current.

A run writes its results file by file. When all are written, they are linked into a folder with a new number, and one
small file, replaced atomically, names the current number. So a reader always sees one set, of one moment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from ..outputs.manifest import MANIFEST, NOTHING, FileEntry, read_manifest
from ..storage.files import link, read_json, remove, remove_folder, write_json
from .retaining import Keep, Thing, size_of

CURRENT = "current.json"
RESULTS = "results"
RETAINED_SECONDS = 120.0
"""How long a set is retained that is no longer current: a client may be fetching its files."""
BRIEFLY = Keep(age=RETAINED_SECONDS)


def publish(job: Path, files: Mapping[str, Path], keep: Keep = BRIEFLY) -> int:
    """Make `files` (paths by name) the current set of the job in the folder `job`, and return its number.

    Of the sets before it, the last is kept, and those that `keep` keeps. Raises `OutputError`.
    """
    number = max(numbers(job), default=0) + 1
    folder = job / RESULTS / str(number)
    link({folder / name: path for name, path in files.items()})
    write_json(job / CURRENT, {"number": number})
    for old in superseded(job, keep, time.time()):
        if int(old.name) < number - 1:
            discard(job, int(old.name))
    return number


def superseded(job: Path, keep: Keep, now: float, *, measured: bool = False) -> list[Thing]:
    """The sets that `keep` does not keep, named by their numbers; with their bytes if they are `measured`.

    None of them is current, or was published less than RETAINED_SECONDS ago.
    """
    newest = current(job) or 0
    folders = [job / RESULTS / str(number) for number in numbers(job) if number < newest]
    sized = measured or keep.bytes is not None
    sets = [Thing(each.name, each.stat().st_mtime, size_of(each) if sized else 0) for each in folders]
    return [each for each, _ in keep.expired(sets, now) if now - each.at > RETAINED_SECONDS]


def discard(job: Path, number: int) -> None:
    """Remove a set. Raises `OutputError`."""
    path = job / RESULTS / str(number)
    remove_folder(path)
    remove(archive_of(path))


def result_files(output: Path) -> dict[str, Path]:
    """The files that a run wrote to `output`, by name: the manifest, and those that it lists."""
    manifest = read_manifest(output) or NOTHING
    entries = [each for layer in manifest.layers.values() for each in (layer.state, layer.corrector)]
    files = [each.file for each in entries if isinstance(each, FileEntry)]
    return {name: output / name for name in [*files, MANIFEST]}


def numbers(job: Path) -> list[int]:
    """The numbers of the sets that are retained, in order."""
    folder = job / RESULTS
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdigit()) if folder.is_dir() else []


def current(job: Path) -> int | None:
    """The number of the current set, None if there is none yet."""
    if not (job / CURRENT).exists():
        return None
    number = read_json(job / CURRENT).get("number")
    if type(number) is not int:
        raise DataError(
            f"{job / CURRENT} names {number!r} as the current result set; expected a number; submit the job again"
        )
    return number


def archive_of(folder: Path) -> Path:
    """The path of a set's archive, which is made when a client first asks for it."""
    return folder.with_name(f"{folder.name}.zip")


def folder_of(job: Path, number: int) -> Path | None:
    """The folder of a set, None if the set is no longer retained."""
    folder = job / RESULTS / str(number)
    return folder if folder.is_dir() else None
