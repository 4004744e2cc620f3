"""Ranges of real outputs against brute force over the values themselves, for every method, kind of store and width."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import Values, candidates, divergence, grid, mean_squared_error, output_of, percentile_of

import streamstats as ss
from streamstats.coverage import Coverage
from streamstats.errors import UsageError
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.ledger import CountedSource
from streamstats.quantization import Quantization
from streamstats.ranges.codes import Codes
from streamstats.ranges.distortion import mean_squared_errors
from streamstats.ranges.distribution import Distribution
from streamstats.ranges.finding import METHODS, LayerRange, Range, find_ranges, layer_ranges
from streamstats.ranges.least_squares import least_squares_range
from streamstats.statistics.kinds import kinds_of
from streamstats.statistics.statistic import Space
from streamstats.statistics.statistics import Statistics

Array = np.ndarray[Any, Any]
random = np.random.default_rng(7)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return np.random.default_rng(sum(shape)).normal(scale=scale, size=shape)


def with_outliers(*shape: int) -> Array:
    values = normal(*shape)
    values.flat[:: values.size // 3] *= 40
    return values


STEP = {"quantization": {"step": 0.03, "zero_point": -7}}
STEPS = {"quantization": {"step": [0.5, 0.03, 2.0], "zero_point": [0, -7, 20]}}
STORES: dict[str, tuple[Array, Any]] = {
    "float32": (normal(61, 5, 3).astype("f4"), None),
    "float32 with outliers": (with_outliers(61, 5, 3).astype("f4"), None),
    "float16": (normal(61, 5, 3).astype("f2"), None),
    "int8": (np.rint(normal(61, 5, 3, scale=25)).astype("i1"), None),
    "uint8": (np.rint(np.abs(with_outliers(61, 5, 3))).astype("u1"), None),
    "int8 codes": (np.rint(normal(61, 5, 3, scale=25)).astype("i1"), STEP),
    "int8 codes with a step per channel": (np.rint(normal(61, 5, 3, scale=25)).astype("i1"), STEPS),
    "int16": (np.rint(normal(61, 5, 3, scale=300)).astype("i2"), None),
    "int16 codes": (np.rint(with_outliers(61, 5, 3) * 200).astype("i2"), STEP),
    "float64": (normal(61, 5, 3), None),
    "int32": (np.rint(normal(61, 5, 3, scale=1e7)).astype("i4"), None),
    "after a ReLU": (np.maximum(normal(61, 5, 3), 0).astype("f4"), None),
    "after a ReLU, float16": (np.maximum(normal(61, 5, 3), 0).astype("f2"), None),
    "below zero": (-np.abs(normal(61, 5, 3)).astype("f2") - 1, None),
    "far from zero": ((normal(61, 5, 3) + 100).astype("f4"), None),
    "constant": (np.full((6, 5, 3), 2.5, "f4"), None),
    "constant below zero": (np.full((6, 5, 3), -3, "i1"), None),
    "zeros": (np.zeros((6, 5, 3), "f4"), None),
    "zeros, int8": (np.zeros((6, 5, 3), "i1"), None),
    "zeros of codes": (np.full((6, 5, 3), -7, "i1"), STEP),
    "one value": (np.full((1, 1), 0.3, "f4"), None),
    "two values": (np.array([[-1, 0, 60]], "i1"), None),
    "subnormal": ((normal(61, 5, 3) * 1e-41).astype("f4"), None),
}
EXACT = ("i1", "u1", "i2", "f2")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    attributes = {name: {"channel_axis": -1, **(described or {})} for name, (_, described) in STORES.items()}
    layers = {name: values for name, (values, _) in STORES.items()}
    return output_of(tmp_path_factory.mktemp("ranges"), layers, attributes=attributes)


def real(name: str) -> Array:
    values, described = STORES[name]
    return Quantization(**described["quantization"]).dequantize(values) if described else values.astype(np.float64)


def is_exact(name: str) -> bool:
    return STORES[name][0].dtype.itemsize <= 2


def found_in(output: Path, name: str, method: str, bits: int = 8, **options: Any) -> LayerRange:
    return find_ranges(output, method, bits, layers=name, **options)[name]


def check_error(found: LayerRange, values: Values, channel: int = 0) -> None:
    """The expected error is that of the values: exactly, or within what it says."""
    chosen, codes = found.ranges[channel], found.codes
    quantization = codes.quantization(chosen.low, chosen.high)
    lowest, highest = (int(each) for each in codes.reach(quantization))
    error = mean_squared_error(values, np.arange(lowest, highest + 1) * float(quantization.step))
    known = chosen.distortion
    assert known is not None
    size = float(np.abs(values).max())
    within = known.within + 1e-9 * math.sqrt(error) + 1e-14 * size
    assert abs(math.sqrt(known.mean_squared_error) - math.sqrt(error)) <= within
    assert abs(math.sqrt(known.mean_square) - math.sqrt((values**2).mean())) <= known.within + 1e-12 * size
    if known.mean_squared_error:
        assert known.sqnr == pytest.approx(10 * math.log10(known.mean_square / known.mean_squared_error))


# Each method


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", STORES)
def test_minmax_reaches_from_the_least_to_the_greatest_value(output: Path, name: str, symmetric: bool) -> None:
    values = real(name).ravel()
    found = found_in(output, name, "minmax", symmetric=symmetric)
    low, high = min(values.min(), 0), max(values.max(), 0)
    expected = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
    assert (found.ranges[0].low, found.ranges[0].high) == expected
    check_error(found, values)


@pytest.mark.parametrize("percentile", [99.99, 99.0, 90.5, 50.01, 100])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", STORES)
def test_percentiles_are_those_of_the_sorted_values(
    output: Path, name: str, symmetric: bool, percentile: float
) -> None:
    values = real(name).ravel()
    found = found_in(output, name, "percentile", symmetric=symmetric, percentile=percentile)
    if symmetric:
        high = percentile_of(np.abs(values), percentile)
        low = -high
    else:
        low, high = min(-percentile_of(-values, percentile), 0), max(percentile_of(values, percentile), 0)
    chosen = found.ranges[0]
    if is_exact(name):
        assert (chosen.low, chosen.high) == (low, high)
    else:
        width = {"f": 1 / 128, "i": 0}[STORES[name][0].dtype.kind] * (16 if STORES[name][0].dtype == "f8" else 1)
        slack = 2**16 if STORES[name][0].dtype.kind == "i" else 1e-40
        assert low * (1 + width) - slack <= chosen.low <= low
        assert high <= chosen.high <= high * (1 + width) + slack
    check_error(found, values)


SEARCHED = [name for name in STORES if STORES[name][0].size > 10 and name != "subnormal"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", SEARCHED)
def test_mse_finds_the_best_of_all_candidates(output: Path, name: str, symmetric: bool) -> None:
    values = real(name).ravel()
    bits = 3
    found = found_in(output, name, "mse", bits, symmetric=symmetric)
    check_error(found, values)
    known = found.ranges[0].distortion
    assert known is not None
    every = list(candidates(values, symmetric))
    assert any(np.allclose((found.ranges[0].low, found.ranges[0].high), each, rtol=1e-12, atol=0) for each in every)
    thinned = every[:: max(1, len(every) // 6000)]
    best = min(mean_squared_error(values, grid(low, high, bits, symmetric)) for low, high in thinned)
    # an estimate that is off by `within` for both may prefer a range that is worse by as much
    assert math.sqrt(known.mean_squared_error) <= math.sqrt(best) * (1 + 1e-9) + known.within + 1e-12


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["i1", "f2"])
def test_mse_of_few_values_is_the_best_of_every_single_candidate(tmp_path: Path, kind: str, bits: int) -> None:
    values = np.rint(with_outliers(12, 2) * 3).astype(kind)
    found = found_in(output_of(tmp_path, {"layer": values}), "layer", "mse", bits).ranges[0]
    flat = values.astype(np.float64).ravel()
    best = min(mean_squared_error(flat, grid(low, high, bits, False)) for low, high in candidates(flat, False))
    assert found.distortion is not None
    assert found.distortion.mean_squared_error == pytest.approx(best, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("make", [normal, with_outliers])
def test_no_candidate_that_was_left_out_is_better(make: Callable[..., Array], symmetric: bool) -> None:
    values = Distribution.of(measured(make(30, 2).astype("f4")))
    codes = Codes(3, symmetric)
    every = np.array(list(candidates(np.array([values.low[0], values.high[-1]]), symmetric)))
    errors = mean_squared_errors(values, codes, codes.quantization(every[:, 0], every[:, 1]))
    low, high = least_squares_range(values, codes)
    assert mean_squared_errors(values, codes, codes.quantization([low], [high])) == pytest.approx(errors.min())


def test_mse_of_wide_bins_is_close_to_that_of_the_values(tmp_path: Path) -> None:
    values = normal(2000, 50).astype("f4")
    output = output_of(tmp_path, {"layer": values})
    flat = values.astype(np.float64).ravel()
    for bits, symmetric in [(2, False), (4, True), (8, False), (8, True)]:
        found = find_ranges(output, "mse", bits, symmetric=symmetric)["layer"].ranges[0]
        error = mean_squared_error(flat, grid(found.low, found.high, bits, symmetric))
        assert found.distortion is not None
        assert found.distortion.mean_squared_error == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("bits", [4, 8, 10, 12, 16])
def test_wide_bins_do_not_fall_onto_the_grid_of_a_power_of_two(tmp_path: Path, bits: int) -> None:
    """The middles of bins do: with them, the error of 10 bits is a fifth off."""
    values = np.clip(normal(500, 50), -3.4, 3.4).astype("f4")
    values[0, 0] = (2 ** (bits - 1) - 1) * 2.0 ** (3 - bits)  # the step of symmetric codes is 2^(3 − bits)
    found = find_ranges(output_of(tmp_path, {"layer": values}), "minmax", bits, symmetric=True)["layer"]
    assert found.quantization.step == 2.0 ** (3 - bits)
    error = mean_squared_error(
        values.astype(np.float64).ravel(), grid(-float(values[0, 0]), float(values[0, 0]), bits, True)
    )
    assert found.ranges[0].distortion is not None
    assert found.ranges[0].distortion.mean_squared_error == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("name", ["int8", "uint8", "int8 codes", "int16", "after a ReLU, float16", "two values"])
def test_entropy_is_the_least_divergence_of_the_slides(output: Path, name: str, bits: int) -> None:
    values = real(name).ravel()
    found = found_in(output, name, "entropy", bits, symmetric=True).ranges[0]
    magnitudes = np.abs(values[values != 0])
    extent = magnitudes.max()
    levels = 2 ** (bits - 1)
    different = np.unique(magnitudes)
    assert found.high == extent or (different <= found.high * (1 + 1e-9)).sum() >= levels
    chosen = round(found.high / extent * 2048)
    assert found.high == pytest.approx(extent * chosen / 2048)
    if len(different) < levels:
        assert chosen == 2048
        return
    fewest = max(levels, math.ceil(different[levels - 1] / extent * 2048 * (1 - 1e-9)))
    every = sorted({math.ceil(each / extent * 2048 * (1 - 1e-9)) for each in different})
    thinned = [kept for kept in every if kept >= fewest][:: max(1, len(every) // 70)]
    best = min(divergence(magnitudes, extent, kept, levels) for kept in [*thinned, 2048, chosen])
    assert divergence(magnitudes, extent, chosen, levels) == pytest.approx(best, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", STORES)
def test_entropy_never_exceeds_the_extrema(output: Path, name: str) -> None:
    values = real(name).ravel()
    for bits in (2, 8, 12):
        found = found_in(output, name, "entropy", bits)
        low, high = found.ranges[0].low, found.ranges[0].high
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
        check_error(found, values)
    assert (low, high) == (min(values.min(), 0), max(values.max(), 0))  # 2,048 levels lose nothing


def test_entropy_is_not_deceived_by_few_different_values(tmp_path: Path) -> None:
    """With one value below the threshold, P is Q, whatever is clipped."""
    values = (np.random.default_rng(1).integers(0, 17, (300, 8)) / 16).astype("f4")
    for bits in (3, 4):
        found = find_ranges(output_of(tmp_path / str(bits), {"layer": values}), "entropy", bits)["layer"].ranges[0]
        assert found.high >= 2**bits / 16
        assert found.distortion is not None
        assert found.distortion.sqnr > 15


def test_entropy_leaves_zeros_out(tmp_path: Path) -> None:
    values = np.abs(normal(300, 8)).astype("f4")
    padded = np.concatenate([values, np.zeros((3000, 8), "f4")])
    found = find_ranges(output_of(tmp_path, {"values": values, "padded": padded}), "entropy", 4)
    assert found["values"].ranges[0].high == found["padded"].ranges[0].high


# All methods


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("method", METHODS)
def test_every_bit_width_has_a_step_above_zero_and_zero_has_a_code(output: Path, method: str, bits: int) -> None:
    for symmetric in (False, True):
        for name, found in find_ranges(output, method, bits, symmetric=symmetric, layers="*[st28]").items():
            codes = found.codes
            assert found.quantization.step > 0
            assert codes.lowest <= found.quantization.zero_point <= codes.highest
            assert found.ranges[0].low <= 0 <= found.ranges[0].high, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["zeros", "zeros, int8", "zeros of codes"])
def test_zeros_have_step_1_and_no_error(output: Path, method: str, name: str) -> None:
    found = found_in(output, name, method)
    assert (found.quantization.step, found.quantization.zero_point) == (1, 0)
    assert found.ranges[0].distortion is not None
    assert found.ranges[0].distortion.mean_squared_error == 0
    assert found.document()["sqnr_db"] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["constant", "constant below zero", "one value"])
def test_a_constant_is_an_end_of_its_range_and_has_no_error(output: Path, method: str, name: str) -> None:
    constant = real(name).flat[0]
    found = found_in(output, name, method).ranges[0]
    assert (found.low, found.high) == (min(constant, 0), max(constant, 0))
    assert found.distortion is not None
    assert found.distortion.mean_squared_error <= 1e-30


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_left_out(tmp_path: Path, method: str) -> None:
    values = normal(20, 30).astype("f4")
    holed = np.concatenate([values, np.full((4, 30), np.nan, "f4"), np.full((2, 30), -np.inf, "f4")])
    gone = np.full((3, 4), np.nan, "f2")
    layers = {"values": values, "holed": holed, "gone": gone}
    found = find_ranges(output_of(tmp_path, layers, nonfinite="skip"), method, 4)
    assert found["holed"].ranges == found["values"].ranges
    assert found["gone"].ranges[0].distortion is None
    assert (found["gone"].quantization.step, found["gone"].quantization.zero_point) == (1, 0)


@pytest.mark.parametrize("method", ["percentile", "mse", "minmax"])
@pytest.mark.parametrize("name", ["float32", "int8", "int16", "float16"])
def test_mirrored_values_have_the_mirrored_range(tmp_path: Path, output: Path, name: str, method: str) -> None:
    mirrored = output_of(tmp_path, {name: -STORES[name][0]})
    for symmetric in (False, True):
        one = found_in(output, name, method, 5, symmetric=symmetric).ranges[0]
        other = found_in(mirrored, name, method, 5, symmetric=symmetric).ranges[0]
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_the_more_bits_the_less_the_least_squared_error(output: Path) -> None:
    for name in ("float32", "float16", "int16", "int8 codes"):
        errors = [found_in(output, name, "mse", bits).ranges[0].distortion for bits in range(2, 10)]
        roots = [each.mean_squared_error for each in errors if each]
        assert roots == sorted(roots, reverse=True)


def test_mse_has_the_least_error_of_all_methods(output: Path) -> None:
    for name in SEARCHED:
        by = {method: found_in(output, name, method, 3).ranges[0].distortion for method in ("mse", "minmax")}
        assert by["mse"] is not None
        assert by["minmax"] is not None
        assert by["mse"].mean_squared_error <= by["minmax"].mean_squared_error


# Per channel


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["int8", "int8 codes", "int8 codes with a step per channel", "uint8"])
def test_the_range_of_a_channel_is_that_of_a_layer_with_this_channel_alone(
    tmp_path: Path, output: Path, name: str, method: str
) -> None:
    values = STORES[name][0]
    together = found_in(output, name, method, 4, per_channel=True)
    alone = output_of(
        tmp_path,
        {str(channel): values[..., channel : channel + 1] for channel in range(3)},
        attributes={str(channel): described_alone(name, channel) for channel in range(3)},
    )
    for channel in range(3):
        expected = found_in(alone, str(channel), method, 4)
        assert together.ranges[channel] == expected.ranges[0]
        assert together.quantization.step[channel] == expected.quantization.step
        assert together.quantization.zero_point[channel] == expected.quantization.zero_point
        check_error(together, real(name)[..., channel].ravel(), channel)


def described_alone(name: str, channel: int) -> dict[str, Any]:
    described = STORES[name][1]
    if described is None:
        return {}
    step, zero_point = (np.broadcast_to(described["quantization"][key], 3)[channel] for key in ("step", "zero_point"))
    return {"quantization": {"step": step.item(), "zero_point": zero_point.item()}}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["float32", "int16 codes", "after a ReLU", "far from zero"])
def test_minmax_per_channel_needs_no_histogram(tmp_path: Path, output: Path, name: str, symmetric: bool) -> None:
    found = found_in(output, name, "minmax", per_channel=True, symmetric=symmetric)
    values = real(name)
    for channel, each in enumerate(found.ranges):
        low, high = min(values[..., channel].min(), 0), max(values[..., channel].max(), 0)
        expected = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
        assert (each.low, each.high) == expected
        assert each.distortion is None
    bare = output_of(tmp_path, {name: STORES[name][0]}, statistics=(), attributes={name: STORES[name][1] or {}})
    assert found_in(bare, name, "minmax", per_channel=True, symmetric=symmetric) == found


WIDE = [name for name in STORES if STORES[name][0].dtype.itemsize > 1 and STORES[name][0].shape[-1] > 1]


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("statistics", [(), ("histogram", "squares")])
def test_the_error_of_minmax_per_channel_is_below_its_bound(
    tmp_path: Path, statistics: tuple[str, ...], symmetric: bool, bits: int
) -> None:
    attributes = {name: {"channel_axis": -1, **(STORES[name][1] or {})} for name in WIDE}
    layers = {name: STORES[name][0] for name in WIDE}
    output = output_of(tmp_path, layers, statistics=statistics, attributes=attributes)
    every = find_ranges(output, "minmax", bits, symmetric=symmetric, per_channel=True)
    for name in WIDE:
        for channel, each in enumerate(every[name].ranges):
            values = real(name)[..., channel].ravel()
            bound, error = each.bound, error_of(every[name], each, values)
            assert bound is not None
            assert error <= bound.mean_squared_error * (1 + 1e-9) + 1e-28 * np.abs(values).max() ** 2
            assert bound.mean_squared_error <= every[name].quantization.step[channel] ** 2 / 4
            assert (bound.mean_square is None) == (not statistics)
            if bound.mean_square is not None:
                assert bound.mean_square == pytest.approx((values**2).mean(), rel=1e-12)
                assert bound.mean_squared_error <= bound.mean_square


def error_of(found: LayerRange, chosen: Range, values: Values) -> float:
    quantization = found.codes.quantization(chosen.low, chosen.high)
    lowest, highest = (int(each) for each in found.codes.reach(quantization))
    return mean_squared_error(values, np.arange(lowest, highest + 1) * float(quantization.step))


def test_values_between_codes_reach_the_bound(tmp_path: Path) -> None:
    values = np.full((1000, 2), [0.5, 0.25], "f4")
    values[:2] = [[0, 0], [3, 3]]
    output = output_of(tmp_path, {"layer": values}, statistics=("squares",))
    first, second = find_ranges(output, "minmax", 2, per_channel=True)["layer"].ranges
    assert first.bound is not None
    assert first.bound.mean_squared_error == 1 / 4
    assert first.bound.sqnr == pytest.approx(10 * math.log10((values[:, 0].astype(np.float64) ** 2).mean() * 4))
    assert second.bound is not None  # no value is farther from a code than from zero
    assert second.bound.mean_squared_error == pytest.approx((values[:, 1].astype(np.float64) ** 2).mean())


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("method", METHODS)
def test_a_known_error_has_a_bound_too(output: Path, name: str, method: str) -> None:
    values = real(name).ravel()
    found = found_in(output, name, method, 4)
    chosen = found.ranges[0]
    assert chosen.bound is not None
    assert error_of(found, chosen, values) <= chosen.bound.mean_squared_error * (1 + 1e-9) + 1e-28 * values.max() ** 2
    assert found.unknown is None
    document = found.document()
    assert document["mean_squared_error"] <= document["mean_squared_error_at_most"] * (1 + 1e-15)
    if None not in (document["sqnr_db"], document["sqnr_db_at_least"]):
        assert document["sqnr_db_at_least"] <= document["sqnr_db"] + 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_range_of_a_single_channel_is_that_of_the_layer(tmp_path: Path, method: str) -> None:
    output = output_of(tmp_path, {"layer": normal(200, 1).astype("f4")})
    alone = find_ranges(output, method, 5, per_channel=True)["layer"]
    assert alone.ranges == find_ranges(output, method, 5)["layer"].ranges
    assert alone.quantization.step.shape == (1,)


def test_a_channel_without_values_has_no_bound(tmp_path: Path) -> None:
    values = np.array([[1, np.nan], [2, np.nan]], "f4")
    output = output_of(tmp_path, {"layer": values}, statistics=("squares",), nonfinite="skip")
    found = find_ranges(output, "minmax", 4, per_channel=True)["layer"]
    assert found.ranges[0].bound is not None
    assert found.ranges[1].bound is None
    together = find_ranges(output, "minmax", 4)["layer"].ranges[0].bound
    assert together is not None
    assert together.mean_square == pytest.approx(2.5)


# Distributions


@settings(max_examples=25)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.sampled_from(["f4", "f8", "i4", "f2"]),
)
def test_the_error_is_within_what_is_said_for_any_values(numbers: list[float], kind: str) -> None:
    scale = {"f2": 1e-26, "i4": 1e-21}.get(kind, 1.0)
    block = (np.array(numbers)[:, np.newaxis] * scale).astype(kind)
    statistics = measured(block)
    values = block.astype(np.float64).ravel()
    for method in METHODS:
        for symmetric in (False, True):
            (found,) = layer_ranges(statistics, [method], Codes(3, symmetric))
            check_error(found, values)


def measured(block: Array, quantization: Quantization | None = None) -> LayerStatistics:
    members = {kind.name: kind.measure(block) for kind in kinds_of(("histogram",))}
    source = CountedSource("", len(block), Coverage.first(len(block)))
    return LayerStatistics("layer", 1, quantization, (source,), Statistics(Space.of(block), members))


def test_values_are_counted_between_edges_and_wide_bins_divided() -> None:
    values = Distribution(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 4.0]), np.array([3, 2, 8]))
    assert values.counted_between(np.array([0.0, 1.0, 3.0, 4.0])).tolist() == [3, 6, 4]
    assert values.counted_between(np.array([-9.0, 9.0])).tolist() == [13]
    assert values.mirrored().counted_between(np.array([-4.0, -1.0, 0.0])).tolist() == [8, 5]


# What is refused


def a_method(output: Path) -> None:
    find_ranges(output, "best")


def a_percentile(output: Path) -> None:
    find_ranges(output, "percentile", percentile=50)


def a_percentile_above_100(output: Path) -> None:
    find_ranges(output, "percentile", percentile=100.1)


def a_bit_width(output: Path) -> None:
    find_ranges(output, bits=1)


def a_glob(output: Path) -> None:
    find_ranges(output, layers="conv*")


def per_channel_floats(output: Path) -> None:
    find_ranges(output, "mse", layers="float32", per_channel=True)


def no_output(output: Path) -> None:
    find_ranges(output.parent / "nowhere")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a method": (a_method, "the method is 'best'; expected one of minmax, percentile, mse, entropy"),
    "a percentile of 50": (a_percentile, "the percentile is 50; expected a number above 50"),
    "a percentile above 100": (a_percentile_above_100, "the percentile is 100.1; expected"),
    "a bit width": (a_bit_width, "bits is 1; expected an integer from 2 to 16"),
    "a glob that matches nothing": (a_glob, r"no layer that matches 'conv\*'; it has after a ReLU, .*float32"),
    "float32 per channel": (per_channel_floats, "layer float32: mse: .* only 8-bit values are counted per channel"),
    "no output": (no_output, "has no manifest.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_cannot_be_met_are_refused_with_the_reason(output: Path, case: str) -> None:
    ask, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        ask(output)


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_layer_without_a_histogram_is_named_with_the_remedy(tmp_path: Path, method: str) -> None:
    bare = output_of(tmp_path, {"block/conv": normal(4, 3)}, statistics=())
    with pytest.raises(UsageError, match=r"layer block/conv: .*`statistics: \[histogram\]`.* again with --restart"):
        find_ranges(bare, method)
    assert find_ranges(bare, "minmax")["block/conv"].ranges[0].distortion is None


def test_wide_codes_with_a_step_per_channel_have_only_their_extrema() -> None:
    quantization = Quantization([0.5, 2.0], [0, 3])
    statistics = measured(np.array([[-40, 3], [100, 13]], "i2"), quantization)
    with pytest.raises(UsageError, match="each channel of the int16 codes has its own step"):
        layer_ranges(statistics, ["mse"], Codes(8))
    (found,) = layer_ranges(statistics, ["minmax"], Codes(8), per_channel=True)
    assert [(each.low, each.high) for each in found.ranges] == [(-20, 50), (0, 20)]
    (found,) = layer_ranges(statistics, ["minmax"], Codes(8))
    assert [(each.low, each.high) for each in found.ranges] == [(-20, 50)]
    assert found.ranges[0].bound is not None
    assert found.ranges[0].bound.mean_squared_error == (70 / 255 / 2) ** 2
    assert found.unknown is not None
    assert found.unknown.startswith("each channel of the int16 codes has its own step")


def test_values_whose_squares_overflow_are_refused() -> None:
    with pytest.raises(UsageError, match=r"reach from -1e\+200 to 1; expected none beyond"):
        layer_ranges(measured(np.array([[-1e200], [1.0]])), ["minmax"], Codes(8))


def test_a_document_is_json_with_every_number(output: Path) -> None:
    found = ss.find_ranges(output, "mse", 4, layers="int8", per_channel=True)["int8"]
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["codes"] == [0, 15]
    assert document["step"] == found.quantization.step.tolist()
    assert document["zero_point"] == found.quantization.zero_point.tolist()
    assert document["low"] == [each.low for each in found.ranges]
    assert document["mean_squared_error"] == [each.distortion.mean_squared_error for each in found.ranges]  # type: ignore[union-attr]
    assert document["rms_error_within"] == [0, 0, 0]
    assert [len(document[key]) for key in ("high", "sqnr_db", "mean_square")] == [3, 3, 3]
