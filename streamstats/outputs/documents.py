"""Results as JSON documents: what the command line prints with `--json` and the service returns.

JSON has no NaN and no infinities: they become null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..statistics.statistic import Document
from .ledger import Ledger


def layers_document(ledgers: Mapping[str, Ledger]) -> dict[str, Any]:
    """`counted_document` for each layer, by name."""
    return {layer: counted_document(found) for layer, found in ledgers.items()}


def counted_document(found: Ledger) -> dict[str, Any]:
    """What was counted for a layer, and the figures per layer that its statistics give, in real units."""
    return {**found.document(), **_of_layer(found.figures())}


def channels_document(found: Ledger) -> dict[str, Any]:
    """The same with the `tables` of its statistics, and `per_channel`: for each figure per channel, its values."""
    figures = found.figures()
    columns = {name: [json_value(value) for value in values.tolist()] for name, values in figures.channels.items()}
    tables = {
        name: {"columns": [*each.columns], "rows": [[*map(json_value, row)] for row in each.rows]}
        for name, each in figures.tables.items()
    }
    counted = {**found.document(), **_of_layer(figures)}
    return {"layer": found.layer, **counted, "tables": tables, "per_channel": columns}


def _of_layer(figures: Document) -> dict[str, Any]:
    return {name: json_value(value) for name, value in figures.layer.items()}


def channel_columns(found: Ledger) -> dict[str, list[Any]]:
    """Name of a figure → its value per channel, in real units."""
    return {name: values.tolist() for name, values in found.figures().channels.items()}


def json_value(value: Any) -> Any:
    """`value`, or None for NaN and infinities, which JSON does not have."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
