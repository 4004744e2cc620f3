"""The account of a recording: every weight of the model, and whether what it multiplies was recorded, or why not.

A layer that no call reached, a module whose products stay inside torch, and a parameter of an unknown module are named,
so that nothing is skipped silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import counted
from ..account import told
from .parameters import Use

NEVER_CALLED = "never called"
ONLY_EMPTY = "called with empty inputs only"
ONLY_PADDING = "called with positions that the mask leaves out only"


@dataclass(frozen=True)
class LayerRecord:
    """What became of one weight: `rows` of its input recorded in this block, or the `reason` why none were.

    `op` is the class of its module. `skipped` says that it multiplies something that was asked for and not
    recorded. `use` says how the model multiplies by a parameter of no linear module, if it always does so in one way.
    """

    layer: str
    op: str
    rows: int = 0
    reason: str = ""
    skipped: bool = False
    use: Use | None = None

    @property
    def recorded(self) -> bool:
        """Whether its input was recorded, in full."""
        return self.rows > 0 and not self.reason

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "operator": self.op,
            "recorded": self.recorded,
            "rows": self.rows,
            "reason": self.reason,
            "skipped": self.skipped,
        }


class Account(Mapping[str, LayerRecord]):
    """`LayerRecord` of every weight of a model, by layer name. It is filled when the block of the recording ends.

    `padding` says how many positions the mask of the model's calls left out, and which argument it was; empty without.
    """

    def __init__(self) -> None:
        self._records: dict[str, LayerRecord] = {}
        self.padding = ""

    def __getitem__(self, layer: str) -> LayerRecord:
        return self._records[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        layers = [f"{each.layer} ({each.op}): {each.reason or counted(each.rows, 'row')}" for each in self.values()]
        return "\n".join([*layers, *filter(None, [self.padding])])

    def enter(self, record: LayerRecord) -> None:
        """Add `record`."""
        self._records[record.layer] = record

    @property
    def recorded(self) -> list[LayerRecord]:
        """The layers whose inputs were recorded."""
        return [each for each in self.values() if each.recorded]

    @property
    def skipped(self) -> list[LayerRecord]:
        """The weights that multiply something that was not recorded, though it was asked for."""
        return [each for each in self.values() if each.skipped]

    def document(self) -> list[dict[str, Any]]:
        """Its records, JSON-ready."""
        return [each.document() for each in self.values()]

    def warn(self) -> None:
        """Warn of what was skipped, if anything was; the reason of each is in its record."""
        left = self.skipped
        if not left:
            return
        reasons = told((each.layer, each.reason) for each in left)
        warnings.warn(f"{counted(len(left), 'weight')} of the model skipped: {reasons}", stacklevel=6)
