"""Codes: zero always has one, and every range has a step above zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.quant_utils import compute_scale_zp
from quantizing import grid

from streamstats.errors import UsageError
from streamstats.quantization import fake_quantize
from streamstats.ranges.codes import Codes

BITS = range(2, 17)
KINDS = [(symmetric, signed) for symmetric in (False, True) for signed in (False, True)]
REALS = st.floats(-1e150, 1e150)
LEAST = 5e-324
"""The least positive float64: halves of the smallest steps are rounded to it, or to zero."""


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("symmetric", "signed"), KINDS)
def test_codes_are_those_of_their_kind(bits: int, symmetric: bool, signed: bool) -> None:
    codes = Codes(bits, symmetric, signed)
    assert codes.highest - codes.lowest == 2**bits - (2 if symmetric else 1)
    assert codes.highest == (2 ** (bits - 1) if signed else 2**bits) - 1
    zero_point = int(codes.quantization(-1.0, 2.0).zero_point)
    if symmetric:
        assert zero_point == (0 if signed else 2 ** (bits - 1))
        assert zero_point - codes.lowest == codes.highest - zero_point
    else:
        assert zero_point == codes.lowest + round((2**bits - 1) / 3)


@given(REALS, REALS, st.sampled_from(BITS), st.sampled_from(KINDS))
def test_zero_has_a_code_and_the_ends_are_within_half_a_step(
    one: float, other: float, bits: int, kind: tuple[bool, bool]
) -> None:
    codes = Codes(bits, *kind)
    low, high = codes.widened(min(one, other), max(one, other))
    assert low <= 0 <= high
    assert low <= min(one, other)
    assert high >= max(one, other)
    found = codes.quantization(low, high)
    assert codes.lowest <= found.zero_point <= codes.highest
    assert 0 < found.step < math.inf
    lowest, highest = (float(each * found.step) for each in codes.reach(found))
    half = 0.5001 * found.step + LEAST
    assert low == high == 0 or abs(lowest - low) <= half
    assert low == high == 0 or abs(highest - high) <= half


@given(st.floats(-1e30, 0), st.floats(0, 1e30), st.sampled_from(BITS), st.booleans())
def test_signed_and_unsigned_codes_have_the_same_values(low: float, high: float, bits: int, symmetric: bool) -> None:
    one, other = (Codes(bits, symmetric, signed) for signed in (False, True))
    assert one.quantization(low, high).step == other.quantization(low, high).step
    if low < high:
        ends = [[int(end) for end in each.reach(each.quantization(low, high))] for each in (one, other)]
        assert ends[0] == pytest.approx(ends[1], abs=1)  # a tie of the zero point is even in one of them


@pytest.mark.parametrize(("symmetric", "signed"), KINDS)
def test_a_range_without_extent_has_step_1_and_represents_zero(symmetric: bool, signed: bool) -> None:
    codes = Codes(8, symmetric, signed)
    found = codes.quantization(0.0, -0.0)
    assert found.step == 1
    assert found.zero_point == (128 if symmetric and not signed else 0)
    assert codes.lowest <= found.zero_point <= codes.highest


@pytest.mark.parametrize("low", [0.0, -5e-324])
@pytest.mark.parametrize(("symmetric", "signed"), KINDS)
def test_the_smallest_range_has_a_step_above_zero(symmetric: bool, signed: bool, low: float) -> None:
    assert Codes(16, symmetric, signed).quantization(low, 5e-324).step == 5e-324


def test_the_largest_range_has_a_finite_step() -> None:
    assert Codes(8).quantization(-1.7e308, 1.7e308).step == pytest.approx(1.7e308 / 127.5)


def test_many_ranges_at_once_have_the_maps_of_each() -> None:
    low, high = np.array([-1.0, 0, 0, -3]), np.array([0.5, 7, 0, 0])
    for kind in KINDS:
        together = Codes(4, *kind).quantization(low, high)
        for place, ends in enumerate(zip(low, high, strict=True)):
            alone = Codes(4, *kind).quantization(*ends)
            assert (together.step[place], together.zero_point[place]) == (alone.step, alone.zero_point)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_values_with_a_code_are_those_of_fake_quantised_weights(bits: int, symmetric: bool) -> None:
    weights = np.random.default_rng(bits).normal(size=500)
    codes = Codes(bits, symmetric)
    found = codes.quantization(*codes.widened(weights.min(), weights.max()))
    lowest, highest = (int(each) for each in codes.reach(found))
    rounded = np.clip(np.rint(weights / found.step), lowest, highest) * found.step
    np.testing.assert_allclose(rounded, fake_quantize(weights, bits, symmetric=symmetric), atol=1e-12)
    expected = grid(weights.min(), weights.max(), bits, symmetric)
    np.testing.assert_allclose(np.arange(lowest, highest + 1) * found.step, expected, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.9), (0.4, 2.9), (-3.1, -0.2), (-2.0, 2.0), (0.0, 7.25)])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_steps_and_zero_points_are_those_of_onnxruntime(low: float, high: float, bits: int) -> None:
    for symmetric, signed in ((False, False), (False, True), (True, True)):
        codes = Codes(bits, symmetric, signed)
        kind = np.int32
        ends = np.array(codes.lowest, kind), np.array(codes.highest, kind)
        zero_point, scale = compute_scale_zp(np.float64(low), np.float64(high), *ends, symmetric=symmetric)
        found = codes.quantization(low, high)
        assert (found.step, found.zero_point) == (scale, zero_point)


@pytest.mark.parametrize("bits", [1, 17, 0, -8, 2.5])
def test_other_bit_widths_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="expected an integer from 2 to 16"):
        Codes(bits)
