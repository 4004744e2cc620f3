"""Tables of what was measured: for a terminal, as Markdown, or the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

WIDEST_PLAIN = 160
"""Columns that a table may take where the output is not a terminal."""


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and rows of text; the first column says what the row is about."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as GitHub shows it."""
        rules = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rules, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines)

    def rich(self) -> RichTable:
        """The table as rich draws it."""
        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=not index)
        for row in self.rows:
            table.add_row(*row)
        return table


def show(tables: Sequence[Table], machine: Mapping[str, str], notes: Sequence[str], *, markdown: bool) -> None:
    """Print the tables, what they were measured on, and what to know of them."""
    about = ", ".join(f"{name}: {value}" for name, value in machine.items())
    if markdown:
        print("\n\n".join([*(table.markdown() for table in tables), about, *notes]))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDEST_PLAIN, highlight=False)
    for table in tables:
        console.print(table.rich())
    for line in (about, *notes):
        console.print(line)


def show_json(figures: Any) -> None:
    """Print the figures as JSON."""
    print(json.dumps(figures, indent=2))
