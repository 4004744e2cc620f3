"""Progress of long-running work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from ..errors import counted
from ..progress import Quiet, Stage

LINE_SECONDS = 5.0


class Shown(Quiet):
    """Shows stages, their rows and bytes, and messages; a context manager that ends the last stage.

    A stage without a size in bytes is measured in rows. Without a terminal, it prints a line every few seconds and,
    unless `brief`, one at the end of each stage.
    """

    def __init__(self, *, brief: bool = False) -> None:
        self._brief, self._beside = brief, ""
        self._meter: _Meter | None = None
        self._bar: bars.Progress | None = None

    def begin(self, stage: Stage) -> None:
        """End the previous stage and show the new one."""
        self._end()
        if stage.what:
            self.say(stage.what)
        self._meter = _Meter(stage)
        if sys.stderr.isatty():
            self._bar = _started_bar(self._meter)

    def advance(self, rows: int, size: int = 0) -> None:
        """Add `rows`, and `size` decoded bytes, to the finished ones."""
        assert self._meter is not None, "rows were finished before a stage began"
        self._meter.add(rows, size)
        self._show(self._meter)

    def workers(self, count: int, repeats: int) -> None:
        """Show the workers, unless there is exactly one, and any repeated tasks after the rows."""
        parts = [counted(count, "worker")] if count != 1 else []
        parts += [f"{counted(repeats, 'task')} repeated"] if repeats else []
        self._beside = "".join(f", {part}" for part in parts)

    def say(self, message: str) -> None:
        """Print `message`, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(f"streamstats: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"streamstats: {message}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(failed=kind is not None)

    def _show(self, meter: _Meter) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=meter.done, text=meter.text() + self._beside)
        elif time.monotonic() - meter.last_line >= LINE_SECONDS:
            self._print_line(meter)

    def _print_line(self, meter: _Meter) -> None:
        meter.last_line = time.monotonic()
        self.say(f"{meter.text()}{self._beside}{meter.time()}")

    def _end(self, *, failed: bool = False) -> None:
        meter, bar, self._meter, self._bar = self._meter, self._bar, None, None
        if bar is not None:
            bar.stop()
        elif meter is not None and not failed and not self._brief:
            self._print_line(meter)


@dataclass
class _Meter:
    """How far a stage has come."""

    stage: Stage
    rows: int = 0
    size: int = 0
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """The value of `done` at the end: bytes, or rows if the stage has no size in bytes."""
        return self.stage.size or self.stage.rows

    @property
    def done(self) -> int:
        return self.size or self.rows

    def add(self, rows: int, size: int) -> None:
        self.rows += rows
        self.size += size

    def text(self) -> str:
        parts = [f"{self.rows:,}/{self.stage.rows:,} rows"]
        if self.stage.size:
            rate = self.size / max(time.monotonic() - self.started, 1e-9)
            parts += [f"{decimal(self.size)} of {decimal(self.stage.size)}", f"{decimal(int(rate))}/s"]
        return ", ".join(parts)

    def time(self) -> str:
        """The estimated time left, or the time the finished stage took."""
        share = self.done / max(1, self.total)
        elapsed = time.monotonic() - self.started
        return f", {elapsed / share - elapsed:.0f} s left" if 0 < share < 1 else f", {elapsed:.1f} s"


def _started_bar(meter: _Meter) -> bars.Progress:
    columns = (bars.BarColumn(), bars.TextColumn("{task.fields[text]}"), bars.TimeRemainingColumn())
    bar = bars.Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=meter.total, text="")
    bar.start()
    return bar
