"""Histogram: quantiles by sorting, within a bin for wide values; bins in the order of the values."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import DTYPES, contents, is_float, limits_of, space_of

from streamstats.errors import UsageError
from streamstats.quantization import Quantization
from streamstats.statistics.counts import bins
from streamstats.statistics.histogram import Histogram

Array = np.ndarray[Any, np.dtype[Any]]
EXACT_QS = [0.0, 0.125, 0.5, 0.75, 0.9375, 1.0]
"""Binary fractions, for which numpy's products are exact, too."""
QS = [0.0, 1e-4, 0.01, 0.25, 0.5, 0.75, 0.99, 0.9999, 1.0]


@given(st.data())
def test_a_quantile_is_the_value_at_its_place_among_the_sorted_ones(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    block = data.draw(contents(dtype, (data.draw(st.integers(1, 60)), 3), finite=True))
    found = Histogram.measure(block)
    ordered = np.sort(block, axis=None)
    for q in QS:
        value = ordered[max(0, math.ceil(Fraction(str(q)) * ordered.size) - 1)]
        low, high = found.quantile(q)
        assert low <= value <= high
        if dtype.itemsize < 4:
            assert low == high == value
        elif is_float(dtype):
            bits = limits_of(dtype).nmant - 8 * dtype.itemsize + 16  # of the fraction that a bin tells apart
            assert high - low <= abs(float(value)) * 2.0**-bits + float(limits_of(dtype).tiny)


def test_quantiles_are_those_of_numpy() -> None:
    block = np.random.default_rng(0).standard_normal((1024, 8)).astype("f2")
    found = Histogram.measure(block)
    for q in EXACT_QS:
        assert found.quantile(q) == (float(np.quantile(block.astype("f8"), q, method="inverted_cdf")),) * 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bins_ascend_and_do_not_overlap(dtype: np.dtype[Any]) -> None:
    low, high = bins(dtype)
    if is_float(dtype):
        inside = np.isfinite(low) & np.isfinite(high)
        low, high = low[inside], high[inside]
    assert (low <= high).all()
    zero = np.flatnonzero((high[:-1] == 0) & (low[1:] == 0))  # −0 and +0 are neighbours, and equal
    assert (np.delete(high[:-1], zero) < np.delete(low[1:], zero)).all()
    assert len(zero) == is_float(dtype)


def test_bins_of_float32_are_128_per_octave() -> None:
    low, _ = bins(np.dtype("f4"))
    octave = low[np.isfinite(low) & (low >= 1) & (low < 2)].tolist()
    assert len(octave) == 128
    assert {after - before for before, after in pairwise(octave)} == {2.0**-7}


def test_codes_of_8_bits_have_quantiles_per_channel_in_real_units() -> None:
    block = np.random.default_rng(1).integers(-128, 128, (512, 4)).astype("i1")
    quantization = Quantization([0.5, 1.0, 0.25, 2.0], 3)
    found, real = Histogram.measure(block), quantization.dequantize(block)
    for q in EXACT_QS:
        assert found.quantile(q, quantization)[0] == np.quantile(real, q, method="inverted_cdf")
        for channel in range(4):
            wanted = np.quantile(real[:, channel], q, method="inverted_cdf")
            assert found.quantile(q, quantization, channel) == (wanted, wanted)


def test_what_cannot_be_answered_is_said() -> None:
    found = Histogram.measure(np.ones((3, 2), "i2"))
    with pytest.raises(UsageError, match="expected a number from 0 to 1"):
        found.quantile(1.5)
    with pytest.raises(UsageError, match="only 8-bit values are counted per channel"):
        found.quantile(0.5, channel=1)
    assert np.isnan(found.quantile(0.5, Quantization([1.0, 2.0]))).all()
    assert np.isnan(Histogram.empty(space_of("f4", 2)).quantile(0.5)).all()


def test_its_document_has_bars_that_add_up_to_the_values() -> None:
    block = np.random.default_rng(2).standard_normal((400, 3)).astype("f4")
    document = Histogram.measure(block).document(None, {})
    assert sum(count for *_, count in document.tables["histogram"].rows) == block.size
    edges = document.tables["histogram"].rows
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    same = Histogram.measure(np.full((5, 2), 3.0, "f2")).document(None, {})
    assert same.tables["histogram"].rows == [[3.0, 3.0, 10]]
    assert same.layer["median"] == 3.0


@pytest.mark.parametrize("ends", [(0.0, 5e-324), (-5e-324, 5e-324), (-1.7e308, 1.7e308)], ids=str)
def test_bars_are_drawn_for_any_finite_values(ends: tuple[float, float]) -> None:
    document = Histogram.measure(np.array([ends]).T).document(None, {})
    rows = document.tables["histogram"].rows
    assert sum(count for *_, count in rows) == 2
    assert all(math.isfinite(number) for row in rows for number in row)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "f2", "f4", "f8"])
@pytest.mark.parametrize("seed", range(5))
def test_every_bar_has_the_exact_count_of_its_values(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(3000) * rng.choice([1, 1e-3, 30], 3000)).astype(dtype)
    rows = Histogram.measure(values[:, np.newaxis]).document(None, {}).tables["histogram"].rows
    found = values.astype(np.float64)
    for bar, (low, high, count) in enumerate(rows):
        below = found <= high if bar == len(rows) - 1 else found < high
        assert count == np.count_nonzero((low <= found) & below)
    assert sum(count for *_, count in rows) == len(values)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u2"])
@pytest.mark.parametrize("values", [[0], [0, 0], [1.5], [2, 2], [1, 5, -3], [100, 101]], ids=str)
def test_layers_that_are_constant_or_narrow_have_bars(dtype: str, values: list[float]) -> None:
    block = np.abs(np.array(values)).astype(dtype)[:, np.newaxis]
    rows = Histogram.measure(block).document(None, {}).tables["histogram"].rows
    assert sum(count for *_, count in rows) == len(values)
    assert rows[0][0] <= block.min() <= block.max() <= rows[-1][1]


def test_values_beyond_float64_are_not_drawn_and_their_quantiles_are_null_in_json() -> None:
    document = Histogram.measure(np.full((2, 1), 127, "i1")).document(Quantization(1e307, 0), {})
    assert document.tables["histogram"].rows == []
    assert document.layer["median"] == math.inf
