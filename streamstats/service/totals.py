"""Totals: counters that continue from where they were when the service starts again.

The law: a total that was shown is in the database. So no scrape sees a total fall, which Prometheus would take for a
restart from 0, and count everything again. If the service is killed, what no scrape has seen is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from ..errors import StreamstatsError
from .database import Database

log = logging.getLogger("streamstats.service")


class Total:
    """A number that only grows. `text` says what is counted."""

    def __init__(self, name: str, text: str, value: float) -> None:
        self.name, self.text, self.value = name, text, value
        self._lock = threading.Lock()

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, from any thread."""
        with self._lock:
            self.value += amount


class Totals(Collector):
    """The totals in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shown = {row["name"]: row["value"] for row in database.query("SELECT name, value FROM totals")}
        self._totals: list[Total] = []
        self._lock = threading.Lock()

    def new(self, name: str, text: str) -> Total:
        """The total `name`, which continues from what is stored."""
        found = Total(name, f"{text}; continues after a restart", self._shown.get(name, 0.0))
        self._totals.append(found)
        return found

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What Prometheus sees."""
        shown = self.store()
        for each in self._totals:
            yield CounterMetricFamily(each.name, each.text, value=shown.get(each.name, 0.0))

    def store(self) -> dict[str, float]:
        """The totals, stored. While the database cannot be written, they stay as they were stored last."""
        with self._lock:
            found = {each.name: each.value for each in self._totals}
            if found != self._shown:
                try:
                    with self._database.writing() as connection:
                        connection.executemany("INSERT OR REPLACE INTO totals VALUES (?, ?)", found.items())
                    self._shown = found
                except StreamstatsError:
                    log.exception("the totals cannot be stored; the metrics show them as they were stored last")
            return self._shown
