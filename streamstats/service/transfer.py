"""What the client sends and gets, as bytes: arrays as files, events of a stream, files by their names."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..floats import NARROW
from ..storage.plain_tensors import plain_tensor_bytes


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`. Raises `DataError` for a name that leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the service names a file {name!r}, which is outside {folder}; do not trust this service")
    return path


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, content, number) of each server-sent event."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", "")
            fields = {}


def file_of(array: npt.NDArray[Any]) -> bytes:
    """A `.npy` file, or safetensors for bfloat16 and float8, which `.npy` cannot name."""
    if array.dtype.newbyteorder("=") in NARROW:
        return plain_tensor_bytes(array)
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
