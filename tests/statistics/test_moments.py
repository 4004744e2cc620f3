"""The loops for magnitudes and squares on long strips: every window of exponents, both orders of the axes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from laws import is_float, limits_of

from streamstats.statistics.exact import ExactSum, is_canonical, unit_exponent
from streamstats.statistics.moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]
WIDER = [np.dtype(kind) for kind in ("i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "bfloat16")]
FLOATS = [dtype for dtype in WIDER if is_float(dtype)]


def check(block: Array, axis: int) -> None:
    """What `Moments` finds is what fractions say, to the last bit."""
    rider = Moments(block.dtype, block.shape[1:], axis - 1)
    rider.add(block, tuple(slice(0, extent) for extent in block.shape))
    found = rider.found().arrays
    for name, power in (("magnitudes", 1), ("squares", 2)):
        unit = Fraction(2) ** unit_exponent(block.dtype, power)
        assert is_canonical(found[name])
        totals = ExactSum(block.dtype, found[name]).units()
        for channel, total in enumerate(totals):
            values = filter(math.isfinite, block.take(channel, axis).ravel().tolist())
            assert total * unit == sum(abs(Fraction(value)) ** power for value in values)


def both_ways(block: Array) -> None:
    """`block` [rows, channels] through the loop over rows and, transposed, through the loop over runs."""
    check(block, 1)
    check(np.ascontiguousarray(block.T)[np.newaxis], 1)


def any_bits(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> Array:
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


@pytest.mark.parametrize("dtype", WIDER, ids=str)
def test_any_bits_are_summed_exactly(dtype: np.dtype[Any]) -> None:
    both_ways(any_bits(dtype, (700, 3)))


@pytest.mark.parametrize("dtype", WIDER, ids=str)
@pytest.mark.parametrize("end", ["least", "greatest"])
def test_the_ends_of_the_range_fit(dtype: np.dtype[Any], end: str) -> None:
    limits: Any = limits_of(dtype) if is_float(dtype) else np.iinfo(dtype)
    both_ways(np.full((600, 2), limits.min if end == "least" else limits.max, dtype))


@pytest.mark.parametrize("span", [0, 1, 20, 21, 22, 23, 43, 44, 60, 120, 253])
def test_float32_terms_whose_exponents_are_far_apart_take_several_windows(span: int) -> None:
    rng = np.random.default_rng(span)
    mantissas = np.float32(2) - np.float32(2.0**-23) * rng.integers(1, 2**22, (300, 4)).astype(np.float32)
    exponents = rng.choice([127 - span, 127, 127 - span // 2], (300, 4)) - 1
    block = np.ldexp(mantissas * rng.choice([-1, 1], (300, 4)).astype(np.float32), exponents).astype(np.float32)
    block[::50] = np.float32(np.finfo(np.float32).smallest_subnormal)
    block[::7] = 0
    both_ways(block)


@pytest.mark.parametrize("span", [0, 1, 20, 21, 22, 23, 43, 44, 60, 120, 250])
def test_bfloat16_terms_whose_exponents_are_far_apart_take_several_windows(span: int) -> None:
    rng = np.random.default_rng(span)
    exponents = rng.choice([254 - span, 254, 254 - span // 2], (600, 4))
    block = (exponents << 7 | rng.choice([0, 1, 126, 127], (600, 4)) | rng.choice([0, 1 << 15], (600, 4))).astype("u2")
    block[::50], block[::7] = 1, 0
    both_ways(block.view("bfloat16"))
    both_ways(np.full((600, 2), 0x7F7F, "u2").view("bfloat16"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_that_are_not_finite_add_nothing(dtype: np.dtype[Any]) -> None:
    block = np.random.default_rng(1).standard_normal((513, 3)).astype(dtype)
    block[::5, 0], block[::3, 1], block[:, 2] = np.nan, -np.inf, np.inf
    both_ways(block)


@pytest.mark.parametrize("channels", [1, 7, 1023, 1024, 1025, 2500])
def test_wide_and_narrow_rows_are_summed_exactly(channels: int) -> None:
    check(np.random.default_rng(2).standard_normal((5, channels)).astype(np.float32), 1)
    check(np.random.default_rng(3).standard_normal((5, channels)).astype(np.float16), 1)


def test_strips_of_the_greatest_float16_fill_their_sums_and_no_more() -> None:
    check(np.full((9000, 1), 65504, np.float16), 1)
    check(np.full((1, 1, 9000), 65504, np.float16), 1)
