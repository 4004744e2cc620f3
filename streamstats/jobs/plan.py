"""The plan: the rows that remain to count, as tasks, and the peak memory they need. Pure: it reads no data.

A task is a list of parts; a part is a range of rows of one layer, cut at shard or chunk boundaries. Small layers share
a task, so the number of tasks follows the bytes. Within a part, blocks of whole chunks are read one after the other
into one buffer per thread; no block is larger than the plan allows, so the plan can promise a memory limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ..calibration.identity import file_count, files_a_row
from ..calibration.layer import Layer, Selection
from ..calibration.masking import mask_selection
from ..calibration.sources.identities import IDENTITY_BYTES
from ..calibration.zarr_settings import FETCHES
from ..coverage import EMPTY, Coverage
from ..errors import UsageError, counted
from ..statistics.pieces import NARROWEST
from ..statistics.statistics import cut_bytes, cuts_of, operations, state_bytes, working_bytes

MiB = 2**20
BASE_BYTES = 300 * MiB
"""Memory of Python with numpy and zarr loaded, and with numba when the loops are compiled for the first time."""
BLOCK_BYTES = 16 * MiB
"""Decoded bytes of a block: many chunks per call, in a buffer that is reused."""
TASK_BYTES = 256 * MiB
"""Maximum decoded bytes of a task: enough to hide its overhead, few enough to show progress."""
SMALLEST_TASK_BYTES = 16 * MiB
"""Minimum decoded bytes of a task. Above it, a task takes two thirds of a thread's share of the bytes that are left,
so that all threads finish together."""
SCHEDULED_BYTES = 4 * MiB
"""Minimum decoded bytes of a task, per thread of a large cluster: a dask scheduler starts some 300 tasks per second,
and a thread decodes about 1 GB per second."""
CROWD = 16
"""Threads that a scheduler serves without effort, whatever the size of the tasks."""
MOST_TASKS = 20_000
"""Approximate maximum of tasks in a job, however large they become: a scheduler cannot handle more."""
RESULT_BYTES = MiB
"""Maximum bytes of a task's results, unless one layer alone has more: it limits how many tiny layers share a task."""
TASKS_IN_FLIGHT = 3
"""Tasks per thread that are submitted and not yet merged."""
CUT_SHARE = 16
"""How many times as many bytes as it returns a task reads that measures one cut of a layer: it limits what travels."""
CUTS_HELD = 2
"""Statistics of rows that are held while some of their cuts are missing."""
ZARR_COPIES = 3
"""Copies of a chunk that zarr holds while reading it, in addition to the block it fills."""
STATE_COPIES = 3
"""Copies of a layer's state and file identities that are held while results are merged and written."""
MOST_JOINED_BYTES = 8 * NARROWEST
"""Maximum bytes of several rows that the loops take as one."""


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of the layer named `layer`, read in blocks of at most `block_shape`."""

    layer: str
    start: int
    stop: int
    block_shape: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Parts that one worker measures, one after the other; `bytes` is their decoded size.

    A layer whose statistics are too large for one task is measured in several `cuts`: tasks with the same part, each of
    which measures the `cut` of its number.
    """

    parts: tuple[Part, ...]
    bytes: int
    cut: int = 0
    cuts: int = 1

    @property
    def rows(self) -> int:
        """The number of rows in all its parts."""
        return sum(part.stop - part.start for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """Tasks in order, the `threads` per process that run them, and the totals of the job.

    `bytes` are decoded bytes, as often as they are read; `block_bytes` is the size of the largest block, `peak_bytes`
    the peak memory of a process. `operations` are the multiplications of what costs more than reading.
    """

    tasks: tuple[Task, ...]
    threads: int
    rows: int
    bytes: int
    block_bytes: int
    peak_bytes: int
    operations: int = 0


def make_plan(
    layers: Sequence[Layer],
    missing: Mapping[str, Coverage],
    *,
    memory: int,
    threads: int,
    processes: int = 1,
) -> Plan:
    """Plan the `missing` rows (layer name → rows) of `layers`, for at most `threads` threads in each of `processes`.

    `memory` is the limit per process in bytes; if it does not suffice for all threads, fewer are planned. Raises
    `UsageError` if it does not suffice for one chunk, naming the layer.
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
        bytes=sum(rows[layer.name] * layer.row_bytes * _cut_count(layer) for layer in layers),
        block_bytes=max((_size(layer, shapes[layer.name]) for layer in layers), default=0),
        peak_bytes=_peak(layers, threads, block_budget),
        operations=sum(rows[layer.name] * operations(layer.kinds, layer.space) for layer in layers),
    )


def least_memory(layers: Sequence[Layer], threads: int) -> int:
    """The peak memory of a process with `threads` threads if its blocks are as small as they can be."""
    return _peak(layers, threads, 1)


def blocks(layer: Layer, part: Part) -> Iterator[Selection]:
    """The blocks of `part`: those of one range of channels follow each other, and within it those of the same rows."""
    samples = [
        list(_cuts(range(extent), step)) or [slice(0, 0)]  # samples without values are samples
        for extent, step in zip(layer.shape[1:], part.block_shape[1:], strict=True)
    ]
    for channels in samples[layer.channel_axis - 1]:
        chosen = [[channels] if axis == layer.channel_axis else cuts for axis, cuts in enumerate(samples, start=1)]
        for rows in _cuts(range(part.start, part.stop), part.block_shape[0]):
            for rest in product(*chosen):
                yield rows, *rest


def _cuts(axis: range, step: int) -> Iterator[slice]:
    """Cut `axis` at the multiples of `step`, which are chunk boundaries."""
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
    """Group neighbouring parts until a task is full; towards the end, tasks become smaller.

    `total` is the cost of all rows: their bytes, plus the bytes that could be decoded while their files are opened.
    """
    rows_bytes = {layer.name: layer.row_bytes for layer in layers}
    result_bytes = _result_bytes(layers)
    waiting: list[Part] = []
    cost = results = 0
    left = total
    full = _full_task(total, left, threads)
    for layer in layers:
        if _cut_count(layer) > 1:
            if waiting:
                yield _task(waiting, rows_bytes)
                left -= cost
                waiting, cost, results = [], 0, 0
            yield from _cut_tasks(layer, missing.get(layer.name, EMPTY), shapes[layer.name])
            left -= len(missing.get(layer.name, EMPTY)) * _row_cost(layer)
            full = _full_task(total, left, threads)
            continue
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


def _cut_tasks(layer: Layer, rows: Coverage, shape: tuple[int, ...]) -> Iterator[Task]:
    """Tasks that each measure one cut: they read CUT_SHARE times the bytes of what they return."""
    number = _cut_count(layer)
    full = CUT_SHARE * cut_bytes(layer.kinds, layer.space)
    for start, stop in rows.ranges:
        while start < stop:
            part = _part(layer, start, stop, shape, full, 0)
            size = (part.stop - start) * layer.row_bytes
            yield from (Task((part,), size, cut, number) for cut in range(number))
            start = part.stop


def _task(parts: Sequence[Part], row_bytes: Mapping[str, int]) -> Task:
    return Task(tuple(parts), sum((part.stop - part.start) * row_bytes[part.layer] for part in parts))


def _row_cost(layer: Layer) -> int:
    """Decoded bytes of a row, plus the bytes that could be decoded while its share of files is opened."""
    return layer.row_bytes + layer.source.opening_bytes * files_a_row(layer) // layer.shards[0]


def _full_task(total: int, left: int, threads: int) -> int:
    """What the next task may cost, if `left` of `total` is not yet assigned to a task."""
    least = max(SMALLEST_TASK_BYTES, SCHEDULED_BYTES * threads if threads > CROWD else 0, total // MOST_TASKS)
    return max(least, min(TASK_BYTES, 2 * left // (3 * threads)))


def _part(layer: Layer, start: int, stop: int, block_shape: tuple[int, ...], full: int, taken: int) -> Part:
    """Rows from `start` for a task that may cost `full`, of which `taken` is used: whole shards, or chunks if shards
    are larger than a task. At least one shard or chunk, even if it does not fit.
    """
    height = layer.shards[0] if layer.shards[0] * _row_cost(layer) <= full else layer.chunks[0]
    number = max(1, (full - taken) // max(1, height * _row_cost(layer)))
    if start < layer.settled_rows:
        stop = min(stop, layer.settled_rows)  # rows that may have to be counted again are measured apart
    return Part(layer.name, start, min(stop, (start // height + number) * height), block_shape)


# Memory


def _fit(layers: Sequence[Layer], memory: int, threads: int) -> tuple[int, int]:
    """(threads, block bytes): the most threads that `memory` allows, and the largest block for that many."""
    for fewer in range(threads, 0, -1):
        for halvings in range(BLOCK_BYTES.bit_length()):
            if _peak(layers, fewer, BLOCK_BYTES >> halvings) <= memory:
                return fewer, BLOCK_BYTES >> halvings
    raise UsageError(_why_it_does_not_fit(layers, memory))


def _peak(layers: Sequence[Layer], threads: int, block_budget: int) -> int:
    states = {layer.counted_as: _ledger_bytes(layer) for layer in layers}  # one, however many arrays a layer has
    files = IDENTITY_BYTES * sum(map(_file_count, layers))
    held = STATE_COPIES * (sum(states.values()) + files)
    in_flight = threads * TASKS_IN_FLIGHT * _result_bytes(layers)
    held += CUTS_HELD * max((_state_bytes(layer) for layer in layers if _cut_count(layer) > 1), default=0)
    each = zip(*_each_reading_bytes(layers, block_budget), strict=True)
    reading: int = threads * sum(
        max(of_one_kind) for of_one_kind in each
    )  # a thread keeps its buffers from layer to layer
    accumulating = threads * max((_working_bytes(layer, block_budget) for layer in layers), default=0)
    return BASE_BYTES + held + in_flight + reading + accumulating


def _why_it_does_not_fit(layers: Sequence[Layer], memory: int) -> str:
    needed = _peak(layers, 1, 1)
    if not layers:
        return (
            f"memory is {memory // MiB} MiB, but at least {-(-needed // MiB)} MiB are needed for the program alone; "
            f"set `memory` to {-(-needed // MiB)}MiB or more"
        )
    needs = {layer.name: sum(_reading_bytes(layer, _block_shape(layer, 1))) for layer in layers}
    largest = max(layers, key=lambda layer: needs[layer.name])
    for_chunks = 2 * needs[largest.name] > needed - BASE_BYTES
    instead = "store the layer in smaller chunks" if for_chunks else "count fewer layers or statistics at a time"
    return (
        f"memory is {memory // MiB} MiB, but at least {-(-needed // MiB)} MiB are needed: "
        f"{BASE_BYTES // MiB} MiB for the program, {needs[largest.name] / MiB:.1f} MiB to decode one chunk "
        f"{largest.chunks} of layer {largest.name}, the rest for the statistics and file identities of "
        f"{counted(len(layers), 'layer')}; set `memory` to {-(-needed // MiB)}MiB or more, or {instead}"
    )


def _each_reading_bytes(layers: Sequence[Layer], block_budget: int) -> Iterator[tuple[int, int, int, int]]:
    """What a thread holds to read each layer, and each mask."""
    for layer in layers:
        shape = _block_shape(layer, block_budget)
        yield _reading_bytes(layer, shape)
        if layer.mask is not None:
            of_mask = mask_selection(layer, tuple(slice(0, extent) for extent in shape))
            yield _reading_bytes(layer.mask, [part.stop for part in of_mask])


def _reading_bytes(layer: Layer, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Bytes that a thread holds to read parts of `shape`: such a part, stored bytes, a chunk that is used in part,
    zarr's copies."""
    encoding = layer.encoding
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
    number = max(1, block // chunk) if encoding.index_bytes else 1  # without shards, one file at a time
    unpacked = 2 * chunk if encoding.compressor in ("gzip", "zlib") else 0  # these do not decode in place
    streamed = chunk + min(chunk, layer.row_bytes) + MOST_JOINED_BYTES  # with the remainder of the previous chunk
    stored = encoding.index_bytes + fetched + max(gathered, number * encoding.most_stored_bytes)
    return block, stored, streamed + unpacked, 0


def _fetched_bytes(layer: Layer) -> int:
    """Bytes of objects in memory: the one being read, and those fetched ahead."""
    return layer.source.fetched_bytes(layer.encoding.most_file_bytes) if layer.encoding else 0


def _block_shape(layer: Layer, budget: int) -> tuple[int, ...]:
    """Whole chunks, grown over whole samples and then over rows, as far as `budget` bytes allow; at least one chunk.

    Axes that a statistic of the layer needs uncut are whole, whatever the budget.
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
    """The axes of the array that no block may cut."""
    named = {name for kind in layer.kinds for name in kind.uncut(layer.space)}
    space = set(range(1, len(layer.shape))) - {layer.channel_axis} if "space" in named else set()
    return space | ({layer.channel_axis} if "channels" in named else set())


def _size(layer: Layer, shape: Sequence[int]) -> int:
    return prod(shape) * layer.dtype.itemsize


def _file_count(layer: Layer) -> int:
    """How many files hold the rows of `layer`, those of its mask among them."""
    return file_count(layer) + (0 if layer.mask is None else file_count(layer.mask))


def _result_bytes(layers: Sequence[Layer]) -> int:
    """Maximum bytes of the results of one task."""
    return max([RESULT_BYTES, *(cut_bytes(layer.kinds, layer.space) for layer in layers)])


def _cut_count(layer: Layer) -> int:
    return cuts_of(layer.kinds, layer.space)


def _state_bytes(layer: Layer) -> int:
    return state_bytes(layer.kinds, layer.space)


def _ledger_bytes(layer: Layer) -> int:
    """Those of the statistics of a ledger: of all rows, and of those that are settled, if that is another number."""
    return _state_bytes(layer) * (2 if layer.settled_rows < layer.rows else 1)


def _working_bytes(layer: Layer, block_budget: int) -> int:
    shape, masked = _block_shape(layer, block_budget), layer.mask is not None
    replacing = 0 if layer.meaning is None else layer.meaning.working_bytes(prod(shape), masked=masked)
    return working_bytes(layer.kinds, layer.space, shape) + replacing
