"""The results of a job as readers see them: numbered sets that never change, of which the newest is current.

A run writes its results file by file. When all are written, they are linked into a folder with a new number, and one
small file, replaced atomically, names the current number. So a reader always sees one set, of one moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from ..outputs.manifest import MANIFEST, NOTHING, read_manifest
from ..storage.files import folder_bytes, link, read_json, remove, remove_folder, write_json
from .clock import Clock
from .retaining import Keep, Thing

CURRENT = "current.json"
RESULTS = "results"
RETAINED_SECONDS = 120.0
"""How long a set is retained that is no longer current: a client may be fetching its files."""
BRIEFLY = Keep(number=0)
"""No set that is not current, once nobody can be fetching it."""


class Published:
    """The result sets of the job in the folder `job`, as its process publishes them; `keep` says which are kept."""

    def __init__(self, job: Path, clock: Clock | None = None, keep: Keep = BRIEFLY) -> None:
        self._job, self._keep, self._clock = job, keep, clock or Clock()
        self._replaced = dict.fromkeys(numbers(job)[:-1], self._clock.monotonic())  # at the latest

    def publish(self, files: Mapping[str, Path]) -> int:
        """Make `files` (paths by name) the current set, and return its number. Raises `OutputError`."""
        known = numbers(self._job)
        number = max(known, default=0) + 1
        folder = self._job / RESULTS / str(number)
        link({folder / name: path for name, path in files.items()})
        make_current(self._job, number)
        now = self._clock.monotonic()
        in_use = {old for old in known if now - self._replaced.setdefault(old, now) <= RETAINED_SECONDS}
        for old, _ in superseded(self._job, self._keep, self._clock.now()):
            if int(old.name) not in in_use:
                discard(self._job, int(old.name))
        return number


def make_current(job: Path, number: int) -> None:
    """Make the set `number`, which is complete, the current one. Raises `OutputError`."""
    write_json(job / CURRENT, {"number": number})


def superseded(job: Path, keep: Keep, now: float, *, measured: bool = False) -> list[tuple[Thing, str]]:
    """The sets that are not current and that `keep` does not keep, named by their numbers, each with the reason.

    They have their bytes if they are `measured`.
    """
    newest = current(job) or 0
    folders = [job / RESULTS / str(number) for number in numbers(job) if number < newest]
    sized = measured or keep.bytes is not None
    sets = [Thing(each.name, each.stat().st_mtime, folder_bytes(each) if sized else 0) for each in folders]
    return [*keep.expired(sets, now)]


def discard(job: Path, number: int) -> None:
    """Remove a set. Raises `OutputError`."""
    path = job / RESULTS / str(number)
    remove_folder(path)
    remove(archive_of(path))


def result_files(output: Path) -> dict[str, Path]:
    """The files that a run wrote to `output`, by name: the manifest, and those that it lists."""
    manifest = read_manifest(output) or NOTHING
    files = [each.file for layer in manifest.layers.values() for each in layer.files]
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
