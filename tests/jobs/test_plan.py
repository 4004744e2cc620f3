"""The plan: every missing row in exactly one block, whole chunks, within the memory that was promised."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstats.calibration.encoding.chunks import Encoding
from streamstats.calibration.layer import Layer
from streamstats.coverage import EMPTY, Coverage, Rows
from streamstats.errors import UsageError
from streamstats.jobs import plan
from streamstats.jobs.plan import MiB, Plan, blocks, make_plan
from streamstats.statistics.kinds import kinds_of
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.statistics import Statistics

GiB = 1024 * MiB
DTYPES = ("bool", "int8", "float16", "int32", "float64")
Missing = dict[str, Coverage]


def layer(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    *,
    name: str = "layer",
    dtype: str = "float32",
    axis: int = -1,
    straight: bool = True,
) -> Layer:
    """`straight`: read from its files, without zarr."""
    shards = shards or chunks
    encoding = Encoding(chunks, shards, np.dtype(dtype), "zstd", False, 0) if straight else None
    return Layer("store", name, shape, np.dtype(dtype), chunks, shards, axis % len(shape), encoding=encoding)


def all_rows(*layers: Layer) -> Missing:
    return {each.name: Coverage.first(each.rows) for each in layers if each.rows}


def plan_all(*layers: Layer, memory: int = 2 * GiB, threads: int = 4) -> Plan:
    return make_plan(layers, all_rows(*layers), memory=memory, threads=threads)


def selections(layer: Layer, planned: Plan) -> Iterator[tuple[slice, ...]]:
    for task in planned.tasks:
        for part in task.parts:
            if part.layer == layer.name:
                yield from blocks(layer, part)


# Anything


@dataclass(frozen=True)
class Case:
    """What a plan is made from, and the sizes that it goes by, small enough to look at every element."""

    layers: tuple[Layer, ...]
    missing: Missing
    memory: int
    threads: int
    scale: dict[str, int]


@st.composite
def some_layers(draw: st.DrawFn, name: str) -> Layer:
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=2, max_size=4)))
    chunks = tuple(draw(st.integers(1, extent + 3)) for extent in shape)
    shards = tuple(chunk * draw(st.sampled_from([1, 1, 2, 5])) for chunk in chunks)
    return layer(
        (draw(st.integers(0, 40)), *shape[1:]),
        chunks,
        shards,
        name=name,
        dtype=draw(st.sampled_from(DTYPES)),
        axis=draw(st.integers(1, len(shape) - 1)),
        straight=draw(st.booleans()),
    )


@st.composite
def some_rows(draw: st.DrawFn, rows: int) -> list[Rows]:
    """Disjoint ranges in order, as a ledger leaves them."""
    borders = sorted(draw(st.sets(st.integers(0, rows), max_size=8)))
    return list(zip(borders[::2], borders[1::2], strict=False))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layers = tuple(draw(some_layers(f"layer{index}")) for index in range(draw(st.integers(1, 4))))
    missing = {
        each.name: Coverage.of(draw(st.just([(0, each.rows)]) | some_rows(each.rows))) for each in layers if each.rows
    }
    for name in draw(st.sets(st.sampled_from([each.name for each in layers]))):
        missing.pop(name, None)
    smallest = draw(st.integers(1, 500))
    return Case(
        layers,
        missing,
        memory=draw(st.integers(1, 60_000)),
        threads=draw(st.integers(1, 5)),
        scale={
            "BASE_BYTES": draw(st.integers(0, 1000)),
            "BLOCK_BYTES": draw(st.integers(1, 3000)),
            "SMALLEST_TASK_BYTES": smallest,
            "TASK_BYTES": smallest + draw(st.integers(0, 5000)),
            "RESULT_BYTES": draw(st.integers(1, 3000)),
            "MOST_TASKS": draw(st.integers(1, 50)),
        },
    )


@contextmanager
def scaled(case: Case) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in case.scale.items():
            patch.setattr(plan, name, value)
        yield


def planned_with_enough(case: Case) -> tuple[Plan, int]:
    """(the plan, the memory it was made for): as much as the error asks for, where the case has too little."""
    memory = case.memory
    try:
        return make_plan(case.layers, case.missing, memory=memory, threads=case.threads), memory
    except UsageError as error:
        memory = wanted(error)
        return make_plan(case.layers, case.missing, memory=memory, threads=case.threads), memory


def wanted(error: UsageError) -> int:
    """The bytes of memory that the error says to set."""
    found = re.search(r"set `memory` to ([0-9]+)MiB or more", str(error))
    assert found, error
    return int(found[1]) * MiB


@given(cases())
def test_every_element_of_the_missing_rows_is_in_one_block_and_no_other_is(case: Case) -> None:
    with scaled(case):
        planned, _ = planned_with_enough(case)
        for each in case.layers:
            found = np.zeros(each.shape, np.int64)
            expected = np.zeros(each.shape, np.int64)
            for selection in selections(each, planned):
                found[selection] += 1
            for start, stop in case.missing.get(each.name, EMPTY).ranges:
                expected[start:stop] = 1
            np.testing.assert_array_equal(found, expected)


@given(cases())
def test_memory_is_kept_to(case: Case) -> None:
    with scaled(case):
        planned, memory = planned_with_enough(case)
        assert planned.peak_bytes <= memory
        assert 1 <= planned.threads <= case.threads
        for each in case.layers:
            for selection in selections(each, planned):
                assert prod(cut.stop - cut.start for cut in selection) * each.dtype.itemsize <= planned.block_bytes
        results = [sum(result_bytes(by_name(case, part.layer)) for part in task.parts) for task in planned.tasks]
        assert max(results, default=0) <= max([plan.RESULT_BYTES, *map(result_bytes, case.layers)])
        blocks_and_results = planned.block_bytes + plan.TASKS_IN_FLIGHT * max(results, default=0)
        assert plan.BASE_BYTES + planned.threads * blocks_and_results <= planned.peak_bytes


@given(cases())
def test_no_chunk_is_decoded_twice_but_where_missing_ranges_cut_it(case: Case) -> None:
    with scaled(case):
        planned, _ = planned_with_enough(case)
        for each in case.layers:
            grid = [range(-(-extent // chunk)) for extent, chunk in zip(each.shape, each.chunks, strict=True)]
            found = np.zeros([len(axis) for axis in grid], np.int64)
            expected = np.zeros_like(found)
            for selection in selections(each, planned):
                found[touched(each, selection)] += 1
            for start, stop in case.missing.get(each.name, EMPTY).ranges:
                expected[start // each.chunks[0] : -(-stop // each.chunks[0])] += 1
            np.testing.assert_array_equal(found, expected)


@given(cases())
def test_the_sums_of_a_plan_are_those_of_its_tasks_and_blocks(case: Case) -> None:
    with scaled(case):
        planned, _ = planned_with_enough(case)
        missing = [(by_name(case, name), len(rows)) for name, rows in case.missing.items()]
        assert planned.rows == sum(task.rows for task in planned.tasks) == sum(rows for _, rows in missing)
        assert planned.bytes == sum(task.bytes for task in planned.tasks)
        assert planned.bytes == sum(each.row_bytes * rows for each, rows in missing)
        assert all(task.parts for task in planned.tasks)


@given(cases())
def test_blocks_come_by_range_of_channels_and_every_range_has_all_its_rows(case: Case) -> None:
    with scaled(case):
        planned, _ = planned_with_enough(case)
        for part in (part for task in planned.tasks for part in task.parts):
            each = by_name(case, part.layer)
            found = list(blocks(each, part))
            ranges = [(cut.start, cut.stop) for cut in (selection[each.channel_axis] for selection in found)]
            assert ranges == sorted(ranges)
            for channels in dict.fromkeys(ranges):
                inside = [selection for selection, own in zip(found, ranges, strict=True) if own == channels]
                elements = sum(prod(cut.stop - cut.start for cut in selection) for selection in inside)
                others = prod(each.shape[1:]) // each.channels if each.channels else 0
                assert elements == (part.stop - part.start) * (channels[1] - channels[0]) * others
                rows = [selection[0].start for selection in inside]
                assert rows == sorted(rows)


def by_name(case: Case, name: str) -> Layer:
    return next(each for each in case.layers if each.name == name)


def touched(layer: Layer, selection: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(cut.start // chunk, -(-cut.stop // chunk)) for cut, chunk in zip(selection, layer.chunks, strict=True)
    )


def result_bytes(layer: Layer) -> int:
    """What a worker sends back for a part of `layer`: sums and counts, and extrema of up to 8 bytes each."""
    return sum(array.nbytes for array in Statistics.empty(layer.kinds, layer.space).arrays().values())


# Blocks


def block_shape(planned: Plan) -> tuple[int, ...]:
    return planned.tasks[0].parts[0].block_shape


@pytest.mark.parametrize(
    ("shape", "chunks", "shards", "expected"),
    [
        ((1000, 28, 28, 192), (64, 28, 28, 192), None, (64, 28, 28, 192)),
        ((1000, 28, 28, 192), (1, 28, 28, 192), (64, 28, 28, 192), (64, 28, 28, 192)),
        ((1000, 28, 28, 192), (1, 28, 28, 192), None, (111, 28, 28, 192)),
        ((1000, 28, 28, 192), (1, 28, 28, 192), (500, 28, 28, 192), (111, 28, 28, 192)),
        ((1000, 28, 28, 192), (10, 14, 14, 64), None, (110, 28, 28, 192)),
        ((50, 28, 28, 192), (64, 28, 28, 192), None, (50, 28, 28, 192)),
    ],
)
def test_a_block_is_of_whole_chunks_and_whole_shards_as_far_as_it_goes(
    shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    planned = plan_all(layer(shape, chunks, shards, dtype="int8"))
    assert block_shape(planned) == expected
    assert planned.block_bytes == prod(expected) <= plan.BLOCK_BYTES


def test_a_sample_that_is_larger_than_a_block_is_split_along_its_other_axes() -> None:
    each = layer((3, 1000, 1000, 64), (1, 100, 100, 64), axis=3)
    planned = plan_all(each)
    assert each.row_bytes > plan.BLOCK_BYTES >= planned.block_bytes
    assert block_shape(planned) == (1, 100, 600, 64)
    assert len(list(selections(each, planned))) == 3 * 10 * 2


def test_channels_are_split_where_nothing_else_can_be() -> None:
    each = layer((2, 10_000_000), (1, 1_000_000), dtype="float32")
    planned = plan_all(each, memory=16 * GiB)
    assert block_shape(planned) == (1, 4_000_000)
    ranges = [(channels.start, channels.stop) for _, channels in blocks(each, planned.tasks[0].parts[0])]
    assert [*dict.fromkeys(ranges)] == [(0, 4_000_000), (4_000_000, 8_000_000), (8_000_000, 10_000_000)]


def test_a_chunk_that_is_larger_than_a_block_is_read_whole() -> None:
    each = layer((40, 1000, 1000), (20, 1000, 1000))
    planned = plan_all(each)
    assert planned.block_bytes == 80_000_000 > plan.BLOCK_BYTES
    assert list(selections(each, planned)) == [
        (slice(start, start + 20), slice(0, 1000), slice(0, 1000)) for start in (0, 20)
    ]


# Memory


def test_threads_are_as_asked_where_memory_is_plenty() -> None:
    assert plan_all(layer((1000, 1000), (10, 1000)), memory=64 * GiB, threads=32).threads == 32


def test_blocks_become_smaller_before_threads_become_fewer() -> None:
    each = layer((100_000, 1000), (100, 1000))
    plenty, scarce = plan_all(each), plan_all(each, memory=370 * MiB)
    assert (plenty.threads, scarce.threads) == (4, 4)
    assert scarce.block_bytes < plenty.block_bytes == plan.BLOCK_BYTES // 400_000 * 400_000


def test_threads_become_fewer_where_memory_is_short() -> None:
    each = layer((64, 1000, 1000), (4, 1000, 1000))
    memories = [370, 450, 500, 600, 650]
    planned = [plan_all(each, memory=memory * MiB, threads=8) for memory in memories]
    assert [one.threads for one in planned] == sorted(one.threads for one in planned)
    assert (planned[0].threads, planned[-1].threads) == (1, 5)
    for one, memory in zip(planned, memories, strict=True):
        assert one.peak_bytes <= memory * MiB


def test_a_store_that_decodes_several_chunks_at_once_is_planned_with_more_memory() -> None:
    one, several = (plan_all(layer((64, 1000, 1000), (4, 1000, 1000), straight=straight)) for straight in (True, False))
    assert several.peak_bytes > one.peak_bytes


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("shards", [None, (500, 100, 1000)])
def test_a_chunk_that_does_not_fit_is_an_error_that_says_what_to_set_and_that_suffices(
    straight: bool, shards: tuple[int, ...] | None
) -> None:
    small = layer((10, 4), (1, 4), name="small")
    large = layer((1000, 200, 1000), (250, 100, 1000), shards, name="block/large", straight=straight)
    with pytest.raises(UsageError) as caught:
        plan_all(small, large, memory=320 * MiB)
    message = str(caught.value)
    assert message.startswith("memory is 320 MiB, but at least ")
    assert "to decode one chunk (250, 100, 1000) of layer block/large" in message
    memory = wanted(caught.value)
    assert f"at least {memory // MiB} MiB are needed" in message
    planned = plan_all(small, large, memory=memory)
    assert planned.threads == 1
    assert planned.peak_bytes <= memory
    with pytest.raises(UsageError, match="block/large"):
        plan_all(small, large, memory=memory - MiB)


def test_the_memory_wanted_is_the_least_in_mebibytes_and_more_than_was_found() -> None:
    each = layer((100_000, 1000), (100, 1000))
    least = bisect_left(range(GiB), True, key=lambda memory: fits(each, memory))
    with pytest.raises(UsageError) as caught:
        plan_all(each, memory=least - 1)
    found = int(re.findall(r"memory is ([0-9]+) MiB", str(caught.value))[0])
    assert found * MiB < least <= wanted(caught.value) < least + MiB


def fits(each: Layer, memory: int) -> bool:
    try:
        plan_all(each, memory=memory)
    except UsageError:
        return False
    return True


def test_sums_that_do_not_fit_are_an_error() -> None:
    layers = [layer((10, 100_000), (1, 1000), name=f"wide{index}", dtype="float64") for index in range(20)]
    with pytest.raises(UsageError, match="the rest for the statistics and file identities of 20 layers") as caught:
        plan_all(*layers, memory=2 * GiB)
    assert plan_all(*layers, memory=wanted(caught.value)).peak_bytes <= wanted(caught.value)


def test_a_store_of_impossible_size_is_an_error_and_not_an_attempt() -> None:
    with pytest.raises(UsageError, match="memory is 2048 MiB"):
        plan_all(layer((10**15, 10**15), (10**6, 10**6)))


def test_no_memory_and_no_layers_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"memory is 1 MiB, but at least [0-9]+ MiB are needed for the program"):
        make_plan([], {}, memory=MiB, threads=1)


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads_are_an_error(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}; expected at least 1"):
        plan_all(layer((10, 4), (1, 4)), threads=threads)


# Tasks


@pytest.mark.parametrize("rows_a_chunk", [1, 10, 1000])
def test_the_number_of_tasks_follows_the_bytes_and_not_the_chunks(rows_a_chunk: int) -> None:
    planned = plan_all(layer((1_000_000, 4096), (rows_a_chunk, 4096)))
    assert planned.bytes == 16_384_000_000
    assert 60 <= len(planned.tasks) <= 110
    assert all(task.bytes <= plan.TASK_BYTES for task in planned.tasks)


def test_a_million_chunks_of_a_small_layer_are_few_tasks_and_yet_several() -> None:
    assert 10 <= len(plan_all(layer((1_000_000, 8), (1, 8))).tasks) <= 40


def test_what_objects_cost_is_in_the_size_of_a_task() -> None:
    objects = replace(layer((100_000, 8), (1, 8)), store="s3://bucket/store")
    tasks = plan_all(objects).tasks
    assert max(task.rows for task in tasks) <= 256
    assert len(tasks) <= 1000


def test_tasks_become_smaller_towards_the_end_so_that_all_threads_end_together() -> None:
    planned = plan_all(layer((100_000, 4096), (10, 4096)), threads=4)
    sizes = [task.bytes for task in planned.tasks]
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert max(sizes) <= plan.TASK_BYTES
    assert max(sizes[-4:]) <= plan.SMALLEST_TASK_BYTES
    for place, size in enumerate(sizes[:-1]):
        assert size <= max(plan.SMALLEST_TASK_BYTES, sum(sizes[place:]) / 4)


def test_a_small_job_has_work_for_all_threads_and_few_tasks() -> None:
    assert 4 <= len(plan_all(layer((10_000, 4096), (10, 4096)), threads=4).tasks) <= 16


def test_a_task_smaller_than_a_shard_is_cut_at_chunks() -> None:
    each = layer((4096, 100_000), (8, 100_000), (4096, 100_000))
    starts = [part.start for task in plan_all(each).tasks for part in task.parts]
    assert len(starts) > 4
    assert all(start % 8 == 0 for start in starts)


def test_many_small_layers_share_tasks_and_there_is_work_for_all_threads() -> None:
    layers = [layer((100, 1000), (10, 1000), name=f"layer{index:03}") for index in range(200)]
    planned = plan_all(*layers, threads=8)
    assert 8 <= len(planned.tasks) <= 40
    assert [part.layer for task in planned.tasks for part in task.parts] == [each.name for each in layers]


def test_layers_with_large_sums_do_not_share_a_task() -> None:
    layers = [layer((1, 4096), (1, 4096), name=f"layer{index:03}", dtype="float64") for index in range(100)]
    assert result_bytes(layers[0]) > plan.RESULT_BYTES
    assert len(plan_all(*layers).tasks) == 100


def test_tasks_are_cut_at_shards() -> None:
    each = layer((100_000, 4096), (1, 4096), (300, 4096))
    starts = [part.start for task in plan_all(each).tasks for part in task.parts]
    assert len(starts) > 4
    assert all(start % 300 == 0 for start in starts)


def test_rows_beyond_any_disk_are_planned_without_a_list_of_them() -> None:
    each = layer((10**15, 4096), (1, 4096), shards=(10**11, 4096))
    planned = plan_all(each)
    assert planned.rows == 10**15
    assert len(planned.tasks) <= plan.MOST_TASKS + 1
    first, second = islice(blocks(each, planned.tasks[-1].parts[0]), 2)
    assert first[0].stop == second[0].start


def test_what_identifies_the_files_is_in_the_memory_that_is_planned() -> None:
    few, many = layer((10**6, 8), (1000, 8)), layer((10**7, 8), (1000, 8))
    assert plan_all(many).peak_bytes - plan_all(few).peak_bytes >= 16 * (10**4 - 10**3)


def test_what_is_counted_is_not_planned_again() -> None:
    each = layer((1000, 10), (10, 10))
    planned = make_plan([each], {"layer": Coverage.of([(995, 1000)])}, memory=GiB, threads=4)
    assert [(part.start, part.stop) for task in planned.tasks for part in task.parts] == [(995, 1000)]
    assert make_plan([each], {"layer": Coverage()}, memory=GiB, threads=4).tasks == ()
    assert make_plan([each], {}, memory=GiB, threads=4).tasks == ()


def test_no_rows_are_no_tasks() -> None:
    planned = plan_all(layer((0, 10), (1, 10)), layer((0, 3, 4), (7, 3, 4), name="other"))
    assert (planned.tasks, planned.rows, planned.bytes) == ((), 0, 0)


@pytest.mark.parametrize("shape", [(9, 0), (9, 0, 4), (9, 4, 0)])
def test_rows_without_elements_are_planned_and_have_a_block_without_elements(shape: tuple[int, ...]) -> None:
    each = layer(shape, tuple(max(1, extent) for extent in shape))
    planned = plan_all(each)
    assert (planned.rows, planned.bytes) == (9, 0)
    (block,) = blocks(each, planned.tasks[0].parts[0])
    assert block == tuple(slice(0, extent) for extent in shape)


def test_the_same_layers_give_the_same_plan() -> None:
    layers = [layer((100, size), (10, size), name=f"layer{size}") for size in (10, 1000, 100_000)]
    assert plan_all(*layers) == plan_all(*layers)


def test_blocks_of_the_same_channels_and_then_rows_come_one_after_the_other() -> None:
    each = layer((4, 6, 4), (2, 3, 2), axis=2)
    part = plan.Part("layer", 0, 4, (2, 3, 2))
    rows, middle = [slice(0, 2), slice(2, 4)], [slice(0, 3), slice(3, 6)]
    assert list(blocks(each, part)) == [each for channels in rows for each in product(rows, middle, [channels])]


@pytest.mark.parametrize(
    ("uncut", "expected"),
    [((), (1, 100, 100, 16)), (("channels",), (1, 100, 100, 64)), (("space",), (1, 1000, 1000, 16))],
)
def test_axes_that_a_statistic_must_have_uncut_are_whole(uncut: tuple[str, ...], expected: tuple[int, ...]) -> None:
    kind = type("Uncut", (ChannelMean,), {"name": "uncut", "uncut": classmethod(lambda _, __: uncut)})
    each = replace(layer((3, 1000, 1000, 64), (1, 100, 100, 16), axis=3), kinds=(*kinds_of(()), kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BLOCK_BYTES", 2**17)
        assert block_shape(plan_all(each, memory=16 * GiB)) == expected
