"""Metrics of the service, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one service since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rows = self._counter("rows_counted", "Rows that jobs have counted")
        self.bytes = self._counter("bytes_decoded", "Decoded bytes that jobs have read")
        self.task_failures = self._counter(
            "task_failures", "Tasks that were repeated, and job processes that were retried"
        )
        self.ingested_rows = self._counter("ingested_rows", "Rows that clients have appended to stores")
        self.ingested_bytes = self._counter("ingested_bytes", "Bytes that clients have appended to stores")
        self.save_seconds = Histogram(
            "streamstats_save_seconds",
            "Seconds to save what was counted",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.requests = Histogram(
            "streamstats_request_seconds",
            "Seconds to answer a request",
            ["method", "path", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._jobs = Gauge("streamstats_jobs", "Jobs", ["state"], registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"streamstats_{name}", text, registry=self.registry)

    def text(self, counts: Callable[[], Mapping[str, int]]) -> bytes:
        """All metrics; `counts` gives the number of jobs in each state."""
        for state, count in counts().items():
            self._jobs.labels(state).set(count)
        return generate_latest(self.registry)
