"""Quantization and fake-quantisation, checked against exact rational arithmetic."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from streamstats import Quantization, fake_quantize
from streamstats.errors import MismatchError, UsageError
from streamstats.quantization import WEIGHT_RANGES, channel_maps, check_channels, quantization_step, weight_codes

steps = st.floats(1e-30, 1e30)
zero_points = st.integers(-(2**31), 2**31)
ALL_INT8 = np.arange(-128, 128, dtype=np.int8)

# Scale conventions


@given(steps, zero_points)
def test_a_step_is_the_real_value_of_one_code(step, zero_point):
    real = Quantization(step, zero_point).dequantize(ALL_INT8)
    assert real.tolist() == [float((code - zero_point) * Fraction(step)) for code in ALL_INT8.tolist()]


def test_the_two_scale_conventions_are_reciprocal():
    assert Quantization.from_scale(0.25, "step", 3) == Quantization(0.25, 3)
    assert Quantization.from_scale(4.0, "reciprocal", 3) == Quantization(0.25, 3)
    assert Quantization.from_scale([4.0, 0.5], "reciprocal") == Quantization([0.25, 2.0])


@given(st.floats(1e-300, 1e300))
def test_a_reciprocal_scale_becomes_the_nearest_step(scale):
    step = Quantization.from_scale(scale, "reciprocal").step.item()
    distances = [
        abs(Fraction(float(near)) - 1 / Fraction(scale))
        for near in (np.nextafter(step, 0), step, np.nextafter(step, np.inf))
    ]
    assert distances[1] == min(distances)


@pytest.mark.parametrize("convention", ["scale", "Step", "", None, "inverse", ["step"]])
def test_an_unknown_scale_convention_is_refused_with_the_known_ones(convention):
    with pytest.raises(UsageError, match="expected one of step, reciprocal"):
        Quantization.from_scale(1.0, convention)


@pytest.mark.parametrize("bad", [0, 0.0, -0.0, -1, -5e-324, np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_positive_and_finite_is_refused_in_both_conventions(bad):
    for make in (Quantization, lambda scale: Quantization.from_scale(scale, "step")):
        with pytest.raises(UsageError, match=r"step is .*; expected a positive, finite number"):
            make(bad)
        with pytest.raises(UsageError, match=r"step of channel 1 is .*; expected a positive, finite number"):
            make([1.0, bad, bad])
    with pytest.raises(UsageError, match=r"scale is .*; expected a positive, finite number"):
        Quantization.from_scale(bad, "reciprocal")


def test_a_reciprocal_scale_whose_step_overflows_is_refused():
    with pytest.raises(UsageError, match="step is inf"):
        Quantization.from_scale(5e-324, "reciprocal")


@pytest.mark.parametrize("bad", [0.5, -1e-9, np.nan, np.inf, [1, 2.5], 2**53 + 2, -1e300, np.uint64(2**63)])
def test_a_zero_point_that_is_not_an_integer_or_too_large_is_refused(bad):
    with pytest.raises(UsageError, match=r"zero point is .*; expected integers"):
        Quantization(1.0, bad)


def test_a_whole_zero_point_may_be_a_float():
    assert Quantization(1.0, -128.0) == Quantization(1.0, -128)
    assert Quantization([1.0, 2.0], np.float32([0, 7])).zero_point.tolist() == [0, 7]


@pytest.mark.parametrize("bad", ["1", None, True, 1j, [], [[1]], [[1], [1, 2]], [None], 2**70])
def test_what_is_not_a_number_or_a_list_of_numbers_is_refused(bad):
    with pytest.raises(UsageError, match=r"quantisation step is .*; expected a number"):
        Quantization(bad)
    with pytest.raises(UsageError, match=r"quantisation zero point is .*; expected a number"):
        Quantization(1.0, bad)


# Channels


def test_steps_and_zero_points_come_in_equal_numbers_or_one_for_all():
    with pytest.raises(MismatchError, match="3 steps and 2 zero points"):
        Quantization([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(MismatchError, match="3 steps and 1 zero points"):
        Quantization([1.0, 2.0, 3.0], [0])
    assert Quantization([1.0, 2.0, 3.0], 5).channels == 3
    assert Quantization(1.0, [5, 6]).channels == 2
    assert Quantization([1.0, 2.0], [5, 6]).channels == 2
    assert Quantization([1.0]).channels == 1
    assert Quantization(1.0, 5).channels is None


def test_a_wrong_number_of_channels_is_refused_and_both_are_printed():
    per_channel = Quantization([1.0, 2.0, 3.0])
    check_channels(per_channel, 3)
    check_channels(Quantization(1.0), 17)
    for attempt in (
        lambda: check_channels(per_channel, 4),
        lambda: channel_maps(per_channel, 4),
        lambda: per_channel.dequantize(np.zeros((3, 4))),
        lambda: per_channel.quantize(np.zeros((4, 3)), np.int8, channel_axis=0),
    ):
        with pytest.raises(MismatchError, match="the quantisation has 3 channels, the layer has 4"):
            attempt()


def test_one_channel_of_codes_is_not_broadcast_to_many():
    with pytest.raises(MismatchError, match="the quantisation has 3 channels, the layer has 1"):
        Quantization([1.0, 2.0, 3.0]).dequantize(np.zeros((5, 1)))
    with pytest.raises(MismatchError, match="the quantisation has 1 channels, the layer has 3"):
        Quantization([1.0]).quantize(np.zeros((5, 3)), np.int8)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((), -1)])
def test_a_channel_axis_that_is_not_there_is_refused(shape, axis):
    with pytest.raises(MismatchError, match=f"no channel axis {axis} in an array of shape"):
        Quantization([1.0, 2.0, 3.0]).dequantize(np.zeros(shape), axis)


def test_channel_maps_are_exact_and_one_a_channel():
    assert channel_maps(Quantization(0.1, 3), 2) == [(Fraction(0.1), 3)] * 2
    assert channel_maps(Quantization([0.1, 5e-324], -1), 2) == [(Fraction(0.1), -1), (Fraction(5e-324), -1)]
    assert channel_maps(Quantization(0.5, [2**53, 0]), 2) == [(Fraction(1, 2), 2**53), (Fraction(1, 2), 0)]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("quantization", [([0.5, 0.1, 3.0], [1, 0, -7]), ([0.5, 0.1, 3.0], 4), (0.1, [1, 0, -7])])
def test_per_channel_maps_are_the_per_tensor_map_of_every_slice(quantization, axis):
    per_channel = Quantization(*quantization)
    codes = np.random.default_rng(0).integers(-128, 128, (3, 3, 3)).astype(np.int8)
    real = per_channel.dequantize(codes, axis)
    again = per_channel.quantize(real, np.int8, axis)
    for channel in range(3):
        step, zero_point = (np.broadcast_to(values, 3)[channel] for values in quantization)
        one = Quantization(step, zero_point)
        wanted = one.dequantize(np.take(codes, channel, axis))
        np.testing.assert_array_equal(np.take(real, channel, axis), wanted)
        np.testing.assert_array_equal(np.take(again, channel, axis), one.quantize(wanted, np.int8))


# Codes and reals


@given(steps, zero_points, st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", ">i2"]), st.data())
def test_codes_survive_the_way_to_reals_and_back(step, zero_point, dtype, data):
    codes = data.draw(arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0)))
    quantization = Quantization(step, zero_point)
    again = quantization.quantize(quantization.dequantize(codes), dtype)
    assert (again.dtype, again.shape) == (codes.dtype, codes.shape)
    np.testing.assert_array_equal(again, codes)


def test_dequantising_narrow_unsigned_codes_does_not_wrap():
    assert Quantization(1.0, 200).dequantize(np.array([0, 255], np.uint8)).tolist() == [-200.0, 55.0]


def test_quantising_rounds_to_the_nearest_code_and_ties_to_even():
    real = np.array([0.24, 0.25, 0.26, 0.75, 1.25, -0.25, -0.75])
    assert Quantization(0.5, 10).quantize(real, np.uint8).tolist() == [10, 10, 11, 12, 12, 10, 8]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("step", [1e-300, 1.0])
def test_quantising_saturates_at_the_limits_of_the_codes(dtype, step):
    limits = np.iinfo(dtype)
    codes = Quantization(step, 3).quantize(np.array([-np.inf, -1e300, 1e300, np.inf]), dtype)
    assert codes.tolist() == [limits.min, limits.min, limits.max, limits.max]


def test_nan_has_no_code():
    with pytest.raises(UsageError, match="NaN, which has no code"):
        Quantization(1.0).quantize(np.array([0.0, np.nan]), np.int8)


@pytest.mark.parametrize("dtype", ["float32", "bool", "int64", "uint64", "complex64", "U1"])
def test_codes_of_a_dtype_that_is_not_an_integer_of_at_most_32_bits_are_refused(dtype):
    with pytest.raises(UsageError, match=f"codes is .*{np.dtype(dtype).kind}.*; expected an integer of at most 32"):
        Quantization(1.0).quantize(np.zeros(2), dtype)


def test_float32_reals_are_divided_in_float64():
    # 16777217 is not a float32: 1 / step would be rounded
    quantization = Quantization(1 / 16777217)
    assert quantization.quantize(np.float32([1.0]), np.int32).tolist() == [16777217]
    assert quantization.quantize(np.array(1.0, np.float32), np.int32).tolist() == 16777217


# Values


def test_quantizations_are_equal_when_their_numbers_and_their_shapes_are():
    assert Quantization(0.5, 1) == Quantization(np.float32(0.5), np.int8(1))
    assert hash(Quantization(0.5, 1)) == hash(Quantization(np.float32(0.5), np.int8(1)))
    assert Quantization([0.5, 1.0]) == Quantization((0.5, 1.0))
    different = [Quantization(0.5, 1), Quantization(0.5, 2), Quantization(0.25, 1), Quantization([0.5], 1)]
    different += [Quantization([0.5, 0.5], 1), Quantization(0.5, [1, 1]), (0.5, 1), None]
    assert [[a == b for b in different] for a in different] == np.eye(8, dtype=bool).tolist()


@given(st.lists(st.tuples(st.floats(5e-324, 1e308), st.integers(-(2**53), 2**53)), min_size=1))
def test_metadata_is_json_and_keeps_every_bit(maps):
    per_channel = Quantization(*zip(*maps, strict=True))
    per_tensor = Quantization(*maps[0])
    for quantization in (per_channel, per_tensor):
        assert Quantization.from_metadata(json.loads(json.dumps(quantization.to_metadata()))) == quantization


def test_no_metadata_is_no_quantization():
    assert Quantization.from_metadata(None) is None


@pytest.mark.parametrize("stored", [{}, [], "", 0, False, "int8", [1.0, 0], {"step": 1.0}, {"zero_point": 0}])
def test_metadata_that_is_no_quantization_is_refused(stored):
    with pytest.raises(UsageError, match="expected an object with `step` and `zero_point`"):
        Quantization.from_metadata(stored)


def test_a_quantization_cannot_be_changed_through_its_arrays():
    step = np.array([1.0, 2.0])
    quantization = Quantization(step, [3, 4])
    step[0] = -1.0
    assert quantization.step.tolist() == [1.0, 2.0]
    for array in (quantization.step, quantization.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# Fake-quantisation


@st.composite
def weights(draw, dtypes=("float64", "float32", "float16", ">f4"), min_side=1):
    """Any finite weights but the very largest; their range must fit their dtype."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    largest = float(np.finfo(dtype).max / 8)
    elements = st.floats(-largest, largest, width=8 * dtype.itemsize)
    return draw(arrays(dtype, array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=min_side), elements=elements))


bit_widths = st.integers(2, 16)


def exact_step(values, bits, symmetric):
    """The spacing of the codes, as a Fraction, over the range of `values` (widened to hold zero)."""
    numbers = [Fraction(float(value)) for value in values.reshape(-1)]
    if symmetric:
        return max(map(abs, numbers)) / (2 ** (bits - 1) - 1)
    return (max(0, *numbers) - min(0, *numbers)) / (2**bits - 1)


@given(weights(), bit_widths, st.booleans())
def test_every_weight_moves_by_at_most_half_a_step(values, bits, symmetric):
    rounded = fake_quantize(values, bits, symmetric=symmetric)
    step = exact_step(values, bits, symmetric)
    # the last term: what rounding the result to its own dtype may add, with denormals in mind
    for before, after in zip(values.reshape(-1), rounded.reshape(-1), strict=True):
        allowed = step * (Fraction(1, 2) + Fraction(1, 10**9)) + Fraction(float(np.spacing(np.abs(after))))
        assert abs(Fraction(float(after)) - Fraction(float(before))) <= allowed


@given(weights(), bit_widths, st.booleans())
def test_there_are_at_most_two_to_the_bits_distinct_values(values, bits, symmetric):
    assert len(np.unique(fake_quantize(values, bits, symmetric=symmetric))) <= 2**bits


@pytest.mark.parametrize("bits", range(2, 17))
def test_a_fine_grid_uses_every_code(bits):
    grid = np.linspace(-1.0, 2.0, 2**18)
    assert len(np.unique(fake_quantize(grid, bits))) == 2**bits
    assert len(np.unique(fake_quantize(grid - 0.5, bits, symmetric=True))) == 2**bits - 1


@given(weights(), bit_widths, st.booleans())
def test_zero_is_a_value_whatever_the_range(values, bits, symmetric):
    with_zero = np.append(values, values.dtype.type(0)).astype(values.dtype)
    rounded = fake_quantize(with_zero, bits, symmetric=symmetric)
    assert rounded[-1] == 0
    np.testing.assert_array_equal(rounded[:-1], fake_quantize(values, bits, symmetric=symmetric).reshape(-1))


def test_two_bits_by_hand():
    values = np.array([-1.0, 0.0, 0.5, 3.0])
    # asymmetric: step 4/3, zero point round(3/4) = 1, codes 0 1 1 3
    np.testing.assert_allclose(fake_quantize(values, 2), [-4 / 3, 0, 0, 8 / 3], rtol=1e-15)
    # symmetric: step 3, codes 0 0 0 1
    assert fake_quantize(values, 2, symmetric=True).tolist() == [0, 0, 0, 3]


def test_two_ties_that_round_up_together_do_not_make_a_fifth_value_of_two_bits():
    values = np.array([-1.5, -1.0, 0.0, 1.0, 1.5])  # step 1, zero point round(1.5) = 2, and 1.5 would be code 4
    assert fake_quantize(values, 2).tolist() == [-2.0, -1.0, 0.0, 1.0, 1.0]


@given(weights(), bit_widths, st.booleans())
def test_shape_and_dtype_are_kept_and_the_weights_are_not_written(values, bits, symmetric):
    values.flags.writeable = False
    rounded = fake_quantize(values, bits, symmetric=symmetric)
    assert isinstance(rounded, np.ndarray)
    assert (rounded.dtype, rounded.shape) == (values.dtype, values.shape)


@given(weights(), bit_widths, st.booleans(), st.data())
def test_per_axis_rounding_is_the_per_tensor_rounding_of_every_slice(values, bits, symmetric, data):
    axes = data.draw(st.lists(st.sampled_from(range(values.ndim)), unique=True) if values.ndim else st.just([]))
    spelled = [axis - values.ndim if data.draw(st.booleans()) else axis for axis in axes]
    rounded = fake_quantize(values, bits, axis=spelled, symmetric=symmetric)
    kept = [size if axis in axes else 1 for axis, size in enumerate(values.shape)]
    for index in np.ndindex(*kept):
        one = tuple(i if axis in axes else slice(None) for axis, i in enumerate(index))
        wanted = fake_quantize(np.asarray(values[one]), bits, symmetric=symmetric)
        np.testing.assert_array_equal(rounded[one], wanted)


def test_one_axis_may_be_a_plain_number():
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    for axis in (0, 1, 2, -1):
        np.testing.assert_array_equal(fake_quantize(values, 3, axis=axis), fake_quantize(values, 3, axis=[axis]))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("constant", [3.7, -3.7, 1e300, 5e-324, -5e-324, 1e-310])
def test_a_constant_tensor_stays_as_it_is(constant, symmetric):
    values = np.full((2, 3), constant)
    np.testing.assert_allclose(fake_quantize(values, 4, symmetric=symmetric), values, rtol=4e-16)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_zeros_and_empty_tensors_stay_as_they_are(dtype, shape, symmetric):
    values = np.zeros(shape, dtype)
    for axis in (None, *range(len(shape))):
        rounded = fake_quantize(values, 8, axis=axis, symmetric=symmetric)
        assert (rounded.dtype, rounded.shape) == (values.dtype, values.shape)
        assert not rounded.any()
        assert rounded is not values


def test_a_channel_of_zeros_stays_zero_beside_others():
    rounded = fake_quantize(np.array([[0.0, 0.0], [1.0, 2.0]]), 2, axis=0)
    assert rounded.tolist() == [[0.0, 0.0], [pytest.approx(4 / 3), 2.0]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("dtype", "smallest"), [("float64", 2.0**-1074), ("float32", 2.0**-149), ("float16", 2.0**-24)]
)
def test_denormals_are_rounded_like_other_numbers(dtype, smallest, symmetric):
    # up to 357 smallest denormals in 255 steps: a step that itself underflowed would be wrong by 100 of them
    counts = np.arange(0, 358, 7)
    values = (counts * smallest).astype(dtype)
    moved = fake_quantize(values, 8, symmetric=symmetric).astype(np.float64) / smallest - counts
    step = 357 / (127 if symmetric else 255)
    assert np.abs(moved).max() <= step / 2 + 0.5
    # where there are more codes than denormals between zero and the largest, nothing moves
    assert fake_quantize(values, 16, symmetric=symmetric).tolist() == values.tolist()


@pytest.mark.parametrize("bits", [1, 0, -1, 17, 2.5, 8.0, True, "8", None])
def test_bits_that_are_not_an_integer_from_2_to_16_are_refused(bits):
    with pytest.raises(UsageError, match=f"bits is {bits}; expected an integer from 2 to 16"):
        fake_quantize(np.ones(3), bits)


def test_bits_may_be_a_narrow_numpy_integer():
    values = np.random.default_rng(0).normal(size=50)
    np.testing.assert_array_equal(fake_quantize(values, np.int8(8)), fake_quantize(values, 8))


@pytest.mark.parametrize("bad", [[1.0, np.nan], [np.inf, 1.0], [-np.inf]])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_that_are_not_finite_are_refused(bad, dtype):
    with pytest.raises(UsageError, match="not all finite floating-point numbers"):
        fake_quantize(np.array(bad, dtype), 8)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64"])
def test_weights_that_are_not_floating_point_are_refused_rather_than_truncated(dtype):
    with pytest.raises(UsageError, match=f"the weights .{dtype}. are not all finite floating-point"):
        fake_quantize(np.ones(3, dtype), 8)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), -3), ((2, 3), (0, 0)), ((2, 3), (0, -2)), ((), 0)])
def test_an_axis_that_is_not_there_or_is_named_twice_is_refused(shape, axis):
    with pytest.raises(MismatchError, match=r"axis is .*, but the weights have the shape"):
        fake_quantize(np.ones(shape), 8, axis=axis)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_whose_nearest_values_overflow_their_dtype_are_refused(dtype):
    largest = np.finfo(dtype).max
    with pytest.raises(UsageError, match=f"overflow {dtype}"):
        fake_quantize(np.array([-largest, largest]), 2)
    assert fake_quantize(np.array([-largest, largest]), 2, symmetric=True).tolist() == [-largest, largest]


# Ranges of least squared error


def squared_error(weights: np.ndarray[Any, Any], rounded: np.ndarray[Any, Any]) -> float:
    return float(((weights.astype(np.float64) - rounded) ** 2).sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_range_of_least_squares_is_no_worse_and_mostly_better(bits: int, symmetric: bool) -> None:
    weights = np.random.default_rng(bits).standard_t(3, (8, 40)).astype("f4")
    found = {
        how: squared_error(weights, fake_quantize(weights, bits, symmetric=symmetric, weight_range=how))
        for how in WEIGHT_RANGES
    }
    assert found["mse"] < found["minmax"] if bits < 8 else found["mse"] <= found["minmax"]


def test_its_ends_are_the_best_of_those_that_are_tried() -> None:
    """Brute force, symmetric: every factor, each rounded here."""
    weights = np.random.default_rng(0).standard_t(3, 500)
    found = squared_error(weights, fake_quantize(weights, 4, symmetric=True, weight_range="mse"))
    tried = []
    for factor in [*range(20, 101)]:
        step = np.abs(weights).max() * factor / 100 / 7
        tried.append(squared_error(weights, np.clip(np.rint(weights / step), -7, 7) * step))
    assert found == pytest.approx(min(tried), rel=1e-12)


@pytest.mark.parametrize("how", WEIGHT_RANGES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_step_is_the_distance_between_levels(how: str, symmetric: bool) -> None:
    weights = np.random.default_rng(1).standard_t(3, (3, 4000))
    rounded = fake_quantize(weights, 4, axis=0, symmetric=symmetric, weight_range=how)
    step = quantization_step(weights, 4, axis=0, symmetric=symmetric, weight_range=how)
    assert step.shape == (3, 1)
    for row, one in zip(rounded, step[:, 0], strict=True):
        levels = np.unique(row)
        assert len(levels) <= 16
        apart = np.diff(levels) / one
        np.testing.assert_allclose(apart, np.rint(apart), rtol=1e-9)
        assert apart.min() == pytest.approx(1)


def test_each_channel_has_the_range_that_it_has_alone() -> None:
    weights = np.random.default_rng(2).standard_t(3, (5, 60)).astype("f4")
    together = fake_quantize(weights, 4, axis=0, weight_range="mse")
    alone = np.stack([fake_quantize(row, 4, weight_range="mse") for row in weights])
    np.testing.assert_array_equal(together, alone)


def test_other_ranges_are_refused() -> None:
    with pytest.raises(UsageError, match="weight_range is 'best'; expected one of minmax, mse"):
        fake_quantize(np.ones(3), 4, weight_range="best")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("how", ["minmax", "mse"])
@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_the_codes_of_weights_make_the_levels_of_fake_quantisation(
    symmetric: bool, how: str, axis: int | tuple[int, int] | None
) -> None:
    draw = np.random.default_rng(0)
    weights = draw.normal(0.2, 1, (3, 4, 9)) * 10.0 ** draw.integers(-6, 6, (3, 4, 1))
    weights[1] = 0
    options = {"axis": axis, "symmetric": symmetric, "weight_range": how}
    step, lowest, highest = weight_codes(weights, 3, **options)  # type: ignore[arg-type]
    rounded = np.clip(np.rint(weights / step), lowest, highest) * step
    assert np.array_equal(rounded, fake_quantize(weights, 3, **options))  # type: ignore[arg-type]
    assert np.all(highest - lowest == 2**3 - (2 if symmetric else 1))


def test_weights_too_small_for_a_step_have_no_codes() -> None:
    with pytest.raises(UsageError, match="too small for their steps to be float64 numbers"):
        weight_codes(np.array([5e-324, 0.0]), 4)
