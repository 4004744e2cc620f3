"""Cutting a block into pieces for the loops: every element once, viewed where it can be, copied in small parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    ALL_FLOATS,
    DTYPES,
    LAYOUTS,
    as_digits,
    blocks,
    contents,
    exact_extrema,
    exact_sums,
    is_float,
    limits_of,
    shapes,
    space_of,
)

from streamstats.errors import MismatchError
from streamstats.floats import is_finite
from streamstats.statistics import pieces as cutting
from streamstats.statistics import running
from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.pieces import pieces
from streamstats.statistics.running import RunningSums

LIMITS = st.sampled_from([1, 2, 7, 40, 1000])


def numbered(shape, axis):
    """A block whose values are all different, and the values that each channel has."""
    block = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return block, [set(block.take(channel, axis).ravel().tolist()) for channel in range(shape[axis])]


@given(shapes(), st.sampled_from([*LAYOUTS]), LIMITS, LIMITS)
def test_every_element_is_in_one_piece_and_in_its_channel(shape_and_axis, layout, longest, copied):
    shape, axis = shape_and_axis
    block, expected = numbered(shape, axis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LONGEST_PIECE", longest)
        patch.setattr(running, "LONGEST_PIECE", longest)
        patch.setattr(cutting, "COPIED_BYTES", 8 * copied)
        found = [*pieces(LAYOUTS[layout](block), axis)]
    for piece in found:
        assert piece.ndim == 3
        assert piece.size
        assert piece.flags.c_contiguous
        assert piece.flags.aligned
        assert piece.dtype.isnative
        assert piece.size <= max(longest, copied) * shape[axis]
    for channel, values in enumerate(expected):
        taken = [value for piece in found for value in piece[:, channel].ravel().tolist()]
        assert len(taken) == len(values)
        assert set(taken) == values


@given(blocks(), LIMITS, LIMITS)
def test_where_a_block_is_cut_does_not_matter(case, longest, copied):
    block, axis = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LONGEST_PIECE", longest)
        patch.setattr(running, "LONGEST_PIECE", longest)
        patch.setattr(cutting, "COPIED_BYTES", block.itemsize * copied)
        assert ChannelMean.measure(block, axis) == exact_sums(block, axis)
        assert ChannelExtrema.measure(block, axis) == exact_extrema(block, axis)


@given(blocks(), st.integers(0, 40), st.integers(0, 40), st.integers(1, 5000), st.integers(0, 300))
def test_where_the_loops_change_over_does_not_matter(case, shortest_run, fewest_rows, widest, narrowest):
    block, axis = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SHORTEST_RUN", shortest_run)
        patch.setattr(cutting, "FEWEST_ROWS", fewest_rows)
        patch.setattr(cutting, "WIDEST", widest)
        patch.setattr(cutting, "NARROWEST", narrowest)
        assert ChannelMean.measure(block, axis) == exact_sums(block, axis)
        assert ChannelExtrema.measure(block, axis) == exact_extrema(block, axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["C order", "Fortran order", "permuted axes", "read-only"])
def test_a_block_in_one_piece_of_memory_is_viewed_whatever_its_order(dtype, layout):
    for axis in range(4):
        block = LAYOUTS[layout](np.zeros((2, 3, 4, 5), dtype))
        (piece,) = pieces(block, axis)
        assert np.shares_memory(piece, block)
        assert piece.size == block.size


@pytest.mark.parametrize("layout", ["negative strides", "strided", "foreign byte order", "unaligned"])
def test_a_block_that_has_to_be_copied_is_copied_a_megabyte_at_a_time(layout):
    block = LAYOUTS[layout](np.zeros((300, 40, 100), np.int32))
    sizes = [piece.nbytes for piece in pieces(block, 1)]
    assert sum(sizes) == block.nbytes
    assert max(sizes) <= 2**20


def test_a_broadcast_block_is_never_copied_whole():
    block = np.broadcast_to(np.float32([1, 2, 3])[:, None], (500, 3, 700))
    sizes = [piece.nbytes for piece in pieces(block, 1)]
    assert sum(sizes) == 500 * 3 * 700 * 4
    assert max(sizes) <= 2**20


@pytest.mark.parametrize(("dtype", "channels"), [("i1", 4), ("i2", 3), ("f4", 3)])
def test_a_block_of_another_dtype_or_number_of_channels_is_refused(dtype, channels):
    with pytest.raises(MismatchError, match=r"cannot be added to int8 with 3 channels"):
        RunningSums(np.dtype("i1"), 3).add(np.zeros((2, channels), dtype), 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 0), (0,)])
def test_an_empty_block_has_no_pieces(shape):
    for axis in range(len(shape)):
        assert [*pieces(np.zeros(shape), axis)] == []


def test_a_block_of_channels_alone_is_one_row():
    (piece,) = pieces(np.arange(5), 0)
    assert piece.shape == (1, 5, 1)
    assert ChannelMean.measure(np.arange(5)[np.newaxis]).total.units() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("axis", [2, -3])
def test_a_channel_axis_out_of_range_is_refused_with_the_shape(axis):
    with pytest.raises(MismatchError, match=rf"channel axis {axis} is out of range .*\(2, 3\)"):
        next(pieces(np.zeros((2, 3)), axis))


ROWS, RUNS = 2, 3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 1300, 1), [(ROWS, 7, 1)]),  # channels last and many: as they are
        ((7, 1024, 1), [(ROWS, 7, 1)]),
        ((7, 513, 1), [(ROWS, 7, 1)]),
        ((7, 512, 1), [(ROWS, 3, 2), (ROWS, 1, 1)]),  # joined in pairs, and one left
        ((7, 341, 1), [(ROWS, 2, 3), (ROWS, 1, 1)]),
        ((7, 1, 1), [(ROWS, 1, 7)]),  # fewer rows than could be joined
        ((4000, 1, 1), [(ROWS, 4, 1000)]),  # so many that none is left
        ((4001, 1, 1), [(ROWS, 3, 1024), (ROWS, 929, 1)]),
        ((2048, 1, 1), [(ROWS, 2, 1024)]),
        ((16, 3, 63), [(ROWS, 4, 4)]),  # short runs are rows of more channels
        ((16, 3, 2), [(ROWS, 1, 16)]),
        ((16, 3, 64), [(RUNS, 16, 1)]),
        ((15, 3, 63), [(RUNS, 15, 1)]),
        ((16, 8192, 2), [(ROWS, 16, 1)]),
        ((16, 8193, 2), [(RUNS, 16, 1)]),
        ((16, 20000, 1), [(ROWS, 16, 1)]),
    ],
)
def test_pieces_go_to_the_loop_for_their_shape(shape, expected):
    """Which loop it is shows in speed alone; that both are reached is what the other tests rest on."""
    parts = [*cutting.parts(np.zeros(shape, np.int8))]
    assert [(part.ndim, part.shape[0], joined) for part, joined, _ in parts] == expected


# Accumulating over blocks


@st.composite
def blocks_of_like_channels(draw):
    """Several blocks (shape, channel axis and layout of their own) and all their values as rows of channels."""
    dtype, channels = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([1, 2, 3, 5, 40]))
    found = []
    for _ in range(draw(st.integers(0, 6))):
        shape, axis = draw(shapes(channels))
        found.append((LAYOUTS[draw(st.sampled_from([*LAYOUTS]))](draw(contents(dtype, shape))), axis))
    rows = [np.moveaxis(block, axis, -1).reshape(-1, channels) for block, axis in found]
    return found, np.concatenate([np.zeros((0, channels), dtype), *rows], dtype=dtype)


def statistics_of(accumulator):
    found, space = accumulator.found(), space_of(accumulator.dtype, accumulator.channels)
    return ChannelMean.from_measures(space, found), ChannelExtrema.from_measures(space, found)


@given(blocks_of_like_channels(), st.sampled_from([1, 3, 10, 100, 2**27]))
def test_an_accumulator_of_many_blocks_equals_the_whole(case, longest):
    found, rows = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LONGEST_PIECE", longest)
        patch.setattr(running, "LONGEST_PIECE", longest)
        accumulator = RunningSums(rows.dtype, rows.shape[1])
        for block, axis in found:
            accumulator.add(block, axis)
            accumulator.found()  # asking changes nothing
        assert statistics_of(accumulator) == (exact_sums(rows, 1), exact_extrema(rows, 1))
    assert (accumulator.found().count + accumulator.found().nan + accumulator.found().infinite == len(rows)).all()
    assert accumulator.all_finite == is_finite(rows).all()
    whole = RunningSums(rows.dtype, rows.shape[1])
    whole.add(rows, 1)
    assert statistics_of(whole) == statistics_of(accumulator)


@pytest.mark.parametrize("shape", [(5, 600), (600, 5), (40, 600, 3), (1, 600, 70)], ids=str)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_one_value_that_is_not_finite_is_noticed_in_any_block_and_never_forgotten(dtype, special, shape):
    accumulator, finite = RunningSums(dtype, 600), np.ones(shape, dtype)
    axis = shape.index(600)
    assert accumulator.all_finite
    accumulator.add(finite, axis)
    assert accumulator.all_finite
    spoilt = finite.copy()
    spoilt.reshape(-1)[-1] = special
    accumulator.add(spoilt, axis)
    accumulator.add(finite, axis)
    assert not accumulator.all_finite


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digits_stay_small_however_many_blocks_are_added(dtype, monkeypatch):
    """A digit has room for 2^31 deposits: here as if it had room for 7."""
    monkeypatch.setattr(cutting, "LONGEST_PIECE", 7)
    monkeypatch.setattr(running, "LONGEST_PIECE", 7)
    greatest = True if dtype.kind == "b" else (limits_of if is_float(dtype) else np.iinfo)(dtype).max
    accumulator = RunningSums(dtype, 600)
    for rows in (1, 2, 3, 5, 7) * 20:
        accumulator.add(np.full((rows, 600), greatest, dtype), 1)
        assert abs(accumulator.found().digits).max() < 8 * 2**32
    assert set(statistics_of(accumulator)[0].total.units()) == {
        360 * ChannelMean.measure(np.full((1, 1), greatest, dtype)).total.units()[0]
    }


@pytest.mark.parametrize("longest", [1, 7, 2**27])
@pytest.mark.parametrize("kind", ["i8", "u8"])
def test_an_accumulator_carries_the_extremes_of_64_bits(kind, longest, monkeypatch):
    monkeypatch.setattr(cutting, "LONGEST_PIECE", longest)
    monkeypatch.setattr(running, "LONGEST_PIECE", longest)
    limits = np.iinfo(kind)
    for term in (limits.min, limits.max, limits.max // 2, limits.min // 2 + 1):
        accumulator = RunningSums(np.dtype(kind), 3)
        for rows in (1, 2, 900, 40):
            accumulator.add(np.full((rows, 3), term, kind), 1)
            accumulator.add(np.full((3, 2 * rows), term, kind), 0)
        sums, extrema = statistics_of(accumulator)
        assert sums.digits.T.tolist() == [as_digits(3 * 943 * term, len(sums.digits))] * 3
        assert extrema.minimum.tolist() == extrema.maximum.tolist() == [term] * 3
