"""What the process of a job reports to the service: one JSON object per line, with one key, on stdout.

The kinds are `plan`, `progress`, `stage`, `saving`, `results`, `message` and, last, `end`; `reports` hears them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence

from ..errors import counted
from ..progress import Stage
from .steps import Step

REPORT_SECONDS = 0.25
"""The shortest time between two lines of progress."""


class Lines:
    """A `Progress` that writes lines of JSON to stdout, not too many.

    Rows and bytes are reported of stages that reduce layers. Other stages are a message. Jobs of several steps also
    report how far each stage of a step has come.
    """

    def __init__(self) -> None:
        self._reported, self._stage = 0.0, ""
        self._step: Step | None = None
        self._rows = self._bytes = self._repeats = 0
        self._counts = False
        self._since = time.monotonic()

    def step(self, name: str, steps: Sequence[str]) -> None:
        """Report that a job of several `steps` begins the one of this `name`."""
        self._step = Step(steps.index(name), tuple(steps))
        self.write("stage", self._step.document())

    def begin(self, stage: Stage) -> None:
        """Report the plan of a reduction, or what else begins."""
        if self._step is not None:
            self._step.begin(stage)
            self.write("stage", self._step.document())
        self._counts = bool(stage.workers)
        if not self._counts:
            self._begin_uncounted(f"{stage.what} ({counted(stage.rows, 'sample')})")
            return
        self._rows, self._bytes, self._since = stage.before, 0, time.monotonic()
        plan = {"rows": stage.before + stage.rows, "before": stage.before, "bytes": stage.size}
        self.write("plan", {**plan, "layers": stage.layers, "workers": stage.workers})

    def _begin_uncounted(self, stage: str) -> None:
        if stage != self._stage:
            self._stage = stage
            self.say(stage)

    def advance(self, rows: int, size: int = 0) -> None:
        """Add rows to the total, and report it from time to time."""
        if self._step is not None:
            self._step.meter.add(rows, size)
        if self._counts:
            self._rows += rows
            self._bytes += size
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._report() if self._counts else self._report_step()

    def workers(self, count: int, repeats: int) -> None:  # noqa: ARG002 - the service does not show how many there are
        """Report tasks that were repeated."""
        if repeats > self._repeats:
            again, self._repeats = repeats - self._repeats, repeats
            self._report(again)

    def say(self, message: str) -> None:
        """Report a message."""
        self.write("message", message)

    def saved(self, seconds: float) -> None:
        """Report how long it took to save."""
        self.write("saving", seconds)

    def counted(self, rows: int) -> None:
        """Report that `rows` are counted, in all."""
        self._rows = rows
        self._report()

    def settled(self, rows: int, missing: int) -> None:
        """Report that `rows` are counted and `missing` ones are not, with nothing left to do."""
        self.write("plan", {"rows": rows + missing, "before": rows, "bytes": 0})

    def _report(self, again: int = 0) -> None:
        """Report rows, and the bytes of the newest plan with their rate."""
        self._report_step()
        speed = self._bytes / max(time.monotonic() - self._since, 1e-9)
        self.write("progress", {"rows": self._rows, "bytes": self._bytes, "speed": speed, "repeats": again})

    def _report_step(self) -> None:
        self._reported = time.monotonic()
        if self._step is not None:
            self.write("stage", self._step.document())

    def write(self, kind: str, content: object) -> None:
        """Write a line; a service that is gone reads nothing."""
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), f"{json.dumps({kind: content})}\n".encode())
