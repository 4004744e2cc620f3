"""Weights rounded and scaled by second moments: what onnxruntime computes with them is nearer to the float model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import model_of
from onnx import helper, numpy_helper
from told import Told

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import UsageError
from streamstats.jobs.run import run
from streamstats.models.judgement import BY_MOMENTS, CORRECTED, UNCORRECTED
from streamstats.models.moments import InputMoments
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import record
from streamstats.outputs.results import open_results
from streamstats.quantization import fake_quantize

Array = np.ndarray[Any, Any]
GRAM = ("gram", "taps")


def correlated(*shape: int, axis: int = 1, seed: int = 0) -> Array:
    """Float32 values whose channels, on `axis`, vary together, with means that are not zero."""
    draw = np.random.default_rng((seed, *shape))
    channels = shape[axis]
    mix = np.random.default_rng(channels).normal(size=(channels, channels)) / np.sqrt(channels)
    found = np.moveaxis(draw.normal(size=[*np.delete(shape, axis), channels]) @ mix, -1, axis)
    return np.asarray(found + 0.8, np.float32)


def weights(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
LAYERS: dict[str, tuple[str, dict[str, Any], Array, Array]] = {
    "MatMul": ("MatMul", {}, weights(24, 6), correlated(300, 24)),
    "MatMul over tokens": ("MatMul", {}, weights(24, 6), correlated(60, 5, 24, axis=2)),
    "Gemm": ("Gemm", {"alpha": 0.5}, weights(24, 6), correlated(300, 24)),
    "Gemm transB": ("Gemm", {"transB": 1}, weights(6, 24), correlated(300, 24)),
    "Conv 1x1": ("Conv", {"kernel_shape": [1, 1]}, weights(6, 16, 1, 1), correlated(60, 16, 4, 4)),
    "Conv 1x1 strided": ("Conv", {"strides": [2, 2]}, weights(6, 16, 1, 1), correlated(60, 16, 5, 4)),
    "Conv 3x3": ("Conv", CONV, weights(6, 4, 3, 3), correlated(80, 4, 6, 5)),
    "Conv strided, dilated": (
        "Conv",
        {"kernel_shape": [3, 2], "pads": [2, 0, 1, 1], "strides": [2, 1], "dilations": [1, 2]},
        weights(6, 4, 3, 2),
        correlated(80, 4, 8, 7),
    ),
    "Conv grouped": ("Conv", {**CONV, "group": 2}, weights(6, 3, 3, 3), correlated(80, 6, 6, 5)),
    "Conv depthwise": ("Conv", {**CONV, "group": 6}, weights(12, 1, 3, 3), np.cumsum(correlated(80, 6, 6, 5), -1) / 4),
    "Conv 1-D": ("Conv", {"kernel_shape": [3]}, weights(6, 8, 3), correlated(80, 8, 9)),
}


def counted(folder: Path, model: Any, x: Array, statistics: tuple[str, ...] = GRAM) -> Path:
    """The output of a run over what `model` makes of `x`; both are saved in `folder`."""
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "x.npy", x)
    record(folder / "model.onnx", folder / "x.npy", folder / "s.zarr", batch_size=64)
    job = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": [*statistics]}
    run(JobConfig.model_validate(job).job())
    return folder / "out"


def layer(kind: str) -> tuple[Any, Array, Array]:
    """(model, weight, x)"""
    op, attributes, weight, x = LAYERS[kind]
    return model_of([helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)], {"w": weight}, x), weight, x


def outputs(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


def weight_in(path: Path) -> Array:
    """The weight of the layer of the model at `path`."""
    graph = onnx.load(path).graph
    node = next(node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    return np.asarray(numpy_helper.to_array(next(each for each in graph.initializer if each.name == node.input[1])))


def corrected(folder: Path, *, bits: int = 3, **options: Any) -> tuple[Path, Any]:
    target = folder / "-".join(["c", *map(str, options.values())])
    return target, correct(folder / "model.onnx", folder / "out", target, bits=bits, **options)


@pytest.mark.parametrize(("place", "kind"), [*enumerate(LAYERS)])
def test_the_outputs_are_nearer_than_with_weights_rounded_to_nearest_on_the_same_levels(
    place: int, kind: str, tmp_path: Path
) -> None:
    model, _, x = layer(kind)
    per_channel = bool(place % 2)
    counted(tmp_path, model, x)
    wanted, errors = outputs(tmp_path / "model.onnx", x), {}
    for rounding in ("nearest", "gram"):
        path, done = corrected(tmp_path, rounding=rounding, per_channel=per_channel, weight_range="mse")
        errors[rounding] = float(np.square(outputs(path, x) - wanted).mean())
    assert errors["gram"] < 0.8 * errors["nearest"]
    told = 10 * np.log10(errors["gram"] / errors["nearest"])
    (one,) = done.layers
    assert float(one.difference.removeprefix("rounded by second moments, error ").removesuffix(" dB")) == (
        pytest.approx(told, abs=0.06)
    )
    (pair,) = done.subject.pairs
    step = pair.quantized.scaled(1 / pair.weight_step) if pair.weight_step is not None else None
    assert step is not None
    assert step == pytest.approx(np.rint(step), abs=1e-4)
    apart = np.moveaxis(step, pair.quantized.output_axis, 0).reshape(pair.quantized.outputs, -1)
    assert np.ptp(np.rint(apart), axis=1 if per_channel else None).max() < 2**3
    assert np.array_equal(weight_in(path), pair.quantized.weight)


@pytest.mark.parametrize(
    ("kind", "rounding"),
    [("MatMul", "gram"), ("Gemm transB", "nearest"), ("Conv 3x3", "nearest"), ("Conv depthwise", "gram")],
)
def test_scaled_weights_give_each_output_the_variance_of_the_float_model(
    kind: str, rounding: str, tmp_path: Path
) -> None:
    model, _, x = layer(kind)
    counted(tmp_path, model, x)
    axis = 1 if x.ndim > 2 else -1
    path, done = corrected(tmp_path, rounding=rounding, per_channel=True, scale=True)
    each = [np.moveaxis(outputs(one, x), axis, 0) for one in (tmp_path / "model.onnx", path)]
    wanted, found = (values.reshape(len(values), -1) for values in each)
    assert found.var(axis=1) == pytest.approx(wanted.var(axis=1), rel=1e-4)
    assert found.mean(axis=1) == pytest.approx(wanted.mean(axis=1), abs=1e-4)
    assert done.layers[0].difference.endswith("scaled to the variance of the outputs")


def test_layers_without_second_moments_are_rounded_to_nearest_and_say_so(tmp_path: Path) -> None:
    names = ["a", "b", "t"]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="a", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["p", "b"], ["q"], name="b", kernel_shape=[1, 1]),
        helper.make_node("ConvTranspose", ["q", "t"], ["y"], name="t", kernel_shape=[2, 2]),
    ]
    constants = {"a": weights(5, 4, 1, 1), "b": weights(6, 5, 1, 1), "t": weights(6, 3, 2, 2)}
    x = correlated(40, 4, 4, 4)
    onnx.save(model_of(nodes, constants, x), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x)
    record(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    layers = [{"match": "a", "statistics": ["gram"]}, {"match": "*", "statistics": []}]
    job = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "layers": layers}
    run(JobConfig.model_validate(job).job())
    path, done = corrected(tmp_path, rounding="gram")
    told = {each.layer: each.difference for each in done.layers}
    assert told["a"].startswith("rounded by second moments")
    assert told["b"] == (
        "rounded to nearest: its second moments were not counted; add `statistics: [gram]` to the configuration, and "
        'run again with --restart; or, in Python, `reduce(…, statistics=["gram"])`'
    )
    assert told["t"] == "rounded to nearest: second moments of a transposed convolution are not counted"
    _, plain = corrected(tmp_path, rounding="nearest")
    mine, theirs = ({pair.name: pair.quantized.weight for pair in each.subject.pairs} for each in (done, plain))
    assert [name for name in names if not np.array_equal(mine[name], theirs[name])] == ["a"]
    assert path.exists()


def test_a_run_without_second_moments_and_factors_per_tensor_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, x = layer("MatMul")
    counted(tmp_path, model, x, ())
    with pytest.raises(
        UsageError, match=r"out has second moments of no layer of the model; add `statistics: \[gram\]` to"
    ):
        corrected(tmp_path, rounding="gram")
    with pytest.raises(UsageError, match="the weights have one per tensor; choose levels per channel"):
        corrected(tmp_path, scale=True)
    with pytest.raises(UsageError, match="rounding is 'up'; expected one of nearest, gram"):
        corrected(tmp_path, rounding="up")
    files = [str(tmp_path / name) for name in ("model.onnx", "quantized.onnx")]
    ends = ["--correctors", str(tmp_path / "out"), "-o", str(tmp_path / "fixed.onnx")]
    assert main(["correct", *files, *ends, "--rounding", "gram"]) == 2
    assert "go with --bits; the weights of a quantised model stay as they are" in capsys.readouterr().err
    assert main(["correct", files[0], *ends, "--bits", "4", "--scale"]) == 2
    assert "add --per-channel, or leave out --scale" in capsys.readouterr().err


def test_correlations_that_few_samples_may_show_by_chance_are_shrunk(tmp_path: Path) -> None:
    """Independent channels: rounding by what 20 samples show would be worse than to nearest on others."""
    x = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    out = counted(tmp_path, model_of(nodes, {"w": weights(64, 8)}, x), x, ("gram", "spread"))
    found = InputMoments.of(open_results(out).statistics("layer"))
    assert found is not None
    assert found.central
    assert found.matrices[0] == pytest.approx(np.cov(x.T.astype(np.float64), bias=True), abs=1e-12)
    assert found.independent == pytest.approx(19, rel=0.01)
    shrunk = found.shrunk()[0]
    off = ~np.eye(64, dtype=bool)
    assert np.array_equal(np.diag(shrunk), np.diag(found.matrices[0]))
    assert np.abs(shrunk[off]).max() < 0.2 * np.abs(found.matrices[0][off]).max()
    many = np.random.default_rng(1).normal(size=(20000, 64))
    errors = []
    for rounding in ("nearest", "gram"):
        path, _ = corrected(tmp_path, rounding=rounding)
        errors.append(np.square(many @ (weight_in(path).astype(np.float64) - weights(64, 8))).mean())
    assert errors[1] < 1.02 * errors[0]


def test_without_the_means_under_taps_the_whole_second_moments_count(tmp_path: Path) -> None:
    model, _, x = layer("Conv 3x3")
    found = InputMoments.of(open_results(counted(tmp_path, model, x, ("gram",))).statistics("layer"))
    assert found is not None
    assert not found.central
    assert found.independent is None
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rows = np.moveaxis(windows, 1, 3).reshape(-1, 36)
    assert found.matrices[0] == pytest.approx(rows.T @ rows / len(rows), rel=1e-12)
    _, done = corrected(tmp_path, rounding="gram", per_channel=True, scale=True)
    assert "not scaled: the variance of its outputs is unknown without the mean under each tap" in done.layers[0].note


def test_layers_that_share_a_weight_are_rounded_by_the_moments_of_both(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    x = correlated(200, 16)
    counted(tmp_path, model_of(nodes, {"w": weights(16, 16) / 4}, x), x)
    _, done = corrected(tmp_path, rounding="gram")
    one, two = done.subject.pairs
    assert np.array_equal(one.quantized.weight, two.quantized.weight)
    assert one.explained == two.explained
    a = x.astype(np.float64) @ one.weight.astype(np.float64)
    both = sum(np.cov(each.T, bias=True) for each in (x.astype(np.float64), a))
    plain = fake_quantize(one.weight, 3)
    gone = [(each - one.weight).astype(np.float64).T for each in (one.quantized.weight, plain)]
    mine, near = (float(np.einsum("on,nm,om->", each, both, each)) for each in gone)
    assert mine < 0.8 * near


def test_do_no_harm_takes_weights_rounded_to_nearest_if_the_network_is_nearer_with_them(tmp_path: Path) -> None:
    """The channels of calibration samples are equal in pairs, those of held-out samples opposite."""
    x = np.repeat(correlated(200, 8), 2, axis=1)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], {"w": weights(16, 8)}, x)
    counted(tmp_path, model, x, ("gram",))
    held = x[:100] - x.mean(axis=0)
    held[:, ::2] *= -1
    np.save(tmp_path / "held.npy", held)
    judged = HeldOut(tmp_path / "held.npy")
    progress = Told()
    files = (tmp_path / "model.onnx", tmp_path / "out", tmp_path / "fixed.onnx")
    done = correct(*files, bits=3, rounding="gram", how=How(held_out=judged), progress=progress)
    assert done.judgement is not None
    assert [*done.judgement.outputs] == [UNCORRECTED, BY_MOMENTS, CORRECTED]
    assert done.judgement.worse(CORRECTED)
    done = correct(*files, bits=3, rounding="gram", how=How(held_out=judged, do_no_harm=True), progress=progress)
    assert done.judgement is not None
    assert not done.judgement.worse(CORRECTED)
    plain = fake_quantize(weights(16, 8), 3)
    assert np.array_equal(weight_in(tmp_path / "fixed.onnx"), plain)
    assert any("not weights of 3 bits per tensor, rounded by second moments" in each for each in progress.messages)


def test_do_no_harm_leaves_out_factors_that_do_harm(tmp_path: Path) -> None:
    """3 has a level and 1.4 has not; only the input of the second varies while calibrating, only the other's later."""
    weight = np.array([[3.0], [1.4]], np.float32)
    x = np.array([[0.0, 1.0], [0.0, -1.0]] * 20, np.float32)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], {"w": weight}, x)
    counted(tmp_path, model, x)
    np.save(tmp_path / "held.npy", x[:, ::-1])
    options: dict[str, Any] = {"bits": 2, "per_channel": True, "scale": True}
    files = (tmp_path / "model.onnx", tmp_path / "out", tmp_path / "fixed.onnx")
    correct(*files, **options)
    assert weight_in(tmp_path / "fixed.onnx") == pytest.approx(np.array([[4.2], [1.4]]))
    progress = Told()
    how = How(held_out=HeldOut(tmp_path / "held.npy"), do_no_harm=True)
    correct(*files, **options, how=how, progress=progress)
    assert weight_in(tmp_path / "fixed.onnx") == pytest.approx(np.array([[3.0], [1.0]]))
    assert any("not weights of 2 bits per channel, scaled" in each for each in progress.messages)


def test_the_command_reports_what_rounding_alone_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, x = layer("Conv 3x3")
    counted(tmp_path, model, x)
    np.save(tmp_path / "held.npy", correlated(30, 4, 6, 5, seed=5))
    files = [str(tmp_path / name) for name in ("model.onnx", "out", "fixed.onnx", "held.npy")]
    ends = ["--correctors", files[1], "-o", files[2], "--held-out", files[3], "--bits", "3", "--rounding", "gram"]
    assert main(["correct", files[0], *ends, "--uncorrected", str(tmp_path / "plain.onnx")]) == 0
    shown = capsys.readouterr()
    assert "SQNR by moments" in shown.out
    assert "rounded by second moments, error -" in shown.out
    report = json.loads((tmp_path / "fixed.report.json").read_text())
    assert sorted(report["judgement"]["outputs"]) == sorted([UNCORRECTED, BY_MOMENTS, CORRECTED])
    assert report["about"]["quantized"] == "weights of 3 bits per tensor, rounded by second moments"
    assert "by moments" in (tmp_path / "fixed.report.html").read_text()
    assert np.array_equal(weight_in(tmp_path / "plain.onnx"), fake_quantize(LAYERS["Conv 3x3"][2], 3))
