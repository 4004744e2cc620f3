"""The compiled loops where they are nearest to wrong: at the thresholds of exactness, of overflow, and of tails.

A strip of float terms is added in float64 while its exponents span no more than a threshold, and in two parts while
they span no more than another. The strips here stand at the thresholds and just past them, with the mantissas that
leave no bit to spare. Each pattern is a column; columns go through the loops over rows and, transposed, through the
loops over runs. Sums and extrema are compared with the exact ones.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from laws import (
    ALL_FLOATS,
    BFLOAT16,
    DTYPES,
    E4M3FN,
    E5M2,
    FLOATS,
    INTEGERS,
    SMALLEST,
    as_digits,
    exact_extrema,
    exact_sums,
    from_bits,
    hard_bits,
    held,
    is_float,
    kind_of,
    limits_of,
    space_of,
)

from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.pieces import NARROWEST
from streamstats.statistics.running import RunningSums

BOTH_LOOPS = pytest.mark.parametrize("loop", ["rows", "runs"])


UNJOINED = NARROWEST // 2 + 1
"""Channels of which no two rows are joined, so that strips hold the rows that were meant."""


SIGNS = ("plus", "minus", "alternating")


def assert_exact(columns, loop="rows"):
    """The sums and the extrema of `columns` [rows, channels], from either loop, are the exact ones."""
    times = -(-UNJOINED // columns.shape[1]) if loop == "rows" else 1
    exact = [exact_sums(columns, 1), exact_extrema(columns, 1)]
    expected = [tiled(statistic, times) for statistic in exact]
    found = measured(np.tile(columns, times), 1) if loop == "rows" else measured(columns.T.copy(), 0)
    for one, other in zip(found, expected, strict=True):
        for name, array in one.arrays().items():
            wrong = np.flatnonzero(np.atleast_2d(array != other.arrays()[name]).any(axis=0))
            assert wrong.size == 0, f"{name} of channels {wrong.tolist()}"
        assert one == other


def tiled(statistic, times):
    """The statistic of blocks whose channels are repeated so often."""
    space = space_of(statistic.space.dtype, statistic.space.channels * times)
    return type(statistic)(space, **{name: np.tile(array, times) for name, array in statistic.arrays().items()})


def measured(block, axis):
    """What one pass over `block` finds."""
    accumulator = RunningSums(block.dtype, block.shape[axis])
    accumulator.add(block, axis)
    space = space_of(block.dtype, block.shape[axis])
    return ChannelMean.from_measures(space, accumulator.found()), ChannelExtrema.from_measures(
        space, accumulator.found()
    )


def signed(bits, dtype, rows, signs):
    """A column of `rows` terms with these bit patterns, all positive, all negative or alternating."""
    sign = np.uint64(1 << (8 * dtype.itemsize - 1))
    negative = {"plus": 0, "minus": 1, "alternating": np.arange(rows) % 2}[signs]
    return from_bits(np.asarray(bits, np.uint64) ^ (sign * np.asarray(negative, np.uint64)), dtype)


def spanning_columns(dtype, rows, spans, lowest_exponents, large, small):
    """Columns of mantissas `large`, but for one `small` of an exponent that is less by one of the `spans`."""
    fraction_bits = limits_of(dtype).nmant
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
@pytest.mark.parametrize("rows", [2, 255, 256, 257, 258, 512, 513])
def test_float32_strips_are_exact_at_the_widest_spans_and_past_them(rows, loop):
    all_ones, odd = 2**24 - 1, 2**23 + 1
    columns = spanning_columns(
        FLOATS[1], rows, (0, 20, 21, 22, 23, 66, 67, 68, 69, 253), (0, 1, -1), (all_ones, 2**23), (all_ones, odd)
    )
    assert_exact(columns, loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [4, 255, 256, 257, 258])
def test_float32_strips_whose_lower_parts_are_large_are_exact_at_the_widest_split_and_past_it(rows, loop):
    """Below 2^-45 of the greatest term, a term is a lower part as it is."""
    all_ones, half, odd = 2**24 - 1, 2**23, 2**23 + 1
    columns = []
    for span, below, middle, small, lowest, signs in product(
        (48, 66, 67, 68, 69), (21, 22, 43, 44, 45, 46, 47), (all_ones, half, odd), (all_ones, odd), (1, 90), SIGNS
    ):
        terms = [(lowest + span - below, middle)] * rows
        terms[0], terms[rows // 2] = (lowest + span, all_ones), (lowest, small)
        bits = [exponent << 23 | (mantissa & (half - 1)) for exponent, mantissa in terms]
        columns.append(signed(bits, FLOATS[1], rows, signs))
    assert_exact(np.stack(columns, axis=1), loop)


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
    exponents = (0, 1, 2, 51, 52, 53, 62, 63, 64, 65, -1, -2, -4, -5, -6, -46, -47, -48, -100)
    columns = spanning_columns(FLOATS[2], 32, (0, 1, 44), exponents, (2**53 - 1, 2**53 - 48), (2**53 - 1,))
    assert_exact(columns, loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [2, 255, 256, 257, 258, 512, 513])
def test_bfloat16_strips_are_exact_at_the_widest_spans_and_past_them(rows, loop):
    all_ones, odd = 2**8 - 1, 2**7 + 1
    spans = (0, 20, 21, 22, 23, 45, 66, 67, 68, 69, 253)
    columns = spanning_columns(BFLOAT16, rows, spans, (0, 1, 14, 40, -1), (all_ones, 2**7), (all_ones, odd))
    assert_exact(columns, loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [8191, 8192, 8193, 16383, 16384, 16385])
@pytest.mark.parametrize("dtype", [E4M3FN, E5M2], ids=str)
def test_float8_strips_are_exact_whatever_their_exponents(dtype, rows, loop):
    greatest = hard_bits(dtype, finite=True)[-2] + (7 if dtype == E4M3FN else 0)
    columns = [signed([greatest] * rows, dtype, rows, signs) for signs in SIGNS]
    mixed = [greatest] * rows
    mixed[rows // 2] = 1
    columns += [signed(mixed, dtype, rows, signs) for signs in SIGNS]
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [8191, 8192, 8193, 16383, 16384, 16385])
def test_float16_strips_are_exact_whatever_their_exponents(rows, loop):
    greatest, smallest, least_normal = 0x7BFF, 0x0001, 0x0400
    columns = [signed([greatest] * rows, FLOATS[0], rows, signs) for signs in SIGNS]
    for term, place in product((smallest, least_normal), (0, rows // 2, rows - 1)):
        bits = [greatest] * rows
        bits[place] = term
        columns += [signed(bits, FLOATS[0], rows, signs) for signs in ("plus", "minus")]
    columns.append(signed([smallest] * rows, FLOATS[0], rows, "plus"))
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_huge_terms_cancel_and_leave_the_smallest_denormal(dtype, loop):
    greatest, smallest, zero = np.split(from_bits([hard_bits(dtype, finite=True)[-2], 1, 0], dtype), 3)
    column = np.concatenate([greatest] * 140 + [smallest] + [-greatest] * 140 + [zero] * 24)
    columns = np.stack([np.roll(column, shift) for shift in range(0, column.size, 5)], axis=1)
    assert_exact(columns, loop)
    assert {*ChannelMean.measure(columns).total.units()} == {1}


# Values that are not finite


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65, 255, 256, 257])
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_nan_and_infinities_are_counted_and_never_summed(dtype, rows, loop):
    specials = [bits for bits in hard_bits(dtype) if not math.isfinite(from_bits([bits], dtype).tolist()[0])]
    assert len(specials) == (2 if dtype == E4M3FN else 8)
    columns = []
    for special, place in product(specials, {0, rows // 2, rows - 1}):
        column = np.arange(1, rows + 1).astype(dtype)
        column[place] = from_bits([special], dtype)[0]
        columns.append(column)
    columns += [np.resize(from_bits(specials, dtype), rows), np.ones(rows, dtype)]
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=str)
@pytest.mark.parametrize("bad", [1, 40])
@pytest.mark.parametrize("apart", [1, 40, 100])
def test_the_finite_terms_of_strips_with_others_are_added_however_many_strips_have_them(dtype, bad, apart, loop):
    """Few such strips are taken one by one, many together; terms are added, split, or taken one by one."""
    column = np.resize(np.array([1.5, -(2.0**-apart), 1.25], dtype), 300)
    columns = np.repeat(column[:, None], 40, axis=1)
    columns[7, :bad], columns[290, :bad], columns[255, 0] = np.nan, -np.inf, np.inf
    columns[:256, min(bad, 39)] = np.nan  # nothing finite in the strip
    assert_exact(columns, loop)


@BOTH_LOOPS
def test_a_nan_in_a_long_float16_strip_leaves_the_other_terms_in_the_sum(loop):
    column = np.full(8193, 65504, np.float16)
    column[[5, 8192]] = np.nan, -np.inf
    assert_exact(column[:, None], loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 32, 33, 256, 257])
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_extrema_leave_out_what_is_not_finite_wherever_it_is(dtype, rows, loop):
    nan, inf, greatest = np.nan, np.inf, limits_of(dtype).max
    columns = [np.full(rows, special, dtype) for special in (nan, -nan, inf, -inf)]
    columns += [np.resize(np.array(specials, dtype), rows) for specials in ([nan, inf], [-inf, nan], [inf, -inf])]
    for special, finite, place in product((nan, -nan, inf, -inf), (-3, 0, 5, -greatest, greatest), range(min(rows, 5))):
        for one, other in ((special, finite), (finite, special)):  # all but one
            column = np.full(rows, one, dtype)
            column[[place, -1 - place]] = other
            columns.append(column)
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [1, 4, 7, 32, 257])
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_zeros_have_no_sign(dtype, rows, loop):
    smallest = limits_of(dtype).smallest_subnormal
    kinds = ([0.0], [-0.0], [0.0, -0.0], [-0.0, 0.0], [-0.0, 1], [0.0, -1], [-0.0, np.nan], [0.0, np.inf])
    kinds += ([-0.0, smallest], [0.0, -smallest], [-0.0, -np.inf, np.nan])
    columns = np.stack([np.resize(np.array(kind, dtype), rows) for kind in kinds], axis=1)
    assert_exact(columns, loop)
    for extrema in measured(columns, 1)[1].arrays().values():
        assert not np.signbit(extrema[extrema == 0]).any()


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_channels_of_every_kind_share_a_strip_and_change_from_strip_to_strip(dtype, loop):
    """Narrow, split, term by term, all zero, not finite."""
    strip = {"f8": 32, "f4": 256, "bfloat16": 256}.get(kind_of(dtype), 8192)
    apart = {"f2": (5, 14, 24), "float8_e4m3fn": (2, 6, 9), "float8_e5m2": (5, 14, 16)}.get(kind_of(dtype), (9, 44, 90))
    near, far, farther = (dtype.type(2.0**-below) for below in apart)
    kinds = [[1.5, near], [1.5, far, near], [1.5, far, farther], [0.0], [-0.0], [1.5, np.nan], [-np.inf, far]]
    kinds += [[np.nan], [np.inf, -np.inf], [farther], [limits_of(dtype).max, limits_of(dtype).smallest_subnormal]]
    kinds += [[-far, far, -near], [0.0, -1.5]]
    strips = [np.resize(np.array(kind, dtype), strip) for kind in kinds]
    channels = range(len(strips))
    one, two = ([np.roll(strips[(c + shift) % len(strips)], c) for c in channels] for shift in (0, 3))
    columns = [np.concatenate([one[c], two[c], strips[c][:5]]) for c in channels]
    assert_exact(np.stack(columns, axis=1), loop)


@BOTH_LOOPS
@pytest.mark.parametrize("rows", [*range(1, 10), 33, 129, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_extremum_is_found_wherever_it_is(dtype, rows, loop):
    places = np.arange(rows)
    columns = np.ones((rows, 2 * rows), dtype)
    columns[places, places] = 0 if dtype.kind in "bu" else -7
    columns[(places + 1) % rows, places] = 9
    columns[:, rows:] = dtype.type(1) - columns[:, :rows] if is_float(dtype) else columns[::-1, :rows]
    assert_exact(columns, loop)


# Overflow of narrow accumulators


@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 130, 255, 256, 257, 258])
def test_rows_of_the_largest_integers_do_not_overflow(dtype, rows):
    least, greatest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    columns = np.empty((rows, 3), dtype)
    columns[:] = least, greatest, 1
    assert_exact(columns)
    joined = np.repeat(columns, 350, axis=0)[: rows * (NARROWEST // 3)]
    assert ChannelMean.measure(joined) == exact_sums(joined, 1)


@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS], ids=str)
@pytest.mark.parametrize("inner", [63, 64, 65, 257, 32767, 32768, 32769, 65535, 65536, 65537])
def test_runs_of_the_largest_integers_do_not_overflow(dtype, inner):
    least, greatest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    columns = np.empty((inner, 3), dtype)
    columns[:] = least, greatest, 1
    assert_exact(columns, "runs")


@pytest.mark.parametrize(("kind", "term"), [("i2", -(2**15)), ("i2", 2**15 - 1), ("u2", 2**16 - 1)])
def test_65537_of_the_largest_16_bit_integers_do_not_overflow(kind, term):
    for rows in (32767, 32768, 32769, 65535, 65536, 65537):
        found = ChannelMean.measure(np.full((rows, UNJOINED), term, kind))
        assert found.total.units() == [rows * term] * UNJOINED
    for inner in (2**15 - 1, 2**15, 2**15 + 1, 2**16, 64 * 2**15 + 1):
        found = ChannelMean.measure(np.full((1, 1, inner), term, kind), 1)
        assert found.total.units() == [inner * term]


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", [*map(np.dtype, ("i4", "u4", "i8", "u8"))], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 64, 65])
def test_wide_integers_of_every_bit_pattern_are_summed_and_bounded(dtype, rows, loop):
    patterns = from_bits(hard_bits(dtype), dtype)
    rolled = [np.roll(patterns, shift) for shift in range(len(patterns))]
    columns = [np.resize(each[:length], rows) for each in rolled for length in (1, 2, 9)]
    assert_exact(np.stack(columns, axis=1), loop)


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8"])
def test_a_million_of_the_largest_wide_integers_do_not_overflow(kind):
    limits, n = np.iinfo(kind), 2**20 + 1
    for term in (limits.min, limits.max, limits.max - 1, limits.min // 2 + 1):
        for block, axis in ((np.full((n, 1), term, kind), 1), (np.full((1, 1, n), term, kind), 1)):
            found = ChannelMean.measure(block, axis)
            assert found.digits[:, 0].tolist() == as_digits(n * term, len(found.digits))


# Tails: of tiles, of joined rows, of strips and of lanes


TILES = [tile + beside for tile in (512, 1024, 2048, 4096) for beside in (-1, 0, 1)]
"""Numbers of channels beside those that are taken together: of 64, 32, 16 and 8 bits."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 340, 341, 342, *TILES, 8193])
def test_every_row_and_channel_is_in_the_sum(dtype, channels):
    joined = max(1, NARROWEST // channels)
    for rows in {1, joined - 1, joined, joined + 1, 32 * joined + 1, 34 * joined - 1, 259 * joined - 1} - {0}:
        block = small_values(dtype, (rows, channels))
        assert measured(block, 1) == sums_and_extrema_of_small_values(block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513])
def test_every_value_of_a_run_is_in_the_sum(dtype, inner):
    for outer, channels in product((1, 2, 15, 16, 17, 33), (1, 2, 3, 9)):
        block = small_values(dtype, (outer, channels, inner))
        assert measured(block, 1) == sums_and_extrema_of_small_values(block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "inner"), [(260, 63), (261, 63), (8192, 2), (8193, 2), (16384, 1), (16385, 1), (257, 64)]
)
def test_rows_near_the_greatest_width_are_in_the_sum(dtype, channels, inner):
    block = small_values(dtype, (17, channels, inner))
    assert measured(block, 1) == sums_and_extrema_of_small_values(block)


def small_values(dtype, shape):
    """Small values that differ between neighbours, so that none can be lost, or counted for another, unseen."""
    place = np.arange(np.prod(shape)).reshape(shape)
    return (place * place % 7 % (2 if dtype.kind == "b" else 7)).astype(dtype)


def sums_and_extrema_of_small_values(block):
    """The exact answers for `small_values`, whose sums are small enough for int64, also when shifted in a digit."""
    channels = np.moveaxis(block, 1, -1).reshape(-1, block.shape[1])
    totals = channels.sum(axis=0, dtype=np.int64 if block.dtype.kind in "biu" else np.float64).astype(np.int64)
    place, shift = divmod(-SMALLEST.get(kind_of(block.dtype), 0), 32)
    empty = ChannelMean.empty(space_of(block.dtype, block.shape[1]))
    digits = empty.digits.copy()
    digits[place], digits[place + 1] = (totals << shift) & 0xFFFFFFFF, totals >> (32 - shift)
    sums = ChannelMean(empty.space, digits, empty.count + len(channels), empty.nan, empty.infinite)
    return sums, ChannelExtrema(
        empty.space, *(each.astype(held(block.dtype)) for each in (channels.min(axis=0), channels.max(axis=0)))
    )
