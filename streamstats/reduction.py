"""The reduction: tasks of a plan measured by dask workers, results yielded as they come. The only dask importer.

A worker opens the array from its small description, reads block after block, and sends back statistics of kilobytes. A window of tasks is under way at a time, so neither memory nor the scheduler fills up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
from distributed import Client, LocalCluster, as_completed

from .calibration.layer import Layer, decoding
from .calibration.reader import Reader, open_reader
from .errors import NonFiniteError
from .plan import TASKS_IN_FLIGHT, Part, Plan, Rows, Selection, Task, blocks
from .statistics.extrema import ChannelExtrema
from .statistics.mean import ChannelMean
from .statistics.pieces import Accumulator

@dataclass(frozen=True)
class Measured:
    """What was measured of the `rows` of a layer."""

    layer: str
    rows: Rows
    sums: ChannelMean
    extrema: ChannelExtrema


def reduce_tasks(
    plan: Plan, layers: Mapping[str, Layer], client: Client, *, nonfinite: str = "error"
) -> Iterator[tuple[Task, list[Measured]]]:
    """Measure every task of `plan` on the workers of `client`; yields (task, results) in the order of completion.

    `nonfinite` is "error" or "skip". Raises `DataError` where a block cannot be read, `NonFiniteError` for NaN or
    infinities under "error"; what is still under way is cancelled then, as it is when the caller stops iterating.
    """
    waiting = iter(plan.tasks)
    tasks: dict[Any, Task] = {}

    def submit(task: Task) -> Any:
        described = {part.layer: layers[part.layer] for part in task.parts}
        future = client.submit(measure_task, task, described, nonfinite, pure=False)
        tasks[future.key] = task
        return future

    window = [submit(task) for task in islice(waiting, plan.threads * TASKS_IN_FLIGHT)]
    completed = as_completed(window, loop=client.loop, with_results=True)
    del window
    try:
        for future, results in completed:
            task = tasks.pop(future.key)
            future.release()
            yield task, results
            for following in islice(waiting, 1):
                completed.add(submit(following))
    finally:
        client.cancel(list(completed.futures), force=True)


def measure_task(task: Task, layers: Mapping[str, Layer], nonfinite: str) -> list[Measured]:
    """What a worker does for a task: measure its parts, one after the other."""
    return [measure_part(layers[part.layer], part, nonfinite) for part in task.parts]


def measure_part(layer: Layer, part: Part, nonfinite: str) -> Measured:
    """Measure the rows of `part`, block by block; ranges of channels are measured apart and joined."""
    with open_reader(layer) as reader:
        measured = [
            _measure_channels(layer, reader, selections, stop - start, nonfinite)
            for (start, stop), selections in blocks(layer, part)
        ] or [_measure_channels(layer, reader, (), 0, nonfinite)]
    sums, extrema = zip(*measured, strict=True)
    return Measured(layer.name, (part.start, part.stop), ChannelMean.join(sums), ChannelExtrema.join(extrema))


def _measure_channels(
    layer: Layer, reader: Reader, selections: Iterator[Selection] | Sequence[Selection], channels: int, nonfinite: str
) -> tuple[ChannelMean, ChannelExtrema]:
    accumulator = Accumulator(layer.dtype.newbyteorder("="), channels)
    for selection in selections:
        block = reader.read(selection)
        accumulator.add(block, layer.channel_axis)
        if nonfinite == "error" and not accumulator.all_finite:
            raise _nonfinite_error(layer, selection, block)
    measures = accumulator.measures()
    return ChannelMean.from_measures(measures), ChannelExtrema.from_measures(measures)


def _nonfinite_error(layer: Layer, selection: Selection, block: npt.NDArray[Any]) -> NonFiniteError:
    bad = ~np.isfinite(block)
    found = bad.any(axis=tuple(axis for axis in range(1, block.ndim) if axis != layer.channel_axis))
    rows = np.flatnonzero(found.any(axis=1)) + selection[0].start
    channels = np.flatnonzero(found.any(axis=0)) + selection[layer.channel_axis].start
    more = f" and {len(channels) - 1} more" if len(channels) > 1 else ""
    return NonFiniteError(
        f"layer {layer.name}, channel {channels[0]}{more}, rows {rows[0]}:{rows[-1] + 1}: {bad.sum()} values are NaN "
        "or infinite; repair the data, or set `nonfinite: skip` to leave them out of sum and count"
    )


@contextmanager
def local_client(threads: int) -> Iterator[Client]:
    """A dask client whose workers are `threads` threads of this process; nothing listens beyond 127.0.0.1."""
    quiet = {
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.limit": "1h",
    }
    with dask.config.set(quiet), decoding(threads):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client
