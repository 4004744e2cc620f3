"""Metrics of the service, in the format of Prometheus. What each counts, and since when, is in its HELP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, generate_latest

from .database import Database
from .job_table import STATES
from .places import Places
from .totals import Total, Totals

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True)
class Moment:
    """What holds at the moment of a scrape; NaN is what cannot be known.

    `jobs` is the number of jobs in each state; `waited` is for how many seconds the oldest job in the queue has waited;
    `free` and `reserved` are bytes of the disk; `queue_limit` is how many jobs may be queued.
    """

    ready: bool
    free: float
    reserved: float
    queue_limit: float
    jobs: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(STATES, nan))
    waited: float = nan


class Metrics:
    """The metrics of one service. The totals are in `database`; histograms begin when the service starts."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.totals = Totals(database)
        self.registry.register(self.totals)
        ProcessCollector(registry=self.registry)
        self.rows = self._total("rows_counted", "Rows that jobs have counted")
        self.bytes = self._total("bytes_decoded", "Decoded bytes that jobs have read")
        self.task_failures = self._total(
            "task_failures", "Tasks that were repeated, and job processes that were retried"
        )
        self.ingested_rows = self._total("ingested_rows", "Rows that clients have appended to stores")
        self.ingested_bytes = self._total("ingested_bytes", "Bytes that clients have appended to stores")
        self.save_seconds = self._seconds("save", "Seconds to save what was counted")
        self.ingest_seconds = self._seconds("ingest", "Seconds from the arrival of activations until they are stored")
        self.requests = self._seconds("request", "Seconds to answer a request", "method", "path", "status")
        self._jobs = self._gauge("jobs", "Jobs", "state")
        self._waited = self._gauge("queue_oldest_seconds", "Seconds for which the oldest queued job has waited")
        self._queue_limit = self._gauge("queue_limit", "Queued jobs, at most")
        self._ready = self._gauge("ready", "1 if /readyz says that the service accepts work")
        self._free = self._gauge("disk_free_bytes", "Free bytes on the disk of the service's data")
        self._reserved = self._gauge("disk_reserved_bytes", "Free bytes below which the service accepts nothing new")

    def watch(self, name: str, text: str, places: Places) -> None:
        """Show how many of `places` are taken, and how many there are."""
        self._gauge(name, text).set_function(lambda: places.in_use)
        self._gauge(f"{name}_limit", f"{text}, at most").set(places.most)

    def text(self, moment: Moment) -> bytes:
        """All metrics at `moment`."""
        for state, count in moment.jobs.items():
            self._jobs.labels(state).set(count)
        self._waited.set(moment.waited)
        self._queue_limit.set(moment.queue_limit)
        self._ready.set(moment.ready)
        self._free.set(moment.free)
        self._reserved.set(moment.reserved)
        return generate_latest(self.registry)

    def _total(self, name: str, text: str) -> Total:
        return self.totals.new(f"streamstats_{name}", text)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"streamstats_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        text = f"{text}; since the service started"
        return Histogram(f"streamstats_{name}_seconds", text, labels, buckets=SECONDS, registry=self.registry)
