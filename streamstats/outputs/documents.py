"""Results as documents for JSON: what the command line prints with `--json` and the service answers.

JSON has no NaN and no infinities: they become null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .ledger import LayerStatistics

Float64Array = npt.NDArray[np.float64]


def layers_document(statistics: Mapping[str, LayerStatistics]) -> dict[str, Any]:
    """What was counted of each layer, and the ends of its ranges."""
    return {layer: layer_document(found) for layer, found in statistics.items()}


def layer_document(found: LayerStatistics) -> dict[str, Any]:
    """What was counted of a layer, and the ends of its ranges, in real units."""
    return {
        **found.document(),
        "least_mean": json_number(least(found.mean)),
        "greatest_mean": json_number(greatest(found.mean)),
        "minimum": json_number(least(found.minimum)),
        "maximum": json_number(greatest(found.maximum)),
    }


def channels_document(found: LayerStatistics) -> dict[str, Any]:
    """The same, with the lists `per_channel`: mean, minimum, maximum (real units), count, NaN and infinities."""
    columns = {name: [json_number(value) for value in values] for name, values in channel_columns(found).items()}
    return {"layer": found.layer, **layer_document(found), "per_channel": columns}


def channel_columns(found: LayerStatistics) -> dict[str, list[float] | list[int]]:
    """A list for each of the statistics of a channel."""
    sums = found.sums
    return {
        "mean": found.mean.tolist(),
        "minimum": found.minimum.tolist(),
        "maximum": found.maximum.tolist(),
        "count": sums.count.tolist(),
        "nan": sums.nan.tolist(),
        "infinite": sums.infinite.tolist(),
    }


def json_number(value: float | int) -> float | int | None:
    """`value`, or None for what JSON does not have."""
    return value if math.isfinite(value) else None


def least(values: Float64Array) -> float:
    """The least of `values` that are numbers, NaN where none is."""
    return float(np.fmin.reduce(values, initial=np.nan))


def greatest(values: Float64Array) -> float:
    """The greatest of `values` that are numbers, NaN where none is."""
    return float(np.fmax.reduce(values, initial=np.nan))
