"""The spectrum of a group, against matrices whose eigenvalues and columns are known by construction."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstats.errors import UsageError
from streamstats.spectra.group import EPSILON, Duplicate, GroupSpectrum, correlations

Array = np.ndarray[Any, Any]


def rotated(eigenvalues: list[float], seed: int = 0) -> Array:
    """A matrix with these eigenvalues, as far as float64 allows."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    matrix = turn * eigenvalues @ turn.T
    return (matrix + matrix.T) / 2


def exact_covariance(rows: list[list[int]]) -> Array:
    """The covariance of integers, each entry the float64 nearest to the exact one."""
    n, columns = len(rows), list(zip(*rows, strict=True))
    return np.array(
        [
            [
                float(Fraction(sum(a * b for a, b in zip(x, y, strict=True)), n) - Fraction(sum(x) * sum(y), n * n))
                for y in columns
            ]
            for x in columns
        ]
    )


def test_eigenvalues_and_figures_are_those_of_the_construction() -> None:
    found = GroupSpectrum.of(rotated([5.0, 3.0, 1.0, 0.5, 0.5]), 7)
    assert found.eigenvalues == pytest.approx([5, 3, 1, 0.5, 0.5], rel=1e-13)
    assert (found.group, found.rank, found.dead, found.duplicates) == (7, 5, (), ())
    assert found.condition == pytest.approx(10) == found.condition_at_least
    shares = [0.5, 0.3, 0.1, 0.05, 0.05]
    assert found.effective_rank == pytest.approx(math.exp(-sum(each * math.log(each) for each in shares)))
    assert [found.directions(share) for share in (0.4, 0.75, 0.85, 0.92, 0.99)] == [1, 2, 3, 4, 5]


def test_eigenvalues_that_rounding_may_have_made_are_zero_and_the_condition_is_a_bound() -> None:
    found = GroupSpectrum.of(rotated([5.0, 3.0, 0.0, 0.0]))
    assert found.eigenvalues[2:].tolist() == [0, 0]
    assert (found.rank, found.condition) == (2, math.inf)
    assert found.condition_at_least == 1 / (4 * EPSILON)
    assert found.figures()["condition"] is None
    assert GroupSpectrum.of(rotated([1.0, 1e-9])).condition == pytest.approx(1e9, rel=1e-5)


def test_dead_columns_do_not_count_for_the_condition() -> None:
    matrix = np.zeros((6, 6))
    live = np.array([0, 2, 3, 5])
    matrix[np.ix_(live, live)] = rotated([8.0, 4.0, 2.0, 1.0])
    found = GroupSpectrum.of(matrix)
    assert (found.dead, found.rank) == ((1, 4), 4)
    assert (found.condition, found.least) == (pytest.approx(8), pytest.approx(1))


def test_a_matrix_of_zeros_has_no_rank_and_every_column_is_dead() -> None:
    found = GroupSpectrum.of(np.zeros((3, 3)))
    assert (found.rank, found.effective_rank, found.directions(0.99)) == (0, 0, 0)
    assert (found.dead, found.duplicates) == ((0, 1, 2), ())
    assert math.isnan(found.condition)
    assert (found.figures()["condition"], found.figures()["condition_at_least"]) == (None, None)
    assert not correlations(found.matrix).any()


def test_entries_beyond_float64_are_refused() -> None:
    with pytest.raises(UsageError, match="beyond float64"):
        GroupSpectrum.of(np.array([[np.inf]]))


@given(
    st.lists(st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), min_size=2, max_size=30),
    st.integers(1, 2**30) | st.integers(-(2**30), -1),
    st.integers(-(2**40), 2**40),
    st.integers(-5, 5),
)
def test_columns_that_depend_linearly_on_one_other_duplicate_it_whatever_the_numbers(
    rows: list[list[int]], factor: int, offset: int, constant: int
) -> None:
    made = [[*row, factor * row[1] + offset, constant, *row[2:]] for row in rows]
    found = GroupSpectrum.of(exact_covariance(made))
    varies = [len({row[column] for row in rows}) > 1 for column in range(3)]
    assert 4 in found.dead
    assert all((column in found.dead) != varies[column] for column in range(3))
    duplicates = {each.column: each for each in found.duplicates}
    if varies[1]:
        assert duplicates[3].sign == (1 if factor > 0 else -1) * (1 if duplicates[3].of == 1 else duplicates[1].sign)
    if varies[2]:
        assert duplicates[5].of == (duplicates[2].of if 2 in duplicates else 2)


def test_a_column_that_differs_in_one_row_is_no_duplicate() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(-(2**20), 2**20, (400, 2)).tolist()
    made = [[a, b, -a, a + (place == 7)] for place, (a, b) in enumerate(rows)]
    assert GroupSpectrum.of(exact_covariance(made)).duplicates == (Duplicate(2, 0, -1),)
