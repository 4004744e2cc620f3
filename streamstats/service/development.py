"""How the means of a layer developed while a job followed a store: a point for some of its result sets.

A point is a small file with the means and standard errors of all layers, float32 for drawing. At most MOST points are
retained, so that their rows grow by about the same factor from one to the next.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from ..outputs.documents import json_value
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.results import open_results
from ..storage.files import make_folders, remove, write_bytes
from ..storage.tensors import read_tensors, tensors_bytes
from .errors import NotFoundError

DEVELOPMENT = "development"
FORMAT = "streamstats.development/1"
MEAN, ERROR = "mean/", "standard_error/"
MOST = 24
Float32Array = npt.NDArray[np.float32]


class PointView(BaseModel):
    """A layer as result set `results` had it, written `at` that time (seconds since 1970), from `rows` rows.

    `apart` is the greatest difference, over all channels, of its mean from the newest mean, as a share of the layer's
    range; `mean` and `standard_error` are those of the channel that was asked for. None: unknown.
    """

    results: int
    at: float
    rows: int
    apart: float | None
    mean: float | None
    standard_error: float | None


class DevelopmentView(BaseModel):
    """How the mean of a channel, and all means together, developed; the points ascend by result set."""

    layer: str
    channel: int
    channels: int
    points: list[PointView]


@dataclass(frozen=True)
class Point:
    """The file of result set `results` in `folder`, with the rows of all layers together."""

    folder: Path
    results: int
    rows: int

    @property
    def path(self) -> Path:
        """Its name says what thinning asks for, so that no file is opened for that."""
        return self.folder / f"{self.results}-{self.rows}.safetensors"


def keep_point(job: Path, results: int, statistics: Mapping[str, LayerStatistics]) -> None:
    """Add the result set `results` to those of the job in the folder `job`. Raises `OutputError`."""
    folder = job / DEVELOPMENT
    make_folders([folder])
    added = Point(folder, results, sum(each.rows for each in statistics.values()))
    write_bytes(added.path, _content(statistics))
    found = points(job)
    while len(found) > MOST:
        gone = _densest(found)
        remove(gone.path)
        found.remove(gone)


def _content(statistics: Mapping[str, LayerStatistics]) -> bytes:
    tensors = {MEAN + layer: _single(each.mean) for layer, each in statistics.items()}
    errors = {layer: each.standard_error for layer, each in statistics.items()}
    tensors |= {ERROR + layer: _single(error) for layer, error in errors.items() if error is not None}
    rows = {layer: each.rows for layer, each in statistics.items()}
    return tensors_bytes(tensors, {"format": FORMAT, "at": repr(time.time()), "rows": json.dumps(rows)})


def _single(values: npt.NDArray[np.float64]) -> Float32Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def points(job: Path) -> list[Point]:
    """The points of the job in the folder `job`, by result set."""
    folder = job / DEVELOPMENT
    numbers = (each.stem.partition("-") for each in folder.glob("[0-9]*-[0-9]*.safetensors"))
    found = [Point(folder, int(results), int(rows)) for results, _, rows in numbers]
    return sorted(found, key=lambda each: each.results)


def _densest(found: Sequence[Point]) -> Point:
    """The point between whose neighbours rows grow by the least factor; never the first or the last."""
    growth = {
        found[place]: (found[place + 1].rows + 1) / (found[place - 1].rows + 1) for place in range(1, len(found) - 1)
    }
    return min(growth, key=lambda each: growth[each])


def development(job: Path, newest: Path, layer: str, channel: int) -> DevelopmentView:
    """How `channel` of `layer` developed in the job in the folder `job`, whose newest result set is in `newest`.

    Raises `NotFoundError`, `DataError`.
    """
    results = open_results(newest)
    if layer not in results.manifest.layers:
        raise NotFoundError(f"the results have no layer {layer[:200]!r}")
    now = results.statistics(layer)
    if channel >= now.channels:
        raise NotFoundError(f"layer {layer} has no channel {channel:,}; it has {now.channels:,} channels, from 0")
    found = [_view(point, now, channel) for point in points(job)]
    shown = [each for each in found if each is not None]
    return DevelopmentView(layer=layer, channel=channel, channels=now.channels, points=shown)


def _view(point: Point, now: LayerStatistics, channel: int) -> PointView | None:
    """What a point says of the layer `now`; None if it did not have the layer yet, or as something else."""
    tensors, metadata = read_tensors(point.path, FORMAT)
    mean = tensors.get(MEAN + now.layer)
    if mean is None or len(mean) != now.channels:
        return None
    error = tensors.get(ERROR + now.layer)
    return PointView(
        results=point.results,
        at=float(metadata["at"]),
        rows=json.loads(metadata["rows"])[now.layer],
        apart=json_value(_apart(mean, now)),
        mean=json_value(float(mean[channel])),
        standard_error=None if error is None else json_value(float(error[channel])),
    )


def _apart(mean: Float32Array, now: LayerStatistics) -> float:
    low, high = np.fmin.reduce(now.minimum, initial=np.nan), np.fmax.reduce(now.maximum, initial=np.nan)
    gaps = np.abs(mean - _single(now.mean))
    if not np.isfinite(gaps).any() or not high > low:
        return math.nan
    return float(np.nanmax(gaps) / (high - low))
