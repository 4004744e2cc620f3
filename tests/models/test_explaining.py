"""What explains a quantised weight; the right answers are known from how each weight is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamstats.layouts import BY_GROUP, tap_sums
from streamstats.models.explaining import AS_IT_IS, Explanation, explain, likeness
from streamstats.models.grids import Grid, channels_of, inferred_grids
from streamstats.models.sides import Biases

Array = npt.NDArray[Any]
SHAPE = (24, 12, 3, 3)
SHAPES = {
    "native": (3, 3, 2, 3, 4),
    "OIHW": (12, 2, 3, 3),
    "HWIO": (3, 3, 2, 12),
    "HWCM": (3, 3, 6, 2),
    "OI": (12, 2),
    "IO": (2, 12),
    "IOHW": (6, 4, 3, 3),
}


def weight(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scales(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 1.5, count)


def rounded(values: Array, bits: int, per_channel: bool, shrunk: float = 1.0) -> tuple[Array, Grid]:
    """`values` on symmetric levels, and the grid; `shrunk` steps clip the largest values."""
    top = 2 ** (bits - 1) - 1
    axes = tuple(range(1, values.ndim)) if per_channel else None
    step = np.abs(values).max(axis=axes, keepdims=True) / top * shrunk
    return (np.clip(np.rint(values / step), -top, top) * step).astype(np.float32), Grid(step, -top * step, top * step)


HOW = [pytest.param(bits, per, known) for bits in (8, 4) for per in (False, True) for known in (False, True)]


def explained(
    original: Array,
    changed: Array,
    bits: int,
    per_channel: bool,
    known: bool,
    biases: Biases | None = None,
    **more: Any,
) -> Any:
    stored, grid = rounded(changed, bits, per_channel, **more)
    channels = channels_of(original.shape, "OIHW", 1)
    return explain([original], stored, grid if known else None, channels, biases=[biases])


@pytest.mark.parametrize("layout", SHAPES)
def test_the_channels_of_each_element_are_those_that_a_correction_multiplies(layout: str) -> None:
    shape, groups = SHAPES[layout], {"HWCM": 6}.get(layout, 3)
    channels = channels_of(shape, layout, groups)
    factors, outputs = np.arange(1.0, channels.inputs + 1), np.arange(1.0, channels.outputs + 1) * 100
    values = np.broadcast_to(factors[channels.input] + outputs[channels.output], shape)
    taps = (
        BY_GROUP[layout](np.zeros([n for n, letter in zip(shape, layout, strict=False) if letter not in "DHW"]), groups)
        if layout != "native"
        else np.zeros(shape[-3:])
    )
    each, found_groups, outer = taps.shape
    wanted = factors.reshape(found_groups, each).T[:, :, None] + outputs.reshape(found_groups, outer)
    kernel = 1 if layout in ("OI", "IO") else 9
    np.testing.assert_allclose(tap_sums(np.asarray(values), layout, groups, None), wanted * kernel)
    assert channels.each == each


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_rounding_explains_itself_and_what_is_clipped_is_counted(bits: int, per_channel: bool, known: bool) -> None:
    original = weight()
    assert explained(original, original, bits, per_channel, known).words == "rounding"
    _stored, grid = rounded(original, bits, per_channel, shrunk=0.7)
    beyond = int((np.abs(original) > grid.high + grid.step * 0.51).sum())
    found = explained(original, original, bits, per_channel, known, shrunk=0.7)
    assert not found.reason
    assert found.clipped == beyond > 0
    assert found.words == f"rounding, {beyond} of {original.size} elements clipped"


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_a_scale_per_channel_is_found_as_far_as_rounding_lets_it(
    bits: int, per_channel: bool, known: bool, side: str
) -> None:
    original = weight()
    factors = scales(SHAPE[side == "inputs"])
    shaped = factors.reshape(-1, 1, 1, 1) if side == "outputs" else factors.reshape(1, -1, 1, 1)
    found = explained(original, original * shaped, bits, per_channel, known)
    assert not found.reason
    assert (found.inputs if side == "outputs" else found.outputs) is None
    np.testing.assert_allclose(getattr(found, side), factors, rtol=0.4 / 2**bits)


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_one_scale_in_all_is_refused_with_its_size_as_its_side_is_not_known(
    bits: int, per_channel: bool, known: bool
) -> None:
    found = explained(weight(), weight() * 0.1, bits, per_channel, known)
    assert found.reason.startswith(("its weight is 0.1", "its weight is 0.09"))
    assert "whether its inputs or its outputs were scaled" in found.reason


def test_scales_of_depthwise_weights_are_refused_as_inputs_and_outputs_are_the_same() -> None:
    original = weight((24, 1, 3, 3))
    stored, grid = rounded(original * scales(24).reshape(-1, 1, 1, 1), 8, per_channel=False)
    found = explain([original], stored, grid, channels_of(original.shape, "OIHW", 24))
    assert "whether its inputs or its outputs were scaled" in found.reason


def shaped(factors: Array, axis: int) -> Array:
    return factors.reshape([-1 if place == axis else 1 for place in range(4)])


def known_biases(factors: Array | float, seed: int = 4, step: float = 1e-4) -> Biases:
    """Biases, and what they become with `factors` of the outputs, rounded."""
    original = np.random.default_rng(seed).normal(size=SHAPE[0])
    return Biases(original, np.rint(original * factors / step) * step, np.full(SHAPE[0], step))


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_biases_tell_the_side_of_one_scale_in_all(bits: int, per_channel: bool, known: bool, side: str) -> None:
    original, biases = weight(), known_biases(0.1 if side == "outputs" else 1.0)
    found = explained(original, original * 0.1, bits, per_channel, known, biases=biases)
    assert not found.reason
    assert (found.inputs if side == "outputs" else found.outputs) is None
    np.testing.assert_allclose(getattr(found, side), 0.1, rtol=1e-3 if side == "outputs" else 0.02)


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_scales_of_both_sides_are_found_up_to_a_number_that_biases_tell(
    bits: int, per_channel: bool, known: bool
) -> None:
    original, outputs, inputs = weight(), scales(24), scales(12, seed=2)
    changed = original * shaped(outputs, 0) * shaped(inputs, 1)
    found = explained(original, changed, bits, per_channel, known, biases=known_biases(outputs))
    assert not found.reason
    np.testing.assert_allclose(found.outputs, outputs, rtol=0.5 / 2**bits)
    np.testing.assert_allclose(found.inputs, inputs, rtol=0.5 / 2**bits)
    stored, _grid = rounded(changed, bits, per_channel)
    mine, theirs = found.undone(original, stored, channels_of(SHAPE, "OIHW", 1))
    wanted = original * shaped(outputs, 0) - stored / shaped(inputs, 1)
    assert np.linalg.norm(mine - theirs - wanted) < 0.3 * np.linalg.norm(wanted)
    for other in (None, known_biases(1.0), known_biases(scales(24, seed=8))):
        refused = explained(original, changed, bits, per_channel, known, biases=other)
        assert "(equalisation), rounded; both are known only up to a number" in refused.reason


def test_biases_tell_the_side_of_scales_of_depthwise_weights_but_not_of_both_sides() -> None:
    original, factors = weight((24, 1, 7, 7)), scales(24)
    stored, grid = rounded(original * shaped(factors, 0), 8, per_channel=False)
    channels = channels_of(original.shape, "OIHW", 24)
    found = explain([original], stored, grid, channels, biases=[known_biases(factors)])
    assert found.inputs is None
    np.testing.assert_allclose(found.outputs, factors, rtol=1e-3)
    found = explain([original], stored, grid, channels, biases=[known_biases(1.0)])
    assert (found.outputs, found.reason) == (None, "")
    np.testing.assert_allclose(found.inputs, factors, rtol=1e-2)
    few = explain([original[..., :2, :2]], stored[..., :2, :2], grid, channels, biases=[known_biases(1.0)])
    assert "whether its inputs or its outputs were scaled" in few.reason  # too few elements for as precise a scale
    found = explain([original], stored, grid, channels, biases=[known_biases(scales(24, seed=8))])
    assert "whether its inputs or its outputs were scaled" in found.reason


def test_an_input_channel_that_is_rounded_to_zero_leaves_finite_numbers() -> None:
    original, factors = weight(), scales(12)
    factors[5] = 1e-4
    stored, grid = rounded(original * shaped(factors, 1), 4, per_channel=False)
    assert not stored[:, 5].any()
    channels = channels_of(SHAPE, "OIHW", 1)
    found = explain([original], stored, grid, channels)
    assert not found.reason
    assert all(np.isfinite(each).all() for each in found.undone(original, stored, channels))


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_what_is_rounded_with_compensation_is_refused_and_the_message_says_what_helps(
    bits: int, per_channel: bool, known: bool
) -> None:
    original = weight()
    _stored, grid = rounded(original, bits, per_channel)
    left = original.reshape(24, -1).astype(np.float64)
    step = np.broadcast_to(grid.step, SHAPE).reshape(24, -1)
    chosen = np.zeros_like(left)
    for place in range(left.shape[1]):  # what is left over goes into the elements behind
        chosen[:, place] = np.rint(left[:, place] / step[:, place]) * step[:, place]
        left[:, place + 1 : place + 4] += 0.9 * (left[:, place] - chosen[:, place])[:, np.newaxis]
    stored = chosen.reshape(SHAPE).astype(np.float32)
    found = explain([original], stored, grid if known else None, channels_of(SHAPE, "OIHW", 1))
    assert "(GPTQ)" in found.reason
    assert "`correct --outputs`" in found.reason


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_a_weight_that_was_trained_further_is_refused(bits: int, per_channel: bool, known: bool) -> None:
    original = weight()
    found = explained(original, original + weight(seed=5), bits, per_channel, known)
    assert found.reason.startswith("its weight differs from that of the float model by up to ")
    assert "trained with quantisation" in found.reason


@pytest.mark.parametrize(("bits", "per_channel", "known"), HOW)
def test_rounding_up_or_down_by_choice_is_rounding_and_several_steps_are_not(
    bits: int, per_channel: bool, known: bool
) -> None:
    original, random = weight(), np.random.default_rng(7)
    stored, grid = rounded(original, bits, per_channel)
    chosen = (np.floor(original / grid.step) + (random.random(SHAPE) < (original / grid.step) % 1)) * grid.step
    channels = channels_of(SHAPE, "OIHW", 1)
    assert not explain([original], chosen.astype(np.float32), grid if known else None, channels).reason
    shifted = (stored + np.rint(random.normal(size=SHAPE) * 1.5) * grid.step).astype(np.float32)
    assert explain([original], shifted, grid if known else None, channels).reason


def test_the_version_that_was_rounded_is_found_among_several() -> None:
    original = weight()
    folded = original * scales(24).reshape(-1, 1, 1, 1)
    stored, grid = rounded(folded, 8, per_channel=False)
    found = explain([original, folded], stored, grid, channels_of(SHAPE, "OIHW", 1))
    assert (found.version, found.outputs, found.reason) == (1, None, "")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_floats_of_few_bits_have_no_step_and_are_explained_by_what_they_are_near_to(dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    original = weight() / 4
    narrow = original.astype(getattr(ml_dtypes, dtype)).astype(np.float32)
    channels = channels_of(SHAPE, "OIHW", 1)
    assert not [*inferred_grids(narrow, channels)]
    found = explain([original], narrow, None, channels)
    assert (found.reason, found.words) == ("", AS_IT_IS)
    assert explain([original], (narrow * np.float32(0.9)), None, channels).reason


@pytest.mark.parametrize(("bits", "per_channel"), [(8, False), (4, True)])
def test_noise_is_taken_as_it_is_and_not_called_rounding(bits: int, per_channel: bool) -> None:
    """Floats in which quantised values were moved by noise lie on no grid, and nothing tells that they were rounded."""
    original = weight()
    noise = np.random.default_rng(9).normal(size=SHAPE) * 0.02
    noisy = (rounded(original, bits, per_channel)[0] + noise).astype(np.float32)
    channels = channels_of(SHAPE, "OIHW", 1)
    assert explain([original], noisy, None, channels).words == AS_IT_IS
    assert explained(original, original, bits, per_channel, known=False).words == "rounding"


def test_a_grid_is_inferred_to_its_step_and_ends() -> None:
    original = weight()
    for per_channel in (False, True):
        stored, grid = rounded(original, 8, per_channel)
        found, *others = inferred_grids(stored, channels_of(SHAPE, "OIHW", 1))
        assert bool(others) is not per_channel
        np.testing.assert_allclose(np.broadcast_to(found.step, SHAPE), np.broadcast_to(grid.step, SHAPE), rtol=1e-5)
        if per_channel:
            np.testing.assert_array_equal(found.high.reshape(-1), stored.reshape(24, -1).max(axis=1))


def test_unrelated_weights_are_far_apart_even_after_a_scale_and_scaled_ones_are_near() -> None:
    channels = channels_of((16, 1, 3, 3), "OIHW", 16)
    one, other = weight((16, 1, 3, 3)), weight((16, 1, 3, 3), seed=9)
    assert likeness(one, other, channels) > 0.8
    assert likeness(one, one * scales(16).astype(np.float32).reshape(-1, 1, 1, 1), channels) < 1e-3


def test_scales_that_look_the_same_are_one_figure() -> None:
    words = [Explanation(inputs=np.array(each)).words for each in ([2.0, 2.001], [0.5, 2.0])]
    assert words == ["rounding, a scale per input channel of 2", "rounding, a scale per input channel of 0.5 to 2"]
