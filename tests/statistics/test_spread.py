"""SampleSpread: exact squares of exact sums, whatever the partition of the samples; the standard error of a mean."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DTYPES, contents, space_of

from streamstats.errors import DataError, MismatchError
from streamstats.quantization import Quantization
from streamstats.statistics.exact import ExactSum
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.samples import SQUARES
from streamstats.statistics.spread import SampleSpread

Array = np.ndarray[Any, np.dtype[Any]]
UNITS = 2**1074


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Array, int]:
    """Samples on axis 0, channels on another."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    return draw(contents(dtype, tuple(shape))), draw(st.integers(1, len(shape) - 1))


def samples_of(block: Array, axis: int) -> list[list[list[Any]]]:
    """The finite values of each channel of each sample."""
    return [
        [[v for v in sample.take(c, axis - 1).ravel().tolist() if math.isfinite(v)] for c in range(block.shape[axis])]
        for sample in block
    ]


@given(blocks())
def test_squares_of_integers_are_exact(case: tuple[Array, int]) -> None:
    block, axis = case
    if block.dtype.kind == "f" or block.dtype.itemsize == 8:
        with np.errstate(invalid="ignore"):  # a NaN that signals
            block = (np.nan_to_num(block.astype(np.float64), posinf=7, neginf=-7) % 1000).astype("i2")
    found = SampleSpread.measure(block, axis)
    sums = [[sum(map(int, values)) for values in sample] for sample in samples_of(block, axis)]
    expected = [sum(sample[c] ** 2 for sample in sums) * UNITS for c in range(block.shape[axis])]
    assert exact_units(found) == expected
    assert (found.samples == len(block)).all()
    assert not found.beyond.any()


def exact_units(found: SampleSpread) -> list[int]:
    return ExactSum(SQUARES, found.digits).units()


@pytest.mark.parametrize("dtype", ["i1", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("quantization", [None, Quantization(0.25, 3)])
def test_the_standard_error_is_that_of_the_samples_means(dtype: str, quantization: Quantization | None) -> None:
    if quantization and dtype[0] == "f":
        return
    block = (np.random.default_rng(1).normal(20, 6, (50, 3, 9))).astype(dtype)
    real = block.astype(np.float64) if quantization is None else quantization.dequantize(block)
    expected = real.mean(axis=2).std(axis=0, ddof=1) / math.sqrt(50)
    found = SampleSpread.measure(block, 1).standard_error(ChannelMean.measure(block, 1), quantization)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_spread_far_smaller_than_the_mean_is_not_lost() -> None:
    block = np.array([[2**40 + 1], [2**40 - 1]], "i8")
    found = SampleSpread.measure(block).standard_error(ChannelMean.measure(block))
    assert found.tolist() == [1.0]


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_a_spread_whose_square_is_beyond_float64_is_not_known(scale: float) -> None:
    block = np.array([[1.0, scale], [3.0, 2 * scale]])
    found = SampleSpread.measure(block).standard_error(ChannelMean.measure(block))
    assert found[0] == 1.0
    assert math.isnan(found[1]) if scale > 1 else found[1] < 1e-150


def test_nothing_is_known_of_one_sample_or_of_values_left_out() -> None:
    block = np.array([[1.0, 2.0], [3.0, np.nan]])
    found = SampleSpread.measure(block).standard_error(ChannelMean.measure(block))
    assert found[0] == 1.0
    assert math.isnan(found[1])
    assert np.isnan(SampleSpread.measure(block[:1]).standard_error(ChannelMean.measure(block[:1]))).all()
    empty = SampleSpread.empty(space_of("f8", 2))
    assert np.isnan(empty.standard_error(ChannelMean.empty(space_of("f8", 2)))).all()
    assert SampleSpread.measure(block[:0]) == empty


def test_what_does_not_fit_is_refused() -> None:
    block = np.ones((4, 3), "i2")
    with pytest.raises(MismatchError, match="more samples would be subtracted than were counted"):
        SampleSpread.measure(block[:1]).without(SampleSpread.measure(block))
    with pytest.raises(DataError, match="stored spread of int16 data: samples is missing"):
        SampleSpread.from_arrays({}, space_of("i2", 3))


def test_a_large_variance_is_the_root_of_the_exact_one() -> None:
    block = np.array([[3e150], [1e150]])
    found = SampleSpread.measure(block).standard_error(ChannelMean.measure(block))
    exact = (Fraction(3e150) - Fraction(1e150)) / 2
    assert found[0] == pytest.approx(float(exact))
