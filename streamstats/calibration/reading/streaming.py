"""Streaming: chunks are measured while they are decoded, each while it is in the processor's cache."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...statistics.riders import Taker
from ...statistics.running import Intake
from ..encoding.chunks import Encoding
from ..encoding.decoders import Bytes
from ..encoding.fused import RAW, feed
from ..layer import Selection
from .parts import kept


class Stream:
    """Decodes and measures the chunks of a block, in order.

    They pass through a small buffer, so that no block of decoded values is ever in memory. If `block` is given, they
    are decoded into it instead, for statistics that take blocks.
    """

    def __init__(self, encoding: Encoding, taker: Taker, intake: Intake, block: npt.NDArray[Any] | None = None) -> None:
        self._encoding = encoding
        self._taker = taker
        self._intake = intake
        self._stays = block is not None
        self._buffer = (
            kept("chunk", encoding.chunk_bytes + intake.unit) if block is None else block.reshape(-1).view(np.uint8)
        )
        self._start = 0  # of the bytes in the buffer that are not measured yet
        self._left = 0  # how many they are: fewer than a unit

    def take(self, stored: Bytes, places: npt.NDArray[np.int64]) -> None:
        """Decode and measure the chunks of `stored` at `places`, int64[chunks, (offset, length)].

        Raises as `Encoding.decode`.
        """
        encoding, done = self._encoding, 0
        if not encoding.checksum:
            codec, buffer = encoding.compressor or RAW, self._buffer[self._start :]
            fed = feed(codec, stored, places, encoding.chunk_bytes, buffer, self._intake, self._left, stay=self._stays)
            done = fed.chunks
            self._measured(fed.units, fed.left)
            if fed.torn:
                raise ValueError(f"a chunk does not decode to {encoding.chunk_bytes} bytes")
        for offset, size in places[done:].tolist():
            behind = self._start + self._left
            encoding.decode(stored[offset : offset + size], self._buffer[behind : behind + encoding.chunk_bytes])
            self.take_decoded(encoding.chunk_bytes)

    def take_decoded(self, size: int) -> None:
        """Measure the next `size` bytes of the buffer, which have been decoded."""
        have = self._left + size
        units = self._taker.take(self._buffer[self._start : self._start + have], self._intake)
        left = have - units * self._intake.unit
        if not self._stays:
            self._buffer[:left] = self._buffer[have - left : have].copy()
        self._measured(units, left)

    def _measured(self, units: int, left: int) -> None:
        size = units * self._intake.unit
        self._taker.took(size)
        self._start += size if self._stays else 0
        self._left = left

    def finish(self, selection: Selection, axis: int) -> None:
        """Measure what is left of the values of `selection`, with the channels on `axis`: less than a unit."""
        if self._left:
            rest = self._buffer[self._start : self._start + self._left].view(self._encoding.dtype)
            extents = [part.stop - part.start for part in selection]
            self._taker.rest(rest.reshape(-1, extents[axis], prod(extents[axis + 1 :])))
