"""The limit: all cores read the files and decode them with the C codecs, and do nothing with the result.

Every thread keeps one buffer for the stored bytes and one for the decoded ones. A raw chunk is only read.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numcodecs.blosc
import numpy as np
from measuring import Run
from stores import Source

CODECS = {"zstd": numcodecs.Zstd, "blosc": numcodecs.Blosc}
OFFSET_AND_LENGTH = 16
CHECKSUM = 4
ABSENT = 2**64 - 1

_BUFFERS = threading.local()


@dataclass(frozen=True)
class Encoded:
    """How the files of an array are to be decoded: the codec (None: raw), and what a chunk decodes to."""

    codec: Any
    chunk_bytes: int
    chunks_a_shard: int | None
    """None: a file is a chunk."""


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """Read and decode every chunk of every layer with `threads` threads."""
    numcodecs.blosc.use_threads = False  # a chunk is decoded by the thread that asks for it
    work = [
        (path, encoded)
        for layer in source.layers
        for folder in (Path(source.path) / layer.name,)
        for encoded in (_encoded(json.loads((folder / "zarr.json").read_text())),)
        for path in sorted((folder / "c").rglob("*"))
        if path.is_file()
    ]
    with ThreadPoolExecutor(threads) as pool:

        def run() -> Run:
            start = time.perf_counter()
            for _ in pool.map(_decode_file, *zip(*work, strict=True)):
                pass
            return Run(time.perf_counter() - start)

        yield run


def _encoded(metadata: dict[str, Any]) -> Encoded:
    """What the metadata of a zarr v3 array say. Raises `ValueError` for what the limit cannot decode."""
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = metadata["codecs"]
    chunks_a_shard = None
    if codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        if sharding.get("index_location", "end") != "end":
            raise ValueError("the index of a shard is expected at its end")
        chunks_a_shard = math.prod(chunk) // math.prod(sharding["chunk_shape"])
        chunk, codecs = sharding["chunk_shape"], sharding["codecs"]
    names = [codec["name"] for codec in codecs]
    if names[0] != "bytes" or len(names) > 2 or not set(names[1:]) <= CODECS.keys():
        raise ValueError(f"the limit decodes zstd and blosc, not the codecs {names}")
    codec = CODECS[names[1]]() if len(names) == 2 else None
    return Encoded(codec, math.prod(chunk) * np.dtype(metadata["data_type"]).itemsize, chunks_a_shard)


def _decode_file(path: Path, encoded: Encoded) -> None:
    stored = _read(path)
    if encoded.codec is None:
        return
    decoded = _buffer("decoded", encoded.chunk_bytes)
    for start, stop in _chunks(stored, encoded):
        encoded.codec.decode(stored[start:stop], out=decoded)


def _read(path: Path) -> memoryview:
    """The file, in this thread's buffer."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        file.seek(0)
        stored = _buffer("stored", size)
        if file.readinto(stored) != size:
            raise OSError(f"{path} could not be read in one go")
    return stored


def _chunks(stored: memoryview, encoded: Encoded) -> list[tuple[int, int]]:
    """Where the chunks of a file start and stop."""
    if encoded.chunks_a_shard is None:
        return [(0, len(stored))]
    index = np.frombuffer(
        stored[-encoded.chunks_a_shard * OFFSET_AND_LENGTH - CHECKSUM : -CHECKSUM], dtype="<u8"
    ).reshape(-1, 2)
    return [(start, start + length) for start, length in index.tolist() if start != ABSENT]


def _buffer(kind: str, size: int) -> memoryview:
    """`size` bytes of this thread's buffer for `kind`."""
    buffer = getattr(_BUFFERS, kind, None)
    if buffer is None or len(buffer) < size:
        buffer = memoryview(bytearray(size))
        setattr(_BUFFERS, kind, buffer)
    return buffer[:size]
