"""What the processes of jobs report, line by line, goes into the database and the metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from .job_table import JobTable
from .metrics import Metrics
from .processes import JobProcess, parsed

LONGEST_MESSAGE = 2000

log = logging.getLogger("streamstats.service")


class Reports:
    """Hears what the processes of jobs say. `public` removes from messages what clients must not see."""

    def __init__(self, table: JobTable, metrics: Metrics, public: Callable[[str], str]) -> None:
        self._table, self._metrics, self._public = table, metrics, public
        self._monotonic = table.clock.monotonic
        self._began, self._published = self._monotonic(), dict[str, float]()
        self._hearing: dict[str, Callable[[str, JobProcess, Any], None]] = {
            "plan": self._hear_plan,
            "progress": self._hear_progress,
            "stage": self._hear_stage,
            "saving": self._hear_saving,
            "results": self._hear_results,
            "message": self._hear_message,
            "end": self._hear_end,
        }

    def hear(self, name: str, running: JobProcess, line: str) -> bool:
        """Whether the line was a report of the job `name`; it is then recorded."""
        kind, content = parsed(line) or ("", None)
        if kind not in self._hearing:
            log.warning("stdout of the job: %s", line, extra={"job": name})
            return False
        self._hearing[kind](name, running, content)
        return True

    def shown(self, text: str) -> str:
        """The part of `text` that clients may see."""
        return self._public(text)[:LONGEST_MESSAGE]

    def since_published(self, name: str) -> float:
        """How many seconds ago, at least, the job published its latest results."""
        return self._monotonic() - self._published.get(name, self._began)

    def _hear_plan(self, name: str, running: JobProcess, plan: dict[str, Any]) -> None:
        running.rows, running.bytes = plan["before"], 0
        self._table.update(name, "", rows=plan["before"], total_rows=plan["rows"], bytes=0, total_bytes=plan["bytes"])

    def _hear_progress(self, name: str, running: JobProcess, found: dict[str, Any]) -> None:
        self._metrics.rows.inc(max(0, found["rows"] - running.rows))
        self._metrics.bytes.inc(max(0, found["bytes"] - running.bytes))
        self._metrics.task_failures.inc(found["repeats"])
        running.rows, running.bytes = max(found["rows"], running.rows), max(found["bytes"], running.bytes)
        self._table.update(name, rows=found["rows"], bytes=found["bytes"], speed=found["speed"])

    def _hear_stage(self, name: str, _running: JobProcess, stage: dict[str, Any]) -> None:
        self._table.update(name, stage=json.dumps(stage))

    def _hear_saving(self, _name: str, _running: JobProcess, seconds: float) -> None:
        self._metrics.save_seconds.observe(seconds)

    def _hear_results(self, name: str, running: JobProcess, number: int) -> None:
        self._table.update(name, results=number)
        self._published[name] = self._monotonic()
        running.has_published = True

    def _hear_message(self, name: str, _running: JobProcess, message: str) -> None:
        text = self.shown(message)
        log.info(text, extra={"job": name})
        self._table.update(name, text, logged=True)

    def _hear_end(self, _name: str, running: JobProcess, ended: dict[str, Any]) -> None:
        running.ended = ended
