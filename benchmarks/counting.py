"""Counting a whole store by some workers, without a job: what is planned, and what it takes to count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamstats import LayerRule, LayerStatistics
from streamstats.calibration.layer import Layer
from streamstats.calibration.selection import select_layers
from streamstats.jobs.job import DEFAULT_MEMORY
from streamstats.jobs.measuring import Policy
from streamstats.jobs.plan import Plan
from streamstats.jobs.session import missing_rows, planned, reduce_layers
from streamstats.jobs.workers import Workers
from streamstats.progress import QUIET, Progress


@dataclass(frozen=True)
class Counting:
    """Layers that `workers` count with so much `memory`, none of them counted yet."""

    layers: tuple[Layer, ...]
    workers: Workers
    memory: int = DEFAULT_MEMORY

    @classmethod
    def of(cls, source: str, workers: Workers, rules: Sequence[LayerRule] = ()) -> Counting:
        """Those of the store at `source`."""
        return cls(select_layers(source, rules).layers, workers)

    def plan(self) -> Plan:
        """What is going to be done."""
        return planned(self.layers, missing_rows(self.layers, self._ledgers()), self.memory, self.workers)

    def count(self, progress: Progress = QUIET) -> dict[str, LayerStatistics]:
        """Plan it and do it."""
        ledgers = self._ledgers()
        wanted = missing_rows(self.layers, ledgers)
        done = reduce_layers(self.layers, ledgers, wanted, self.memory, self.workers, Policy(), progress)
        return done.statistics

    def _ledgers(self) -> dict[str, LayerStatistics]:
        return {layer.name: LayerStatistics.empty(layer) for layer in self.layers}
