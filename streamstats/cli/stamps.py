"""Lines that begin with the time, for the logs of batch jobs."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import TextIO


class Stamped(io.TextIOBase):
    """Writes to `stream`, and begins each line with the time, as in 2026-11-28T19:12:03Z."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begins = True

    def write(self, text: str, /) -> int:
        """As `TextIOBase.write`."""
        for line in text.splitlines(keepends=True):
            stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self._begins else ""
            self._stream.write(stamp + line)
            self._begins = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """As `TextIOBase.flush`."""
        self._stream.flush()

    def fileno(self) -> int:
        """As `TextIOBase.fileno`."""
        return self._stream.fileno()
