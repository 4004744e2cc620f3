"""Every distance is that of its definition, computed here from the values themselves."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamstats.coverage import Coverage
from streamstats.outputs.distances import Distance, Distances, distances
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.ledger import CountedSource
from streamstats.quantization import Quantization
from streamstats.statistics.kinds import kinds_of
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import StatisticsAccumulator

Array = np.ndarray[Any, np.dtype[Any]]


def counted(values: Array, *kinds: str, quantization: Quantization | None = None) -> LayerStatistics:
    """What is counted of `values`, rows on axis 0 and channels last."""
    space = Space.of(values)
    accumulator = StatisticsAccumulator(kinds_of(kinds), space)
    accumulator.add(values, tuple(slice(0, extent) for extent in values.shape))
    source = CountedSource("", len(values), Coverage.first(len(values)))
    return LayerStatistics("layer", values.ndim - 1, quantization, (source,), accumulator.found())


def real(values: Array, quantization: Quantization | None) -> Array:
    return values.astype(np.float64) if quantization is None else quantization.dequantize(values)


def means(values: Array) -> list[float]:
    channels = values.reshape(-1, values.shape[-1]).T
    return [float(sum(map(Fraction, channel.tolist())) / len(channel)) for channel in channels]


def squared_errors(values: Array) -> list[Fraction]:
    """The squared standard error of the mean of each channel, from the means of samples."""
    found = []
    for channel in range(values.shape[-1]):
        samples = [[Fraction(v) for v in sample[..., channel].ravel().tolist()] for sample in values]
        sample_means = [sum(sample) / len(sample) for sample in samples]
        mean = sum(sample_means) / len(samples)
        found.append(sum((each - mean) ** 2 for each in sample_means) / (len(samples) - 1) / len(samples))
    return found


def close(found: float | None, expected: float) -> None:
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


def values_of(dtype: str) -> st.SearchStrategy[Array]:
    elements = st.integers(-100, 100) if dtype != "float32" else st.floats(-1e6, 1e6, width=32)
    shape = st.tuples(st.integers(2, 6), st.integers(1, 3), st.just(3))
    return shape.flatmap(lambda extents: arrays(dtype, extents, elements=elements))


BOTH = st.sampled_from(["int8", "int16", "float32"]).flatmap(
    lambda dtype: st.tuples(values_of(dtype), values_of(dtype))
)


@settings(max_examples=40, deadline=None)
@given(BOTH)
def test_means_are_apart_by_standard_errors_and_ranges_as_defined(both: tuple[Array, Array]) -> None:
    found = distances(*(counted(values, "spread") for values in both))
    mine, theirs = map(means, both)
    errors = [math.hypot(*(math.sqrt(each) for each in pair)) for pair in zip(*map(squared_errors, both), strict=True)]
    gaps = [abs(Fraction(m) - Fraction(t)) for m, t in zip(mine, theirs, strict=True)]
    in_errors = [float(gap / Fraction(e)) if e else math.inf * (gap > 0) for gap, e in zip(gaps, errors, strict=True)]
    in_errors = [0.0 if math.isnan(each) else each for each in in_errors]
    width = Fraction(max(float(v.max()) for v in both)) - Fraction(min(float(v.min()) for v in both))
    in_ranges = [float(gap / width) if width else 0.0 for gap in gaps]
    assert found.mean_in_standard_errors is not None
    close(found.mean_in_standard_errors.value, max(in_errors))
    assert in_errors[found.mean_in_standard_errors.channel] == pytest.approx(max(in_errors))
    assert found.mean_in_ranges == Distance(max(in_ranges), in_ranges.index(max(in_ranges)))
    assert found.worst_mean == found.mean_in_standard_errors
    assert found.in_standard_errors
    assert found.shift == found.mean_in_standard_errors.value


@settings(max_examples=40, deadline=None)
@given(BOTH)
def test_ranges_exceed_each_other_as_defined(both: tuple[Array, Array]) -> None:
    found = distances(*map(counted, both))
    lows, highs = ([[getattr(v[..., c], end)().item() for c in range(3)] for v in both] for end in ("min", "max"))
    width = Fraction(max(map(max, highs))) - Fraction(min(map(min, lows)))
    for name, inner, outer in (("beyond_first", 0, 1), ("beyond_second", 1, 0)):
        expected = [
            max(
                Fraction(0),
                Fraction(highs[outer][c]) - Fraction(highs[inner][c]),
                Fraction(lows[inner][c]) - Fraction(lows[outer][c]),
            )
            for c in range(3)
        ]
        shares = [float(each / width) if width else 0.0 for each in expected]
        assert getattr(found, name) == Distance(max(shares), shares.index(max(shares)))


def distances_of_values(mine: list[Any], theirs: list[Any]) -> tuple[float, float]:
    """(total variation, Kolmogorov–Smirnov) between the distributions of two lists."""
    together = sorted({*mine, *theirs})
    shares = [[Fraction(each.count(value), len(each)) for value in together] for each in (mine, theirs)]
    variation = sum(abs(p - q) for p, q in zip(*shares, strict=True)) / 2
    cumulative = [[sum(each[: place + 1]) for place in range(len(together))] for each in shares]
    return float(variation), float(max(abs(p - q) for p, q in zip(*cumulative, strict=True)))


@settings(max_examples=40, deadline=None)
@given(BOTH)
def test_histograms_are_apart_as_defined(both: tuple[Array, Array]) -> None:
    both = both[0] + 0, both[1] + 0  # no −0, which may be counted as 0 or below it
    found = distances(*(counted(values, "histogram") for values in both))
    bins = [[bin_of(value) for value in values.ravel()] for values in both]
    assert (found.total_variation, found.kolmogorov_smirnov) == distances_of_values(*bins)


def bin_of(value: Any) -> int:
    """The place of the bin in the order of the values: narrow values, or the upper half of a float32."""
    if value.dtype.kind == "i":
        return int(value)
    upper = int(abs(value).view(np.uint32)) >> 16
    return -upper - 1 if value < 0 else upper


QUANTIZED = st.tuples(values_of("int8"), values_of("int16"))
STEP = Quantization([0.5, 0.25, 2.0], [3, 0, -1])
OTHER = Quantization(0.125, -7)


@settings(max_examples=40, deadline=None)
@given(QUANTIZED)
def test_other_quantisations_are_compared_in_real_units(both: tuple[Array, Array]) -> None:
    kinds, maps = ("histogram", "spread"), (STEP, OTHER)
    pairs = list(zip(both, maps, strict=True))
    found = distances(*(counted(codes, *kinds, quantization=each) for codes, each in pairs))
    values = [real(*pair) for pair in pairs]
    assert (found.total_variation, found.kolmogorov_smirnov) == distances_of_values(
        *(v.ravel().tolist() for v in values)
    )
    gaps = [abs(m - t) for m, t in zip(*map(means, values), strict=True)]
    width = max(float(v.max()) for v in values) - min(float(v.min()) for v in values)
    assert found.mean_in_ranges is not None
    close(found.mean_in_ranges.value, max(gaps) / width if width else 0.0)
    errors = [math.hypot(*(math.sqrt(e) for e in pair)) for pair in zip(*map(squared_errors, values), strict=True)]
    if all(errors):
        assert found.mean_in_standard_errors is not None
        close(found.mean_in_standard_errors.value, max(gap / e for gap, e in zip(gaps, errors, strict=True)))


def test_histograms_whose_bins_do_not_fit_have_no_distance() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    wide = counted(values, "histogram")
    assert distances(wide, counted(values.astype("float64"), "histogram")).total_variation is None
    assert distances(wide, counted(values)).kolmogorov_smirnov is None
    codes = counted(values.astype("int16"), "histogram", quantization=Quantization([1.0, 2.0, 3.0]))
    assert distances(codes, codes).total_variation == 0
    assert distances(codes, counted(values.astype("int16"), "histogram")).total_variation is None
    nothing = counted(values[:0], "histogram")
    assert distances(wide, nothing).kolmogorov_smirnov is None


def test_without_standard_errors_hundredths_of_the_range_stand_for_them() -> None:
    values = np.zeros((4, 3), np.float32)
    values[:, 0], values[0, 1], values[:, 2] = 5, 10, 1
    moved = values.copy()
    moved[:, 0] += 1
    found = distances(counted(values), counted(moved))
    assert found.mean_in_standard_errors is None
    assert found.mean_in_ranges == Distance(0.1, 0)
    assert found.worst_mean == Distance(10.0, 0)
    assert not found.in_standard_errors


def test_channels_without_a_standard_error_are_judged_by_the_range_beside_the_others() -> None:
    values = np.array([[0.0, 0.0], [10.0, 1.0], [0.0, 0.5]], np.float32)
    moved = values + np.float32(1.0) * np.array([1, 0], np.float32)
    values[:2, 0] = moved[:2, 0] = np.nan
    found = distances(counted(values, "spread"), counted(moved, "spread"))
    assert found.mean_in_standard_errors == Distance(0.0, 1)
    assert found.worst_mean is not None
    assert (found.worst_mean.channel, found.in_standard_errors) == (0, False)


def test_a_constant_channel_that_moves_is_infinitely_many_standard_errors_away() -> None:
    values = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    moved = values + np.array([0.5, 0.0], np.float32)
    found = distances(counted(values, "spread"), counted(moved, "spread"))
    assert found.worst_mean == Distance(math.inf, 0)
    assert found.document()["worst_mean"] == {"value": None, "channel": 0}
    assert distances(*[counted(values, "spread")] * 2).shift == 0


def test_channels_with_values_in_one_output_only_are_not_comparable() -> None:
    values = np.ones((4, 3), np.float32)
    gone = values.copy()
    gone[:, 1] = np.nan
    found = distances(counted(values, "spread", "histogram"), counted(gone, "spread", "histogram"))
    assert (found.one_sided, found.comparable, found.shift) == ((1,), False, math.inf)
    assert distances(*[counted(gone)] * 2).shift == 0


def test_other_channels_have_histograms_and_nothing_else_to_compare() -> None:
    values = np.arange(12, dtype=np.int8).reshape(2, 6)
    found = distances(counted(values, "histogram"), counted(values.reshape(4, 3), "histogram"))
    assert found == Distances(comparable=False, total_variation=0.0, kolmogorov_smirnov=0.0)
    assert found.shift == math.inf


def test_the_widest_values_are_compared() -> None:
    limit = np.finfo(np.float64).max
    values = np.array([[limit, -limit], [limit / 2, limit]])
    found = distances(counted(values, "spread", "histogram"), counted(-values, "spread", "histogram"))
    assert found.mean_in_ranges is not None
    close(found.mean_in_ranges.value, 0.75)
    huge = Quantization(1e308)
    assert distances(*[counted(np.array([[-1, 1]], np.int8), quantization=huge)] * 2).shift == 0


def test_nothing_is_apart_from_nothing() -> None:
    nothing = counted(np.empty((0, 3), np.float32), "spread", "histogram")
    assert distances(nothing, nothing).shift == 0
    assert distances(nothing, counted(np.ones((2, 3), np.float32), "spread", "histogram")).one_sided == (0, 1, 2)
