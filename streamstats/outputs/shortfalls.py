"""Shortfalls: layers that counted less than a job asks for, such as an expert of a network to which few tokens went.

`min_rows` of a job asks for that many rows, and for as many finite values in every channel of them.
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
    """What a layer counted, which is less than `min_rows`: its `rows`, and the fewest finite `values` of a `channel`.

    `channel` is None if the layer has no channels.
    """

    min_rows: int
    rows: int
    values: int
    channel: int | None

    @classmethod
    def of(cls, found: LayerStatistics, min_rows: int) -> Self | None:
        """What was counted of a layer if it is less than `min_rows`, or else None."""
        count = found.sums.count
        channel = int(count.argmin()) if len(count) else None
        values = found.rows if channel is None else int(count[channel])
        return cls(min_rows, found.rows, values, channel) if min(found.rows, values) < min_rows else None

    @property
    def reason(self) -> str:
        """What was found and what was expected."""
        if self.rows < self.min_rows:
            return f"{counted(self.rows, 'row')} counted; `min_rows` is {self.min_rows:,}"
        return f"channel {self.channel} has {counted(self.values, 'finite value')}; `min_rows` is {self.min_rows:,}"

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"rows": self.rows, "values": self.values, "channel": self.channel, "reason": self.reason}


def shortfalls(found: Mapping[str, LayerStatistics], min_rows: Mapping[str, int]) -> dict[str, Shortfall]:
    """The layers of `found` that have less than their `min_rows`, by name."""
    each = {layer: Shortfall.of(statistics, min_rows.get(layer, 0)) for layer, statistics in found.items()}
    return {layer: short for layer, short in each.items() if short is not None}
