"""ChannelExtrema: the least and the greatest finite value of each channel, without the sign of a zero."""

from __future__ import annotations

import numpy as np
import pytest
from laws import ALL_FLOATS, DTYPES, exact_extrema, from_bits, hard_bits, space_of

from streamstats.statistics.extrema import ChannelExtrema


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [1, 40])
def test_every_pair_of_hard_values_is_in_order(dtype, inner):
    values = from_bits(hard_bits(dtype), dtype)
    pairs = np.stack(np.meshgrid(values, values)).reshape(2, -1)
    block = np.repeat(pairs[:, :, None], inner, axis=2)
    assert ChannelExtrema.measure(block, 1) == exact_extrema(block, 1)


@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
@pytest.mark.parametrize("order", [[0.0, -0.0], [-0.0, 0.0]])
def test_a_zero_has_no_sign(dtype, order):
    measured = ChannelExtrema.measure(np.array(order, dtype)[:, None])
    assert not np.signbit(measured.minimum).any()
    assert not np.signbit(measured.maximum).any()


@pytest.mark.parametrize("dtype", ALL_FLOATS, ids=str)
@pytest.mark.parametrize("inner", [1, 40])
def test_nan_and_infinities_are_no_extrema(dtype, inner):
    column = np.array([np.nan, np.inf, -2, -np.inf, 3, -np.nan], dtype)
    measured = ChannelExtrema.measure(np.repeat(column[:, None, None], inner, axis=2), 1)
    assert (measured.minimum.tolist(), measured.maximum.tolist()) == ([-2], [3])
    nothing = np.repeat(column[[0, 1, 3, 5], None, None], inner, axis=2)
    assert ChannelExtrema.measure(nothing, 1) == ChannelExtrema.empty(space_of(dtype, 1))


@pytest.mark.parametrize("channels", [1, 2, 85, 86, 255, 256, 257, 1023, 1024, 1025, 2049])
@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", "f4", "f8"])
def test_the_extremes_are_found_wherever_they_stand(channels, dtype):
    rows = 2 * channels + 3 if channels < 100 else 37
    block = np.full((rows, channels), 1, dtype)
    block[np.arange(channels) * 7 % rows, np.arange(channels)] = 0
    expected = np.zeros(channels, dtype), np.ones(channels, dtype)
    assert ChannelExtrema.measure(block) == ChannelExtrema(space_of(dtype, channels), *expected)
    assert ChannelExtrema.measure(block.T.copy()[None], 1).minimum.tolist() == expected[0].tolist()


@pytest.mark.parametrize("inner", [2, 31, 32, 33])
@pytest.mark.parametrize("outer", [1, 15, 16, 17])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_rows_and_runs_see_every_value(inner, outer, dtype):
    for place in range(outer * inner):
        block = np.zeros((outer, 3, inner), dtype)
        block[place // inner, 1, place % inner] = -1
        measured = ChannelExtrema.measure(block, 1)
        assert (measured.minimum.tolist(), measured.maximum.tolist()) == ([0, -1, 0], [0, 0, 0])
