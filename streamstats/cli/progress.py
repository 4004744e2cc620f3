"""Progress of long-running work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys

from rich import progress as bars
from rich.console import Console

from ..progress import Lines, Meter, Stage


class Shown(Lines):
    """Shows stages, their rows and bytes, and messages on stderr.

    With a terminal, rows are shown as a bar. Without one, `brief` leaves out the line at the end of each stage. `quiet`
    leaves out stages and rows, so that messages alone are printed.
    """

    def __init__(self, *, brief: bool = False, quiet: bool = False) -> None:
        super().__init__()
        self._brief, self._quiet = brief, quiet
        self._bar: bars.Progress | None = None

    def begin(self, stage: Stage) -> None:
        """End the previous stage and show the new one."""
        if self._quiet:
            return
        super().begin(stage)
        if sys.stderr.isatty():
            assert self.meter is not None
            self._bar = _started_bar(self.meter)

    def advance(self, rows: int, size: int = 0) -> None:
        """As `Lines.advance`."""
        if not self._quiet:
            super().advance(rows, size)

    def say(self, message: str) -> None:
        """Print `message`, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(f"streamstats: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"streamstats: {message}", file=sys.stderr, flush=True)

    def show(self, meter: Meter) -> None:
        """Move the bar, or print a line every few seconds."""
        if self._bar is None:
            super().show(meter)
        else:
            self._bar.update(self._bar.task_ids[0], completed=meter.done, text=meter.text() + self.beside)

    def end(self, *, failed: bool = False) -> None:
        """As `Lines.end`; a bar stays on the terminal as it is."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
        super().end(failed=failed or bar is not None)

    def tell_end(self, meter: Meter) -> None:
        """As `Lines.tell_end`, unless lines are brief."""
        if not self._brief:
            super().tell_end(meter)


def _started_bar(meter: Meter) -> bars.Progress:
    columns = (bars.BarColumn(), bars.TextColumn("{task.fields[text]}"), bars.TimeRemainingColumn())
    bar = bars.Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=meter.total, text="")
    bar.start()
    return bar
