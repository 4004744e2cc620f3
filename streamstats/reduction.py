"""The reduction: tasks of a plan measured by workers, results yielded as they come.

Workers are threads of this process, or those of a dask client: both are reached as an executor of `concurrent.futures`,
so there is one path. A worker opens the array from its small description, reads block after block, and sends back
statistics of kilobytes. A window of tasks is under way at a time, so neither memory nor a scheduler fills up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .calibration.layer import Layer, decoding
from .calibration.reader import Reader, open_reader
from .errors import NonFiniteError
from .plan import TASKS_IN_FLIGHT, Part, Plan, Rows, Selection, Task, blocks
from .statistics.extrema import ChannelExtrema
from .statistics.mean import ChannelMean
from .statistics.pieces import Accumulator

_THREAD = threading.local()


class Client(Protocol):
    """What is needed of a `distributed.Client`."""

    def get_executor(self, **options: Any) -> Executor:
        """An executor whose workers are the client's."""


@dataclass(frozen=True)
class Measured:
    """What was measured of the `rows` of a layer."""

    layer: str
    rows: Rows
    sums: ChannelMean
    extrema: ChannelExtrema


def reduce_tasks(
    plan: Plan, layers: Mapping[str, Layer], executor: Executor, *, nonfinite: str = "error"
) -> Iterator[tuple[Task, list[Measured]]]:
    """Measure every task of `plan` on the workers of `executor`; yields (task, results) in the order of completion.

    `nonfinite` is "error" or "skip". Raises `DataError` where a block cannot be read, `NonFiniteError` for NaN or
    infinities under "error"; what has not begun is cancelled then, as it is when the caller stops iterating.
    """
    waiting = iter(plan.tasks)
    tasks: dict[Future[list[Measured]], Task] = {}

    def submit(number: int) -> None:
        for task in islice(waiting, number):
            described = {part.layer: layers[part.layer] for part in task.parts}
            tasks[executor.submit(measure_task, task, described, nonfinite)] = task

    try:
        submit(plan.threads * TASKS_IN_FLIGHT)
        while tasks:
            for future in wait(tasks, return_when=FIRST_COMPLETED).done:
                task = tasks.pop(future)
                submit(1)
                yield task, future.result()
    finally:
        for future in tasks:
            future.cancel()


def measure_task(task: Task, layers: Mapping[str, Layer], nonfinite: str) -> list[Measured]:
    """What a worker does for a task: measure its parts, one after the other."""
    measured = []
    for part in task.parts:
        _check_wanted()
        measured.append(measure_part(layers[part.layer], part, nonfinite))
    return measured


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
        _check_wanted()
        reader.measure(selection, accumulator)
        if nonfinite == "error" and not accumulator.all_finite:
            raise _nonfinite_error(layer, selection, reader.read(selection))
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
def open_executor(threads: int, client: Client | None) -> Iterator[Executor]:
    """The workers of `client`; without one, `threads` threads of this process."""
    if client is not None:
        with client.get_executor(pure=False) as executor:
            yield executor
        return
    stop = threading.Event()
    executor = ThreadPoolExecutor(threads, "streamstats", initializer=setattr, initargs=(_THREAD, "stop", stop))
    with decoding(threads):
        try:
            yield executor
        finally:
            stop.set()
            executor.shutdown(cancel_futures=True)


def _check_wanted() -> None:
    """End the work of this thread, by an error that nobody waits for, if it was told to stop."""
    stop: threading.Event | None = getattr(_THREAD, "stop", None)
    if stop is not None and stop.is_set():
        raise CancelledError
