"""Statistics by `dask.array`, as users write them: in float32 and per channel, one compute for all that are asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
from measuring import Run
from stores import LayerSource, Source

BINS, RANGE = 2048, (-16, 16)  # the range must be known before the data is read
QUANTILES = [0.1, 50, 99.9]


@contextmanager
def computing(source: Source, threads: int, *wanted: str) -> Iterator[Callable[[], Run]]:
    """Build the graph and compute the statistics `wanted`, in each run."""

    def run() -> Run:
        start = time.perf_counter()
        computed(source, threads, *wanted)
        return Run(time.perf_counter() - start)

    yield run


def computed(source: Source, threads: int, *wanted: str) -> list[Any]:
    """The statistics `wanted` of each layer, in one compute."""
    with dask.config.set(scheduler="threads", num_workers=threads):
        statistics = [STATISTICS[name](*_values(source, layer)) for layer in source.layers for name in wanted]
        return list(dask.compute(statistics)[0])


def _values(source: Source, layer: LayerSource) -> tuple[Any, Sequence[int]]:
    """The real values of a layer, and its axes but that of the channels."""
    values = da.from_zarr(source.path, component=layer.name)
    if layer.step is not None:
        values = (values.astype("float32") - layer.zero_point) * layer.step
    return values, tuple(axis for axis in range(values.ndim) if axis != layer.channel_axis)


STATISTICS: dict[str, Callable[[Any, Sequence[int]], Any]] = {
    "mean": lambda values, axes: values.mean(axis=axes),
    "extrema": lambda values, axes: [values.min(axis=axes), values.max(axis=axes)],
    "magnitude": lambda values, axes: abs(values).mean(axis=axes),
    "squares": lambda values, axes: (values**2).mean(axis=axes),
    "histogram": lambda values, _: da.histogram(values, bins=BINS, range=RANGE)[0],
    "percentile": lambda values, _: da.percentile(values.ravel(), QUANTILES, internal_method="dask"),
    "tdigest": lambda values, _: da.percentile(values.ravel(), QUANTILES, internal_method="tdigest"),
}
