"""Progress: how long work tells a person, or another program, how far it is.

Everything that takes long (reducing, recording, correcting, judging) is given one `Progress` and tells it of stages, of
rows that are done, and of what a person should know. It may do with that what it wants, and never changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stage:
    """A stage of long work: `what` it is, and how many `rows` (samples) of how many decoded bytes (`size`) it covers.

    `before` counts rows that were done earlier and belong to the whole; `size` is 0 where it is not known. `layers`
    and `workers` (as in `4 threads`) say what is worked on and by whom, where that is of interest.
    """

    what: str
    rows: int
    size: int = 0
    before: int = 0
    layers: int = 0
    workers: str = ""


class Progress(Protocol):
    """What long work reports to, always from the thread that started it."""

    def begin(self, stage: Stage) -> None:
        """A stage begins, and the one before it has ended."""

    def advance(self, rows: int, size: int = 0) -> None:
        """`rows` more rows of the stage, `size` bytes decoded, are done."""

    def workers(self, count: int, repeats: int) -> None:
        """There are `count` worker processes now, and `repeats` tasks have been repeated so far."""

    def say(self, message: str) -> None:
        """Something that a person should know: one sentence, without a full stop."""

    def saved(self, seconds: float) -> None:
        """What has been counted so far was saved, which took `seconds`."""


class Quiet:
    """A `Progress` that ignores everything; subclasses override what they want to be told."""

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
