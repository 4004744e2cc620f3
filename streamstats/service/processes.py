"""The process of a job: `streamstats.service.runner`, which reports in lines of JSON on its stdout.

The law: a process ends in bounded time once it is asked to, whatever it is doing, and with it all that it started.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.files import folder_bytes
from .clock import Clock
from .memory import NO_MEMORY
from .messages import JobView

STOP_SECONDS = 30.0
"""How long a process may save after the service asked it to stop."""
CANCEL_SECONDS = 1.5
"""How long it may save after its job was cancelled."""
EXCESS_SECONDS = 5.0
"""How long it may save after it exceeded a limit."""
DISK_SECONDS = 2.0
"""The time between two looks at what it has written."""
LAST_LINES = 40
"""Lines of stderr that are kept for the service's log."""
LONGEST_LINE = 2**16
ARGUMENTS = ("-m", "streamstats.service.runner")
INPUTS = "inputs"
"""The folder of a job with its uploads, which count as such."""

log = logging.getLogger("streamstats.service")


@dataclass(frozen=True)
class ProcessLimits:
    """The most that a job may take: seconds, over all its attempts, and bytes on the disk."""

    seconds: float = float("inf")
    disk: float = float("inf")


class JobProcess:
    """The process that does `job` in `folder`. Raises `OSError` if it cannot be started.

    `rows` and `bytes` are what it reported last, and `has_published` whether it has results; `ended` is what it said
    at its end, empty until then. `exceeded` says which limit it exceeded, if one.
    """

    def __init__(self, job: JobView, folder: Path, limits: ProcessLimits, clock: Clock) -> None:
        self.submitter, self.follows = job.submitter, job.follows
        self.rows = self.bytes = 0
        self.has_published = False
        self.ended: dict[str, Any] = {}
        self.exceeded = ""
        self._before, self._folder, self._limits, self._monotonic = job.seconds, folder, limits, clock.monotonic
        self._since = self._looked = self._monotonic()
        self._kill_at: float | None = None
        self._swept = False
        self._process = subprocess.Popen(
            [sys.executable, *ARGUMENTS, str(folder)],
            stdin=subprocess.PIPE,  # which ends when the service ends, in whatever way
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.errors = deque[str](maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        try:
            self.errors.extend(iter(lambda: self._process.stderr.readline(LONGEST_LINE), ""))  # type: ignore[union-attr]
        except Exception:  # the job goes on; its end says what became of it
            log.exception("cannot read the stderr of a job", extra={"pid": self.pid})

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to stop."""
        return self._kill_at is not None

    @property
    def seconds(self) -> float:
        """How long the job has run, with its earlier attempts."""
        return self._before + self._monotonic() - self._since

    @property
    def is_out_of_memory(self) -> bool:
        """Whether its last words are that it got no more memory."""
        return any(words in line for line in [*self.errors] for words in NO_MEMORY)

    def terminate(self, seconds: float = STOP_SECONDS) -> None:
        """Ask it to save and stop, for which it has so many `seconds`."""
        self._process.send_signal(signal.SIGTERM)
        until = self._monotonic() + seconds
        self._kill_at = until if self._kill_at is None else min(self._kill_at, until)

    def watch(self) -> None:
        """Stop it if it exceeds a limit; kill it if it was asked to stop and has not, and what it leaves behind."""
        if self._kill_at is None and (reason := self._excess()):
            self.exceeded = reason
            self.terminate(EXCESS_SECONDS)
        overdue = self._kill_at is not None and self._monotonic() > self._kill_at
        if not self._swept and (overdue or self._process.poll() is not None):
            self._swept = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _excess(self) -> str:
        """Which limit it exceeds, in words; empty if none."""
        if not self.follows and self.seconds > self._limits.seconds:
            return f"it ran for more than {self._limits.seconds:,.0f} s, the limit of this service (`job_seconds`)"
        if self._monotonic() - self._looked < DISK_SECONDS:
            return ""
        self._looked = self._monotonic()
        found = folder_bytes(self._folder, without=INPUTS)
        if found <= self._limits.disk:
            return ""
        return f"it wrote {found:,} bytes; a job of this service may write {self._limits.disk:,.0f} (`job_disk`)"

    def lines(self) -> Iterator[str]:
        """What it writes to stdout, until it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            yield from iter(lambda: lines.readline(LONGEST_LINE), "")

    def wait(self) -> int:
        """Its exit status, once it has ended and all that it wrote to stderr is in `errors`."""
        status = self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        return status


def parsed(line: str) -> tuple[str, Any] | None:
    """(kind, content) of a line that a runner wrote; None for what a library printed, or a kill cut off.

    >>> parsed('{"results": 3}'), parsed("loading…")
    (('results', 3), None)
    """
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict) or len(document) != 1:
        return None
    return next(iter(document.items()))
