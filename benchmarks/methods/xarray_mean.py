"""The same with names for the axes: `xarray.open_zarr(…)`, dequantised in float32, `mean(dim=…)`, threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import xarray as xr
import zarr
from measuring import Run, float64_means
from stores import LayerSource, Source


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """Open the store and compute the means, in each run."""

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
    values = _open(path, layer.name)
    if layer.step is not None:
        values = (values.astype("float32") - layer.zero_point) * layer.step
    return values.mean(dim=[name for axis, name in enumerate(values.dims) if axis != layer.channel_axis])


def _open(path: str, name: str) -> xr.DataArray:
    """As xarray opens it; around dask's array where the store does not name its axes, as xarray asks."""
    array: Any = zarr.open_group(path, mode="r")[name]
    if array.metadata.dimension_names is None:
        return xr.DataArray(da.from_zarr(path, component=name))
    return xr.open_zarr(path, consolidated=False)[name]
