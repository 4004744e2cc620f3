"""The plan: which rows are still to be counted, as tasks, and the peak memory they need. Pure: it reads no data.

A task is a list of parts; a part is a range of rows of one layer, cut at the borders of shards or chunks. Small
layers share a task, so the number of tasks follows the bytes. Within a part, blocks of whole chunks are read one
after the other into one buffer a thread; no block is larger than the plan allows, so memory can be promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ..calibration.identity import file_count, files_a_row
from ..calibration.layer import Layer, Selection
from ..calibration.sources.identities import IDENTITY_BYTES
from ..calibration.zarr_settings import FETCHES
from ..coverage import EMPTY, Coverage
from ..errors import UsageError
from ..statistics.pieces import NARROWEST
from ..statistics.statistics import state_bytes, working_bytes

MiB = 2**20
BASE_BYTES = 300 * MiB
"""What Python takes with numpy and zarr loaded, and with numba where the loops are compiled for the first time."""
BLOCK_BYTES = 16 * MiB
"""Decoded bytes read at once: many chunks a call, in a buffer that is used again."""
TASK_BYTES = 256 * MiB
"""Decoded bytes of a task, at most: enough to hide what a task costs, few enough to show progress."""
SMALLEST_TASK_BYTES = 16 * MiB
"""A task takes two thirds of a thread's share of what is left, so that all threads end together, but not less."""
SCHEDULED_BYTES = 4 * MiB
"""Decoded bytes of a task for each thread of the cluster, at least: a dask scheduler gives out some 300 tasks a second,
and a thread decodes about 1 GB in one."""
CROWD = 16
"""More threads than this are a crowd that a scheduler feels."""
MOST_TASKS = 20_000
"""A huge job is cut into about this many tasks, however large they get: a scheduler bears no more."""
RESULT_BYTES = MiB
"""What the results of a task may take, if one layer's alone do not take more: many tiny layers do not share one."""
TASKS_IN_FLIGHT = 3
"""Tasks a thread that are submitted and not yet merged."""
ZARR_COPIES = 3
"""Times that zarr holds a chunk while it reads it, beside the block it goes to."""
STATE_COPIES = 4
"""Times the state of a layer, and what identifies its files, is held while results are merged and written."""
MOST_JOINED_BYTES = 8 * NARROWEST
"""The most that several rows which are taken as one have."""


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of the layer called `layer`, read in blocks of at most `block_shape`."""

    layer: str
    start: int
    stop: int
    block_shape: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Parts that one worker reduces one after the other; `bytes` is their decoded size."""

    parts: tuple[Part, ...]
    bytes: int

    @property
    def rows(self) -> int:
        """Rows of all its parts."""
        return sum(part.stop - part.start for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """Tasks in order, the threads of a process that take them, and what the job adds up to.

    `bytes` are decoded; `block_bytes` is the largest block and `peak_bytes` the most memory a process will take.
    """

    tasks: tuple[Task, ...]
    threads: int
    rows: int
    bytes: int
    block_bytes: int
    peak_bytes: int


def make_plan(
    layers: Sequence[Layer],
    missing: Mapping[str, Coverage],
    *,
    memory: int,
    threads: int,
    processes: int = 1,
) -> Plan:
    """Plan the `missing` rows (layer name → rows) of `layers` for at most `threads` threads in
    each of the `processes`.

    `memory` is the budget of a process in bytes; fewer threads are planned where it does not suffice for all. Raises
    `UsageError` where it does not suffice for one chunk of a layer, which is named.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}; expected at least 1")
    threads, block_budget = _fit(layers, memory, threads)
    shapes = {layer.name: _block_shape(layer, block_budget) for layer in layers}
    rows = {layer.name: len(missing.get(layer.name, EMPTY)) for layer in layers}
    cost = sum(rows[layer.name] * _row_cost(layer) for layer in layers)
    return Plan(
        tasks=tuple(_tasks(layers, missing, shapes, cost, threads * processes)),
        threads=threads,
        rows=sum(rows.values()),
        bytes=sum(rows[layer.name] * layer.row_bytes for layer in layers),
        block_bytes=max((_size(layer, shapes[layer.name]) for layer in layers), default=0),
        peak_bytes=_peak(layers, threads, block_budget),
    )


def blocks(layer: Layer, part: Part) -> Iterator[Selection]:
    """The blocks of `part`, those of a range of channels one after the other, and so those of a range of rows."""
    samples = [
        list(_cuts(range(extent), step)) for extent, step in zip(layer.shape[1:], part.block_shape[1:], strict=True)
    ]
    for channels in samples[layer.channel_axis - 1]:
        chosen = [[channels] if axis == layer.channel_axis else cuts for axis, cuts in enumerate(samples, start=1)]
        for rows in _cuts(range(part.start, part.stop), part.block_shape[0]):
            for rest in product(*chosen):
                yield rows, *rest


def _cuts(axis: range, step: int) -> Iterator[slice]:
    """Cut `axis` at the multiples of `step`, which are borders of chunks."""
    start = axis.start
    while start < axis.stop:
        stop = min(axis.stop, (start // step + 1) * step)
        yield slice(start, stop)
        start = stop


# Tasks


def _tasks(
    layers: Sequence[Layer],
    missing: Mapping[str, Coverage],
    shapes: Mapping[str, tuple[int, ...]],
    total: int,
    threads: int,
) -> Iterator[Task]:
    """Put neighbouring parts together until a task is full; what is full gets less towards the end.

    `total` is what all rows cost: their bytes, and those that opening their files is worth.
    """
    rows_bytes = {layer.name: layer.row_bytes for layer in layers}
    result_bytes = _result_bytes(layers)
    waiting: list[Part] = []
    cost = results = 0
    left = total
    full = _full_task(total, left, threads)
    for layer in layers:
        for start, stop in missing.get(layer.name, EMPTY).ranges:
            while start < stop:
                part = _part(layer, start, stop, shapes[layer.name], full, cost)
                part_cost = (part.stop - part.start) * _row_cost(layer)
                if waiting and (cost + part_cost > full or results + _state_bytes(layer) > result_bytes):
                    yield _task(waiting, rows_bytes)
                    left -= cost
                    waiting, cost, results = [], 0, 0
                    full = _full_task(total, left, threads)
                    continue
                waiting.append(part)
                cost += part_cost
                results += _state_bytes(layer)
                start = part.stop
    if waiting:
        yield _task(waiting, rows_bytes)


def _task(parts: Sequence[Part], row_bytes: Mapping[str, int]) -> Task:
    return Task(tuple(parts), sum((part.stop - part.start) * row_bytes[part.layer] for part in parts))


def _row_cost(layer: Layer) -> int:
    """Decoded bytes of a row, and those that take as long as opening its share of files."""
    return layer.row_bytes + layer.source.opening_bytes * files_a_row(layer) // layer.shards[0]


def _full_task(total: int, left: int, threads: int) -> int:
    """What the next task may cost, where `left` of `total` are still to be given to one."""
    least = max(SMALLEST_TASK_BYTES, SCHEDULED_BYTES * threads if threads > CROWD else 0, total // MOST_TASKS)
    return max(least, min(TASK_BYTES, 2 * left // (3 * threads)))


def _part(layer: Layer, start: int, stop: int, block_shape: tuple[int, ...], full: int, taken: int) -> Part:
    """Rows from `start` on for a task that is `full`, so much of it `taken`: whole shards, or chunks of large shards.

    At least one of them, whether it fits or not.
    """
    height = layer.shards[0] if layer.shards[0] * _row_cost(layer) <= full else layer.chunks[0]
    number = max(1, (full - taken) // max(1, height * _row_cost(layer)))
    return Part(layer.name, start, min(stop, (start // height + number) * height), block_shape)


# Memory


def _fit(layers: Sequence[Layer], memory: int, threads: int) -> tuple[int, int]:
    """The most threads, and for them the largest block, that `memory` allows: (threads, block bytes)."""
    for fewer in range(threads, 0, -1):
        for halvings in range(BLOCK_BYTES.bit_length()):
            if _peak(layers, fewer, BLOCK_BYTES >> halvings) <= memory:
                return fewer, BLOCK_BYTES >> halvings
    raise UsageError(_why_it_does_not_fit(layers, memory))


def _peak(layers: Sequence[Layer], threads: int, block_budget: int) -> int:
    states = STATE_COPIES * sum(_state_bytes(layer) + IDENTITY_BYTES * file_count(layer) for layer in layers)
    in_flight = threads * TASKS_IN_FLIGHT * _result_bytes(layers)
    each = zip(*(_reading_bytes(layer, block_budget) for layer in layers), strict=True)
    reading: int = threads * sum(
        max(of_one_kind) for of_one_kind in each
    )  # a thread keeps its buffers from layer to layer
    accumulating = threads * max((_working_bytes(layer, block_budget) for layer in layers), default=0)
    return BASE_BYTES + states + in_flight + reading + accumulating


def _why_it_does_not_fit(layers: Sequence[Layer], memory: int) -> str:
    needed = _peak(layers, 1, 1)
    if not layers:
        return f"memory is {memory // MiB} MiB, but at least {-(-needed // MiB)} MiB are needed for the program alone"
    largest = max(layers, key=lambda layer: sum(_reading_bytes(layer, 1)))
    return (
        f"memory is {memory // MiB} MiB, but at least {-(-needed // MiB)} MiB are needed: "
        f"{BASE_BYTES // MiB} MiB for the program, {sum(_reading_bytes(largest, 1)) / MiB:.1f} MiB to decode one chunk "
        f"{largest.chunks} of layer {largest.name}, the rest for the sums of {len(layers)} layers and the identity of "
        f"their files; set `memory` to {-(-needed // MiB)}MiB or more, or store the layer in smaller chunks"
    )


def _reading_bytes(layer: Layer, block_budget: int) -> tuple[int, int, int, int]:
    """What a thread holds to read `layer`: a block, stored bytes, a chunk that is not wanted whole, copies of zarr."""
    shape, encoding = _block_shape(layer, block_budget), layer.encoding
    block, chunk = _size(layer, shape), _size(layer, layer.chunks)
    if encoding is None:
        whole_shards = all(
            n >= min(shard, extent) for n, shard, extent in zip(shape, layer.shards, layer.shape, strict=True)
        )
        unit = _size(layer, layer.shards) if whole_shards else chunk
        return block, 0, 0, ZARR_COPIES * FETCHES * unit
    fetched = _fetched_bytes(layer)
    gathered = encoding.gathered_bytes
    if encoding.is_raw:
        return block, encoding.index_bytes + fetched + gathered, shape[0] * chunk + gathered, 0
    number = max(1, block // chunk) if encoding.index_bytes else 1  # without shards, a file at a time
    unpacked = 2 * chunk if encoding.compressor in ("gzip", "zlib") else 0  # which do not decode in place
    streamed = chunk + min(chunk, layer.row_bytes) + MOST_JOINED_BYTES  # with what is left of the chunk before
    stored = encoding.index_bytes + fetched + max(gathered, number * encoding.most_stored_bytes)
    return block, stored, streamed + unpacked, 0


def _fetched_bytes(layer: Layer) -> int:
    """Objects in memory: the one that is read, and those that are fetched ahead."""
    return layer.source.fetched_bytes(layer.encoding.most_file_bytes) if layer.encoding else 0


def _block_shape(layer: Layer, budget: int) -> tuple[int, ...]:
    """Whole chunks, grown over whole samples and then over rows, as far as `budget` bytes allow; at least one chunk.

    Axes that a statistic of the layer must have uncut are whole, whatever the budget.
    """
    shape = [max(1, min(chunk, extent)) for chunk, extent in zip(layer.chunks, layer.shape, strict=True)]
    for axis in _uncut(layer):
        shape[axis] = max(1, layer.shape[axis])
    for axis in (*range(len(shape) - 1, 0, -1), 0):
        others = prod(shape) // shape[axis] * layer.dtype.itemsize
        if others * shape[axis] > budget:
            continue
        whole = layer.chunks[axis] * (budget // (others * layer.chunks[axis]))
        if whole > layer.shards[axis]:
            whole -= whole % layer.shards[axis]
        shape[axis] = max(shape[axis], min(whole, max(1, layer.shape[axis])))
    return tuple(shape)


def _uncut(layer: Layer) -> set[int]:
    """The axes of the array that a block must have whole."""
    named = {name for kind in layer.kinds for name in kind.uncut}
    space = set(range(1, len(layer.shape))) - {layer.channel_axis} if "space" in named else set()
    return space | ({layer.channel_axis} if "channels" in named else set())


def _size(layer: Layer, shape: Sequence[int]) -> int:
    return prod(shape) * layer.dtype.itemsize


def _result_bytes(layers: Sequence[Layer]) -> int:
    """The most that the results of one task take."""
    return max([RESULT_BYTES, *map(_state_bytes, layers)])


def _state_bytes(layer: Layer) -> int:
    return state_bytes(layer.kinds, layer.space)


def _working_bytes(layer: Layer, block_budget: int) -> int:
    return working_bytes(layer.kinds, layer.space, _block_shape(layer, block_budget))
