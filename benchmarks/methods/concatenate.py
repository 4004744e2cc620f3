"""What calibration scripts do: read batches, concatenate them, dequantise to float32, `np.mean`.

It holds everything at once, several times over, so it gets the first rows only: `CONCATENATED_BYTES` decoded
of each store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from measuring import Run, float64_means
from stores import LayerSource, Source, layer_shapes

BATCH = 64
CONCATENATED_BYTES = 500_000_000


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:  # noqa: ARG001 - numpy decides on its threads
    """Read, concatenate, dequantise and average, in each run."""
    rows = rows_that_fit(source)

    def run() -> Run:
        start = time.perf_counter()
        group = zarr.open_group(source.path, mode="r")
        means = {layer.name: _mean(group[layer.name], layer, rows[layer.name]) for layer in source.layers}
        return Run(time.perf_counter() - start, means, rows)

    yield run


def rows_that_fit(source: Source) -> dict[str, int]:
    """Layer → the first rows that are read: whole batches, the same share of each layer."""
    shapes = layer_shapes(source)
    share = min(1.0, CONCATENATED_BYTES / sum(size for _, size in shapes.values()))
    return {name: _rows(shape[0], share) for name, (shape, _) in shapes.items()}


def _rows(rows: int, share: float) -> int:
    return rows if share == 1.0 else min(rows, BATCH * max(1, round(rows * share / BATCH)))


def _mean(array: Any, layer: LayerSource, rows: int) -> npt.NDArray[np.float64]:
    codes = np.concatenate([array[start : min(start + BATCH, rows)] for start in range(0, rows, BATCH)])
    values = codes if layer.step is None else (codes.astype(np.float32) - layer.zero_point) * np.float32(layer.step)
    axes = tuple(axis for axis in range(values.ndim) if axis != layer.channel_axis)
    return float64_means(np.mean(values, axis=axes))
