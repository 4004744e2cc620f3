"""Cutting a block into pieces for the loops: every element once, viewed where it can be, copied in small parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DTYPES, LAYOUTS, blocks, exact_extrema, exact_sums, shapes

from streamstats.errors import MismatchError
from streamstats.statistics import pieces as cutting
from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.pieces import pieces

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


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 0), (0,)])
def test_an_empty_block_has_no_pieces(shape):
    for axis in range(len(shape)):
        assert [*pieces(np.zeros(shape), axis)] == []


def test_a_block_of_channels_alone_is_one_row():
    (piece,) = pieces(np.arange(5), 0)
    assert piece.shape == (1, 5, 1)
    assert ChannelMean.measure(np.arange(5)).total.units() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("axis", [2, -3])
def test_a_channel_axis_out_of_range_is_refused_with_the_shape(axis):
    with pytest.raises(MismatchError, match=rf"channel axis {axis} is out of range .*\(2, 3\)"):
        next(pieces(np.zeros((2, 3)), axis))


ROWS, RUNS = 2, 3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 300, 1), [(ROWS, 7, 1)]),  # channels last and many: as they are
        ((7, 256, 1), [(ROWS, 7, 1)]),
        ((7, 128, 1), [(ROWS, 3, 2), (ROWS, 1, 1)]),  # joined in pairs, and one left
        ((7, 85, 1), [(ROWS, 2, 3), (ROWS, 1, 1)]),
        ((7, 1, 1), [(ROWS, 1, 7)]),  # fewer rows than could be joined
        ((1000, 1, 1), [(ROWS, 3, 256), (ROWS, 232, 1)]),
        ((512, 1, 1), [(ROWS, 2, 256)]),
        ((16, 3, 31), [(ROWS, 8, 2)]),  # short runs are rows of more channels
        ((16, 3, 2), [(ROWS, 1, 16)]),
        ((16, 3, 32), [(RUNS, 16, 1)]),
        ((15, 3, 31), [(RUNS, 15, 1)]),
        ((16, 2048, 2), [(ROWS, 16, 1)]),
        ((16, 2049, 2), [(RUNS, 16, 1)]),
        ((16, 5000, 1), [(ROWS, 16, 1)]),
    ],
)
def test_pieces_go_to_the_loop_for_their_shape(shape, expected):
    """Which loop it is shows in speed alone; that both are reached is what the other tests rest on."""
    parts = [*cutting._parts(np.zeros(shape, np.int8))]
    assert [(part.ndim, part.shape[0], joined) for part, joined, _ in parts] == expected
