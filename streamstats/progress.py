"""Progress: how long-running work reports what it is doing and how far it has come.

All long-running work (reducing, recording, correcting, judging) takes one `Progress`, and reports stages, finished rows
and messages to it. What a `Progress` does with these reports never changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stage:
    """A stage of long-running work: `what` it does, its `rows` (samples), and their `size` in decoded bytes.

    `size` is 0 if unknown. `before` counts rows of the same job that were finished earlier. `layers`, if given, is the
    number of layers, and `workers` describes who does the work, as in `4 threads`.
    """

    what: str
    rows: int
    size: int = 0
    before: int = 0
    layers: int = 0
    workers: str = ""


class Progress(Protocol):
    """Receives the reports of long-running work, always from the thread that started it."""

    def begin(self, stage: Stage) -> None:
        """`stage` begins; the previous one has ended."""

    def advance(self, rows: int, size: int = 0) -> None:
        """`rows` more rows of the stage are finished, `size` decoded bytes."""

    def workers(self, count: int, repeats: int) -> None:
        """There are `count` worker processes now; `repeats` tasks have been repeated so far."""

    def say(self, message: str) -> None:
        """A message for the user: one sentence, without a full stop."""

    def saved(self, seconds: float) -> None:
        """What has been counted so far is saved; saving took `seconds`."""


class Quiet:
    """A `Progress` that ignores every report; subclasses override the reports they use."""

    def begin(self, stage: Stage) -> None:
        """As `Progress.begin`."""

    def advance(self, rows: int, size: int = 0) -> None:
        """As `Progress.advance`."""

    def workers(self, count: int, repeats: int) -> None:
        """As `Progress.workers`."""

    def say(self, message: str) -> None:
        """As `Progress.say`."""

    def saved(self, seconds: float) -> None:
        """As `Progress.saved`."""


QUIET = Quiet()
