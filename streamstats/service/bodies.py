"""Bodies of requests: measured while they arrive, kept in memory if small and in a file if not, and read as arrays.

The law: a body's own description is not trusted. Sizes are compared with what arrived before memory is allocated.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import re
from collections.abc import AsyncIterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import ClientDisconnect, Request

from ..errors import DataError, UsageError, counted
from ..storage.files import Spool
from ..storage.plain_tensors import read_plain_tensors
from .errors import TooLargeError

IN_MEMORY = 4 * 2**20
NPY = b"\x93NUMPY"
ZIP = b"PK\x03\x04"
IDLE_SECONDS = 30.0
"""How long a request may pause before it is dropped."""
LONGEST_HEADER = 10_000
HEADER = (
    r"'descr': *'([<>|=]?[?bhilqBHILQefd]|[<>|=]?[biufc][0-9]{1,2})'",
    r"'fortran_order': *(True|False)",
    r"'shape': *\(([0-9]{0,15}(?:, ?[0-9]{1,15}){0,31},?)\)",
)
"""The header of an array of numbers."""

Array = npt.NDArray[Any]


class Body:
    """A body that has arrived: `size` bytes with the SHA-256 `digest` (hex). `discard` it finally."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._hash = hashlib.sha256()
        self._parts: list[bytes] = []
        self._waiting = 0
        self._spool: Spool | None = None

    @classmethod
    async def received(cls, request: Request, folder: Path, most: int) -> Body:
        """The body of `request`. Raises `TooLargeError` beyond `most` bytes, `UsageError`, `OutputError`."""
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > most:
            raise _too_large(most)
        body = cls(folder)
        try:
            await body._receive(aiter(request.stream()), most)
        except TimeoutError:
            body.discard()
            raise UsageError(f"no part of the body arrived for {IDLE_SECONDS:.0f} s; send the request again") from None
        except ClientDisconnect:  # nobody reads this answer
            body.discard()
            raise UsageError("the client disconnected before the end of the body") from None
        except BaseException:
            body.discard()
            raise
        return body

    async def _receive(self, arriving: AsyncIterator[bytes], most: int) -> None:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(arriving), IDLE_SECONDS)
            except StopAsyncIteration:
                return
            self.size += len(chunk)
            if self.size > most:
                raise _too_large(most)
            self._parts.append(chunk)
            self._waiting += len(chunk)
            if self._waiting >= IN_MEMORY:
                await asyncio.to_thread(self._spill)

    def _spill(self) -> None:
        """Move the part in memory to the file."""
        if self._spool is None:
            self._spool = Spool(self._folder)
        content = b"".join(self._parts)
        self._hash.update(content)
        self._spool.write(content)
        self._spool.flush()
        self._parts, self._waiting = [], 0

    @property
    def path(self) -> Path:
        """The file with the body."""
        if self._spool is None or self._parts:
            self._spill()
        assert self._spool is not None
        return self._spool.path

    @property
    def digest(self) -> str:
        """SHA-256 (hex)."""
        whole = self._hash.copy()
        whole.update(b"".join(self._parts))
        return whole.hexdigest()

    def start(self) -> bytes:
        """Its first bytes, which tell the formats of files apart."""
        if self._spool is None:
            return b"".join(self._parts)[:8]
        with self.path.open("rb") as file:
            return file.read(8)

    def keep(self, path: Path) -> None:
        """Store it as the file `path`, on the disk. Raises `OutputError`."""
        assert self.path
        assert self._spool is not None
        self._spool.keep(path)

    def discard(self) -> None:
        """Free its memory, and remove its file unless it was kept."""
        self._parts = []
        if self._spool is not None:
            self._spool.discard()

    def samples(self) -> Array:
        """The array in the body: `.npy`, or safetensors with one tensor. Raises `UsageError`."""
        if self.start()[: len(NPY)] == NPY:
            return self._npy()
        tensors = self.tensors()
        if len(tensors) != 1:
            raise UsageError(
                f"the body has {counted(len(tensors), 'tensor')}; expected one, with the activations of the layer"
            )
        return next(iter(tensors.values()))

    def tensors(self) -> dict[str, Array]:
        """The arrays in the body, which is safetensors. Raises `UsageError`."""
        try:
            return read_plain_tensors(self.path)
        except DataError as error:
            reason = str(error).replace(str(self.path), "the body")
            raise UsageError(f"the body is neither .npy nor safetensors: {reason}") from error

    def _npy(self) -> Array:
        content = b"".join(self._parts) if self._spool is None else _mapped(self.path)
        dtype, fortran, shape, offset = npy_header(content[:LONGEST_HEADER])
        expected, found = prod(shape) * dtype.itemsize, self.size - offset
        if expected != found:
            raise UsageError(f"the array of shape {shape} and {dtype} has {found:,} bytes; expected {expected:,}")
        flat = np.frombuffer(content, dtype, prod(shape), offset)
        return flat.reshape(shape, order="F" if fortran else "C")


def npy_header(content: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """(dtype, whether the order is Fortran's, shape, offset of the values) of a `.npy` file. Raises `UsageError`.

    numpy's own reader parses the header as Python, and the parser of Python 3.11 cannot run in several threads at once.
    """
    width = {1: 2, 2: 4, 3: 4}.get(content[6] if len(content) > 6 else 0)
    start = 8 + (width or 0)
    offset = start + int.from_bytes(content[8:start], "little")
    header = content[start:offset].decode("latin-1")
    found = [re.search(pattern, header) for pattern in HEADER]
    if width is None or offset > len(content) or not all(found):
        raise UsageError(
            "the body begins as .npy but has no header of an array of numbers; send it as numpy.save writes it"
        )
    kind, order, extents = (each[1] for each in found if each)
    shape = tuple(int(extent) for extent in extents.split(",") if extent.strip())
    return np.dtype(kind), order == "True", shape, offset


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body has more than {most:,} bytes, the limit of this service; send less at a time")


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def file_name(content: bytes, field: str) -> str:
    """The name of the input `field` whose file begins with `content`; the suffix tells its format."""
    if field in ("model", "quantized"):
        return f"{field}.onnx"
    return f"{field}.npz" if content.startswith(ZIP) else f"{field}.npy"
