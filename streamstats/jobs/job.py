"""A job as a value: what is counted, where the results go, and who does the work. A configuration becomes one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from ..calibration.selection import LayerRule
from ..coverage import Coverage, Rows
from .workers import Cluster, available_cores

DEFAULT_MEMORY = 2 * 2**30
"""Bytes."""
Nonfinite = Literal["error", "skip"]
Missing = Literal["error", "report", "fill"]
LOCAL = Cluster(threads=available_cores())
"""All cores, in this process."""


@dataclass(frozen=True)
class Job:
    """The statistics of the layers of the calibration store `source`, for the folder `output`.

    `rules` choose and describe layers (none: every array, as its attributes say). `memory` is in bytes, for each
    process. `nonfinite` says what to do about NaN and infinities, `missing` about chunks that are missing or damaged.
    Only `rows` are counted, if given.
    """

    source: str
    output: str
    rules: tuple[LayerRule, ...] = ()
    memory: int = DEFAULT_MEMORY
    nonfinite: Nonfinite = "error"
    missing: Missing = "error"
    rows: Rows | None = None
    cluster: Cluster = LOCAL

    def counting(self, *statistics: str) -> Self:
        """The same job, with these statistics counted for all layers."""
        rules = self.rules or (LayerRule("*"),)
        added = (replace(each, statistics=(*each.statistics, *statistics)) for each in rules)
        return replace(self, rules=tuple(added))

    def wanted(self, rows: int) -> Coverage:
        """Those of the first `rows` rows that the job wants."""
        return Coverage.first(rows) & Coverage.of([self.rows or (0, rows)])
