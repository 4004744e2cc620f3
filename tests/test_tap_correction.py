"""Correcting with the mean under each tap: the mean output is that of the original weights, padding or not."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from convolution import convolve, convolve_transposed, mean_output
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from stores import build_store, samples
from taps import exact_tap_means, kernels

import streamstats as ss
from streamstats.calibration.selection import LayerRule
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.run import run
from streamstats.outputs.results import open_results
from streamstats.statistics.taps import TapSums
from streamstats.storage.tensors import read_tensors, tensors_bytes

LAYOUTS = {
    False: {1: "OIW", 2: "OIHW", 3: "OIDHW"},
    True: {1: "IOW", 2: "IOHW", 3: "IODHW"},
}
"""Of weights by their spatial axes, transposed or not."""
SAME = ss.Kernel((3, 3), ss.Geometry(pads=(1, 1, 1, 1)))


def padded(inputs: np.ndarray, pads: tuple[int, ...]) -> np.ndarray:
    spatial = inputs.ndim - 2
    return np.pad(inputs, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])


def cropped(outputs: np.ndarray, pads: tuple[int, ...], more: tuple[int, ...]) -> np.ndarray:
    """What padding leaves of the outputs of a transposed convolution, and what output padding adds: zeros."""
    spatial = outputs.ndim - 2
    outputs = np.pad(outputs, [(0, 0), (0, 0), *((0, extra) for extra in more)])
    ends = [extent - after for extent, after in zip(outputs.shape[2:], pads[spatial:], strict=True)]
    return outputs[:, :, *(slice(before, end) for before, end in zip(pads[:spatial], ends, strict=True))]


def outputs_of(inputs: np.ndarray, weights: np.ndarray, kernel: ss.Kernel, groups: int) -> np.ndarray:
    moves = kernel.geometry
    if not kernel.transposed:
        return convolve(padded(inputs, moves.pads), weights, groups, moves.strides, moves.dilations)
    whole = convolve_transposed(inputs, weights, groups, moves.strides, moves.dilations)
    return cropped(whole, moves.pads, moves.output_padding)


def corrector(inputs: np.ndarray, kernel: ss.Kernel = SAME) -> ss.TapBiasCorrector:
    """That of `inputs` (samples, channels, *space)."""
    mean = inputs.mean(axis=(0, *range(2, inputs.ndim)))
    return ss.TapBiasCorrector(mean, TapSums.measure(inputs, 1, kernel).mean(), kernel)


@settings(max_examples=200)
@given(st.data())
def test_the_mean_output_is_restored_and_the_term_is_that_of_the_fractions(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 3))
    kernel, extents = data.draw(kernels(spatial))
    groups, each_in, each_out = (data.draw(st.integers(1, 2)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inputs = rng.normal(3, 1, (3, groups * each_in, *extents)).astype(np.float32)
    shape = (groups * each_in, each_out) if kernel.transposed else (groups * each_out, each_in)
    weights, rounded = rng.normal(size=(2, *shape, *kernel.taps))
    layout, made = LAYOUTS[kernel.transposed][spatial], corrector(inputs, kernel)
    term = made.calculate(weights, rounded, layout=layout, groups=groups, geometry=kernel.geometry)
    wanted, found = (outputs_of(inputs.astype(np.float64), each, kernel, groups) for each in (weights, rounded))
    np.testing.assert_allclose(
        mean_output(found) + term, mean_output(wanted), rtol=0, atol=1e-12 * max(1, np.abs(wanted).max())
    )
    real = np.vectorize(Fraction, otypes=[object])(inputs)
    assert made.tap_mean.ravel().tolist() == [float(each) for each in exact_tap_means(real, kernel).ravel()]
    np.testing.assert_array_equal(made.calculate(weights, rounded, layout=layout, groups=groups), term)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_job_over_codes_leaves_the_corrector_of_the_real_values(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 3))
    kernel, extents = data.draw(kernels(spatial))
    dtype, axis = data.draw(st.sampled_from(["int8", "uint8"])), data.draw(st.sampled_from([1, spatial + 1]))
    codes = samples(3, *extents, 2, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    geometry = {name: list(getattr(kernel.geometry, name)) for name in ("strides", "pads", "dilations")}
    if kernel.transposed:
        geometry |= {"output_padding": list(kernel.geometry.output_padding), "transposed": True}
    quantization = {"scale": [0.375, 0.1], "scale_is": "step", "zero_point": [7, -3]}
    layer = {"match": "conv", "channel_axis": axis, "quantization": quantization, "statistics": ["taps"]}
    layer["geometry"] = {"kernel": list(kernel.taps), **geometry}
    with TemporaryDirectory() as name:
        folder = Path(name)
        build_store(folder / "s.zarr", {"conv": np.moveaxis(codes, -1, axis)})
        config = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "layers": [layer]}
        run(JobConfig.model_validate(config).job())
        made = ss.BiasCorrector.load(folder / "out/correctors/conv.safetensors")
    assert isinstance(made, ss.TapBiasCorrector)
    assert made.kernel == kernel
    real = [(codes[..., 0].astype(object) - 7) * Fraction(0.375), (codes[..., 1].astype(object) + 3) * Fraction(0.1)]
    expected = exact_tap_means(np.stack(real, axis=1), kernel)
    assert made.tap_mean.ravel().tolist() == [float(each) for each in expected.ravel()]


def test_every_layout_gives_the_same_term() -> None:
    rng = np.random.default_rng(0)
    kernel = ss.Kernel((3, 3), ss.Geometry((2, 1), (1, 0, 1, 2)))
    inputs, (weights, rounded) = rng.normal(size=(4, 6, 5, 5)), rng.normal(size=(2, 8, 3, 3, 3))
    made, geometry = corrector(inputs, kernel), kernel.geometry
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
    inputs, (weights, rounded) = rng.normal(size=(3, 4, 6, 6)), rng.normal(size=(2, 3, 4, 1, 1))
    of_channels = ss.MeanBiasCorrector(inputs.mean(axis=(0, 2, 3)))
    made = corrector(inputs, ss.Kernel((1, 1)))
    for shape, layout in ((weights.shape, "OIHW"), ((3, 4), "OI")):
        pair = weights.reshape(shape), rounded.reshape(shape)
        np.testing.assert_allclose(made.calculate(*pair, layout=layout), of_channels.calculate(*pair, layout=layout))


def test_taps_see_the_zeros_that_are_padded() -> None:
    means = corrector(np.ones((1, 1, 4, 4))).tap_mean
    assert means[0].tolist() == [[9 / 16, 12 / 16, 9 / 16], [12 / 16, 1, 12 / 16], [9 / 16, 12 / 16, 9 / 16]]


def test_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    made = ss.TapBiasCorrector([5.5, 17.5], np.arange(18.0).reshape(2, 3, 3), SAME, {"layer": "a"})
    path = tmp_path / "c.safetensors"
    made.save(path)
    loaded = ss.BiasCorrector.load(path)
    assert isinstance(loaded, ss.TapBiasCorrector)
    assert loaded.tap_mean.tobytes() == made.tap_mean.tobytes()
    assert loaded.input_mean.tolist() == [5.5, 17.5]
    assert (loaded.provenance, loaded.kernel) == ({"layer": "a"}, SAME)
    tensors, metadata = read_tensors(path, "streamstats.corrector/1")
    assert json.loads(metadata["kernel"])["pads"] == [1, 1, 1, 1]
    for kernel in (None, "null", "[", '{"taps": [3]}', '{"taps": [2, 2]}'):
        changed = {name: value for name, value in {**metadata, "kernel": kernel}.items() if value is not None}
        path.write_bytes(tensors_bytes(tensors, changed))
        with pytest.raises(DataError, match=r"is not a corrector: .*; run the job again"):
            ss.BiasCorrector.load(path)
    save_file({"position_mean": np.ones((2, 3, 3))}, path, metadata | {"kind": "positions"})
    with pytest.raises(DataError):
        ss.BiasCorrector.load(path)


@pytest.mark.parametrize(
    ("shape", "layout", "geometry", "message"),
    [
        (
            (3, 2, 5, 5),
            "OIHW",
            None,
            r"have the kernel .*\[5, 5\].* counted for the kernel .*\[3, 3\].* count the layer again",
        ),
        ((3, 2, 3, 3), "OIHW", ss.Geometry(), r"'pads': \[0, 0, 0, 0\].* counted for the kernel .*\[1, 1, 1, 1\]"),
        ((3, 2, 3, 3), "OIHW", ss.Geometry((2, 2), (1, 1, 1, 1)), r"'strides': \[2, 2\].* expected the same"),
        ((3, 2, 3, 3), "OIHW", ss.Geometry(strides=(1,)), "does not fit 2 spatial axes"),
        ((2, 3, 3, 3), "IOHW", None, "'transposed': True.*'transposed': False"),
        ((3, 2, 3), "OIW", None, "counted for the kernel"),
        ((3, 5, 3, 3), "OIHW", None, r"have 5 input channels; the mean has the shape \(2, 3, 3\)"),
    ],
)
def test_weights_of_another_kernel_are_refused(
    shape: tuple[int, ...], layout: str, geometry: ss.Geometry | None, message: str
) -> None:
    made = corrector(np.ones((1, 2, 5, 5)))
    with pytest.raises(MismatchError, match=message):
        made.calculate(np.ones(shape), np.ones(shape), layout=layout, geometry=geometry)


def test_means_that_cannot_be_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"expected \(channels, \*taps\) of real numbers"):
        ss.TapBiasCorrector([1.0], [1.0], ss.Kernel())
    with pytest.raises(MismatchError, match=r"tap_mean has the shape \(2, 3\); expected \(1, 3\)"):
        ss.TapBiasCorrector([1.0], np.ones((2, 3)), ss.Kernel((3,)))
    with pytest.raises(UsageError, match="channel 1 has values that are not finite"):
        ss.TapBiasCorrector([1.0, 2.0], np.array([[1.0, 2.0], [np.nan, 1.0]]), ss.Kernel((2,)))
    with pytest.raises(UsageError, match="provenance has the key 'kernel'"):
        ss.MeanBiasCorrector([1.0], {"kernel": "3"})


@pytest.mark.parametrize(("extent", "left"), [(14, 0.12), (7, 0.2)])
def test_channel_means_leave_a_part_of_the_shift_and_taps_none(extent: int, left: float) -> None:
    rng = np.random.default_rng(2)
    inputs = np.maximum(rng.normal(1, 1, (20, 8, extent, extent)), 0)
    weights = rng.normal(size=(8, 1, 3, 3))
    rounded = ss.fake_quantize(weights, 3)
    shift = mean_output(outputs_of(inputs, weights - rounded, SAME, 8))
    by_channel = ss.MeanBiasCorrector(inputs.mean(axis=(0, 2, 3))).calculate(weights, rounded, layout="OIHW", groups=8)
    term = corrector(inputs).calculate(weights, rounded, layout="OIHW", groups=8)
    assert np.abs(term - shift).max() < 1e-12
    assert np.abs(by_channel - shift).sum() > left / 2 * np.abs(shift).sum()


def test_what_the_recorder_knows_of_a_kernel_is_used_and_the_configuration_overrides_it(tmp_path: Path) -> None:
    values = samples(6, 4, 5, 3)
    with ss.Recorder(tmp_path / "s.zarr") as recorder:
        recorder.append("conv", values, kernel=SAME)
        recorder.append("fc", values[:, 0, 0], kernel=ss.Kernel())
        recorder.append("tokens", values, kernel=ss.Kernel())
        with pytest.raises(MismatchError, match=r"layer conv: the kernel is .*; the store holds .*another store"):
            recorder.append("conv", values, kernel=ss.Kernel((3, 3)))
        with pytest.raises(MismatchError, match=r"layer new: a kernel of 1 spatial axis does not fit samples of 2"):
            recorder.append("new", values, kernel=ss.Kernel((3,)))
        recorder.append("conv", values)  # nothing is said, nothing is compared
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["taps"]}
    run(JobConfig.model_validate(config).job())
    found = {name: ss.BiasCorrector.load(tmp_path / f"out/correctors/{name}.safetensors") for name in ("conv", "fc")}
    assert isinstance(found["conv"], ss.TapBiasCorrector)
    assert isinstance(found["fc"], ss.MeanBiasCorrector)
    assert found["conv"].kernel == SAME
    other = [{"match": "conv", "geometry": {"kernel": [2, 2]}}, {"match": "*"}]
    run(JobConfig.model_validate(config | {"output": str(tmp_path / "other"), "layers": other}).job())
    loaded = ss.BiasCorrector.load(tmp_path / "other/correctors/conv.safetensors")
    assert isinstance(loaded, ss.TapBiasCorrector)
    assert loaded.kernel == ss.Kernel((2, 2))
    with pytest.raises(MismatchError, match=r"layer conv: it was counted with kernel .*\[3, 3\].* now has .*--restart"):
        run(JobConfig.model_validate(config | {"layers": other}).job())


def test_a_store_that_knows_no_kernel_counts_everything_but_taps(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"conv": samples(6, 4, 5, 3)})
    with pytest.raises(UsageError, match=r"layer conv: `taps` cannot be counted, because the kernel .*`geometry`"):
        ss.reduce(store, layers=[LayerRule("*", statistics=("taps",))])
    with pytest.raises(UsageError, match=r"layer conv: a kernel of 1 spatial axis does not fit samples of 2"):
        ss.reduce(store, layers=[LayerRule("*", kernel=ss.Kernel((3,)))])
    with pytest.raises(UsageError, match=r"layer conv: a kernel of 9 taps .*does not fit into 4 .*`geometry`"):
        ss.reduce(store, layers=[LayerRule("*", kernel=ss.Kernel((9, 1)))])
    assert ss.reduce(store)["conv"].tap_mean is None
    damaged = build_store(
        tmp_path / "d.zarr", {"conv": samples(6, 4, 3)}, attributes={"conv": {"kernel": {"taps": [0]}}}
    )
    with pytest.raises(DataError, match=r"layer conv: its attributes .* taps \[0\]; expected integers from 1"):
        ss.reduce(damaged)


def test_a_kernel_may_become_known_or_change_unless_taps_are_counted(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {"conv": samples(6, 4, 5, 3)})
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out")}

    def counted(geometry: dict[str, list[int]] | None, rows: str, **more: object) -> bytes:
        layers = [{"match": "*", "geometry": geometry}]
        run(JobConfig.model_validate({**config, "layers": layers, "rows": rows, **more}).job())
        return (tmp_path / str(more.get("output", "out")).rsplit("/")[-1] / "state/conv.safetensors").read_bytes()

    counted(None, "0:2")
    counted({"kernel": [3, 1]}, "0:4")
    both = counted({"kernel": [3, 3]}, "0:6")
    assert both == counted({"kernel": [3, 3]}, "0:6", output=str(tmp_path / "whole"))
    statistics = open_results(tmp_path / "out").statistics("conv")
    assert statistics.space.kernel == ss.Kernel((3, 3))


def test_a_layer_whose_tap_sees_no_finite_value_has_no_corrector(tmp_path: Path) -> None:
    values = samples(4, 3, 2)
    values[:, 0, 1] = np.nan
    store = build_store(tmp_path / "s.zarr", {"conv": values, "fine": samples(4, 3, 2)})
    config = {"source": str(store), "output": str(tmp_path / "out"), "nonfinite": "skip", "statistics": ["taps"]}
    layers = [{"match": "*", "geometry": {"kernel": [2]}}]
    run(JobConfig.model_validate(config | {"layers": layers}).job())
    entries = open_results(tmp_path / "out").manifest.layers
    assert entries["conv"].corrector == (
        "channel 1 has no finite value at some positions that tap (0,) sees, so there is no mean"
    )
    assert not isinstance(entries["fine"].corrector, str)
