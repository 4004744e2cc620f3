"""Whatever is done to a store and its output, in any order, agrees with a model of ten lines that uses `Fraction`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from told import Told

from streamstats.calibration.recorder import Recorder
from streamstats.config import ClusterConfig, JobConfig
from streamstats.errors import DataError
from streamstats.jobs import plan
from streamstats.jobs.forget import forget
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.outputs import saving
from streamstats.outputs.results import open_results, read_states

CHANNELS, CHUNK = 3, 4


class Killed(BaseException):
    """The process is gone: nothing is saved any more."""


class Model:
    """What ought to be counted: rows by number, and which were taken out."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []
        self.counted: set[int] = set()
        self.excluded: set[int] = set()

    def means(self) -> list[float]:
        chosen = [self.rows[row] for row in sorted(self.counted)]
        return [float(sum(map(Fraction, column), Fraction(0)) / len(chosen)) for column in zip(*chosen, strict=True)]


class Machine(RuleBasedStateMachine):
    """A store that is recorded, damaged and repaired, and an output that is run, killed, forgotten from and merged."""

    @initialize(seed=st.integers(0, 2**31))
    def begin(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.model = Model()
        self.damaged: tuple[Path, bytes] | None = None
        self.seen = 0
        self.taken_for_appending = False
        self.append(5)

    def teardown(self) -> None:
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    def config(self, output: str = "out", **options: object) -> Job:
        return JobConfig.model_validate(
            {
                "source": str(self.folder / "s.zarr"),
                "output": str(self.folder / output),
                "missing": "report",
                "cluster": ClusterConfig(threads=2),
                **options,
            }
        ).job()

    @precondition(lambda self: self.damaged is None)
    @rule(rows=st.integers(1, 9))
    def append(self, rows: int) -> None:
        values = np.float32(
            self.random.normal(size=(rows, CHANNELS)) * 10.0 ** self.random.integers(-9, 9, rows)[:, None]
        )
        with Recorder(self.folder / "s.zarr", chunk_bytes=CHUNK * CHANNELS * 4) as recorder:
            recorder.append("conv", values)
        self.model.rows += values.tolist()

    def readable(self) -> set[int]:
        rows = set(range(len(self.model.rows)))
        if self.damaged is None:
            return rows
        number = int(self.damaged[0].parent.name)
        return rows - set(range(number * CHUNK, number * CHUNK + CHUNK))

    @rule()
    def run(self) -> None:
        if self.counted_is_damaged():
            with pytest.raises(DataError, match="since it was counted"):
                run(self.config())
            return
        run(self.config())
        self.look()
        self.model.counted |= self.readable() - self.model.excluded

    def counted_is_damaged(self) -> bool:
        """Damage to a chunk of which rows are counted is an error, whatever the policy.

        But not to one that was not full: it had to be written again to append, and is only found not to be readable.
        """
        if self.damaged is None or not self.model.counted - self.readable():
            return False
        number = int(self.damaged[0].parent.name)
        return not self.taken_for_appending and (number + 1 <= self.seen // CHUNK or len(self.model.rows) == self.seen)

    def look(self) -> None:
        """The store is compared with what was counted, and taken as it is from then on."""
        self.taken_for_appending |= bool(self.damaged and self.model.counted - self.readable())
        self.seen = len(self.model.rows)

    @precondition(lambda self: not self.counted_is_damaged())
    @rule(tasks=st.integers(0, 4), saves=st.booleans())
    def kill(self, tasks: int, saves: bool) -> None:
        """The process ends after some tasks; what was saved before is there, and no more.

        One thread: what is saved must not depend on the moment, or Hypothesis finds the machine flaky.
        """
        done: list[int] = []

        def stop(_rows: int) -> None:
            done.append(1)
            if len(done) > tasks:
                raise Killed

        kept = saving.Saver.save if saves else (lambda _saver: None)
        small = {"SMALLEST_TASK_BYTES": 1, "TASK_BYTES": 1}
        with (
            patch.multiple(plan, **small),
            patch.object(saving, "SAVE_SECONDS", 0.0),
            patch.object(saving, "SAVING_SHARE", 0),
            patch.object(saving.Saver, "save", kept),
            contextlib.suppress(Killed),
        ):
            run(self.config(cluster=ClusterConfig(threads=1)), progress=Told(on_advance=stop))
        if self.rows_of_state() == len(self.model.rows):
            self.look()
        self.model.counted = self.what_is_saved()

    def rows_of_state(self) -> int:
        states = read_states(self.folder / "out", ["conv"])
        return states["conv"].source.rows if states else 0

    def what_is_saved(self) -> set[int]:
        """How far a killed run came is its own affair; that the sums are those of these rows is checked below."""
        states = read_states(self.folder / "out", ["conv"])
        return {row for start, stop in states["conv"].covered for row in range(start, stop)} if states else set()

    @precondition(lambda self: not self.counted_is_damaged())
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.model.rows) - 1))
        stop = data.draw(st.integers(start + 1, len(self.model.rows)))
        try:
            forget(self.config(), (start, stop))
        except DataError as error:  # a chunk that was written again to append, and then damaged
            self.check_refused(str(error), self.model.counted - set(range(start, stop)))
            return
        self.look()
        self.model.excluded |= set(range(start, stop))
        self.model.counted -= self.model.excluded

    def check_refused(self, said: str, left: set[int]) -> None:
        assert "nothing was forgotten" in said
        assert left - self.readable()

    @precondition(lambda self: self.damaged is None and len(self.model.rows) > 1)
    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        """Two runs over two parts, merged, are one run over all."""
        border = data.draw(st.integers(1, len(self.model.rows) - 1))
        for name, rows in (("left", f"0:{border}"), ("right", f"{border}:{len(self.model.rows)}")):
            run(self.config(name, rows=rows), restart=True)
        merge([self.folder / "left", self.folder / "right"], self.folder / "both")
        everything = Model()
        everything.rows, everything.counted = self.model.rows, set(range(len(self.model.rows)))
        assert open_results(self.folder / "both").statistics("conv").mean.tolist() == everything.means()

    @precondition(lambda self: self.damaged is None)
    @rule(data=st.data(), how=st.sampled_from(["empty", "cut", "flip", "gone"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.integers(0, (len(self.model.rows) - 1) // CHUNK))
        chunk = self.folder / f"s.zarr/conv/c/{number}/0"
        content = chunk.read_bytes()
        changes: dict[str, Callable[[], object]] = {
            "empty": lambda: chunk.write_bytes(b""),
            "cut": lambda: chunk.write_bytes(content[:-1]),
            "flip": lambda: chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
            "gone": chunk.unlink,
        }
        changes[how]()
        self.damaged = chunk, content

    @precondition(lambda self: self.damaged is not None)
    @rule()
    def repair(self) -> None:
        assert self.damaged is not None
        path, content = self.damaged
        path.write_bytes(content)
        self.damaged = None
        self.taken_for_appending = False
        states = read_states(self.folder / "out", ["conv"])
        if states:  # what was counted is as it was, but its files have other times
            run(self.config(), accept_changes=True)
            self.look()
            self.model.counted |= self.readable() - self.model.excluded

    @invariant()
    def the_output_agrees(self) -> None:
        if not hasattr(self, "folder"):
            return
        states = read_states(self.folder / "out", ["conv"])
        if not states:
            assert not self.model.counted
            return
        found = states["conv"]
        assert {row for start, stop in found.covered for row in range(start, stop)} == self.model.counted
        assert {row for start, stop in found.excluded for row in range(start, stop)} == self.model.excluded
        if self.model.counted:
            assert found.mean.tolist() == self.model.means()
            chosen = np.float32([self.model.rows[row] for row in sorted(self.model.counted)])
            assert found.minimum.tolist() == chosen.min(axis=0).tolist()
            assert found.maximum.tolist() == chosen.max(axis=0).tolist()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


@pytest.mark.soak
def test_many_more_sequences() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Machine, settings=settings(max_examples=400, stateful_step_count=25, deadline=None))
