"""ExactSum against Python's integers: any value, one form, and room for 2^64 of the largest terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DIGITS, DTYPES, SMALLEST, as_digits, is_float, kind_of, limits_of

from streamstats.statistics.exact import ExactSum, digit_count, is_canonical, unit_exponent

INT64 = st.integers(-(2**63), 2**63 - 1)
RAW_DIGIT = st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, -1, 2**32 - 1, 2**32, -(2**32), 2**62, -(2**62)])


def the_sum(dtype, *totals):
    """One channel for each of the integers `totals`."""
    places = DIGITS[kind_of(dtype)]
    return ExactSum(dtype, np.array([as_digits(total, places) for total in totals], np.int64).reshape(-1, places).T)


def largest_terms(dtype):
    """The largest and the least finite value of `dtype` in units."""
    if dtype.kind == "b":
        return 1, 0
    if is_float(dtype):
        greatest = int(limits_of(dtype).max.item().as_integer_ratio()[0]) << -SMALLEST[kind_of(dtype)]
        return greatest, -greatest
    return np.iinfo(dtype).max, np.iinfo(dtype).min


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_unit_is_the_smallest_denormal_or_one(dtype):
    smallest = limits_of(dtype).smallest_subnormal if is_float(dtype) else 1
    assert 2.0 ** unit_exponent(dtype) == smallest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_has_one_canonical_form(dtype):
    places = digit_count(dtype)

    @given(st.lists(RAW_DIGIT, min_size=places, max_size=places))
    def check(raw):
        value = sum(digit << (32 * place) for place, digit in enumerate(raw[:-1]))
        top = value >> (32 * (places - 1))
        raw[-1] = max(-(2**63) - min(top, 0), min(2**63 - 1 - max(top, 0), raw[-1]))  # the value is to fit
        value += raw[-1] << (32 * (places - 1))
        column = np.array(raw, np.int64)[:, None]
        before = column.copy()
        found = ExactSum.from_raw(dtype, column)
        assert found.digits.tobytes() == the_sum(dtype, value).digits.tobytes()
        assert found.units() == [value]
        assert is_canonical(found.digits)
        assert np.array_equal(column, before)

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_add_as_integers_and_channels_stay_apart(dtype):
    bits = 32 * (digit_count(dtype) - 1) + 61

    @given(st.lists(st.tuples(*[st.integers(-(2**bits), 2**bits)] * 2), max_size=4))
    def check(pairs):
        left, right = the_sum(dtype, *(a for a, _ in pairs)), the_sum(dtype, *(b for _, b in pairs))
        total = ExactSum.from_raw(dtype, left.digits + right.digits)
        assert total.digits.tobytes() == the_sum(dtype, *(a + b for a, b in pairs)).digits.tobytes()
        assert total.units() == [a + b for a, b in pairs]

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_to_the_64_of_the_largest_terms_fit_and_go_away_again(dtype):
    for term in largest_terms(dtype):
        total, expected = the_sum(dtype, term), term
        assert total.units() == [term]
        for _ in range(64):
            total, expected = ExactSum.from_raw(dtype, 2 * total.digits), 2 * expected
            assert total.units() == [expected]
            assert is_canonical(total.digits)
        assert expected == term * 2**64
        assert total.digits.tobytes() == the_sum(dtype, expected).digits.tobytes()
        nothing = ExactSum.from_raw(dtype, total.digits - the_sum(dtype, expected).digits)
        assert nothing.digits.tobytes() == the_sum(dtype, 0).digits.tobytes()
        assert not nothing.digits.any()


@given(st.lists(INT64, min_size=4, max_size=4))
def test_only_the_top_digit_may_be_negative_or_large(digits):
    column = np.array(digits, np.int64)[:, None]
    assert is_canonical(column) == all(0 <= digit < 2**32 for digit in digits[:-1])
