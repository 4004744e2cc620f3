"""Correcting with the mean at each position: the mean output is that of the original weights, padding or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convolution import convolve, convolve_transposed, mean_output
from hypothesis import given, settings
from hypothesis import strategies as st

import streamstats as ss
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.layouts import tap_means


def padded(inputs: np.ndarray, pads: tuple[int, ...]) -> np.ndarray:
    spatial = inputs.ndim - 2
    return np.pad(inputs, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])


def cropped(outputs: np.ndarray, pads: tuple[int, ...], more: tuple[int, ...]) -> np.ndarray:
    """What padding leaves of the outputs of a transposed convolution, and what output padding adds: zeros."""
    spatial = outputs.ndim - 2
    outputs = np.pad(outputs, [(0, 0), (0, 0), *((0, extra) for extra in more)])
    ends = [extent - after for extent, after in zip(outputs.shape[2:], pads[spatial:], strict=True)]
    return outputs[:, :, *(slice(before, end) for before, end in zip(pads[:spatial], ends, strict=True))]


def corrector(inputs: np.ndarray) -> ss.PositionBiasCorrector:
    return ss.PositionBiasCorrector(inputs.mean(axis=0))


def assert_undone(wanted: np.ndarray, found: np.ndarray, term: np.ndarray) -> None:
    """`term` takes the mean of the outputs `found` to that of those `wanted`, to float64 rounding."""
    np.testing.assert_allclose(
        mean_output(found) + term, mean_output(wanted), rtol=0, atol=1e-12 * np.abs(wanted).max()
    )


@settings(max_examples=150)
@given(st.data())
def test_the_mean_output_of_a_convolution_is_restored(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    kernel, strides, dilations = (tuple(data.draw(numbers)) for _ in range(3))
    pads = tuple(data.draw(st.lists(st.integers(0, 3), min_size=2 * spatial, max_size=2 * spatial)))
    groups, each_in, each_out = (data.draw(st.integers(1, 3)) for _ in range(3))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    shape = [
        max(1, r - b - a) + data.draw(st.integers(0, 4))
        for r, b, a in zip(reach, pads[:spatial], pads[spatial:], strict=True)
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inputs = rng.normal(3, 1, (5, groups * each_in, *shape))
    weights, rounded = rng.normal(size=(2, groups * each_out, each_in, *kernel))
    geometry = ss.Geometry(strides, pads, dilations)
    layout = {1: "OIW", 2: "OIHW", 3: "OIDHW"}[spatial]
    term = corrector(inputs).calculate(weights, rounded, layout=layout, groups=groups, geometry=geometry)
    wanted, found = (convolve(padded(inputs, pads), each, groups, strides, dilations) for each in (weights, rounded))
    assert_undone(wanted, found, term)


@settings(max_examples=150)
@given(st.data())
def test_the_mean_output_of_a_transposed_convolution_is_restored(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 2))
    numbers = st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)
    kernel, strides, dilations = (tuple(data.draw(numbers)) for _ in range(3))
    more = tuple(data.draw(st.integers(0, stride - 1)) for stride in strides)
    groups, each_in, each_out = (data.draw(st.integers(1, 2)) for _ in range(3))
    shape = [data.draw(st.integers(1, 4)) for _ in range(spatial)]
    whole = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(shape, strides, dilations, kernel, strict=True)]
    before = [data.draw(st.integers(0, (n - 1) // 2)) for n in whole]
    after = [data.draw(st.integers(0, (n - 1) // 2)) for n in whole]
    pads = (*before, *after)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inputs = rng.normal(3, 1, (5, groups * each_in, *shape))
    weights, rounded = rng.normal(size=(2, groups * each_in, each_out, *kernel))
    geometry = ss.Geometry(strides, pads, dilations, more)
    layout = {1: "IOW", 2: "IOHW"}[spatial]
    term = corrector(inputs).calculate(weights, rounded, layout=layout, groups=groups, geometry=geometry)
    wanted, found = (
        cropped(convolve_transposed(inputs, each, groups, strides, dilations), pads, more)
        for each in (weights, rounded)
    )
    assert_undone(wanted, found, term)


def test_every_layout_gives_the_same_term() -> None:
    rng = np.random.default_rng(0)
    mean, (weights, rounded) = rng.normal(size=(6, 5, 5)), rng.normal(size=(2, 8, 3, 3, 3))
    made, geometry = ss.PositionBiasCorrector(mean), ss.Geometry((2, 1), (1, 0, 1, 2))
    expected = made.calculate(weights, rounded, layout="OIHW", groups=2, geometry=geometry)
    tensorflow = [np.moveaxis(each, (0, 1), (3, 2)) for each in (weights, rounded)]
    assert np.allclose(made.calculate(*tensorflow, layout="HWIO", groups=2, geometry=geometry), expected)
    native = [each.reshape(3, 3, 3, 2, 4) for each in tensorflow]
    assert np.allclose(made.calculate(*native, geometry=geometry), expected)
    depthwise = [each[:6, :1] for each in (weights, rounded)]
    expected = made.calculate(*depthwise, layout="OIHW", groups=6, geometry=geometry)
    keras = [np.moveaxis(each, (0, 1), (2, 3)) for each in depthwise]
    assert np.allclose(made.calculate(*keras, layout="HWCM", geometry=geometry), expected)


def test_without_padding_and_at_stride_one_a_kernel_of_one_tap_needs_the_channel_means_alone() -> None:
    rng = np.random.default_rng(1)
    mean, (weights, rounded) = rng.normal(size=(4, 6, 6)), rng.normal(size=(2, 3, 4, 1, 1))
    of_channels = ss.MeanBiasCorrector(mean.mean(axis=(1, 2)))
    made = ss.PositionBiasCorrector(mean)
    assert np.allclose(
        made.calculate(weights, rounded, layout="OIHW"), of_channels.calculate(weights, rounded, layout="OIHW")
    )
    assert np.allclose(
        made.calculate(weights[..., 0, 0], rounded[..., 0, 0], layout="OI"),
        of_channels.calculate(weights[..., 0, 0], rounded[..., 0, 0], layout="OI"),
    )


def test_taps_see_the_zeros_that_are_padded() -> None:
    means = tap_means(np.ones((1, 4, 4)), (3, 3), ss.Geometry(pads=(1, 1, 1, 1)))
    assert means[0].tolist() == [[9 / 16, 12 / 16, 9 / 16], [12 / 16, 1, 12 / 16], [9 / 16, 12 / 16, 9 / 16]]


def test_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    made = ss.PositionBiasCorrector(np.arange(24.0).reshape(2, 3, 4), {"layer": "a"})
    made.save(tmp_path / "c.safetensors")
    loaded = ss.BiasCorrector.load(tmp_path / "c.safetensors")
    assert isinstance(loaded, ss.PositionBiasCorrector)
    assert loaded.position_mean.tobytes() == made.position_mean.tobytes()
    assert loaded.provenance == {"layer": "a"}
    assert loaded.input_mean.tolist() == [5.5, 17.5]
    content = bytearray((tmp_path / "c.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(DataError):
        ss.BiasCorrector.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("geometry", "layout", "message"),
    [
        (ss.Geometry(strides=(1,)), "OIHW", "does not fit 2 spatial axes"),
        (ss.Geometry(pads=(1, 1)), "OIHW", "does not fit 2 spatial axes"),
        (ss.Geometry(dilations=(5, 5)), "OIHW", r"does not fit into 5 positions"),
        (None, "OIDHW", "3 spatial axes"),
    ],
)
def test_what_does_not_fit_is_refused(geometry: ss.Geometry | None, layout: str, message: str) -> None:
    made, weights = ss.PositionBiasCorrector(np.ones((2, 5, 5))), np.ones((3, 2, *(3,) * (len(layout) - 2)))
    with pytest.raises(MismatchError, match=message):
        made.calculate(weights, weights, layout=layout, geometry=geometry)


def test_means_that_cannot_be_are_refused() -> None:
    for shape in ((3,), ()):
        with pytest.raises(MismatchError, match=r"expected \(channels, \*space\) of real numbers"):
            ss.PositionBiasCorrector(np.ones(shape))
    with pytest.raises(UsageError, match="channel 1 has values that are not finite"):
        ss.PositionBiasCorrector(np.array([[1.0, 2.0], [np.nan, 1.0]]))
    made = ss.PositionBiasCorrector(np.ones((3, 4)))
    with pytest.raises(MismatchError, match="have 2 input channels; the mean has the shape"):
        made.calculate(np.ones((1, 2, 3)), np.ones((1, 2, 3)), layout="OIW")


@pytest.mark.parametrize(("extent", "left"), [(14, 0.12), (7, 0.2)])
def test_channel_means_leave_a_part_of_the_shift_and_positions_none(extent: int, left: float) -> None:
    rng = np.random.default_rng(2)
    inputs = np.maximum(rng.normal(1, 1, (20, 8, extent, extent)), 0)
    weights = rng.normal(size=(8, 1, 3, 3))
    rounded, pads = ss.fake_quantize(weights, 3), (1, 1, 1, 1)
    shift = mean_output(convolve(padded(inputs, pads), weights - rounded, 8))
    by_channel = ss.MeanBiasCorrector(inputs.mean(axis=(0, 2, 3))).calculate(weights, rounded, layout="OIHW", groups=8)
    term = corrector(inputs).calculate(weights, rounded, layout="OIHW", groups=8, geometry=ss.Geometry(pads=pads))
    assert np.abs(term - shift).max() < 1e-12
    assert np.abs(by_channel - shift).sum() > left / 2 * np.abs(shift).sum()
