"""Sets of rows as ranges agree with Python's sets, and stay in order and apart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamstats.coverage import Rows, common_rows, join_rows, row_count, without_rows
from streamstats.outputs.results import NOT_YET, explained

Ranges = list[Rows]
RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda each: (each[0], sum(each))), max_size=6)


def rows_of(ranges: Ranges | tuple[Rows, ...]) -> set[int]:
    return {row for start, stop in ranges for row in range(start, stop)}


def check(ranges: tuple[Rows, ...], expected: set[int]) -> None:
    assert rows_of(ranges) == expected
    assert row_count(ranges) == len(expected)
    assert all(start < stop for start, stop in ranges)
    assert all(left[1] < right[0] for left, right in pairwise(ranges))


@given(RANGES, RANGES)
def test_ranges_are_sets_of_rows(left: Ranges, right: Ranges) -> None:
    check(join_rows([*left, *right]), rows_of(left) | rows_of(right))
    check(common_rows(left, right), rows_of(left) & rows_of(right))
    check(without_rows(left, right), rows_of(left) - rows_of(right))


@given(RANGES, RANGES)
def test_every_missing_row_is_explained_once(missing: Ranges, told: Ranges) -> None:
    gaps = tuple((rows, f"reason {rows[0]}") for rows in join_rows(told))
    found = explained(join_rows(missing), gaps)
    assert sorted(row for rows, _ in found for row in range(*rows)) == sorted(rows_of(missing))
    for rows, reason in found:
        matching = [why for known, why in gaps if common_rows([known], [rows])]
        assert matching == ([] if reason == NOT_YET else [reason])
