"""SampleSpread: exact squares of exact sums, whatever the partition of the samples; the standard error of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from laws import DTYPES, contents, is_float, space_of

from streamstats.errors import DataError, MismatchError
from streamstats.quantization import Quantization
from streamstats.statistics import samples
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.spread import SampleSpread
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import StatisticsAccumulator

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


@pytest.mark.parametrize("dtype", ["i1", "u4", "f2", "f4", "f8", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("quantization", [None, Quantization(0.25, 3)])
def test_the_standard_error_is_that_of_the_samples_means(dtype: str, quantization: Quantization | None) -> None:
    if quantization and is_float(np.dtype(dtype)):
        return
    block = (np.random.default_rng(1).normal(20, 6, (50, 3, 9))).astype(dtype)
    real = block.astype(np.float64) if quantization is None else quantization.dequantize(block)
    expected = real.mean(axis=2).std(axis=0, ddof=1) / math.sqrt(50)
    found = SampleSpread.measure(block, 1).standard_error(ChannelMean.measure(block, 1), quantization)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def exact_error(samples: Sequence[Array]) -> Fraction:
    """The squared standard error of the mean of the only channel of `samples`, as a ratio estimate."""
    sums = [sum(map(Fraction, sample.tolist()), Fraction(0)) for sample in samples]
    values = sum(map(len, samples))
    mean = sum(sums, Fraction(0)) / values
    residuals = [(total - mean * len(sample)) ** 2 for total, sample in zip(sums, samples, strict=True)]
    return sum(residuals, Fraction(0)) * len(samples) / (len(samples) - 1) / values**2


def is_nearest_root(found: float, squared: Fraction) -> bool:
    """Whether no float64 is nearer to the root of `squared`."""
    below, above = Fraction(math.nextafter(found, 0)), Fraction(math.nextafter(found, math.inf))
    return ((below + Fraction(found)) / 2) ** 2 <= squared <= ((above + Fraction(found)) / 2) ** 2


@pytest.mark.parametrize(
    "block",
    [
        2**40 + np.array([[1], [-1]], "i8"),
        1e9 + np.random.default_rng(0).normal(0, 0.1, (50, 4)),
        2**60 + np.random.default_rng(1).integers(0, 9, (50, 4)),
        np.random.default_rng(2).normal(1, 0.1, (50, 4)) * 1e-161,
        np.random.default_rng(3).normal(1, 0.1, (50, 4)) * 1e-170,
        np.random.default_rng(4).normal(1, 0.1, (50, 4)) * 1e300,
        1000 + np.random.default_rng(5).normal(0, 1e-3, (50, 64)).astype("f4"),
        np.array([[5e-324], [0.0], [1.5e-323]]),
    ],
    ids=["2^40 ± 1", "1e9", "2^60", "1e-161", "1e-170", "1e300", "float32", "denormals"],
)
def test_a_standard_error_is_the_nearest_float_however_small_the_spread(block: Array) -> None:
    sums = ChannelMean.measure(block[:, :, np.newaxis])
    found = SampleSpread.measure(block[:, :, np.newaxis]).standard_error(sums)[0]
    assert is_nearest_root(found, exact_error([*block]))


def test_samples_of_unequal_counts_are_weighed_by_them() -> None:
    rng = np.random.default_rng(7)
    block = rng.normal(3, 1, (40, 30, 1)).astype("f4")
    mask = np.arange(30) < rng.integers(1, 31, (40, 1))
    mask[5] = False  # a sample without any value is none
    block[3, 0] = np.nan
    kept = [sample[chosen & np.isfinite(sample[:, 0]), 0] for sample, chosen in zip(block, mask, strict=True)]
    statistics = StatisticsAccumulator([ChannelMean, SampleSpread], replace(Space.of(block), masked=True))
    statistics.add(block, (slice(0, 40), slice(0, 30), slice(0, 1)), mask)
    found = statistics.found()
    assert found["spread"].samples.tolist() == [39]
    assert is_nearest_root(found["spread"].standard_error(found["mean"])[0], exact_error([*filter(len, kept)]))


def test_samples_of_several_extents_are_weighed_by_their_counts() -> None:
    short, long = np.arange(6.0).reshape(2, 3, 1), np.arange(10.0).reshape(2, 5, 1)
    spread = SampleSpread.measure(short).merge(SampleSpread.measure(long))
    sums = ChannelMean.measure(short).merge(ChannelMean.measure(long))
    assert is_nearest_root(spread.standard_error(sums)[0], exact_error([*short[:, :, 0], *long[:, :, 0]]))


def test_samples_that_are_all_alike_have_an_error_of_zero() -> None:
    block = np.full((5, 3), 0.1)
    assert SampleSpread.measure(block).standard_error(ChannelMean.measure(block)).tolist() == [0, 0, 0]


def test_nothing_is_known_of_one_sample() -> None:
    block = np.array([[1.0, 2.0], [3.0, np.nan]])
    found = SampleSpread.measure(block).standard_error(ChannelMean.measure(block))
    assert found[0] == 1.0
    assert math.isnan(found[1])  # of the second channel, one sample has a value
    assert np.isnan(SampleSpread.measure(block[:1]).standard_error(ChannelMean.measure(block[:1]))).all()
    empty = SampleSpread.empty(space_of("f8", 2))
    assert np.isnan(empty.standard_error(ChannelMean.empty(space_of("f8", 2)))).all()
    assert SampleSpread.measure(block[:0]) == empty


def test_what_does_not_fit_is_refused() -> None:
    block = np.ones((4, 3), "i2")
    with pytest.raises(MismatchError, match="spread: more would be subtracted than was counted"):
        SampleSpread.measure(block[:1]).without(SampleSpread.measure(block))
    with pytest.raises(DataError, match="stored spread of int16 data: samples is missing"):
        SampleSpread.from_arrays({}, space_of("i2", 3))


def test_digits_are_carried_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    block = np.random.default_rng(6).standard_normal((40, 9, 3))
    expected = SampleSpread.measure(block)
    carries: list[int] = []
    carried = samples.carried
    monkeypatch.setattr(samples, "MOST_SAMPLES", 7)
    monkeypatch.setattr(samples, "carried", lambda digits: carries.append(1) or carried(digits))
    accumulator = SampleSpread.accumulator(expected.space)
    for start in range(0, 40, 5):
        accumulator.add(block[start : start + 5], (slice(start, start + 5), slice(0, 9), slice(0, 3)))
    assert accumulator.found() == expected
    assert len(carries) > 5
