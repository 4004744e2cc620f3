"""Streaming: chunks are measured while they are decoded, so that no block of decoded values is ever in memory."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from ...statistics.running import Intake, RunningSums
from ...statistics.samples import SampleSums
from ..encoding.chunks import Encoding
from ..encoding.decoders import Bytes
from ..encoding.fused import RAW, feed
from ..layer import Selection
from .parts import kept


class Stream:
    """Decodes chunk after chunk, and measures each while it is in the processor's cache."""

    def __init__(self, encoding: Encoding, sums: RunningSums | SampleSums, intake: Intake) -> None:
        self._encoding = encoding
        self._sums = sums
        self._intake = intake
        self._buffer = kept("chunk", encoding.chunk_bytes + intake.unit)
        self._left = 0  # bytes at the start of the buffer, fewer than a unit, that are not measured yet

    def take(self, stored: Bytes, places: npt.NDArray[np.int64]) -> None:
        """Measure the chunks of `stored` at `places`, int64[chunks, (offset, length)]. Raises as `Encoding.decode`."""
        encoding, done = self._encoding, 0
        if not encoding.checksum:
            codec = encoding.compressor or RAW
            fed = feed(codec, stored, places, encoding.chunk_bytes, self._buffer, self._intake, self._left)
            done, self._left = fed.chunks, fed.left
            self._sums.took(fed.units * self._intake.unit)
            if fed.torn:
                raise ValueError(f"a chunk does not decode to {encoding.chunk_bytes} bytes")
        for offset, size in places[done:].tolist():
            encoding.decode(stored[offset : offset + size], self._buffer[self._left :][: encoding.chunk_bytes])
            self._left = self._sums.take(self._buffer[: self._left + encoding.chunk_bytes], self._intake)

    def finish(self, selection: Selection, axis: int) -> None:
        """Measure what is left of the values of `selection`, with the channels on `axis`: less than a unit."""
        if self._left:
            assert isinstance(self._sums, RunningSums)  # units of samples leave nothing
            rest = self._buffer[: self._left].view(self._encoding.dtype)
            extents = [part.stop - part.start for part in selection]
            self._sums.add(rest.reshape(-1, extents[axis], prod(extents[axis + 1 :])), 1)
