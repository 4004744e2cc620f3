"""Output of the commands: tables for people and JSON for programs, both on stdout; messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table


def say(message: str) -> None:
    """Print a message on stderr."""
    print(f"streamstats: {message}", file=sys.stderr)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, ends_in_text: bool = False
) -> None:
    """Print `rows` under `columns` as plain text.

    The first `left` columns are aligned left, and so is the last one if it `ends_in_text`; the others right.
    """
    text = {*range(left), *([len(columns) - 1] if ends_in_text else [])}
    if not sys.stdout.isatty():
        _print_aligned([columns, *rows], text)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in text else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def _print_aligned(lines: Sequence[Sequence[str]], text: Collection[int]) -> None:
    """Print lines at full width: a file or a pipe has no right edge."""
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell + padding if index in text else padding + cell
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            for padding in (" " * (width - cell_len(cell)),)
        ]
        print("  ".join(cells).rstrip())


def print_json(document: Any) -> None:
    """Print `document` as JSON with sorted keys."""
    print(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def number(value: float) -> str:
    """A number with six significant digits; "-" for NaN."""
    return "-" if value != value else f"{value:.6g}"


def when(seconds: float | None) -> str:
    """A time, in seconds since 1970, as text in UTC; "" for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")[:19]


def row_ranges(covered: Sequence[tuple[int, int]]) -> str:
    """Row ranges as text, such as `0:63` or `0:10 20:30`; `none` if there are none."""
    return " ".join(f"{start}:{stop}" for start, stop in covered) or "none"
