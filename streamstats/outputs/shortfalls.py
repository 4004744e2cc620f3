"""Shortfalls: layers that counted less than `min_rows`, such as an expert that received few tokens.

A layer needs at least `min_rows` rows, and as many finite values in every channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..errors import counted
from .layer_statistics import LayerStatistics

REMEDY = "record more samples and run again, or lower `min_rows`"


@dataclass(frozen=True)
class Shortfall:
    """What a layer below `min_rows` counted: its `rows`, and the finite `values` of the `channel` that has the fewest.

    `channel` is None, and `values` is the number of rows, if the layer has no channels.
    """

    min_rows: int
    rows: int
    values: int
    channel: int | None

    @classmethod
    def of(cls, found: LayerStatistics, min_rows: int) -> Self | None:
        """The shortfall of the layer `found`; None if it has enough."""
        count = found.sums.count
        channel = int(count.argmin()) if len(count) else None
        values = found.rows if channel is None else int(count[channel])
        return cls(min_rows, found.rows, values, channel) if min(found.rows, values) < min_rows else None

    @property
    def reason(self) -> str:
        """What was counted and what was expected, without the layer's name."""
        if self.rows < self.min_rows:
            return f"{counted(self.rows, 'row')} counted; `min_rows` is {self.min_rows:,}"
        return f"channel {self.channel} has {counted(self.values, 'finite value')}; `min_rows` is {self.min_rows:,}"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"rows": self.rows, "values": self.values, "channel": self.channel, "reason": self.reason}


def shortfalls(found: Mapping[str, LayerStatistics], min_rows: Mapping[str, int]) -> dict[str, Shortfall]:
    """The shortfalls of the layers in `found` that are below their `min_rows` (default: 0), by name."""
    each = {layer: Shortfall.of(statistics, min_rows.get(layer, 0)) for layer, statistics in found.items()}
    return {layer: short for layer, short in each.items() if short is not None}
