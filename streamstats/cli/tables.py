"""How results look: tables for people and JSON for programs, both on stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 200
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print `rows` under `columns` as plain text; the first `left` columns are aligned left, the others right."""
    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold" if terminal else None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold", no_wrap=not terminal)
    for row in rows:
        table.add_row(*row)
    Console(width=None if terminal else WIDE, soft_wrap=not terminal, markup=False, highlight=False).print(table)


def print_json(document: Any) -> None:
    """Print `document` as JSON with sorted keys."""
    print(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def number(value: float) -> str:
    """A number as a person reads it, six digits."""
    return "-" if value != value else f"{value:.6g}"


def json_number(value: float) -> float | None:
    """A number as JSON has it: every bit, null for NaN and infinities."""
    return value if math.isfinite(value) else None


def row_ranges(covered: Sequence[tuple[int, int]]) -> str:
    """Row ranges as text: `0:63`, `0:10 20:30`."""
    return " ".join(f"{start}:{stop}" for start, stop in covered) or "none"
