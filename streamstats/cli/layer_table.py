"""What was counted of each layer, as a table: a row per layer, and only those columns that say something of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from ..errors import listed
from ..outputs.documents import layers_document
from ..outputs.ledger import Ledger
from ..outputs.shortfalls import Shortfall
from .tables import number, print_json, print_table, row_ranges, say

CELLS: Mapping[str, Callable[[Ledger], str]] = {
    "layer": lambda found: found.layer,
    "array": lambda found: found.array or found.layer,
    "rows": lambda found: f"{found.rows:,}",
    "rows are": lambda found: found.rows_are or "samples",
    "covered": lambda found: _covered(found),
    "channels": lambda found: f"{found.channels:,}",
    "axis": lambda found: str(found.channel_axis),
    "dtype": lambda found: f"{_stored_dtype(found)}{' codes' if found.quantization else ''}",
    "units": attrgetter("units"),
    "masked": lambda found: f"{found.masked[0] / max(1, found.masked[1]):.1%}" if found.masked else "",
}
"""The columns before the figures."""
SOURCES = 8
"""Whose rows are shown at most."""
ONLY_IF: Mapping[str, Callable[[Ledger], Any]] = {
    "array": attrgetter("array"),
    "rows are": attrgetter("rows_are"),
    "masked": attrgetter("masked"),
    "units": attrgetter("units"),
}
"""Columns that are shown only if a layer has an array of another name, rows that are no samples, a mask, or units."""


def print_layers(
    statistics: Mapping[str, Ledger], as_json: bool, shortfalls: Mapping[str, Shortfall] | None = None
) -> None:
    """Print what was counted of each layer, as a table or as JSON."""
    if as_json:
        short = {} if shortfalls is None else {"shortfalls": {name: shortfalls[name].document() for name in shortfalls}}
        print_json({"layers": layers_document(statistics), **short})
        return
    figures = {name: found.figures().layer for name, found in statistics.items()}
    columns = list(dict.fromkeys(column for found in figures.values() for column in found))
    shown = [
        name for name in CELLS if name not in ONLY_IF or any(ONLY_IF[name](found) for found in statistics.values())
    ]
    rows = [
        [
            *(CELLS[column](found) for column in shown),
            *(cell(figures[name][column]) if column in figures[name] else "" for column in columns),
        ]
        for name, found in statistics.items()
    ]
    print_table([*shown, *map(_heading, columns)], rows)


def say_notes(notes: Mapping[str, Iterable[str]]) -> None:
    """Print each of the `notes` once, with the names of the layers that have it."""
    found: dict[str, list[str]] = {}
    for layer, each in notes.items():
        for note in each:
            found.setdefault(note, []).append(layer)
    for note, layers in found.items():
        say(f"note: {note}: {listed(layers)}")


def _stored_dtype(found: Ledger) -> str:
    meaning = None if found.attributes is None else found.attributes.meaning
    return str(found.space.dtype if meaning is None else meaning.stored)


def _covered(found: Ledger) -> str:
    """The covered rows of each source, the first of many."""
    each = [row_ranges(source.covered.ranges) for source in found.sources]
    more = f" + {len(each) - SOURCES} more" if len(each) > SOURCES else ""
    return " + ".join(each[:SOURCES]) + more


def _heading(name: str) -> str:
    """The name of a figure as a heading, such as "percentile 99.9" for `percentile_99_9`."""
    return re.sub(r"(\d) (\d)", r"\1.\2", name.replace("_", " "))


def cell(value: Any) -> str:
    """A figure as a table shows it."""
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
