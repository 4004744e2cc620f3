"""Coverage agrees with Python's sets of row numbers, and its ranges stay in order and apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstats.coverage import Coverage, Rows
from streamstats.errors import MismatchError

Ranges = list[Rows]
RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda each: (each[0], sum(each))), max_size=6)


def rows_of(ranges: Ranges | tuple[Rows, ...]) -> set[int]:
    return {row for start, stop in ranges for row in range(start, stop)}


def check(found: Coverage, expected: set[int]) -> None:
    assert rows_of(found.ranges) == expected
    assert len(found) == len(expected)
    assert bool(found) == bool(expected)
    assert found.stop == max(expected, default=-1) + 1
    assert all(start < stop for start, stop in found.ranges)
    assert all(left[1] < right[0] for left, right in pairwise(found.ranges))


@given(RANGES, RANGES)
def test_coverage_is_a_set_of_rows(left: Ranges, right: Ranges) -> None:
    mine, theirs = Coverage.of(left), Coverage.of(right)
    check(mine, rows_of(left))
    check(mine | theirs, rows_of(left) | rows_of(right))
    check(mine & theirs, rows_of(left) & rows_of(right))
    check(mine - theirs, rows_of(left) - rows_of(right))
    assert (mine == theirs) == (rows_of(left) == rows_of(right))


@pytest.mark.parametrize("rows", [(3, 2), (-1, 4)])
def test_what_is_no_range_of_rows_is_refused(rows: Rows) -> None:
    with pytest.raises(MismatchError, match=f"rows {rows[0]}:{rows[1]} are not a range"):
        Coverage.of([rows])
