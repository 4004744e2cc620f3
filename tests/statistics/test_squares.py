"""Variance, root mean square and mean magnitude in real units: the nearest floats to what fractions say."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import NARROW, contents, space_of

from streamstats.errors import MismatchError
from streamstats.quantization import Quantization, channel_maps
from streamstats.statistics.magnitude import ChannelMagnitude
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.squares import ChannelSquares

Array = np.ndarray[Any, np.dtype[Any]]
CODES = [np.dtype(kind) for kind in ("i1", "u1", "i2", "u2", "i4", "u4")]


def real_values(block: Array, channel: int, quantization: Quantization | None) -> list[Fraction]:
    values = [Fraction(value) for value in block[:, channel].tolist() if math.isfinite(value)]
    if quantization is None:
        return values
    step, zero_point = channel_maps(quantization, block.shape[1])[channel]
    return [(value - zero_point) * step for value in values]


def mean(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def variance(values: list[Fraction]) -> Fraction:
    return mean([(value - mean(values)) ** 2 for value in values])


def check(block: Array, quantization: Quantization | None) -> None:
    """Every figure of `block` [rows, channels]."""
    sums, squares = ChannelMean.measure(block), ChannelSquares.measure(block)
    for channel in range(block.shape[1]):
        values = real_values(block, channel, quantization)
        square = mean([value**2 for value in values])
        assert squares.mean_square(sums, quantization)[channel] == float(square)
        assert squares.variance(sums, quantization)[channel] == float(variance(values))
        for found, wanted in (("rms", square), ("standard_deviation", variance(values))):
            root = getattr(squares, found)(sums, quantization)[channel]
            assert abs(Fraction(root) ** 2 - wanted) <= wanted * Fraction(2) ** -51
        if ChannelMagnitude.refuses(sums.space, quantization) is None:
            magnitude = ChannelMagnitude.measure(block).mean_magnitude(sums, quantization)[channel]
            assert magnitude == float(mean([abs(value) for value in values]))


@given(st.data())
def test_floats_give_the_nearest_float_to_the_exact_figure(data: st.DataObject) -> None:
    shape = data.draw(st.integers(1, 40)), 2
    dtype = data.draw(st.sampled_from([np.dtype("f2"), *NARROW]))
    check(data.draw(contents(dtype, shape, finite=True)), None)
    block = np.random.default_rng(data.draw(st.integers(0, 99))).normal(1e4, 1e-3, shape).astype("f4")
    check(block, None)


@given(st.data())
def test_codes_give_the_figures_of_the_real_values(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(CODES))
    block = data.draw(contents(dtype, (data.draw(st.integers(1, 40)), 2)))
    zero_points = data.draw(st.sampled_from([0, 3, [0, 7]]))
    check(block, Quantization(data.draw(st.sampled_from([0.5, 0.1, [0.25, 3.0]])), zero_points))


def test_a_deviation_far_smaller_than_the_mean_is_not_lost() -> None:
    block = np.array([[2.0**20 + 0.125], [2.0**20 - 0.125]], "f4")
    assert ChannelSquares.measure(block).standard_deviation(ChannelMean.measure(block)).tolist() == [0.125]


def test_nothing_is_known_of_a_channel_without_finite_values() -> None:
    block = np.array([[1.0, np.nan], [3.0, np.inf]], "f4")
    sums, squares = ChannelMean.measure(block), ChannelSquares.measure(block)
    assert squares.standard_deviation(sums)[0] == 1.0
    assert math.isnan(squares.standard_deviation(sums)[1])
    assert math.isnan(squares.rms(sums)[1])
    assert math.isnan(ChannelMagnitude.measure(block).mean_magnitude(sums)[1])


def test_magnitudes_of_wide_codes_with_a_zero_point_are_refused_and_never_given() -> None:
    space, quantization = space_of("i2", 2), Quantization(0.5, 3)
    assert "zero point" in (ChannelMagnitude.refuses(space, quantization) or "")
    assert ChannelMagnitude.refuses(space, Quantization(0.5, 0)) is None
    assert ChannelMagnitude.refuses(space_of("i1", 2), quantization) is None
    block = np.ones((3, 2), "i2")
    found = ChannelMagnitude.measure(block).mean_magnitude(ChannelMean.measure(block), quantization)
    assert np.isnan(found).all()


@pytest.mark.parametrize("kind", [ChannelSquares, ChannelMagnitude])
def test_more_than_was_counted_is_not_subtracted(kind: Any) -> None:
    block = np.ones((4, 3), "i2")
    with pytest.raises(MismatchError, match=f"{kind.name}: more would be subtracted than was counted"):
        kind.measure(block[:1]).without(kind.measure(block))
