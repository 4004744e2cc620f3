"""The tensors of any safetensors file, whoever wrote it; also bfloat16 and float8, which numpy lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from ..errors import UsageError
from ..floats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2
from .tensors import explained

NARROW = {"BF16": BFLOAT16, "F8_E4M3": FLOAT8_E4M3FN, "F8_E5M2": FLOAT8_E5M2}
"""What the header calls them → dtype."""


def read_plain_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of any safetensors file. Raises `DataError` if it is damaged, `UsageError` if it does not exist."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected a safetensors file")
    with explained(path), safe_open(path, framework="numpy") as file:  # which checks all that the header says
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
        tensors = {name: file.get_tensor(name) for name, kind in kinds.items() if kind not in NARROW}
        return tensors | _narrow_tensors(path, [name for name, kind in kinds.items() if kind in NARROW])


def plain_tensor_bytes(array: npt.NDArray[Any]) -> bytes:
    """A safetensors file with `array` alone."""
    return bytes(save({"samples": np.require(array, array.dtype.newbyteorder("="), "C")}))


def _narrow_tensors(path: Path, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        found = {}
        for name in names:
            dtype, shape = NARROW[header[name]["dtype"]], header[name]["shape"]
            file.seek(8 + length + header[name]["data_offsets"][0])
            found[name] = np.fromfile(file, np.uint8, prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        return found
