"""The only code that writes and reads result files.

A file is written whole or not at all: to a temporary name in the same folder, flushed to the disk, renamed,
and the folder flushed. Tensors go into safetensors with the header in sorted order, so the same content has
the same bytes; a SHA-256 of the content stands in the metadata, so a flipped bit is noticed on reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as safetensors_bytes

from .errors import DataError, OutputError, UsageError

Tensors = Mapping[str, npt.NDArray[Any]]

DIGEST_KEY = "sha256"
TEMPORARY = ".streamstats-tmp"
ATTEMPTS = 10
"""To take a lock."""
LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems in use."""


def check_layer_name(layer: str) -> str:
    """Return `layer` if it can safely name an array and a file; raise `UsageError` otherwise.

    Refused: empty, a leading or trailing `/`, an empty, `.` or `..` part, and characters that do not print,
    such as a newline.
    """
    parts = layer.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(not char.isprintable() for char in layer):
        raise UsageError(
            f"layer name {layer!r} is not usable: expected parts joined by single '/', none of them empty, "
            "'.' or '..', of printable characters; rename the layer"
        )
    return layer


def layer_path(folder: Path, layer: str, suffix: str = ".safetensors") -> Path:
    """Where the file of `layer` lies below `folder`: `/` makes folders, unsafe characters are percent codes.

    Different layers have different paths, and none is a folder on the way to another. Raises `UsageError` for
    a name that `check_layer_name` refuses.

    >>> layer_path(Path("out"), "block 1/conv").as_posix()
    'out/block%201/conv.safetensors'
    """
    *folders, name = (quote(part, safe="") for part in check_layer_name(layer).split("/"))
    longest = max(map(len, (*folders, name + suffix)))
    if longest > LONGEST_NAME:
        raise UsageError(
            f"layer name {layer[:40]!r}… is too long: a part of it needs {longest} characters in a file's name; "
            f"expected at most {LONGEST_NAME}; rename the layer"
        )
    return folder.joinpath(*(_unlike_a_file(part, suffix) for part in folders), name + suffix)


def layer_of(folder: Path, path: Path, suffix: str = ".safetensors") -> str:
    """The layer whose file below `folder` is `path`: the inverse of `layer_path`.

    >>> layer_of(Path("out"), Path("out/block%201/conv.safetensors"))
    'block 1/conv'
    """
    return "/".join(map(unquote, path.relative_to(folder).parts)).removesuffix(suffix)


def _unlike_a_file(part: str, suffix: str) -> str:
    """A folder's name that no layer's file can have: the layers `a` and `a.safetensors/b` must both fit."""
    return part.removesuffix(suffix) + suffix.replace(".", "%2E") if part.endswith(suffix) else part


def check_apart(sources: Iterable[str | Path], target: str | Path) -> None:
    """Raise `UsageError` where `target` is one of the files that it is made from."""
    for source in sources:
        if Path(source).resolve() == Path(target).resolve():
            raise UsageError(f"{target} is to be written, but it is what is read; name another file")


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`, atomically and durably; the folders above are made. Raises `OutputError`."""
    try:
        _make_folders([path.parent])
        _replace(path, content)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def make_folders(folders: Sequence[Path]) -> None:
    """Make `folders` and those above them, durably; each folder is flushed once. Raises `OutputError`."""
    try:
        _make_folders(folders)
    except OSError as error:
        raise OutputError(
            f"cannot write the folders of {folders[0]}: {error.strerror or error}; make room or choose another place"
        ) from error


def _make_folders(folders: Sequence[Path]) -> None:
    grown: set[Path] = set()
    for folder in folders:
        _make_folder(folder, grown)
    for parent in grown:
        _sync_folder(parent)


def _make_folder(folder: Path, grown: set[Path]) -> None:
    """Make `folder` and those above it; the folders that were added to are added to `grown`."""
    if not folder.is_dir():
        _make_folder(folder.parent, grown)
        folder.mkdir(exist_ok=True)
        grown.add(folder.parent)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.parent / f".{uuid.uuid4().hex}{TEMPORARY}"  # a process id is not unique: threads, other hosts
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


class Spool:
    """A file in `folder` that is written bit by bit, under a temporary name until `keep` gives it its own.

    Raises `OutputError` where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".{uuid.uuid4().hex}{TEMPORARY}"
        with _writing(self.path):
            self._file = open(self.path, "xb")  # noqa: SIM115 - closed by `discard` and `keep`

    def write(self, content: bytes) -> None:
        """Add `content`."""
        with _writing(self.path):
            self._file.write(content)

    def flush(self) -> None:
        """Have what was written in the file, for those who read it."""
        with _writing(self.path):
            self._file.flush()

    def keep(self, path: Path) -> None:
        """Have it on the disk, as `path`."""
        with _writing(path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path, path)
            _sync_folder(path.parent)

    def discard(self) -> None:
        """Take it away, if it was not kept."""
        with contextlib.suppress(OSError):  # a disk that is full: what is not written is not wanted either
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
    """Have each file (a value) under another name (its key), too: what becomes of one does not change the other.

    Raises `OutputError`.
    """
    make_folders(sorted({target.parent for target in files}))
    for target, source in files.items():
        with _writing(target):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV):  # a file system without links
                    raise
                shutil.copyfile(source, target)


def write_archive(path: Path, files: Mapping[str, Path]) -> None:
    """Put `files` (their names in it → where they are) into a zip at `path`, atomically. Raises `OutputError`."""
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
    """Put `content` at `path`, which is new, for its owner's eyes alone. Raises `OutputError`."""
    make_folders([path.parent])
    with _writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)


def temporaries(folder: Path) -> list[Path]:
    """The files below `folder` that were being written when their process was killed."""
    return [*folder.rglob(f".*{TEMPORARY}")]


def sync(paths: Sequence[Path]) -> None:
    """Have the files at `paths`, which somebody else wrote, on the disk, and their names in their folders."""
    for path in [*paths, *dict.fromkeys(path.parent for path in paths)]:
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Take the file at `path` away, if it is there. Raises `OutputError`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error


def read_bytes(path: Path) -> bytes:
    """The content of the file at `path`. Raises `DataError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def holds(path: Path, content: bytes) -> bool:
    """Whether the file at `path` has this `content`."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON with sorted keys: equal content, equal bytes. Raises `OutputError`."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote. Raises `DataError` for anything else."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({error}); it was not written by streamstats, or is damaged; remove it and run again"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds a JSON {type(document).__name__}, expected an object")
    return document


def tensors_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with named arrays and string metadata: equal content, equal bytes.

    Raises `UsageError` for metadata under the key of the digest, `sha256`.
    """
    if DIGEST_KEY in metadata:
        raise UsageError(f"metadata has the key {DIGEST_KEY!r}, which is kept for the digest; use another key")
    stored = {name: _as_stored(array) for name, array in tensors.items()}
    content = safetensors_bytes(stored, {**metadata, DIGEST_KEY: content_digest(stored, metadata)})
    return _with_sorted_header(content)


def _as_stored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as safetensors keeps them: little-endian, in C order, scalars still scalars."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the header's keys: the safetensors library writes metadata in the order of a hash table."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read a file with the content of `tensors_bytes`: (name → array, metadata without the digest).

    Raises `DataError` if the file is missing, not safetensors, of another format or version than
    `expected_format`, or does not have the digest written in it.
    """
    tensors, metadata = _read_safetensors(path)
    check_format(path, metadata.get("format"), expected_format)
    digest = metadata.pop(DIGEST_KEY, None)
    if digest != content_digest(tensors, metadata):
        raise DataError(f"{path} is damaged: its content does not have the SHA-256 written in it; make it again")
    return tensors, metadata


def read_plain_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file of somebody else. Raises `DataError`, and `UsageError` where there is none."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected safetensors")
    return _read_safetensors(path)[0]


def tensors_of(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file that has come as bytes. Raises `DataError`."""
    try:
        return dict(load_safetensors(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"what came is not safetensors: {error}; fetch it again") from error


def check_format(path: Path, found: object, expected: str) -> None:
    """Raise `DataError` unless the file at `path` says that it is of the format `expected`, as in name/version."""
    if found == expected:
        return
    name, _, version = expected.partition("/")
    said = str(found).partition("/")
    if said[0] == name and said[2].isdigit() and int(said[2]) > int(version):
        raise DataError(f"{path} has the format {found!r}, but this version reads {expected!r}; install a newer one")
    raise DataError(f"{path} has the format {found!r}, expected {expected!r}; make it again with this version")


def _read_safetensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path} as safetensors: {error}; make it again") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # a dtype that numpy does not have
        raise DataError(
            f"{path} has tensors of a dtype that numpy does not have ({error}); store them as float32"
        ) from error


def content_digest(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the metadata and the names, dtypes, shapes and values of the arrays."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        array = _as_stored(tensors[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the bytes of the file at `path`. Raises `DataError` where it cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


@contextlib.contextmanager
def locked(path: Path, document: Mapping[str, Any], keep: Callable[[], bool]) -> Iterator[None]:
    """Hold the file at `path`, which says `document`, for as long as the block inside runs, and then remove it.

    Where the block fails and `keep` says so, the file stays, to tell what was going on; it holds nobody up: the lock is
    the operating system's, and goes with its process. Raises `OutputError`, with what the file says, where another
    process has it, and `UsageError` where no file can be.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise OutputError(_who_holds(path, error)) from error
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # whoever held it has removed the file in the meantime
    try:
        content = (json.dumps(document, sort_keys=True) + "\n").encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        except OSError as error:
            remove(path)
            raise OutputError(f"cannot write {path}: {error.strerror or error}; make room") from error
        failed = True
        try:
            yield
            failed = False
        finally:
            if not (failed and keep()):
                remove(path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Take the lock; one that is only asked about, for a moment, is waited for. Raises `OSError`."""
    for _ in range(ATTEMPTS - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _who_holds(path: Path, error: OSError) -> str:
    if not isinstance(error, BlockingIOError):
        return f"cannot lock {path}: {error.strerror or error}; choose a folder on a file system with locks"
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{path.parent} is in use by {who}; wait for it, stop it, or choose another output"


def is_locked(path: Path) -> bool:
    """Whether a process holds the file at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def remove_if_empty(folder: Path) -> None:
    """Take `folder` away if nothing is in it."""
    with contextlib.suppress(OSError):  # it is not empty, or not there
        folder.rmdir()


def remove_folder(folder: Path) -> None:
    """Take `folder` and all in it away, if it is there. Raises `OutputError`."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror or error}") from error


def move_away(folder: Path) -> Path:
    """Take `folder` from its place at once, to be removed; where it is now. Raises `OutputError`."""
    gone = folder.parent / f".{uuid.uuid4().hex}{TEMPORARY}"
    with _writing(folder):
        os.replace(folder, gone)
        _sync_folder(folder.parent)
    return gone


def moved_away(folder: Path) -> list[Path]:
    """What was moved away below `folder` and is still there."""
    return [*folder.glob(f".*{TEMPORARY}")]


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write `array` to `path` as `.npy`, atomically. Raises `OutputError`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())
