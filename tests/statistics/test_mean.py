"""ChannelMean: the mean of each channel is the float64 nearest to the exact one, whatever the values."""

from __future__ import annotations

import gc
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    ALL_FLOATS,
    DTYPES,
    E4M3FN,
    INTEGERS,
    blocks,
    channel_values,
    contents,
    cuts,
    is_float,
    limits_of,
    space_of,
)

from streamstats import Quantization, prepare_input_mean
from streamstats.errors import MismatchError, NonFiniteError, UsageError
from streamstats.statistics.mean import ChannelMean

STEPS = st.floats(5e-324, 1e280) | st.sampled_from([5e-324, 1e-308, 0.1, 1 / 3, 0.0136, 1.0, 1e280])
ZERO_POINTS = st.integers(-(2**53), 2**53) | st.sampled_from([0, -128, 128, 255, -(2**53), 2**53])


def exact_means(block, axis, steps=1, zero_points=0):
    """float(Fraction) of each channel's finite values, mapped to reals one by one; NaN where there are none."""
    channels = channel_values(block, axis)
    steps, zero_points = (np.broadcast_to(given, len(channels)).tolist() for given in (steps, zero_points))
    return [
        _exact_mean([*filter(math.isfinite, values)], step, zero_point)
        for values, step, zero_point in zip(channels, steps, zero_points, strict=True)
    ]


def _exact_mean(values, step, zero_point):
    if not values:
        return math.nan
    return float(sum(((Fraction(value) - zero_point) * Fraction(step) for value in values), Fraction()) / len(values))


def assert_same_bits(found, expected):
    assert found.dtype == np.float64
    assert found.tobytes() == np.array(expected, np.float64).tobytes(), (found, expected)


# The mean


@given(blocks())
def test_the_mean_is_the_nearest_float64_to_the_exact_mean(case):
    block, axis = case
    assert_same_bits(ChannelMean.measure(block, axis).mean(), exact_means(block, axis))


@given(blocks(INTEGERS), STEPS, ZERO_POINTS)
def test_the_mean_of_codes_is_mapped_to_reals_before_it_is_rounded(case, step, zero_point):
    block, axis = case
    found = ChannelMean.measure(block, axis).mean(Quantization(step, zero_point))
    assert_same_bits(found, exact_means(block, axis, step, zero_point))


@given(st.data())
def test_each_channel_of_codes_has_its_own_map(data):
    block, axis = data.draw(blocks(INTEGERS).filter(lambda case: case[0].shape[case[1]]))
    channels = block.shape[axis]
    steps = data.draw(st.lists(STEPS, min_size=channels, max_size=channels))
    zero_points = data.draw(st.lists(ZERO_POINTS, min_size=channels, max_size=channels))
    found = ChannelMean.measure(block, axis).mean(Quantization(steps, zero_points))
    assert_same_bits(found, exact_means(block, axis, steps, zero_points))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_channel_without_finite_values_has_no_mean(dtype):
    assert np.isnan(ChannelMean.empty(space_of(dtype, 2)).mean()).all()
    assert ChannelMean.empty(space_of(dtype, 0)).mean().shape == (0,)
    if is_float(dtype) and dtype != E4M3FN:
        block = np.array([[np.nan, 1], [np.inf, np.nan], [-np.inf, 4]], dtype)
        assert_same_bits(ChannelMean.measure(block).mean(), [math.nan, 2.5])


@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
def test_the_mean_of_the_largest_values_is_finite_though_their_sum_is_not(dtype):
    greatest = limits_of(dtype).max
    for rows in (1, 2, 3, 1000):
        block = np.full((rows, 2), greatest, dtype)
        block[:, 1] *= -1
        assert_same_bits(ChannelMean.measure(block).mean(), [float(greatest), -float(greatest)])


def test_the_mean_of_float32_moves_past_2_to_the_24_equal_terms():
    rows = 2**24 + 3
    block = np.broadcast_to(np.float32([1, 0.1, 16777216]), (rows, 3))
    measured = ChannelMean.measure(block)
    assert measured.total.units()[0] == rows << 149
    assert measured.count.tolist() == [rows] * 3
    assert_same_bits(measured.mean(), [1.0, float(np.float32(0.1)), 16777216.0])


def test_the_mean_is_rounded_once_and_ties_to_even():
    above_one = math.nextafter(1.0, 2.0)
    block = np.array([[1.0, above_one, 5e-324], [above_one, math.nextafter(above_one, 2.0), 0.0]])
    assert_same_bits(ChannelMean.measure(block).mean(), [1.0, math.nextafter(above_one, 2.0), 0.0])
    thrice = np.array([[2**53], [2**53 + 1], [2**53 + 1]])
    assert ChannelMean.measure(thrice).mean().tolist() == [float(Fraction(3 * 2**53 + 2, 3))]


def test_a_mean_of_zero_is_positive():
    assert_same_bits(ChannelMean.measure(np.array([[-0.0, 1.0], [-0.0, -1.0]])).mean(), [0.0, 0.0])
    assert_same_bits(ChannelMean.measure(np.int8([[3], [3]])).mean(Quantization(0.5, 3)), [0.0])


def test_the_largest_sums_of_merged_statistics_keep_their_mean():
    measured = ChannelMean.measure(np.array([[np.finfo(np.float64).max, 5e-324], [1.0, 0.0]]))
    rows = 2
    while rows < 2**62:
        measured, rows = measured.merge(measured), rows * 2
    assert measured.count.tolist() == [rows, rows]
    expected = (Fraction(float(np.finfo(np.float64).max)) + 1) / 2
    assert_same_bits(measured.mean(), [float(expected), 0.0])


@pytest.mark.parametrize("dtype", [np.dtype(bool), np.dtype(np.float32)], ids=str)
def test_a_quantisation_of_batches_that_are_not_codes_is_refused_with_their_dtype(dtype):
    with pytest.raises(UsageError, match=f"the values are {dtype}; expected integer codes"):
        prepare_input_mean([np.zeros((2, 2), dtype)], Quantization(0.5))


@given(blocks(finite=True), st.floats(1e-30, 0.5), st.floats(-1e30, 1e30))
def test_a_step_and_an_offset_map_any_values_and_the_mean_is_rounded_once(block_and_axis, step, offset):
    block, axis = block_and_axis
    expected = [
        float(sum((Fraction(value) * Fraction(step) + Fraction(offset) for value in values), Fraction()) / len(values))
        if values
        else math.nan
        for values in channel_values(block, axis)
    ]
    assert_same_bits(ChannelMean.measure(block, axis).mean(Quantization(step, offset=offset)), expected)


def test_a_quantisation_of_another_number_of_channels_is_refused_with_both():
    with pytest.raises(MismatchError, match="has 3 channels, the layer has 2"):
        ChannelMean.measure(np.ones((4, 2), np.int8)).mean(Quantization([1.0, 2.0, 3.0]))


def test_a_mean_beyond_float64_is_refused_with_the_step():
    with pytest.raises(UsageError, match=r"beyond float64: the step is 1e\+308"):
        ChannelMean.measure(np.full((4, 2), 100, np.int8)).mean(Quantization(1e308))


# Batches in memory


@given(st.data())
def test_batches_of_any_sizes_have_the_mean_of_all_their_values(data):
    block, axis = data.draw(blocks(finite=True))
    rows = next(a for a in range(block.ndim) if a != axis)
    batches = data.draw(cuts(block, rows))
    assert_same_bits(prepare_input_mean(iter(batches), channel_axis=axis), exact_means(block, axis))


@given(st.data(), STEPS, ZERO_POINTS)
def test_batches_may_differ_in_every_extent_but_the_channels(data, step, zero_point):
    dtype = data.draw(st.sampled_from(INTEGERS))
    extents = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=4))
    batches = [data.draw(contents(dtype, (rows, 3, length))) for rows, length in extents]
    everything = np.concatenate([np.moveaxis(batch, 1, -1).reshape(-1, 3) for batch in batches])
    found = prepare_input_mean(batches, Quantization(step, zero_point), channel_axis=1)
    assert_same_bits(found, exact_means(everything, 1, step, zero_point))


def test_batches_may_be_lists_of_numbers():
    assert prepare_input_mean([[[1, 2], [3, 4]], [[5, 9]]]).tolist() == [3.0, 5.0]


class Batch(np.ndarray):
    """An array that can be watched."""


def test_one_batch_is_alive_at_a_time():
    alive = []

    def batches():
        for size in (3, 1, 4, 1, 5):
            assert [reference() for reference in alive if reference() is not None] == []
            batch = np.ones((size, 2)).view(Batch)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    gc.disable()  # freed at once, not when the collector comes by
    try:
        assert prepare_input_mean(batches()).tolist() == [1.0, 1.0]
    finally:
        gc.enable()
    assert len(alive) == 5
    assert alive[-1]() is None


def test_no_batches_are_refused():
    with pytest.raises(UsageError, match="no batches; expected at least one array"):
        prepare_input_mean([])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (np.ones((2, 4), np.int8), "batch 1 is int8 with 4 channels; expected int8 with 3 channels"),
        (np.ones((2, 3), np.uint8), "batch 1 is uint8 with 3 channels; expected int8 with 3 channels"),
    ],
)
def test_a_batch_that_does_not_fit_those_before_is_refused_with_both_sides(other, named):
    with pytest.raises(MismatchError, match=named):
        prepare_input_mean([np.ones((2, 3), np.int8), other])


@pytest.mark.parametrize("batch", [np.float32(1), np.array("text"), np.array([[None]])])
def test_a_batch_that_is_not_an_array_of_numbers_with_channels_is_refused(batch):
    with pytest.raises(MismatchError, match="expected"):
        prepare_input_mean([batch])


def test_batches_that_are_not_finite_are_refused_with_batch_channel_and_counts():
    bad = np.ones((4, 3))
    bad[:2, 1], bad[3, 1], bad[0, 2] = np.nan, np.inf, np.inf
    with pytest.raises(NonFiniteError, match="batch 2, channel 1: 2 NaN and 1 infinity; expected finite"):
        prepare_input_mean([np.ones((4, 3)), np.ones((1, 3)), bad])


def test_masked_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="batch 1 is a masked array"):
        prepare_input_mean([np.ones((2, 3)), np.ma.masked_array(np.ones((2, 3)), mask=True)])
