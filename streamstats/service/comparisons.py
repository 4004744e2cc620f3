"""Comparing the results of two jobs: what `streamstats compare` finds, and the same channel by channel.

Differences are those of the second job from the first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from ..errors import UsageError
from ..jobs.compare import LayerComparison, compare
from ..outputs.distances import ByChannel, mean_distances
from ..outputs.documents import json_value
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.results import open_results
from ..statistics.spread import SampleSpread
from ..storage.names import network_order
from .errors import NotFoundError

Values = list[float | None]


class Side(BaseModel):
    """One of the two: a job, and the number of its result set."""

    job: str
    results: int


class DistanceView(BaseModel):
    """The greatest distance over the channels of a layer, None for infinity, and the first channel that has it."""

    value: float | None
    channel: int


class DistancesView(BaseModel):
    """How far apart a layer is in the two, as `streamstats compare` says it."""

    comparable: bool
    in_standard_errors: bool
    worst_mean: DistanceView | None
    mean_in_standard_errors: DistanceView | None
    mean_in_ranges: DistanceView | None
    beyond_first: DistanceView | None
    beyond_second: DistanceView | None
    total_variation: float | None
    kolmogorov_smirnov: float | None
    one_sided: list[int]


class LayerComparisonView(BaseModel):
    """A layer in both: whether it is equal to the bit and, if not, what differs."""

    layer: str
    equal: bool
    only_in: Literal["first", "second"] | None
    same_rows: bool
    same_stores: bool
    rows: tuple[int, int]
    values: tuple[int, int]
    differing: list[str]
    described: dict[str, tuple[Any, Any]]
    apart: DistancesView | None


class ComparisonView(BaseModel):
    """Two jobs, layer by layer in the network's order."""

    first: Side
    second: Side
    equal: bool
    same_rows: bool
    same_stores: bool
    layers: list[LayerComparisonView]


class ChannelComparisonView(BaseModel):
    """A layer of two jobs, channel by channel; None where a value is unknown.

    `difference` is second − first in real units; `in_standard_errors` is its magnitude over the standard error of the
    difference, which both jobs must have counted the statistic `standard_errors_need` for; `in_ranges` is its magnitude
    as a share of the layer's range.
    """

    first: Side
    second: Side
    layer: str
    rows: tuple[int, int]
    mean: tuple[Values, Values]
    standard_error: tuple[Values | None, Values | None]
    difference: Values
    in_standard_errors: Values
    standard_errors_need: str = SampleSpread.name
    in_ranges: Values


def comparison(first: Side, second: Side, folders: tuple[Path, Path]) -> ComparisonView:
    """The layers of two result sets. Raises `DataError` for a damaged file."""
    found = compare(*folders)
    order = _order(folders)
    layers = sorted(found.layers, key=lambda each: order[each.layer])
    return ComparisonView(
        first=first,
        second=second,
        equal=found.equal,
        same_rows=found.same_rows,
        same_stores=found.same_stores,
        layers=[_layer(each) for each in layers],
    )


def _order(folders: tuple[Path, Path]) -> dict[str, tuple[object, ...]]:
    """Layer → its place in the network; the second job's word counts for layers that both have."""
    entries = {name: entry for folder in folders for name, entry in open_results(folder).manifest.layers.items()}
    return {name: network_order(entry.order, name) for name, entry in entries.items()}


def _layer(found: LayerComparison) -> LayerComparisonView:
    return LayerComparisonView.model_validate(found.document())


def channel_comparison(first: Side, second: Side, folders: tuple[Path, Path], layer: str) -> ChannelComparisonView:
    """A layer of two result sets. Raises `NotFoundError` unless both have it, `UsageError` for other channels."""
    mine, theirs = (_statistics(folder, layer, side) for folder, side in zip(folders, (first, second), strict=True))
    if mine.channels != theirs.channels:
        raise UsageError(
            f"layer {layer} has {mine.channels:,} channels in job {first.job} and {theirs.channels:,} in job "
            f"{second.job}; compare jobs whose layers have the same channels"
        )
    in_errors, in_ranges = mean_distances(mine, theirs)
    return ChannelComparisonView(
        first=first,
        second=second,
        layer=layer,
        rows=(mine.rows, theirs.rows),
        mean=(_values(mine.mean), _values(theirs.mean)),
        standard_error=(_errors(mine), _errors(theirs)),
        difference=_values(theirs.mean - mine.mean),
        in_standard_errors=_by_channel(in_errors, mine.channels),
        in_ranges=_by_channel(in_ranges, mine.channels),
    )


def _statistics(folder: Path, layer: str, side: Side) -> LayerStatistics:
    results = open_results(folder)
    if layer not in results.manifest.layers:
        raise NotFoundError(f"the results of job {side.job} have no layer {layer[:200]!r}")
    return results.statistics(layer)


def _errors(found: LayerStatistics) -> Values | None:
    return None if found.standard_error is None else _values(found.standard_error)


def _values(values: npt.NDArray[np.float64]) -> Values:
    return [json_value(value) for value in values.tolist()]


def _by_channel(found: ByChannel, channels: int) -> Values:
    return [json_value(found.get(channel)) for channel in range(channels)]
