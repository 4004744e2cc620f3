"""The reduction: tasks of a plan measured by workers, results yielded as they come.

Workers are threads of this process, or those of a dask client: both are reached as an executor of `concurrent.futures`,
so there is one path. A worker opens the array from its small description, reads block after block, and sends back
statistics of kilobytes. A window of tasks is under way at a time, so neither memory nor a scheduler fills up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .calibration.identity import Identities, file_range, identities
from .calibration.layer import Layer, Selection, decoding
from .calibration.reader import Reader, open_reader
from .errors import DataError, LostError, NonFiniteError
from .interrupts import Deferred
from .plan import TASKS_IN_FLIGHT, Part, Plan, Task, blocks
from .rows import Rows, join_rows
from .statistics.extrema import ChannelExtrema
from .statistics.mean import ChannelMean
from .statistics.pieces import Accumulator

_THREAD = threading.local()
WAIT_SECONDS = 0.5


class Client(Protocol):
    """What is needed of a `distributed.Client`."""

    def get_executor(self, **options: Any) -> Executor:
        """An executor whose workers are the client's."""


@dataclass(frozen=True)
class Measured:
    """What was measured of the `rows` of a layer, and what identified their `files`, from the number `first_file` on.

    `filled` are the rows of what could not be read and was taken for the fill value.
    """

    layer: str
    rows: Rows
    sums: ChannelMean
    extrema: ChannelExtrema
    first_file: int
    files: Identities
    filled: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class Unreadable:
    """Rows of a layer that cannot be read, and why; `lost` if their chunk is not there at all."""

    layer: str
    rows: Rows
    reason: str
    lost: bool


@dataclass(frozen=True)
class Policy:
    """What to do about NaN and infinities (error, skip), and about rows that cannot be read (error, report, fill)."""

    nonfinite: str = "error"
    missing: str = "error"


Found = Measured | Unreadable
Reduced = tuple[list[Found], DataError | None]
"""What was found in a task, and the error that ended it."""


def reduce_tasks(
    plan: Plan, layers: Mapping[str, Layer], executor: Executor, policy: Policy = Policy()
) -> Iterator[tuple[Task, list[Found]]]:
    """Measure every task of `plan` on the workers of `executor`; yields (task, results) in the order of completion.

    Raises `DataError` where a block cannot be read, unless `policy` has another answer, and `NonFiniteError` for NaN or
    infinities; what has not begun is cancelled then, as it is when the caller stops iterating.
    """
    waiting = iter(plan.tasks)
    tasks: dict[Future[Reduced], Task] = {}
    finished: SimpleQueue[Future[Reduced] | None] = SimpleQueue()

    def submit(number: int) -> None:
        for task in islice(waiting, number):
            described = {part.layer: layers[part.layer] for part in task.parts}
            future = executor.submit(measure_task, task, described, policy)
            tasks[future] = task
            future.add_done_callback(finished.put)

    with Deferred(wake=lambda: finished.put(None)) as signals:
        try:
            submit(plan.threads * TASKS_IN_FLIGHT)
            while tasks:
                future = _next(finished)
                signals.deliver()
                if future is None:
                    continue
                task = tasks.pop(future)
                submit(1)
                found, error = future.result()
                yield task, found
                if error is not None:
                    raise error
        finally:
            for future in tasks:
                future.cancel()


def _next(finished: SimpleQueue[Future[Reduced] | None]) -> Future[Reduced] | None:
    """What has finished next, or None after a while: a signal that comes right before the wait does not end it."""
    try:
        return finished.get(timeout=WAIT_SECONDS)
    except Empty:
        return None


def measure_task(task: Task, layers: Mapping[str, Layer], policy: Policy) -> Reduced:
    """What a worker does for a task: measure its parts, one after the other, up to the first error."""
    found: list[Found] = []
    try:
        for part in task.parts:
            _check_wanted()
            found.extend(_measure_under(policy, layers[part.layer], part))
    except DataError as error:
        return found, error
    return found, None


def _measure_under(policy: Policy, layer: Layer, part: Part) -> list[Found]:
    try:
        return [measure_part(layer, part, policy)]
    except NonFiniteError:
        raise
    except DataError:
        if policy.missing == "error":
            raise
        return [*_measure_what_can_be_read(layer, part, policy)]


def measure_part(layer: Layer, part: Part, policy: Policy, *, fill: bool = False) -> Measured:
    """Measure the rows of `part`, block by block; ranges of channels are measured apart and joined.

    With `fill`, what cannot be read has the fill value. Raises `DataError`, `NonFiniteError`.
    """
    files = file_range(layer, part.start, part.stop)
    identified = identities(layer, files)  # before reading: a change from here on is noticed by the next run
    with open_reader(layer, fill=fill or policy.missing == "fill") as reader:
        measured = [
            _measure_channels(layer, reader, selections, stop - start, policy, whole=not fill)
            for (start, stop), selections in blocks(layer, part)
        ] or [_measure_channels(layer, reader, (), 0, policy, whole=True)]
        filled = join_rows(reader.filled)
    sums, extrema = zip(*measured, strict=True)
    rows = part.start, part.stop
    return Measured(
        layer.name, rows, ChannelMean.join(sums), ChannelExtrema.join(extrema), files.start, identified, filled
    )


def _measure_what_can_be_read(layer: Layer, part: Part, policy: Policy) -> Iterator[Found]:
    """The rows of `part`, a chunk's at a time: what is damaged takes no other rows with it."""
    height = (layer.encoding or layer).chunks[0]
    for start in range(part.start - part.start % height, part.stop, height):
        _check_wanted()
        rows = replace(part, start=max(start, part.start), stop=min(start + height, part.stop))
        try:
            yield measure_part(layer, rows, policy, fill=policy.missing == "fill")
        except NonFiniteError:
            raise
        except DataError as error:
            yield Unreadable(layer.name, (rows.start, rows.stop), str(error), isinstance(error, LostError))


def _measure_channels(
    layer: Layer,
    reader: Reader,
    selections: Iterator[Selection] | Sequence[Selection],
    channels: int,
    policy: Policy,
    *,
    whole: bool,
) -> tuple[ChannelMean, ChannelExtrema]:
    """Measure the blocks `selections`; not `whole`: each is read before any of it is measured."""
    accumulator = Accumulator(layer.dtype.newbyteorder("="), channels)
    for selection in selections:
        _check_wanted()
        if whole:
            reader.measure(selection, accumulator)
        else:
            accumulator.add(reader.read(selection), layer.channel_axis)
        if policy.nonfinite == "error" and not accumulator.all_finite:
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
            with Deferred():
                stop.set()
                executor.shutdown(cancel_futures=True)


def _check_wanted() -> None:
    """End the work of this thread, by an error that nobody waits for, if it was told to stop."""
    stop: threading.Event | None = getattr(_THREAD, "stop", None)
    if stop is not None and stop.is_set():
        raise CancelledError
