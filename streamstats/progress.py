"""Progress: how long-running work reports what it is doing and how far it has come.

All long-running work (reducing, recording, correcting, judging) takes one `Progress`, and reports stages, finished rows
and messages to it. What a `Progress` does with these reports never changes a result.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.filesize import decimal

from .errors import counted

LINE_SECONDS = 5.0
"""Time between two lines about one stage."""
OF_ALL_LAYERS = "rows of all layers"
"""What a reduction counts on its way: the sum over the layers, unlike the rows of a table, which are those of one."""


@dataclass(frozen=True)
class Stage:
    """A stage of long-running work: `what` it does, its `rows` (samples), and their `size` in decoded bytes.

    `size` is 0 if unknown. `before` counts rows of the same job that were finished earlier. `layers`, if given, is the
    number of layers, and `workers` describes who does the work, as in `4 threads`. `unit` says what rows are.
    """

    what: str
    rows: int
    size: int = 0
    before: int = 0
    layers: int = 0
    workers: str = ""
    unit: str = "rows"


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


class Lines(Quiet):
    """Turns reports into lines: one for each stage and message, and one every few seconds about the finished rows.

    A stage gets one line about its end, as soon as all its rows are finished. A stage without a size in bytes is
    measured in rows. A context manager: it ends the last stage. Subclasses say where lines go.
    """

    def __init__(self) -> None:
        self.meter: Meter | None = None
        self.beside = ""

    def begin(self, stage: Stage) -> None:
        """End the previous stage and begin the new one."""
        self.end()
        if stage.what:
            self.say(stage.what)
        self.meter = Meter(stage)

    def advance(self, rows: int, size: int = 0) -> None:
        """Add `rows`, and `size` decoded bytes, to the finished ones."""
        assert self.meter is not None, "rows were finished before a stage began"
        self.meter.add(rows, size)
        self.show(self.meter)

    def workers(self, count: int, repeats: int) -> None:
        """Tell the workers, unless there is exactly one, and any repeated tasks after the rows."""
        parts = [counted(count, "worker")] if count != 1 else []
        parts += [f"{counted(repeats, 'task')} repeated"] if repeats else []
        self.beside = "".join(f", {part}" for part in parts)

    def show(self, meter: Meter) -> None:
        """Say that the stage is done or, unless that was said just before, how far it has come."""
        if meter.ended is not None:
            self.tell_end(meter)
        elif time.monotonic() - meter.last_line >= LINE_SECONDS:
            self._say_rows(meter)

    def end(self, *, failed: bool = False) -> None:
        """End the stage, if there is one; one that has `failed` gets no line about its end."""
        meter, self.meter = self.meter, None
        if meter is not None and not failed:
            self.tell_end(meter)

    def tell_end(self, meter: Meter) -> None:
        """Say, once, how far the stage had come at its end."""
        if not meter.end_told:
            meter.end_told = True
            self._say_rows(meter)

    def _say_rows(self, meter: Meter) -> None:
        meter.last_line = time.monotonic()
        self.say(f"{meter.text()}{self.beside}{meter.time()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(failed=kind is not None)


class LogProgress(Lines):
    """A `Progress` for programs: each line becomes a record of the logger `streamstats`, at the level INFO.

    >>> logging.getLogger("streamstats").setLevel(logging.INFO)
    >>> with ss.LogProgress() as progress:
    ...     found = ss.reduce("calibration.zarr", progress=progress)
    """

    def say(self, message: str) -> None:
        """Log `message`."""
        logging.getLogger("streamstats").info("%s", message)


@dataclass
class Meter:
    """How far a stage has come."""

    stage: Stage
    rows: int = 0
    size: int = 0
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)
    ended: float | None = None
    end_told: bool = False

    @property
    def elapsed(self) -> float:
        """The seconds since it began; of a stage that is done, until it was: what follows may have to be waited for."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def total(self) -> int:
        """The value of `done` at the end: bytes, or rows if the stage has no size in bytes."""
        return self.stage.size or self.stage.rows

    @property
    def done(self) -> int:
        """The finished bytes, or rows."""
        return self.size or self.rows

    def add(self, rows: int, size: int) -> None:
        """Add finished `rows` of `size` bytes."""
        self.rows += rows
        self.size += size
        if self.ended is None and self.done >= self.total:
            self.ended = time.monotonic()

    def text(self) -> str:
        """The finished rows, and, if the stage has a size, the bytes and their rate once there is one."""
        parts = [f"{self.rows:,}/{self.stage.rows:,} {self.stage.unit}"]
        if self.stage.size:
            parts.append(f"{decimal(self.size)} of {decimal(self.stage.size)}")
            rate = int(self.size / max(self.elapsed, 1e-9))
            parts += [f"{decimal(rate)}/s"] if rate else []
        return ", ".join(parts)

    def time(self) -> str:
        """The estimated time left, or the time the finished stage took."""
        share = self.done / max(1, self.total)
        elapsed = self.elapsed
        return f", {elapsed / share - elapsed:.0f} s left" if 0 < share < 1 else f", {elapsed:.1f} s"
