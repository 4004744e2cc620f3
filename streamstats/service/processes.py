"""The process of a job: `streamstats.service.runner`, which reports in lines of JSON on its stdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .messages import JobView

STOP_SECONDS = 30.0
"""How long a process may save after it was asked to stop."""
LAST_LINES = 40
"""Lines of stderr that are kept for the service's log."""


class JobProcess:
    """The process that does `job` in `folder`. Raises `OSError` if it cannot be started.

    `rows` and `bytes` are what it reported last; `ended` is what it said at its end, empty until then.
    """

    def __init__(self, job: JobView, folder: Path) -> None:
        self.submitter, self.follows = job.submitter, job.follows
        self.rows = self.bytes = 0
        self.ended: dict[str, Any] = {}
        self._kill_at: float | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamstats.service.runner", str(folder)],
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
        self.errors.extend(self._process.stderr)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it to save and stop, for which it has STOP_SECONDS."""
        self._process.send_signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + STOP_SECONDS

    def kill_if_overdue(self) -> None:
        """Kill it if it was asked to stop and has not."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._process.kill()

    def lines(self) -> Iterator[str]:
        """What it writes to stdout, until it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            yield from lines

    def wait(self) -> int:
        """Its exit status, once it has ended and all that it wrote to stderr is in `errors`."""
        status = self._process.wait()
        self._reader.join()
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
