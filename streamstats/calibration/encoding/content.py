"""The content of a file in one number, to tell whether it is a copy: a SHA-256 over samples of its bytes, cut short.

Small files are taken whole. Of others, four pieces are read, at the beginning, at the end and in between, so that it
costs next to nothing beside decoding. If a file ends with a checksum of the rest, equal numbers mean equal files. (A
CRC would not do: over bytes and their own CRC, it is the same for all files of one size.)
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np

from .decoders import Bytes

PIECES, PIECE_BYTES = 4, 2**10
UNSAMPLED = -1
"""Stands for the content of a file that was not sampled."""


def content_of(size: int, read: Callable[[int, Bytes], object]) -> int:
    """The content of a file of `size` bytes; `read` fills a buffer from a byte on, and may raise what it raises."""
    whole = size <= PIECES * PIECE_BYTES
    sample = np.empty(size if whole else PIECES * PIECE_BYTES, np.uint8)
    if whole:
        read(0, sample)
    else:
        for number in range(PIECES):
            start = number * (size - PIECE_BYTES) // (PIECES - 1)
            read(start, sample[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])
    return int.from_bytes(sha256(sample.data).digest()[:8], "little") >> 1


def content_in(stored: Bytes) -> int:
    """The content of a file whose bytes are `stored`."""

    def read(start: int, out: Bytes) -> None:
        out[:] = stored[start : start + out.size]

    return content_of(stored.size, read)
