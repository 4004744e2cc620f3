"""Headers of bodies: what a body with arrays says of itself, judged before the rest of it arrives.

A judge gets the beginning of a body, and how many bytes it has in all where the client announced that. It returns how
many bytes of the beginning it must see to go on, 0 once it has no objection, and raises what is wrong. It takes some
milliseconds at most, whatever the client sends: headers are refused by their length before they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UsageError, counted
from ..storage.plain_tensors import read_plain_tensors
from .errors import TooLargeError

Judge = Callable[[bytes, int | None], int]

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
LONGEST_NPY_HEADER = 10_000
NPY_HEADER = (
    r"'descr': *'([<>|=]?[?bhilqBHILQefd]|[<>|=]?[biufc][0-9]{1,2})'",
    r"'fortran_order': *(True|False)",
    r"'shape': *\(([0-9]{0,15}(?:, ?[0-9]{1,15}){0,31},?)\)",
)
"""The header of an array of numbers."""
LENGTH_BYTES = 8
"""At the beginning of safetensors: the length of its header."""
MOST_TENSORS, LONGEST_HEADER = 10_000, 2**20
"""Of safetensors with the weights of many layers."""
LONGEST_HEADER_OF_ONE = 2**16
"""Of safetensors with one tensor, and what else its writer says of it."""


def anything(_start: bytes, _whole: int | None) -> int:
    """The judge of bodies that the service does not read."""
    return 0


@dataclass(frozen=True)
class JudgedSamples:
    """The judge of one array: `.npy`, or safetensors with one tensor, of at most `most` bytes."""

    most: int

    def __call__(self, start: bytes, whole: int | None) -> int:
        """As `Judge`. Raises `UsageError`, `TooLargeError`."""
        if len(start) < LENGTH_BYTES:
            return LENGTH_BYTES
        if start.startswith(NPY):
            return self._judged_npy(start, whole)
        if start.startswith(ZIP):
            raise _no_arrays("it is a zip archive, such as .npz; send each of its arrays as .npy")
        return JudgedTensors(self.most, 1, LONGEST_HEADER_OF_ONE)(start, whole)

    def _judged_npy(self, start: bytes, whole: int | None) -> int:
        if len(start) < LONGEST_NPY_HEADER and (whole is None or len(start) < whole):
            needed = _npy_offset(start)
            if len(start) < needed <= LONGEST_NPY_HEADER:
                return needed
        header = npy_header(start[:LONGEST_NPY_HEADER])
        _check_most(header.offset + header.bytes, self.most)
        if whole is not None:
            header.check_size(whole)
        return 0


@dataclass(frozen=True)
class JudgedTensors:
    """The judge of safetensors of at most `most` bytes, `tensors` tensors and a header of `longest` bytes."""

    most: int
    tensors: int = MOST_TENSORS
    longest: int = LONGEST_HEADER

    def __call__(self, start: bytes, whole: int | None) -> int:
        """As `Judge`. Raises `UsageError`, `TooLargeError`."""
        if len(start) < LENGTH_BYTES:
            return LENGTH_BYTES
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > self.longest:
            raise _no_arrays(f"its header would have {length:,} bytes; expected at most {self.longest:,}")
        end = LENGTH_BYTES + length
        if len(start) < end:
            return end
        described = _tensors_in(start[LENGTH_BYTES:end])
        if len(described) > self.tensors:
            expected = "one, with the activations of the layer" if self.tensors == 1 else f"at most {self.tensors:,}"
            raise UsageError(f"the body has {counted(len(described), 'tensor')}; expected {expected}")
        _check_declared(end + max(map(_stop, described.values()), default=0), self.most, whole)
        return 0


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says of its array, whose values begin at byte `offset`."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Of the values."""
        return prod(self.shape) * self.dtype.itemsize

    def check_size(self, whole: int) -> None:
        """Raise `UsageError` unless the file has `whole` bytes."""
        found = whole - self.offset
        if found != self.bytes:
            raise UsageError(
                f"the array of shape {self.shape} and {self.dtype} has {found:,} bytes; expected {self.bytes:,}"
            )


def npy_header(content: bytes) -> NpyHeader:
    """The header of the `.npy` file that begins with `content`. Raises `UsageError`.

    numpy's own reader parses the header as Python, and the parser of Python 3.11 cannot run in several threads at once.
    """
    offset = _npy_offset(content)
    header = content[8:offset].decode("latin-1")
    found = [re.search(pattern, header) for pattern in NPY_HEADER]
    if not 8 < offset <= len(content) or not all(found):
        raise UsageError(
            "the body begins as .npy but has no header of an array of numbers; send it as numpy.save writes it"
        )
    kind, order, extents = (each[1] for each in found if each)
    shape = tuple(int(extent) for extent in extents.split(",") if extent.strip())
    return NpyHeader(np.dtype(kind), order == "True", shape, offset)


def _npy_offset(content: bytes) -> int:
    """Where the values of a `.npy` file begin; 8 if its version is not known, more bytes than it has if it is cut."""
    width = {1: 2, 2: 4, 3: 4}.get(content[6] if len(content) > 6 else 0, 0)
    start = 8 + width
    return start + int.from_bytes(content[8:start], "little") if len(content) >= start else start


def _tensors_in(header: bytes) -> Mapping[str, Any]:
    """The tensors that the header of safetensors describes. Raises `UsageError`."""
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        raise _no_arrays("its header is not JSON") from None
    if not isinstance(found, dict):
        raise _no_arrays("its header is no JSON object")
    return {name: each for name, each in found.items() if name != "__metadata__"}


def _stop(described: Any) -> int:
    """Where the values of a tensor end. Raises `UsageError`."""
    offsets = described.get("data_offsets") if isinstance(described, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(each) is int for each in offsets):
        raise _no_arrays("its header has a tensor without offsets")
    return int(offsets[1])


def _check_declared(declared: int, most: int, whole: int | None) -> None:
    _check_most(declared, most)
    if whole is not None and declared != whole:
        raise _no_arrays(f"its header describes {declared:,} bytes, and it has {whole:,}")


def _check_most(declared: int, most: int) -> None:
    if declared > most:
        raise TooLargeError(
            f"the header of the body describes {declared:,} bytes; this service takes at most {most:,} at a time; "
            "send less"
        )


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a body of safetensors that has arrived as the file `path`. Raises `UsageError`."""
    try:
        return read_plain_tensors(path)
    except DataError as error:
        raise _no_arrays(str(error).replace(str(path), "the body")) from error


def _no_arrays(reason: str) -> UsageError:
    """That a body has no arrays that can be read, and why."""
    return UsageError(f"the body is neither .npy nor safetensors: {reason}")
