"""The compiled loops where they are nearest to wrong: at the thresholds of exactness, of overflow, and of tails.

A strip of float terms is added in float64 while its exponents span no more than a threshold. The strips here stand
at the threshold and just past it, with the mantissas that leave no bit to spare. Each pattern is a column; columns go
through the loops over rows and, transposed, through the loops over runs.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from laws import DTYPES, FLOATS, INTEGERS, as_digits, exact_sums, from_bits, hard_bits

from streamstats.statistics.mean import ChannelMean

BOTH_LOOPS = pytest.mark.parametrize("loop", ["rows", "runs"])


def assert_exact(columns, loop="rows"):
    """The sums of `columns` [rows, channels], from either loop, are the exact ones."""
    expected = exact_sums(columns, 1)
    if loop == "rows":
        # more than 256 channels, so that no rows are joined and strips hold the rows that were meant
        wide = np.concatenate([columns] * -(-257 // columns.shape[1]), axis=1)
        found = ChannelMean.measure(wide)
        expected = ChannelMean.join([expected] * (wide.shape[1] // columns.shape[1]))
    else:
        found = ChannelMean.measure(columns.T.copy(), 0)
    wrong = np.flatnonzero((found.digits != expected.digits).any(axis=0))
    assert wrong.size == 0, f"channels {wrong.tolist()}"
    assert found == expected


def signed(bits, dtype, rows, signs):
    """A column of `rows` terms with these bit patterns, all positive, all negative or alternating."""
    sign = np.uint64(1 << (8 * dtype.itemsize - 1))
    negative = {"plus": 0, "minus": 1, "alternating": np.arange(rows) % 2}[signs]
    return from_bits(np.asarray(bits, np.uint64) ^ (sign * np.asarray(negative, np.uint64)), dtype)


def spanning_columns(dtype, rows, spans, lowest_exponents, large, small):
    """Columns of mantissas `large`, but for one `small` of an exponent that is less by one of the `spans`."""
    fraction_bits = np.finfo(dtype).nmant
    top = 2 ** (8 * dtype.itemsize - 1 - fraction_bits) - 2  # the greatest finite exponent
    hidden = (1 << fraction_bits) - 1
    columns = []
    for span, lowest, place, signs in product(
        spans, lowest_exponents, (0, rows // 2, rows - 1), ("plus", "alternating")
    ):
        lowest = top - span + lowest + 1 if lowest < 0 else lowest
        if 0 <= lowest <= lowest + span <= top:
            for big, little in product(large, small):
                bits = [(lowest + span) << fraction_bits | (big & hidden)] * rows
                bits[place] = lowest << fraction_bits | (little & hidden)
                columns.append(signed(bits, dtype, rows, signs))
                columns.append(-columns[-1])
    return np.stack(columns, axis=1)


# Thresholds of exactness


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 34, 64, 65])
def test_float32_strips_are_exact_at_the_widest_span_and_past_it(rows, loop):
    all_ones, odd = 2**24 - 1, 2**23 + 1
    columns = spanning_columns(
        FLOATS[1], rows, (0, 22, 23, 24, 25, 26, 27, 253), (0, 1, 2, 100, -1), (all_ones, 2**23), (all_ones, odd)
    )
    assert_exact(columns, loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 34, 65])
def test_float64_strips_are_exact_at_the_widest_span_and_past_it(rows, loop):
    all_ones, odd = 2**53 - 1, 2**52 + 1
    odd_upper_part, ties = 2**53 - 32, (2**53 - 48, 2**53 - 16)  # terms are split at 2^5 of their unit
    columns = spanning_columns(
        FLOATS[2],
        rows,
        (0, 4, 5, 43, 44, 45, 46, 49, 53),
        (100, 1000),
        (all_ones, odd_upper_part, *ties),
        (all_ones, odd),
    )
    assert_exact(columns, loop)


@BOTH_LOOPS
def test_float64_strips_are_exact_at_the_ends_of_the_exponents(loop):
    exponents = (0, 1, 2, 51, 52, 53, 62, 63, 64, 65, -1, -2, -46, -47, -48, -100)
    columns = spanning_columns(FLOATS[2], 32, (0, 1, 44), exponents, (2**53 - 1, 2**53 - 48), (2**53 - 1,))
    assert_exact(columns, loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [8191, 8192, 8193, 16383, 16384, 16385])
def test_float16_strips_are_exact_whatever_their_exponents(rows, loop):
    greatest, smallest, least_normal = 0x7BFF, 0x0001, 0x0400
    columns = [signed([greatest] * rows, FLOATS[0], rows, signs) for signs in ("plus", "minus", "alternating")]
    for term, place in product((smallest, least_normal), (0, rows // 2, rows - 1)):
        bits = [greatest] * rows
        bits[place] = term
        columns += [signed(bits, FLOATS[0], rows, signs) for signs in ("plus", "minus")]
    columns.append(signed([smallest] * rows, FLOATS[0], rows, "plus"))
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_huge_terms_cancel_and_leave_the_smallest_denormal(dtype, loop):
    greatest, smallest, zero = np.split(from_bits([hard_bits(dtype, finite=True)[-2], 1, 0], dtype), 3)
    column = np.concatenate([greatest] * 20 + [smallest] + [-greatest] * 20 + [zero] * 24)
    columns = np.stack([np.roll(column, shift) for shift in range(64)], axis=1)
    assert_exact(columns, loop)
    assert {*ChannelMean.measure(columns).total.units()} == {1}


# Values that are not finite


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_infinities_are_counted_and_never_summed(dtype, rows, loop):
    specials = [bits for bits in hard_bits(dtype) if not np.isfinite(from_bits([bits], dtype)[0])]
    assert len(specials) == 8
    columns = []
    for special, place in product(specials, {0, rows // 2, rows - 1}):
        column = np.arange(1, rows + 1).astype(dtype)
        column[place] = from_bits([special], dtype)[0]
        columns.append(column)
    columns += [np.resize(from_bits(specials, dtype), rows), np.ones(rows, dtype)]
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
def test_a_nan_in_a_long_float16_strip_leaves_the_other_terms_in_the_sum(loop):
    column = np.full(8193, 65504, np.float16)
    column[[5, 8192]] = np.nan, -np.inf
    assert_exact(column[:, None], loop)


# Overflow of narrow accumulators


@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS], ids=str)
@pytest.mark.parametrize("rows", [127, 128, 129, 255, 256, 257, 258])
def test_rows_of_the_largest_integers_do_not_overflow(dtype, rows):
    least, greatest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    columns = np.empty((rows, 3), dtype)
    columns[:] = least, greatest, 1
    assert_exact(columns)
    assert ChannelMean.measure(np.repeat(columns, 90, axis=0)) == exact_sums(np.repeat(columns, 90, axis=0), 1)


@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS], ids=str)
@pytest.mark.parametrize("inner", [63, 64, 65, 8191, 8192, 8193, 8256, 8257, 16384, 16449])
def test_runs_of_the_largest_integers_do_not_overflow(dtype, inner):
    least, greatest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    columns = np.empty((inner, 3), dtype)
    columns[:] = least, greatest, 1
    assert_exact(columns, "runs")


@pytest.mark.parametrize(("kind", "term"), [("i2", -(2**15)), ("i2", 2**15 - 1), ("u2", 2**16 - 1)])
def test_65538_of_the_largest_16_bit_integers_a_lane_do_not_overflow(kind, term):
    dtype = np.dtype(kind)
    for rows in (32767, 32768, 32769, 65536, 65538):
        found = ChannelMean.measure(np.full((rows, 129), term, dtype))
        assert found.total.units() == [rows * term] * 129
    for inner in (64 * 32768 - 1, 64 * 32768, 64 * 32769, 64 * 32769 + 63):
        found = ChannelMean.measure(np.full((1, inner), term, dtype), 0)
        assert found.total.units() == [inner * term]


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8"])
def test_a_million_of_the_largest_wide_integers_do_not_overflow(kind):
    limits, n = np.iinfo(kind), 2**20 + 1
    for term in (limits.min, limits.max, limits.max - 1, limits.min // 2 + 1):
        for block, axis in ((np.full((n, 1), term, kind), 1), (np.full((1, n), term, kind), 0)):
            found = ChannelMean.measure(block, axis)
            assert found.digits[:, 0].tolist() == as_digits(n * term, len(found.digits))


# Tails: of tiles, of joined rows, of strips and of lanes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 85, 86, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 2049])
def test_every_row_and_channel_is_in_the_sum(dtype, channels):
    joined = max(1, 256 // channels)
    for rows in {1, joined - 1, joined, joined + 1, 32 * joined + 1, 33 * joined, 34 * joined - 1} - {0}:
        block = small_values(dtype, (rows, channels))
        assert ChannelMean.measure(block) == sums_of_small_values(block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [2, 3, 30, 31, 32, 33, 64, 65, 127, 128, 129])
def test_every_value_of_a_run_is_in_the_sum(dtype, inner):
    for outer, channels in product((1, 2, 15, 16, 17, 33), (1, 2, 3, 9)):
        block = small_values(dtype, (outer, channels, inner))
        assert ChannelMean.measure(block, 1) == sums_of_small_values(block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "inner"), [(132, 31), (133, 31), (2048, 2), (2049, 2), (4096, 1), (4097, 1)])
def test_rows_near_the_greatest_width_are_in_the_sum(dtype, channels, inner):
    block = small_values(dtype, (17, channels, inner))
    assert ChannelMean.measure(block, 1) == sums_of_small_values(block)


def small_values(dtype, shape):
    """Small values that differ between neighbours, so that none can be lost, or counted for another, unseen."""
    place = np.arange(np.prod(shape)).reshape(shape)
    return (place * place % 7 % (2 if dtype.kind == "b" else 7)).astype(dtype)


def sums_of_small_values(block):
    """The exact answer for `small_values`, whose sums are small enough for int64."""
    totals = np.moveaxis(block, 1, -1).reshape(-1, block.shape[1]).astype(np.int64).sum(axis=0)
    unit = {"f2": 24, "f4": 149, "f8": 1074}.get(block.dtype.str[1:], 0)
    empty = ChannelMean.empty(block.shape[1], block.dtype)
    digits = np.array([as_digits(total << unit, len(empty.digits)) for total in totals.tolist()], np.int64).T
    return ChannelMean(block.dtype, digits, empty.count + block.size // block.shape[1], empty.nan, empty.infinite)
