"""Bodies of requests: measured while they arrive, kept in memory if small and in a file if not, and read as arrays.

The law: a body's own description is not trusted. It is judged as soon as it has arrived, before the rest is received,
and sizes are compared with what arrived before memory is allocated.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import ClientDisconnect, Request

from ..errors import UsageError, counted
from ..storage.files import Spool
from .errors import TooLargeError
from .headers import LONGEST_NPY_HEADER, NPY, Judge, anything, npy_header, read_tensors

IN_MEMORY = 4 * 2**20
LONGEST_LENGTH = 20
"""Digits of a Content-Length."""
ZIP = b"PK\x03\x04"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Terms:
    """What a body may be: `most` bytes, with pauses of `pause` seconds, and what `judge` does not refuse."""

    most: int
    pause: float
    judge: Judge = anything


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
    async def received(cls, request: Request, folder: Path, terms: Terms) -> Body:
        """The body of `request`, on these `terms`. Raises `TooLargeError`, `UsageError`, `OutputError`."""
        whole = announced(request, terms.most)
        body = cls(folder)
        try:
            await body._receive(aiter(request.stream()), terms, whole)
        except TimeoutError:
            body.discard()
            raise UsageError(f"no part of the body arrived for {terms.pause:g} s; send the request again") from None
        except ClientDisconnect:  # nobody reads this answer
            body.discard()
            raise UsageError("the client disconnected before the end of the body") from None
        except BaseException:
            body.discard()
            raise
        return body

    async def _receive(self, arriving: AsyncIterator[bytes], terms: Terms, whole: int | None) -> None:
        wanted = 1
        while True:
            try:
                chunk = await asyncio.wait_for(anext(arriving), terms.pause)
            except StopAsyncIteration:
                return
            self.size += len(chunk)
            if self.size > terms.most:
                raise _too_large(terms.most)
            self._parts.append(chunk)
            self._waiting += len(chunk)
            while 0 < wanted <= self.size:  # all of it is in memory: headers are shorter than IN_MEMORY
                wanted = terms.judge(b"".join(self._parts), whole)
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
        tensors = read_tensors(self.path)
        if len(tensors) != 1:
            raise UsageError(
                f"the body has {counted(len(tensors), 'tensor')}; expected one, with the activations of the layer"
            )
        return next(iter(tensors.values()))

    def _npy(self) -> Array:
        content = b"".join(self._parts) if self._spool is None else _mapped(self.path)
        header = npy_header(content[:LONGEST_NPY_HEADER])
        header.check_size(self.size)
        flat = np.frombuffer(content, header.dtype, prod(header.shape), header.offset)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")


def announced(request: Request, most: int) -> int | None:
    """The bytes of the body of `request`, if the client says it beforehand. Raises `TooLargeError` beyond `most`."""
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return None
    if len(length) > LONGEST_LENGTH or int(length) > most:
        raise _too_large(most)
    return int(length)


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
