"""Missing values are replaced by NaN: the compiled loop, in blocks and while decoding, and numpy agree."""

from __future__ import annotations

import numpy as np
import pytest

from streamstats.statistics.kinds import KINDS
from streamstats.statistics.meaning import Meaning, Replacing
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import StatisticsAccumulator

MISSING = (-9999.0, 0.1, np.inf)
SHAPE = (64, 30, 40, 4)  # more than a tile of the chain
WHERE = tuple(slice(0, extent) for extent in SHAPE)


def values_of(dtype: str) -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.normal(0, 10, SHAPE).astype(dtype)
    for value, share in ((-9999, 0.1), (0.1, 0.01), (np.inf, 0.01), (-np.inf, 0.01), (np.nan, 0.01)):
        values[random.random(SHAPE) < share] = value
    return values


def missing(values: np.ndarray, low: float) -> np.ndarray:
    """Which values are missing, one comparison after the other."""
    return (values == -9999) | (values == values.dtype.type(0.1)) | (values == np.inf) | (values < low)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("low", [-np.inf, -20.0])
def test_the_loop_replaces_what_is_missing_and_counts_it(dtype: str, low: float) -> None:
    values = values_of(dtype)
    meaning = Meaning(values.dtype, values.dtype, MISSING, None if np.isinf(low) else low)
    expected = missing(values, low)
    np.testing.assert_array_equal(meaning.where(values), expected)
    replacing, block = Replacing(meaning), values.copy()
    assert replacing.counted(block, 3, None) is block
    np.testing.assert_array_equal(block, np.where(expected, values.dtype.type(np.nan), values))
    assert replacing.replaced == expected.sum()
    mask = np.random.default_rng(1).random(SHAPE[:-1]) < 0.5
    masked = Replacing(meaning)
    np.testing.assert_array_equal(masked.counted(values.copy(), 3, mask), block)
    assert masked.replaced == (expected & mask[..., None]).sum()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_values_that_a_decoder_passes_on_are_replaced_and_measured_as_a_block_is(dtype: str) -> None:
    values = values_of(dtype)
    meaning, kinds = Meaning(values.dtype, values.dtype, MISSING), [KINDS[name] for name in ("mean", "histogram")]
    whole = StatisticsAccumulator(kinds, Space.of(values), meaning)
    whole.add(values.copy(), WHERE)
    passed = StatisticsAccumulator(kinds, Space.of(values), meaning)
    taken = passed.intake(WHERE)
    assert taken is not None
    taker, intake = taken
    memory = values.copy().reshape(-1).view(np.uint8)
    units = taker.take(memory, intake)
    taker.took(units * intake.unit)
    rest = memory[units * intake.unit :].view(values.dtype)
    if rest.size:
        taker.rest(rest.reshape(-1, SHAPE[-1], 1))
    assert passed.found() == whole.found()
    assert passed.all_finite == whole.all_finite is False  # infinities below, and NaN that nobody declared


def test_integers_become_the_floats_that_hold_them() -> None:
    for stored, counted in (("i1", "f4"), ("u2", "f4"), ("?", "f4"), ("i4", "f8"), ("u8", "f8"), ("f2", "f2")):
        dtype = np.dtype(stored)
        assert Meaning(dtype, dtype, (1,)).counted == counted
        assert Meaning(dtype, dtype).counted == dtype
