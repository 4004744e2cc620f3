"""Wide integers against those of Python."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamstats.statistics import wide
from streamstats.statistics.wide import Wide

numbers = st.one_of(
    st.integers(-(2**159), 2**159 - 1),
    st.builds(lambda bits, shift: bits << shift, st.integers(-(2**54), 2**54), st.integers(0, 100)),  # ties
    st.sampled_from([0, 1, -1, 2**32, -(2**32), 2**31, -(2**31), 2**159 - 1, -(2**159)]),
)
columns = st.lists(numbers, min_size=1, max_size=5)


def wide_of(values: list[int], digits: int = 5) -> Wide:
    found = [[value >> 32 * place & 0xFFFFFFFF for value in values] for place in range(digits)]
    return Wide(np.array(found, np.uint32))


@given(columns)
def test_trimming_changes_no_integer_and_equal_integers_have_equal_bytes(values: list[int]) -> None:
    found, more = wide_of(values).trimmed(), wide_of(values, 7).trimmed()
    assert found.integers() == values
    assert (found.first, found.digits.tobytes()) == (more.first, more.digits.tobytes())
    assert found.is_trimmed
    assert found.negative().tolist() == [value < 0 for value in values]


@given(st.data())
def test_sums_and_differences_are_those_of_integers(data: st.DataObject) -> None:
    values = data.draw(columns)
    others = data.draw(st.lists(numbers, min_size=len(values), max_size=len(values)))
    first, second = wide_of(values).trimmed(), wide_of(others).trimmed()
    assert first.plus(second).integers() == [a + b for a, b in zip(values, others, strict=True)]
    assert first.plus(second, -1).integers() == [a - b for a, b in zip(values, others, strict=True)]
    back = first.plus(second).plus(second, -1)
    assert (back.first, back.digits.tobytes()) == (first.first, first.digits.tobytes())


@given(columns, st.integers(-300, 100))
def test_floats_are_rounded_once(values: list[int], exponent: int) -> None:
    for found in (wide_of(values), wide_of(values).trimmed()):
        assert found.floats(exponent).tolist() == [float(Fraction(value) * Fraction(2) ** exponent) for value in values]


def test_many_integers_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "PIECE", 3)
    values = [(-7) ** place for place in range(40)]
    found = wide_of(values, 6)
    assert found.plus(found).integers() == [2 * value for value in values]
    assert found.floats(0).tolist() == [float(value) for value in values]
