"""Whatever becomes of several recorded stores, outputs that are merged count each row zero or one time.

Each row is a power of two of its own, so the exact sum of what was counted names the rows.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from streamstats.calibration.recorder import Recorder
from streamstats.errors import DataError, MismatchError
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.jobs.workers import Cluster
from streamstats.outputs.layer_statistics import LayerStatistics

MOST_ROWS = 40
PLACES = st.integers(0, 7)


class Stores(RuleBasedStateMachine):
    """Stores that grow, are copied, moved and recorded anew; outputs of some of their rows, which are merged."""

    @initialize(chunk_rows=st.integers(1, 4))
    def begin(self, chunk_rows: int) -> None:
        self.temporary = TemporaryDirectory()
        self.folder, self.chunk_rows = Path(self.temporary.name), chunk_rows
        self.rows_of: dict[str, list[int]] = {}
        self.counted: dict[str, Counter[int]] = {}
        self.recorded = self.made = 0
        self.record(3)

    def teardown(self) -> None:
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    def new(self, kind: str) -> str:
        self.made += 1
        return str(self.folder / f"{self.made}.{kind}")

    def store(self, place: int) -> str:
        return [*self.rows_of][place % len(self.rows_of)]

    def append(self, store: str, rows: int) -> None:
        numbers = range(self.recorded, self.recorded + rows)
        with Recorder(store, chunk_bytes=self.chunk_rows * 8) as recorder:
            recorder.append("fc", np.array([[2.0**number] for number in numbers]))
        self.rows_of.setdefault(store, []).extend(numbers)
        self.recorded += rows

    def has_room(self) -> bool:
        return self.recorded < MOST_ROWS

    @precondition(has_room)
    @rule(rows=st.integers(1, 6))
    def record(self, rows: int) -> None:
        self.append(self.new("zarr"), rows)

    @precondition(has_room)
    @rule(place=PLACES, rows=st.integers(1, 6))
    def grow(self, place: int, rows: int) -> None:
        self.append(self.store(place), rows)

    @precondition(has_room)
    @rule(place=PLACES, rows=st.integers(1, 9))
    def record_anew(self, place: int, rows: int) -> None:
        store = self.store(place)
        shutil.rmtree(store)
        del self.rows_of[store]
        self.append(store, rows)

    @rule(place=PLACES)
    def copy(self, place: int) -> None:
        copied = self.new("zarr")
        shutil.copytree(self.store(place), copied)
        self.rows_of[copied] = [*self.rows_of[self.store(place)]]

    @rule(place=PLACES)
    def move(self, place: int) -> None:
        store, moved = self.store(place), self.new("zarr")
        Path(store).rename(moved)
        self.rows_of[moved] = self.rows_of.pop(store)

    @rule(place=PLACES, first=st.integers(0, 8), again=st.booleans())
    def count(self, place: int, first: int, again: bool) -> None:
        """Count the rows from the `first` on, or, `again`, all of them into the output of a store of that name."""
        store = self.store(place)
        rows, output = self.rows_of[store], f"{store}.out" if again else self.new("out")
        chosen = None if again or first >= len(rows) else (first, None)
        try:
            found = run(Job(store, output, rows=chosen, cluster=Cluster(threads=1))).statistics
        except DataError as error:
            assert "it was recorded anew since it was counted" in str(error)  # noqa: PT017 - it need not be raised
        else:
            self.agree(output, found, Counter(rows if chosen is None else rows[first:]))

    @precondition(lambda self: len(self.counted) > 1)
    @rule(some=st.lists(PLACES, min_size=2, max_size=3))
    def merge(self, some: list[int]) -> None:
        outputs = sorted({[*self.counted][place % len(self.counted)] for place in some})
        expected, output = sum((self.counted[each] for each in outputs), Counter[int]()), self.new("merged")
        if max(expected.values()) > 1:
            with pytest.raises(MismatchError, match="expected each row once"):
                merge(outputs, output)
        else:
            self.agree(output, merge(outputs, output), expected)

    def agree(self, output: str, found: dict[str, LayerStatistics], expected: Counter[int]) -> None:
        assert found["fc"].sums.totals() == [sum(2**number * times for number, times in expected.items())]
        assert found["fc"].rows == expected.total()
        self.counted[output] = expected


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@pytest.mark.soak
def test_many_more_stores() -> None:
    run_state_machine_as_test(Stores, settings=settings(max_examples=400, stateful_step_count=30, deadline=None))
