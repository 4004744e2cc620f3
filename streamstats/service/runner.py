"""A job in a process of its own: `python -m streamstats.service.runner REQUEST.json`, started by the service alone.

What happens is told on stdout, one JSON object a line: `{"plan": …}`, `{"progress": …}`, `{"message": …}` and, last,
`{"end": …}` with the exit status that the command line would have. When stdin ends, the service is gone: the job stops as
at a signal, with everything saved that was counted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .. import job
from ..config import JobConfig
from ..errors import OutputError, StreamstatsError
from ..interrupts import SIGNALS
from ..results import MANIFEST

INCOMPLETE, INTERRUPTED = 3, 130
TELL_SECONDS = 0.2
"""Between two lines of progress."""
LOCK_SECONDS = 60.0
"""For how long a job waits for the process that had it before."""


def main() -> int:
    """Do the job that the file says, and tell of it."""
    request = json.loads(Path(sys.argv[1]).read_bytes())
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    threading.Thread(target=_watch_service, daemon=True).start()
    told = _Told()
    try:
        status, text = _done(JobConfig.model_validate(request["config"], strict=False), request, told)
    except StreamstatsError as error:
        status, text = error.exit_status, " ".join(str(error).split())
    except KeyboardInterrupt:
        status, text = INTERRUPTED, "stopped; what was counted is saved"
    told.line({"end": {"status": status, "text": text}})
    return status


def _done(config: JobConfig, request: dict[str, Any], told: _Told) -> tuple[int, str]:
    """(the exit status, what there is to say)."""
    follow = request.get("follow")
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            outcome = job.run(
                config,
                follow=job.Follow(follow.get("rows"), follow.get("idle")) if follow is not None else None,
                on_plan=told.plan,
                on_progress=told.progress,
            )
            break
        except OutputError:
            if told.planned or time.monotonic() > until:
                raise
            time.sleep(0.5)
    if not outcome.unreadable:
        return 0, f"done; see {MANIFEST}"
    lost = sum(each.rows[1] - each.rows[0] for each in outcome.unreadable)
    return INCOMPLETE, f"{lost:,} rows could not be read; the first: {outcome.unreadable[0].reason}"


class _Told:
    """Lines on stdout, not too many."""

    def __init__(self) -> None:
        self.planned = False
        self._last = 0.0
        self._rows = self._bytes = 0

    def plan(self, prepared: job.Prepared) -> None:
        """What is to be done."""
        self.planned = True
        before = sum(each.rows for each in prepared.ledger.values())
        self._rows, self._bytes = before, 0
        plan = prepared.plan
        self.line(
            {
                "plan": {
                    "rows": plan.rows + before,
                    "before": before,
                    "bytes": plan.bytes,
                    "layers": len(prepared.ledger),
                }
            }
        )

    def progress(self, progress: job.Progress) -> None:
        """What was done, in all."""
        self._rows += progress.rows
        self._bytes += progress.bytes
        if progress.message:
            self.line({"message": progress.message})
        elif time.monotonic() - self._last >= TELL_SECONDS:
            self._last = time.monotonic()
            self.line({"progress": {"rows": self._rows, "bytes": self._bytes, "repeats": progress.repeats}})

    def line(self, document: dict[str, Any]) -> None:
        """Tell it; a service that has gone hears nothing."""
        try:
            print(json.dumps(document), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch_service() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(_number: int, _frame: object) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
