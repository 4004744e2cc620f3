"""Counting all rows of some layers by workers, without a job."""

from __future__ import annotations

from collections.abc import Sequence

from streamstats import LayerStatistics
from streamstats.calibration.layer import Layer
from streamstats.jobs.job import DEFAULT_MEMORY
from streamstats.jobs.measuring import Policy
from streamstats.jobs.plan import Plan
from streamstats.jobs.session import Outcome, missing_rows, planned, reduce_layers
from streamstats.jobs.workers import Workers
from streamstats.progress import QUIET, Progress


def count_all(layers: Sequence[Layer], workers: Workers, progress: Progress = QUIET) -> Outcome:
    """What `reduce` does with these layers and workers."""
    ledgers = {layer.name: LayerStatistics.empty(layer) for layer in layers}
    wanted = missing_rows(layers, ledgers)
    return reduce_layers(layers, ledgers, wanted, DEFAULT_MEMORY, workers, Policy(), progress)


def planned_all(layers: Sequence[Layer], workers: Workers) -> Plan:
    """The plan that it makes."""
    ledgers = {layer.name: LayerStatistics.empty(layer) for layer in layers}
    return planned(layers, missing_rows(layers, ledgers), DEFAULT_MEMORY, workers)
