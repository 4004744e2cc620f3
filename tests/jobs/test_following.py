"""Following a store whose writer makes arrays longer before it writes: rows are counted once they are settled.

Time is simulated: between two polls, the writer takes its next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import Array, build_store, described, samples

from streamstats.calibration.recorder import Recorder
from streamstats.config import JobConfig
from streamstats.coverage import Coverage
from streamstats.errors import DataError
from streamstats.jobs import run as running
from streamstats.jobs.following import QUIET_POLLS, Watch
from streamstats.jobs.run import Follow, run
from streamstats.outputs.results import open_results

Steps = Iterator[object]


class Clock:
    """The time, in which a sleep ends at once, and takes the next of the writer's steps."""

    def __init__(self) -> None:
        self.now, self.steps = 0.0, iter(())

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self.steps, None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(running, "time", found)
    return found


class Followed:
    """A run that follows a store, and what it had counted at each of the writer's steps."""

    def __init__(self, folder: Path, clock: Clock, steps: Callable[[], Steps], **options: Any) -> None:
        self.output, self.counted = folder / "out", list[int]()
        self.job = JobConfig(source=str(folder / "s.zarr"), output=str(self.output), **options).job()
        clock.steps = self._watched(steps())

    def _watched(self, steps: Steps) -> Steps:
        for step in steps:
            self.counted.append(self.rows())
            yield step

    def rows(self) -> int:
        manifest = self.output / "manifest.json"
        return open_results(self.output).statistics("conv").rows if manifest.exists() else 0

    def run(self, **follow: Any) -> Array:
        return run(self.job, follow=Follow(**follow)).statistics["conv"].mean


def array_of(folder: Path, rows: int = 0, **layout: Any) -> zarr.Array[Any]:
    build_store(folder / "s.zarr", {"conv": samples(rows, 3)}, **({"chunks": (8, 3)} | layout))
    return zarr.open_array(str(folder / "s.zarr"), path="conv", mode="r+")


VALUES = samples(40, 3, seed=5)
MEAN = VALUES.mean(0, np.float64).tolist()


def test_chunks_are_waited_for_and_counted_when_they_have_not_changed_from_one_poll_to_the_next(
    tmp_path: Path, clock: Clock
) -> None:
    array = array_of(tmp_path)

    def write() -> Steps:
        yield array.resize((40, 3))
        for start in range(0, 40, 8):
            yield array.__setitem__(slice(start, start + 4), VALUES[start : start + 4])
            yield array.__setitem__(slice(start + 4, start + 8), VALUES[start + 4 : start + 8])
            yield None

    followed = Followed(tmp_path, clock, write, missing="fill")
    assert followed.run(rows=40).tolist() == MEAN
    assert followed.counted == sorted(followed.counted)
    assert set(followed.counted) <= {0, 8, 16, 24, 32}, "never a chunk that is half written or not yet there"
    assert clock.now < 20, "as soon as they are settled"


def test_rows_of_a_chunk_with_room_are_counted_while_nothing_happens_and_again_when_more_come(
    tmp_path: Path, clock: Clock
) -> None:
    array = array_of(tmp_path, rows=0)

    def write() -> Steps:
        for stop in (3, 5, 12, 40):
            start = array.shape[0]
            yield array.resize((stop, 3))
            yield array.__setitem__(slice(start, stop), VALUES[start:stop])
            yield from [None] * 2

    followed = Followed(tmp_path, clock, write)
    assert followed.run(idle=30).tolist() == MEAN
    assert {3, 5, 12} <= set(followed.counted)


def test_chunks_that_never_come_are_missing_once_nothing_has_happened_for_some_polls(
    tmp_path: Path, clock: Clock
) -> None:
    array = array_of(tmp_path)

    def write() -> Steps:
        yield array.resize((24, 3))
        yield array.__setitem__(slice(0, 8), VALUES[:8])
        yield array.__setitem__(slice(16, 24), VALUES[16:24])
        yield from [None] * QUIET_POLLS

    followed = Followed(tmp_path, clock, write, missing="fill")
    expected = np.concatenate([VALUES[:8], VALUES[:8] * 0, VALUES[16:24]]).mean(0, np.float64)
    assert followed.run(idle=QUIET_POLLS + 5).tolist() == expected.tolist()
    assert followed.counted[-1] == 16
    with pytest.raises(DataError, match=r"chunk c/1/0 \(rows 8:16\) is missing"):
        run(JobConfig(source=str(tmp_path / "s.zarr"), output=str(tmp_path / "o")).job(), follow=Follow(idle=2))


def test_a_store_that_is_complete_is_counted_at_the_second_look(tmp_path: Path, clock: Clock) -> None:
    array_of(tmp_path, rows=21)
    followed = Followed(tmp_path, clock, lambda: iter([None] * 9))
    followed.run(rows=21)
    assert clock.now == running.POLL_SECONDS


def test_layers_of_a_recorder_are_counted_at_once_beside_others(tmp_path: Path, clock: Clock) -> None:
    array = array_of(tmp_path)
    with Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("mine", samples(5, 3))

    def write() -> Steps:
        yield array.resize((8, 3))
        yield array.__setitem__(slice(0, 8), VALUES[:8])
        yield from [None] * 3

    followed = Followed(tmp_path, clock, write)
    followed.run(idle=5)
    found = open_results(followed.output)
    assert {name: found.statistics(name).rows for name in found.layers} == {"conv": 8, "mine": 5}


def test_the_rule_by_itself(tmp_path: Path) -> None:
    array = array_of(tmp_path, rows=20)
    layer = described(tmp_path / "s.zarr", "conv")
    waiting = {"conv": Coverage.first(20)}
    first = Watch().polled([layer], waiting)
    assert not first.ready["conv"], "one look tells nothing"
    assert first.polled([layer], waiting).ready == waiting
    array.resize((23, 3))
    grown = described(tmp_path / "s.zarr", "conv")
    assert first.polled([grown], {"conv": Coverage.first(23)}).ready["conv"] == Coverage.first(16)
    array[9] = 7
    assert first.polled([layer], waiting).ready["conv"] == Coverage.of([(0, 8), (16, 20)])
    (tmp_path / "s.zarr/conv/c/0/0").unlink()
    watch = first.polled([layer], waiting)
    for _ in range(QUIET_POLLS - 1):
        watch = watch.polled([layer], waiting)
        assert watch.ready["conv"] == Coverage.of([(8, 20)])
    assert watch.polled([layer], waiting).ready == waiting
