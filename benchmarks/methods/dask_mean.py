"""The usual idiom: `dask.array.from_zarr(…)`, dequantised in float32, `mean`, threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
from measuring import Run, float64_means
from stores import LayerSource, Source


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """Build the graph and compute it, in each run."""

    def run() -> Run:
        start = time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=threads):
            means = dask.compute([_mean(source.path, layer) for layer in source.layers])[0]
        seconds = time.perf_counter() - start
        return Run(
            seconds,
            {layer.name: float64_means(mean) for layer, mean in zip(source.layers, means, strict=True)},
        )

    yield run


def _mean(path: str, layer: LayerSource) -> Any:
    values = da.from_zarr(path, component=layer.name)
    if layer.step is not None:
        values = (values.astype("float32") - layer.zero_point) * layer.step
    return values.mean(axis=tuple(axis for axis in range(values.ndim) if axis != layer.channel_axis))
