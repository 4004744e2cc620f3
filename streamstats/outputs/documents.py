"""Results as documents for JSON: what the command line prints with `--json` and the service answers.

JSON has no NaN and no infinities: they become null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .ledger import Ledger


def layers_document(ledgers: Mapping[str, Ledger]) -> dict[str, Any]:
    """What was counted of each layer, and what its statistics say of all of it."""
    return {layer: counted_document(found) for layer, found in ledgers.items()}


def counted_document(found: Ledger) -> dict[str, Any]:
    """What was counted of a layer, and what its statistics say of all of it, in real units."""
    return {**found.document(), **{name: json_value(value) for name, value in found.figures().layer.items()}}


def channels_document(found: Ledger) -> dict[str, Any]:
    """The same, with `per_channel`: a list for each figure that its statistics have of a channel."""
    columns = {name: [json_value(value) for value in values] for name, values in channel_columns(found).items()}
    return {"layer": found.layer, **counted_document(found), "per_channel": columns}


def channel_columns(found: Ledger) -> dict[str, list[Any]]:
    """Name → a value for each channel, in real units."""
    return {name: values.tolist() for name, values in found.figures().channels.items()}


def json_value(value: Any) -> Any:
    """`value`, or None for a number that JSON does not have."""
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
