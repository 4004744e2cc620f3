"""Named arrays in safetensors files: equal content, equal bytes; a SHA-256 of the content reveals a flipped bit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as safetensors_bytes

from ..errors import DataError, UsageError

Tensors = Mapping[str, npt.NDArray[Any]]

DIGEST_KEY = "sha256"


def tensors_bytes(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with named arrays and string metadata: equal content, equal bytes.

    Raises `UsageError` for metadata under the key of the digest, `sha256`.
    """
    if DIGEST_KEY in metadata:
        raise UsageError(f"metadata has the key {DIGEST_KEY!r}, which is reserved for the digest; use another key")
    stored = {name: _as_stored(array) for name, array in tensors.items()}
    content = safetensors_bytes(stored, {**metadata, DIGEST_KEY: content_digest(stored, metadata)})
    return _with_sorted_header(content)


def _as_stored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in the form that safetensors stores: little-endian, in C order; scalars stay scalars."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the header's keys: the safetensors library writes metadata in hash order."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(content)[8 + length :]))


def read_tensors(
    path: Path, expected_format: str, remedy: str = "make it again with this version", *, also: str = ""
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read a file that `tensors_bytes` made: (name → array, metadata without the digest).

    Raises `DataError` if the file is missing, is not safetensors, has another format or version than
    `expected_format` and `also` (for an older version, the message ends with `remedy`), or does not match its own
    digest.
    """
    tensors, metadata = _read_safetensors(path)
    if not also or metadata.get("format") != also:
        check_format(path, metadata.get("format"), expected_format, remedy)
    return _checked(path, tensors, metadata)


def read_any_tensors(path: Path, expected_format: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """As `read_tensors`, of a file in `expected_format` or an older version of it."""
    tensors, metadata = _read_safetensors(path)
    name, version = expected_format.split("/")
    older = [f"{name}/{number}" for number in range(1, int(version))]
    if metadata.get("format") not in older:
        check_format(path, metadata.get("format"), expected_format, "remove it")
    return _checked(path, tensors, metadata)


def _checked(
    path: Path, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    digest = metadata.pop(DIGEST_KEY, None)
    if digest != content_digest(tensors, metadata):
        raise DataError(
            f"{path} is damaged: its content does not match the SHA-256 in its metadata; remove it and make it again"
        )
    return tensors, metadata


def tensors_of(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file that was received as bytes. Raises `DataError`."""
    try:
        return dict(load_safetensors(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"the received file is not safetensors: {error}; fetch it again") from error


def check_format(path: Path, found: object, expected: str, remedy: str) -> None:
    """Raise `DataError` unless the format `found` in the file at `path` is `expected`, as in name/version.

    For an older version, the message ends with `remedy`.
    """
    if found == expected:
        return
    if is_newer(found, expected):
        raise DataError(
            f"{path} has the format {found!r}, but this version reads {expected!r}; install a newer streamstats"
        )
    if _version(found, expected):
        raise DataError(
            f"{path} was written by an older version: its format is {found!r}, expected {expected!r}",
            remedy,
        )
    raise DataError(f"{path} has the format {found!r}; expected {expected!r}; name a file that streamstats wrote")


def is_newer(found: object, expected: str) -> bool:
    """Whether the format `found` is a newer version of the format `expected`, as in name/version."""
    return _version(found, expected) > _version(expected, expected)


def _version(found: object, expected: str) -> int:
    """The version in the format `found`, 0 for another format than `expected`."""
    match = re.fullmatch(re.escape(expected.partition("/")[0]) + "/([0-9]{1,9})", str(found))
    return int(match[1]) if match else 0


def _read_safetensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    with explained(path), safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, dict(file.metadata() or {})


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the library raises while it reads `path` into a `DataError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path} as safetensors: {error}; remove it and make it again") from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # numpy has no such dtype
        raise DataError(
            f"{path} has tensors of a dtype that numpy does not support ({error}); store them as float32"
        ) from error


def content_digest(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the metadata and the names, dtypes, shapes and values of the arrays."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        array = _as_stored(tensors[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy: states may be large
    return digest.hexdigest()
