"""Atomic, durable files: each is written to a temporary name in the same folder, flushed to disk and renamed; then the
folder is flushed. A reader sees the whole file or none, also after a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..address import local_path
from ..errors import DataError, OutputError, UsageError

TEMPORARY = ".streamstats-tmp"
COPY_BYTES = 2**20


def check_apart(sources: Iterable[str | Path], target: str | Path) -> None:
    """Raise `UsageError` if `target` is one of its own `sources`."""
    for source in sources:
        if Path(source).resolve() == Path(target).resolve():
            raise UsageError(f"{target} is both the input and the output; name another output file")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, atomically and durably; missing folders are created. Raises `OutputError`."""
    try:
        create_folders([path.parent])
        write_whole(path, content)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def make_folders(folders: Sequence[Path]) -> None:
    """Create `folders` and their parents, durably; each folder is flushed once. Raises `OutputError`."""
    try:
        create_folders(folders)
    except OSError as error:
        place = error.filename or folders[0]
        raise OutputError(
            f"cannot create folder {place}: {error.strerror or error}; make room or choose another place"
        ) from error


def make_private_folder(folder: Path) -> None:
    """Create `folder`, which only its owner may enter. Raises `OutputError`."""
    make_folders([folder.parent])
    with _writing(folder):
        folder.mkdir(mode=0o700)
        _sync_folder(folder.parent)


def create_folders(folders: Sequence[Path]) -> None:
    """As `make_folders`. Raises `OSError`."""
    grown: set[Path] = set()
    for folder in folders:
        _make_folder(folder, grown)
    for parent in grown:
        _sync_folder(parent)


def _make_folder(folder: Path, grown: set[Path]) -> None:
    """Create `folder` and its parents; `grown` collects the folders that gained an entry."""
    if not local_path(folder).is_dir():
        _make_folder(folder.parent, grown)
        folder.mkdir(exist_ok=True)
        grown.add(folder.parent)


def write_whole(path: Path, content: bytes | memoryview, *, is_new: bool = False) -> None:
    """Write `content` to `path`, atomically; it is on the disk before the file gets its name.

    Missing folders are created. No folder is flushed: `sync_folders` does that for many files at once. Raises
    `OSError`: `FileExistsError` if the file `is_new` and there is one.
    """
    _make_folder(path.parent, set())
    temporary = path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"  # a process id is not unique: threads, other hosts
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            os.link(temporary, path)
            os.unlink(temporary)
        else:
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def append_bytes(path: Path, content: bytes) -> None:
    """Append `content` to the file at `path`, which is created if it is missing; it is on the disk when this returns.

    A kill or a power failure may leave a part of it. Raises `OutputError`.
    """
    make_folders([path.parent])
    with _writing(path):
        with open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)


class Spool:
    """A file in `folder` that is written piece by piece, under a temporary name until `keep` renames it.

    Every method raises `OutputError` if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{uuid.uuid4().hex}{TEMPORARY}"
        with _writing(self.path):
            self._file = open(self.path, "xb")  # noqa: SIM115 - closed by `discard` and `keep`

    def write(self, content: bytes) -> None:
        """Append `content`."""
        with _writing(self.path):
            self._file.write(content)

    def flush(self) -> None:
        """Make what was written visible to readers of the file."""
        with _writing(self.path):
            self._file.flush()

    def keep(self, path: Path) -> None:
        """Flush the file to disk and rename it to `path`."""
        with _writing(path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path, path)
            _sync_folder(path.parent)

    def discard(self) -> None:
        """Remove the file, unless it was kept."""
        with contextlib.suppress(OSError):  # the disk may be full; the rest of a discarded file does not matter
            self._file.close()
        remove(self.path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def link(files: Mapping[Path, Path]) -> None:
    """Give each file (a value of `files`) a second name (its key); replacing or removing one leaves the other intact.

    The names are on the disk before this returns. Raises `OutputError`.
    """
    make_folders(sorted({target.parent for target in files}))
    for target, source in files.items():
        with _writing(target):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV):  # no hard links here: copy
                    raise
                copy_file(source, target)
    for folder in sorted({target.parent for target in files}):
        with _writing(folder):
            _sync_folder(folder)


def copy_file(source: Path, target: Path) -> int | None:
    """Copy the file at `source`, with its time and permissions, to the new file `target`; the number of its bytes.

    They are on the disk when this returns. None if there is no file at `source`. Raises `OutputError`.
    """
    try:
        opened = open(source, "rb")  # noqa: SIM115 - closed below; an error here is not about the target
    except FileNotFoundError:
        return None
    make_folders([target.parent])
    with _writing(target), opened, open(target, "xb") as file:
        shutil.copyfileobj(opened, file, COPY_BYTES)
        file.flush()
        status = os.fstat(opened.fileno())
        os.fchmod(file.fileno(), status.st_mode & 0o777)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(file.fileno())
        _sync_folder(target.parent)
        return file.tell()


def write_archive(path: Path, files: Mapping[str, Path]) -> None:
    """Write `files` (name in the archive → path) to a zip at `path`, atomically. Raises `OutputError`."""
    make_folders([path.parent])
    spool = Spool(path.parent)
    try:
        with _writing(path), zipfile.ZipFile(spool.path, "w") as archive:
            for name, source in files.items():
                archive.write(source, name)
        spool.keep(path)
    finally:
        spool.discard()


def write_secret(path: Path, content: str) -> None:
    """Write `content` to the new file `path`, readable by its owner only. Raises `OutputError`, also if it exists."""
    make_folders([path.parent])
    with _writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)


def replace_secret(path: Path, content: str) -> None:
    """Replace the file at `path` by `content`, atomically, readable by its owner only. Raises `OutputError`."""
    temporary = path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"
    try:
        write_secret(temporary, content)
        with _writing(path):
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        remove(temporary)


def temporaries(folder: Path) -> list[Path]:
    """The temporary files below `folder`: processes that were killed leave theirs behind."""
    return [*folder.rglob(f".*{TEMPORARY}")]


def make_durable(files: Sequence[Path]) -> None:
    """Flush `files`, which other code wrote, and their names to disk. Raises `OutputError`."""
    for path in (*files, *{each.parent for each in files}):
        with _writing(path):
            _sync_folder(path)


def sync_folders(paths: Iterable[Path], above: Path) -> None:
    """Flush the folders of the files at `paths`, and those above them up to `above`, to disk. Raises `OSError`."""
    folders = {path.parent for path in paths}
    for folder in [*folders]:
        folders |= {each for each in folder.parents if each.is_relative_to(above)}
    for folder in sorted(folders, reverse=True):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove the file at `path`, if it exists. Raises `OutputError`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of the file at `path`. Raises `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def holds(path: Path, content: bytes) -> bool:
    """Whether the file at `path` has exactly this `content`."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON with sorted keys: equal content, equal bytes. Raises `OutputError`."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote. Raises `DataError` for any other file."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({error}): it is damaged, or streamstats did not write it; remove it and run again"
        ) from error
    if not isinstance(document, dict):
        raise DataError(
            f"{path} holds a JSON {type(document).__name__}; expected an object; remove the file and run again"
        )
    return document


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the file at `path`, read piece by piece. Raises `DataError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def folder_bytes(folder: Path, without: str = "") -> int:
    """The bytes of the files below `folder`, each counted once, except those in its folder `without`."""
    found: dict[int, int] = {}
    for here, folders, names in os.walk(folder):
        if here == str(folder):
            folders[:] = [each for each in folders if each != without]
        for name in names:
            with contextlib.suppress(OSError):  # it was removed meanwhile
                status = os.lstat(os.path.join(here, name))
                found[status.st_ino] = status.st_size
    return sum(found.values())


def remove_if_empty(folder: Path) -> None:
    """Remove `folder` if it is empty."""
    with contextlib.suppress(OSError):  # it is not empty, or does not exist
        folder.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove `folder` and its contents, if it exists. Raises `OutputError`."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from error


def move_away(folder: Path, into: Path | None = None) -> Path:
    """Rename `folder` to a temporary name in `into`, by default beside it, so that it can be removed later.

    Returns the new path. Raises `OutputError`.
    """
    gone = temporary_beside(folder if into is None else into / folder.name)
    rename_folder(folder, gone)
    return gone


def temporary_beside(folder: Path) -> Path:
    """A name in the folder above `folder` for what `rename_folder` gives its own."""
    return folder.parent / f".{uuid.uuid4().hex}{TEMPORARY}"


def rename_folder(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`, durably. Raises `OutputError`."""
    with _writing(target):
        os.rename(folder, target)
        for parent in {folder.parent, target.parent}:
            _sync_folder(parent)


def moved_away(folder: Path) -> list[Path]:
    """The folders in `folder` that `move_away` renamed and that still exist."""
    return [*folder.glob(f".*{TEMPORARY}")]


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write `array` to `path` as `.npy`, atomically. Raises `OutputError`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())
