"""The reduction: tasks of a plan measured by workers, results yielded as they come, each once.

A worker opens the array from its small description, reads block after block, and sends back statistics of kilobytes. A
window of tasks is under way at a time, so neither memory nor a scheduler fills up. A task whose worker is gone or hangs
is given out again, and the result that comes first is taken.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .calibration.identity import Identities, file_range, identities
from .calibration.layer import Layer, Selection
from .calibration.reader import Reader, open_reader
from .errors import ClusterError, DataError, LostError, NonFiniteError, first_line
from .interrupts import Deferred
from .plan import TASKS_IN_FLIGHT, Part, Plan, Task, blocks
from .rows import Rows, join_rows
from .statistics.extrema import ChannelExtrema
from .statistics.mean import ChannelMean
from .statistics.pieces import Accumulator
from .statistics.positions import PositionSums
from .statistics.spread import SampleSpread, SpreadOfParts
from .workers import Begun, Event, UnfitError, Workers, check_wanted, next_event

WAIT_SECONDS = 0.5
MOST_TRIES = 5
"""To get a result of a task out of workers that die or hang."""
STARTS_AGAIN = "what was counted is saved: start some, and run again"


@dataclass(frozen=True)
class Measured:
    """What was measured of the `rows` of a layer, and what identified their `files`, from the number `first_file` on.

    `filled` are the rows of what could not be read and was taken for the fill value. `spread`, and `positions`, whose
    channels are the elements of a sample in C order, are there where the layer wants them.
    """

    layer: str
    rows: Rows
    sums: ChannelMean
    extrema: ChannelExtrema
    first_file: int
    files: Identities
    filled: tuple[Rows, ...] = ()
    spread: SampleSpread | None = None
    positions: ChannelMean | None = None


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
    plan: Plan,
    layers: Mapping[str, Layer],
    workers: Workers,
    policy: Policy = Policy(),
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[tuple[Task, list[Found]], None, None]:
    """Measure every task of `plan` by `workers`; yields (task, results) in the order of completion, each task once.

    A window of tasks is given out at a time. Those whose workers are gone or take longer than they may are given out
    again; `tell` is given a sentence for the person then. Raises `DataError` where a block cannot be read, unless
    `policy` has another answer, `NonFiniteError` for NaN or infinities, `ClusterError` where there are no workers any
    more; what has not begun is cancelled then, as it is when the caller stops iterating.
    """
    window = _Window(plan.tasks, layers, workers, policy, tell)
    with Deferred(wake=lambda: workers.events.put(None)) as signals:
        try:
            while window.fill():
                event = next_event(workers.events, WAIT_SECONDS)
                signals.deliver()
                for task, (found, error) in window.take(event):
                    yield task, found
                    if error is not None:
                        raise error
        finally:
            window.close()


@dataclass
class _Given:
    """A task that is given out: for the how-manieth time, and since when which worker is at it."""

    task: Task
    tries: int
    begun: float | None = None
    worker: str = ""


class _Window:
    """The tasks that are given out at a time, by number; a task that is given out again has several numbers."""

    def __init__(
        self,
        tasks: Sequence[Task],
        layers: Mapping[str, Layer],
        workers: Workers,
        policy: Policy,
        tell: Callable[[str], None],
    ) -> None:
        self._waiting = iter(tasks)
        self._layers, self._policy, self._workers, self._tell = layers, policy, workers, tell
        self._limits = workers.cluster
        self._given: dict[int, _Given] = {}
        self._hung: dict[str, float] = {}  # workers that get no more tasks, until when
        self._unmanned_since: float | None = None
        self._last_result = time.monotonic()

    def fill(self) -> bool:
        """Give out tasks while there is room; False when there are none left."""
        room = TASKS_IN_FLIGHT * max(1, self._workers.threads()) - len(self._given)
        for task in itertools.islice(self._waiting, max(0, room)):
            self._give(_Given(task, tries=1))
        return bool(self._given)

    def _give(self, given: _Given) -> None:
        described = {part.layer: replace(self._layers[part.layer], quantization=None) for part in given.task.parts}
        number = self._workers.give(measure_task, given.task, described, self._policy, avoid=self._hung.keys())
        self._given[number] = given

    def take(self, event: Event | None) -> Iterator[tuple[Task, Reduced]]:
        """What `event` says: the result of a task, if it is the first of this task."""
        self._look_after()
        if event is None or event.number not in self._given:
            return
        given = self._given[event.number]
        if isinstance(event, Begun):
            if given.begun is not None and event.worker != given.worker:
                self._workers.repeats += 1
                self._tell(f"{_named(given.task)} is done again: worker {given.worker} is gone")
            given.begun, given.worker = time.monotonic(), event.worker
            return
        del self._given[event.number]
        if event.error is None:
            for twin in [number for number, other in self._given.items() if other.task is given.task]:
                del self._given[twin]
                self._workers.take_back(twin)
            self._last_result = time.monotonic()
            yield given.task, event.result
        elif isinstance(event.error, UnfitError):
            self._tell(f"{event.error}; it gets no more work")
            self._workers.shun(event.error.worker)
            self._give(_Given(given.task, given.tries))
        elif not event.lost:
            raise event.error
        elif not any(other.task is given.task for other in self._given.values()):
            self._give_again(given, first_line(event.error))

    def _look_after(self) -> None:
        """Give tasks that take too long to others. Raises `ClusterError` where there is nobody to give them to."""
        now = time.monotonic()
        if self._workers.threads():
            self._unmanned_since = None
        elif self._unmanned_since is None:
            self._unmanned_since = now
            self._tell(f"there are no workers; waiting for {self._limits.worker_timeout:g} s")
        elif now - self._unmanned_since > self._limits.worker_timeout:
            raise ClusterError(f"there were no workers for {self._limits.worker_timeout:g} s; {STARTS_AGAIN}")
        self._hung = {worker: until for worker, until in self._hung.items() if until > now}
        limit = self._limits.task_timeout
        for given in [*self._given.values()]:
            if given.begun is None or now - given.begun < limit:
                continue
            given.begun = math.inf  # it is told once
            said = f"{_named(given.task)} takes {given.worker} more than {limit:g} s"
            if not self._workers.can_give_again:
                self._tell(f"{said}; does its file system answer?")
                continue
            self._tell(f"{said}; another worker gets it, too")
            self._hung[given.worker] = now + limit
            self._give_elsewhere()
            self._give_again(given, f"it takes more than {limit:g} s")
        if self._workers.can_give_again and now - self._last_result > MOST_TRIES * limit:
            raise ClusterError(f"no worker had a result for {MOST_TRIES * limit:g} s; {STARTS_AGAIN}")

    def _give_again(self, given: _Given, why: str) -> None:
        if given.tries >= MOST_TRIES:
            raise ClusterError(
                f"{_named(given.task)} was given out {given.tries} times, and did not come back: {why}; look into the "
                "logs of the workers: do they have the memory that the plan says, and does the store answer?"
            )
        self._workers.repeats += 1
        self._give(_Given(given.task, given.tries + 1))

    def _give_elsewhere(self) -> None:
        """Give what is not begun to others: it may wait behind a task that hangs."""
        for number in [number for number, given in self._given.items() if given.begun is None]:
            self._workers.take_back(number)
            self._give(self._given.pop(number))

    def close(self) -> None:
        """Take back what is given out."""
        for number in self._given:
            self._workers.take_back(number)


def _named(task: Task) -> str:
    first = task.parts[0]
    more = f" and {len(task.parts) - 1} more" if len(task.parts) > 1 else ""
    return f"layer {first.layer}, rows {first.start}:{first.stop}{more},"


def measure_task(task: Task, layers: Mapping[str, Layer], policy: Policy) -> Reduced:
    """What a worker does for a task: measure its parts, one after the other, up to the first error."""
    found: list[Found] = []
    try:
        for part in task.parts:
            check_wanted()
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
    before = identities(layer, files) if layer.encoding is None else None  # so the next run notices later changes
    positions = PositionSums(layer.dtype.newbyteorder("="), layer.sample_shape) if "positions" in layer.extras else None
    with open_reader(layer, fill=fill or policy.missing == "fill") as reader:
        reader.expect((part.start, part.stop))
        measured = [
            _measure_channels(layer, reader, selections, stop - start, policy, positions, whole=not fill)
            for (start, stop), selections in blocks(layer, part)
        ] or [_measure_channels(layer, reader, (), 0, policy, positions, whole=True)]
        filled = join_rows(reader.filled)
        identified = identities(layer, files, reader.identified) if before is None else before
    sums, extrema, spreads = zip(*measured, strict=True)
    return Measured(
        layer.name,
        (part.start, part.stop),
        ChannelMean.join(sums),
        ChannelExtrema.join(extrema),
        files.start,
        identified,
        filled,
        SampleSpread.join(spreads) if "spread" in layer.extras else None,
        positions.found() if positions else None,
    )


def _measure_what_can_be_read(layer: Layer, part: Part, policy: Policy) -> Iterator[Found]:
    """The rows of `part`, a chunk's at a time: what is damaged takes no other rows with it."""
    height = (layer.encoding or layer).chunks[0]
    for start in range(part.start - part.start % height, part.stop, height):
        check_wanted()
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
    positions: PositionSums | None,
    *,
    whole: bool,
) -> tuple[ChannelMean, ChannelExtrema, SampleSpread]:
    """Measure the blocks `selections`; not `whole`: each is read before any of it is measured."""
    dtype, axis = layer.dtype.newbyteorder("="), layer.channel_axis
    accumulator, spread = Accumulator(dtype, channels), SpreadOfParts(dtype, channels)
    for selection in selections:
        check_wanted()
        if whole and not layer.extras:
            reader.measure(selection, accumulator)
        else:
            block = reader.read(selection)
            accumulator.add(block, axis)
            if "spread" in layer.extras:
                spread.add(block, axis, (selection[0].start, selection[0].stop))
            if positions:
                positions.add(block, selection[1:])
        if policy.nonfinite == "error" and not accumulator.all_finite:
            raise _nonfinite_error(layer, selection, reader.read(selection))
    measures = accumulator.measures()
    return ChannelMean.from_measures(measures), ChannelExtrema.from_measures(measures), spread.found()


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
