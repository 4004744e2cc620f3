"""What is measured of the service, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one service, from its start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rows = self._counter("rows_counted", "Rows that jobs have counted")
        self.bytes = self._counter("bytes_decoded", "Decoded bytes that jobs have read")
        self.task_failures = self._counter("task_failures", "Tasks, and processes of jobs, that were done again")
        self.ingested_rows = self._counter("ingested_rows", "Rows that clients have sent and that are on the disk")
        self.ingested_bytes = self._counter("ingested_bytes", "Bytes of these")
        self.save_seconds = Histogram(
            "streamstats_save_seconds",
            "Time to save what was counted",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.requests = Histogram(
            "streamstats_request_seconds",
            "Time to answer",
            ["method", "path", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._jobs = Gauge("streamstats_jobs", "Jobs", ["state"], registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"streamstats_{name}", text, registry=self.registry)

    def text(self, counts: Callable[[], Mapping[str, int]]) -> bytes:
        """All of it; `counts` gives the jobs by state."""
        for state, count in counts().items():
            self._jobs.labels(state).set(count)
        return generate_latest(self.registry)
