"""Progress of long work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 5.0


class RowProgress:
    """Counts rows and bytes of `total_rows`, `total_bytes`; a context manager. Without bytes only rows are shown.

    Where there is no bar, a line is printed every few seconds and, unless `brief`, one at the end.
    """

    def __init__(self, total_rows: int, total_bytes: int = 0, *, brief: bool = False) -> None:
        self._brief = brief
        self._rows, self._bytes, self._beside = 0, 0, ""
        self._total_rows, self._total_bytes = total_rows, total_bytes
        self._started = self._last_line = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total_bytes or total_rows, text="")

    def advance(self, rows: int, added_bytes: int = 0, beside: str = "") -> None:
        """Count `rows` and `added_bytes` more as done; `beside` is shown behind them."""
        self._beside = beside
        self._rows += rows
        self._bytes += added_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes or self._rows, text=self._text())
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._print_line()

    def say(self, message: str) -> None:
        """Print `message` above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"streamstats: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"streamstats: {message}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and not self._brief:
            self._print_line()

    def _text(self) -> str:
        parts = [f"{self._rows:,}/{self._total_rows:,} rows"]
        if self._total_bytes:
            rate = self._bytes / max(time.monotonic() - self._started, 1e-9)
            parts += [f"{decimal(self._bytes)} of {decimal(self._total_bytes)}", f"{decimal(int(rate))}/s"]
        return ", ".join(parts) + self._beside

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        done = (self._bytes or self._rows) / max(1, self._total_bytes or self._total_rows)
        elapsed = self._last_line - self._started
        left = f", {elapsed / done - elapsed:.0f} s left" if 0 < done < 1 else f", {elapsed:.1f} s"
        print(f"streamstats: {self._text()}{left}", file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = (BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


class Shown:
    """Temporary."""

    def __init__(self) -> None:
        from contextlib import ExitStack

        self._stack = ExitStack()
        self._row: RowProgress | None = None
        self._beside = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self, stage) -> None:  # type: ignore
        self._stack.close()
        self._row = self._stack.enter_context(RowProgress(stage.rows, stage.size))

    def advance(self, rows: int, size: int = 0) -> None:
        assert self._row
        self._row.advance(rows, size, self._beside)

    def workers(self, count: int, repeats: int) -> None:
        self._beside = (f", {count} workers" if count != 1 else "") + (f", {repeats} repeated" if repeats else "")

    def say(self, message: str) -> None:
        if self._row:
            self._row.say(message)
        else:
            print(f"streamstats: {message}", file=sys.stderr, flush=True)

    def saved(self, seconds: float) -> None:
        pass
