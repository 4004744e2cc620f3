"""Second moments are, to the last bit, those of fractions: each row of X as its definition says, product by product."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import BFLOAT16, NARROW, contents, cuts, from_bits, hard_bits, is_float, limits_of, places
from taps import kernels, several_kernels
from threadpoolctl import threadpool_limits

from streamstats.errors import DataError, UsageError
from streamstats.floats import is_finite
from streamstats.layouts import Geometry, Kernel, joint_kernel
from streamstats.quantization import Quantization, channel_maps
from streamstats.statistics import gram_pieces, products, unfolding, wide
from streamstats.statistics.gram import Gram
from streamstats.statistics.statistic import Space

Array = np.ndarray[Any, np.dtype[Any]]
ZERO = Fraction(0)
CODES = [np.dtype(kind) for kind in ("?", "i1", "u1", "i2", "u2")]
FLOATS = [np.dtype("f2"), np.dtype("f4"), *NARROW]
DTYPES = [*CODES, *FLOATS]


PRODUCT = Kernel()


# The exact answers


def real(values: Array, quantization: Quantization | None = None) -> Array:
    """The fractions that `values` (samples, channels, …) stand for; zeros for those that are not finite."""
    found = np.full(values.shape, ZERO, object)
    maps = channel_maps(quantization, values.shape[1])
    for place in np.ndindex(*values.shape):
        value = values[place].item()
        if math.isfinite(value):
            step, zero_point = maps[place[1]]
            found[place] = (Fraction(value) - zero_point) * step
    return found


def rows_of(values: Array, kernel: Kernel = PRODUCT) -> Array:
    """X, fractions [G, rows, n]: a row for each output of the `kernel` over `values` (samples, channels, *space)."""
    spatial = len(kernel.taps)
    if not spatial:
        return by_group(np.moveaxis(values, 1, -1).reshape(-1, values.shape[1], 1), kernel.groups)
    pads = kernel.geometry.pads
    ends = [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)]
    padded = np.pad(values, ends, constant_values=ZERO)
    numbers = list(zip(padded.shape[2:], kernel.taps, kernel.geometry.strides, kernel.geometry.dilations, strict=True))
    outputs = [(extent - dilation * (taps - 1) - 1) // stride + 1 for extent, taps, stride, dilation in numbers]
    rows = []
    for sample in padded:
        for output in np.ndindex(*outputs):
            seen = [
                slice(at * stride, at * stride + dilation * (taps - 1) + 1, dilation)
                for at, (_, taps, stride, dilation) in zip(output, numbers, strict=True)
            ]
            rows.append(sample[(slice(None), *seen)].reshape(values.shape[1], -1))
    taps = math.prod(kernel.taps)
    return by_group(np.array(rows, object).reshape(-1, values.shape[1], taps), kernel.groups)


def by_group(rows: Array, groups: int) -> Array:
    """[G, rows, n] of [rows, channels, taps]."""
    count, channels, taps = rows.shape
    return rows.reshape(count, groups, channels // groups * taps).swapaxes(0, 1)


def gram_of(rows: Array) -> Array:
    """XᵀX, fractions [G, n, n]."""
    groups, _, columns = rows.shape
    found = np.full((groups, columns, columns), ZERO, object)
    for group, values in enumerate(rows):
        for row in values:
            (some,) = np.nonzero(row)
            found[group][np.ix_(some, some)] += np.multiply.outer(row[some], row[some])
    return found


def covariance_of(rows: Array) -> Array:
    """E[xxᵀ] − E[x]E[x]ᵀ, fractions [G, n, n]."""
    count = rows.shape[1]
    mean = np.array([[sum(column, ZERO) / count for column in group.T] for group in rows], object)
    return gram_of(rows) / count - mean[:, :, np.newaxis] * mean[:, np.newaxis]


def nearest(fractions: Array) -> list[float]:
    """The float64 nearest to each; infinite beyond the largest."""
    return [rounded(each) for each in fractions.ravel()]


def rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def check(found: Gram, rows: Array, quantization: Quantization | None = None) -> None:
    """Every entry, to the bit, and how many rows there were."""
    exact = gram_of(rows)
    matrix = found.matrix(quantization)
    assert matrix.dtype == np.float64
    assert matrix.shape == exact.shape
    assert matrix.ravel().tolist() == nearest(exact)
    assert found.rows == rows.shape[1]


# Hard contents


@st.composite
def hard_values(draw: st.DrawFn, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Finite values (samples, channels, …) that lose digits wherever products are not exact."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["contents", "denormals", "one huge", "spread", "opposite", "rising", "sparse"]))
    if kind == "contents" or dtype.kind == "b":
        return draw(contents(dtype, shape, finite=True))
    values = extremes(rng, dtype, shape) if kind == "denormals" else spread_out(rng, dtype, shape)
    channels = np.moveaxis(values, 1, 0)
    if kind == "one huge":
        channels[1:] = small(dtype)
        channels[:1] = limits(dtype)[1]
    elif kind == "opposite" and len(channels) > 1 and dtype.kind != "u":
        channels[1] = -np.maximum(channels[0], limits(dtype)[0] + dtype.type(1) if dtype.kind == "i" else channels[0])
    elif kind == "rising":
        order = np.argsort(np.abs(values.astype(np.float64)), axis=None)
        values = values.ravel()[order].reshape(shape)
    elif kind == "sparse":
        values[rng.random(shape) < 0.9] = 0
    return values


def limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest finite value."""
    of = limits_of(dtype) if is_float(dtype) else np.iinfo(dtype)
    return dtype.type(of.min), dtype.type(of.max)


def small(dtype: np.dtype[Any]) -> Any:
    return limits_of(dtype).smallest_subnormal if is_float(dtype) else dtype.type(1)


def extremes(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Denormals, limits, and what lies beside them."""
    return rng.choice(from_bits(hard_bits(dtype, finite=True), dtype), shape)


def spread_out(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Exponents over the whole range of `dtype`, those of each channel in a range of its own."""
    if not is_float(dtype):
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    of = limits_of(dtype)
    lowest, highest = of.minexp - of.nmant, of.maxexp - 1
    ends = np.sort(rng.integers(lowest, highest + 1, (2, shape[1])), axis=0).reshape(2, -1, *[1] * (len(shape) - 2))
    exponents = rng.integers(ends[0], ends[1] + 1, shape)
    signs = rng.choice([-1.0, 1.0], shape)
    values = np.ldexp(signs * rng.uniform(1, 1.7, shape), exponents).astype(dtype)  # 1.75·2^8 is the last of float8
    assert is_finite(values).all()
    return values


# Everything is exact


@settings(max_examples=50)
@given(st.data())
def test_each_entry_is_the_nearest_to_the_sum_of_fractions(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = (data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5)), *data.draw(st.sampled_from([(), (3,)])))
    values = data.draw(hard_values(dtype, shape))
    check(Gram.measure(values, 1, PRODUCT), rows_of(real(values)))


@settings(max_examples=50)
@given(st.data())
def test_under_each_tap_of_a_grouped_kernel_too(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    kernel, values = data.draw(convolved(dtype))
    axis = data.draw(st.integers(1, values.ndim - 1))
    check(Gram.measure(np.moveaxis(values, 1, axis), axis, kernel), rows_of(real(values), kernel))


@st.composite
def convolved(draw: st.DrawFn, dtype: np.dtype[Any]) -> tuple[Kernel, Array]:
    """A kernel with groups, and values (samples, channels, *space) that it moves over."""
    kernel, extents = draw(kernels(draw(st.integers(1, 2))).filter(lambda case: not case[0].transposed))
    groups, channels = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    values = draw(hard_values(dtype, (draw(st.integers(1, 3)), groups * channels, *extents)))
    return replace(kernel, groups=groups), values


STEPS = st.sampled_from([1.0, 0.1, 3.7e-5, 0.5])


@st.composite
def quantizations(draw: st.DrawFn, channels: int) -> Quantization:
    """One step and zero point for the tensor, or some for each channel; or an offset."""
    if draw(st.integers(0, 4)) == 0:
        return Quantization(draw(STEPS), offset=draw(st.sampled_from([-1.0, 0.3, 1e6])))
    zero_points = st.sampled_from([0, 1, -128, 117, 32768])
    if draw(st.booleans()):
        return Quantization(draw(STEPS), draw(zero_points))
    several = [draw(st.lists(each, min_size=channels, max_size=channels)) for each in (STEPS, zero_points)]
    return Quantization(*several)


@settings(max_examples=50)
@given(st.data())
def test_steps_zero_points_and_offsets_of_codes_follow_and_padding_is_a_real_zero(data: st.DataObject) -> None:
    kernel, values = data.draw(convolved(data.draw(st.sampled_from(CODES[1:]))))
    quantization = data.draw(quantizations(values.shape[1]))
    rows = rows_of(real(values, quantization), kernel)
    found = Gram.measure(values, 1, kernel)
    check(found, rows, quantization)
    if rows.shape[1]:
        assert found.covariance(quantization).ravel().tolist() == nearest(covariance_of(rows))


@settings(max_examples=40)
@given(st.data())
def test_floats_may_have_a_step_and_an_offset_too(data: st.DataObject) -> None:
    values = data.draw(hard_values(data.draw(st.sampled_from(FLOATS)), (data.draw(st.integers(1, 6)), 3)))
    quantization = data.draw(quantizations(3))
    rows = rows_of(real(values, quantization))
    found = Gram.measure(values, 1, PRODUCT)
    check(found, rows, quantization)
    assert found.covariance(quantization).ravel().tolist() == nearest(covariance_of(rows))


@settings(max_examples=50)
@given(st.data())
def test_a_covariance_is_the_nearest_to_that_of_fractions(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    groups, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    values = data.draw(hard_values(dtype, (data.draw(st.integers(1, 12)), groups * channels)))
    if data.draw(st.booleans()) and is_float(dtype):
        values = (1 + values.astype(np.float64).clip(-1e-3, 1e-3)).astype(dtype)  # a mean far above the deviation
    kernel = Kernel(groups=groups)
    rows = rows_of(real(values), kernel)
    assert Gram.measure(values, 1, kernel).covariance().ravel().tolist() == nearest(covariance_of(rows))


@settings(max_examples=50)
@given(st.data())
def test_each_of_several_kernels_over_one_array_has_the_bits_of_its_own(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 2))
    drawn, extents = data.draw(several_kernels(spatial))
    several = [replace(each, groups=data.draw(st.sampled_from([1, 2]))) for each in drawn if not each.transposed]
    values = data.draw(hard_values(data.draw(st.sampled_from(DTYPES)), (2, 4, *extents)))
    if not several:
        return
    found = Gram.measure(values, 1, joint_kernel(several))
    for kernel in several:
        alone = found.with_kernel(kernel)
        assert alone == Gram.measure(values, 1, kernel)
        check(alone, rows_of(real(values), kernel))


@settings(max_examples=50)
@given(st.data())
def test_positions_that_a_mask_leaves_out_are_no_rows_and_samples_may_come_in_parts(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = (data.draw(st.integers(1, 6)), 4, *data.draw(st.sampled_from([(), (5,), (2, 3)])))
    values = np.ascontiguousarray(np.moveaxis(data.draw(hard_values(dtype, shape)), 1, -1))
    kernel = Kernel(
        data.draw(st.sampled_from([(), (1,) * (len(shape) - 2)])), groups=data.draw(st.sampled_from([1, 2]))
    )
    masked, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    mask = np.random.default_rng(seed).random(values.shape[:-1]) < (0.5 if masked else 1)
    space = replace(Space.of(values, -1, kernel), masked=masked)
    accumulator = Gram.accumulator(space)
    for where in data.draw(places(values.shape, values.ndim - 1, Gram.uncut(space))):
        part = np.ascontiguousarray(mask[where[:-1]]) if masked else None
        accumulator.add(np.ascontiguousarray(values[where]), where, part)
    check(accumulator.found(), rows_of(real(values[mask]), replace(kernel, taps=(), geometry=Geometry())))


@settings(max_examples=40)
@given(st.data())
def test_cuts_of_the_columns_join_to_the_whole_in_any_order(data: st.DataObject) -> None:
    kernel, values = data.draw(convolved(data.draw(st.sampled_from(DTYPES))))
    kernel = data.draw(st.sampled_from([kernel, Kernel(groups=kernel.groups)]))
    space, last = Space.of(values, 1, kernel), np.ascontiguousarray(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram_pieces, "BLOCK", data.draw(st.sampled_from([1, 2, 4])))
        found = []
        for number in range(Gram.cuts(space)):
            accumulator = Gram.cut_accumulator(space, number)
            for where in data.draw(places(last.shape, 1, Gram.uncut(space))):
                accumulator.add(np.ascontiguousarray(last[where]), where)
            found.append(accumulator.found())
        joined = Gram.joined(space, found)
    assert joined == Gram.measure(values, 1, kernel)


@settings(max_examples=50)
@given(st.data())
def test_how_the_rows_are_cut_and_how_many_are_multiplied_at_once_changes_no_bit(data: st.DataObject) -> None:
    kernel, values = data.draw(convolved(data.draw(st.sampled_from(DTYPES))))
    whole = Gram.measure(values, 1, kernel)
    check(whole, rows_of(real(values), kernel))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "ROWS", data.draw(st.sampled_from([1, 2, 5])))
        patch.setattr(products, "MOST_ADDED", data.draw(st.sampled_from([1, 2])))
        patch.setattr(products, "SPARSE", data.draw(st.sampled_from([0.0, 0.04, 2.0])))
        patch.setattr(products, "PLANES", data.draw(st.sampled_from([1, 3])))
        patch.setattr(gram_pieces, "BLOCK", data.draw(st.sampled_from([1, 2, 3, 7])))
        patch.setattr(unfolding, "PIECE_VALUES", data.draw(st.sampled_from([1, 5, 40])))
        patch.setattr(wide, "PIECE", data.draw(st.sampled_from([1, 3])))
        parts = [Gram.measure(part, 1, kernel) for part in data.draw(st.permutations(data.draw(cuts(values, 0))))]
    merged = reduce(lambda a, b: a.merge(b), parts)
    assert merged == whole
    assert merged.without(parts[0]) == reduce(lambda a, b: a.merge(b), parts[1:], Gram.empty(whole.space))


def test_values_that_are_not_finite_are_zeros_and_the_covariance_is_not_known() -> None:
    values = np.array([[1.0, np.nan, 2.0], [np.inf, 3.0, 5.0], [7.0, 11.0, -np.inf]], "f4")
    found = Gram.measure(values, 1, PRODUCT)
    check(found, rows_of(real(values)))
    with pytest.raises(UsageError, match=r"NaN, infinities and missing values \(3 values\) were left out"):
        found.covariance()
    with pytest.raises(UsageError, match=r"\(3 values\) were left out, .* zero is not stored as zero"):
        found.matrix(Quantization(1.0, offset=2.0))
    check(found, rows_of(4 * real(values)), Quantization(4.0))


def test_an_offset_of_floats_under_several_taps_is_refused_before_they_are_counted() -> None:
    values, offset = np.ones((2, 3, 5), "f4"), Quantization(1.0, offset=2.0)
    for kernel in (Kernel((3,)), joint_kernel([Kernel((3,)), PRODUCT])):
        assert "its floats have an offset" in (Gram.refuses(Space.of(values, 1, kernel), offset) or "")
    assert Gram.refuses(Space.of(values, 1, Kernel((3,))), Quantization(2.0)) is None
    assert Gram.refuses(Space.of(values.astype("i1"), 1, Kernel((3,))), offset) is None
    with pytest.raises(UsageError, match="its floats have an offset"):
        Gram.measure(values, 1, Kernel((3,))).matrix(offset)


@pytest.mark.parametrize("dtype", ["f4", BFLOAT16])
def test_halves_are_rounded_to_even_once(dtype: Any) -> None:
    """2^53 + 1 lies between two floats, and so does 2^53 + 3; the least further term decides."""
    for terms in ([], [(2.0**-60, 2.0**-60)], [(-(2.0**-60), 2.0**-60)], [(2.0**-130, 2.0**-133)]):
        for middle in (1.0, 3.0):
            pairs = [(2.0**30, 2.0**23), (middle, 1.0), *terms]
            values = np.array(pairs, dtype)
            check(Gram.measure(values, 1, PRODUCT), rows_of(real(values)))


@pytest.mark.parametrize(
    ("dtype", "value"), [("i1", -128), ("u2", 65535), ("f2", 65504.0), ("f4", 3.4028235e38), ("f4", 1e-45)]
)
def test_sums_as_large_as_they_may_become_do_not_wrap(dtype: str, value: float) -> None:
    rows = 2 * products.ROWS * products.MOST_ADDED + 5
    values = np.full((rows, 2), value, dtype)
    if dtype != "u2":
        values[:, 1] = -values[:, 1] if dtype != "i1" else 127
    first, second = (Fraction(each.item()) for each in values[0])
    found = Gram.measure(values, 1, PRODUCT).matrix()
    exact = [first * first, first * second, second * first, second * second]
    assert found.ravel().tolist() == [rounded(rows * each) for each in exact]


def test_the_threads_of_blas_change_no_bit() -> None:
    values = np.random.default_rng(0).normal(size=(3000, 300)).astype("f4")
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(Gram.measure(values, 1, PRODUCT))
    assert found[0] == found[1]
    columns = values[:, [0, 299]].astype(object)
    exact = sum(Fraction(a) * Fraction(b) for a, b in columns.tolist())
    assert found[0].matrix()[0, 0, 299] == float(exact)


def test_a_state_without_the_counts_of_every_kernel_is_refused() -> None:
    several = joint_kernel([Kernel((3,)), Kernel((2,))])
    found = Gram.measure(np.ones((2, 3, 5), "i1"), 1, several)
    for name in ("positions", "left_out"):
        with pytest.raises(DataError, match=rf"{name} is int64\[1\]; expected int64\[2\]"):
            Gram.from_arrays(found.arrays() | {name: found.arrays()[name][:1]}, found.space)


@pytest.mark.parametrize(
    ("name", "values"), [("positions", [5]), ("positions", [0]), ("left_out", [1]), ("first", [1])], ids=str
)
def test_counts_that_contradict_each_other_are_refused(name: str, values: list[int]) -> None:
    block = np.arange(12, dtype=np.int8).reshape(6, 2)
    found = Gram.measure(block)
    with pytest.raises(DataError, match=r"contradict each other|not finite were left out"):
        Gram.from_arrays(found.arrays() | {name: np.array(values)}, found.space)
