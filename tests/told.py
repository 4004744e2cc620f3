"""A `Progress` that remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable

from streamstats.progress import Quiet, Stage


class Told(Quiet):
    """Keeps stages, rows, messages, worker counts and repeats; `on_begin` and `on_advance` are called with them."""

    def __init__(
        self, on_begin: Callable[[Stage], None] = lambda _: None, on_advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self.stages: list[Stage] = []
        self.rows = 0
        self.bytes = 0
        self.messages: list[str] = []
        self.worker_counts: set[int] = set()
        self.repeats = 0
        self._on_begin, self._on_advance = on_begin, on_advance

    def begin(self, stage: Stage) -> None:
        self.stages.append(stage)
        self._on_begin(stage)

    def advance(self, rows: int, size: int = 0) -> None:
        self.rows += rows
        self.bytes += size
        self._on_advance(rows)

    def workers(self, count: int, repeats: int) -> None:
        self.worker_counts.add(count)
        self.repeats = repeats

    def say(self, message: str) -> None:
        self.messages.append(message)
