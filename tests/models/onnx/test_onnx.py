"""ONNX: every linear layer is found or left out with a reason, recorded as it is, and corrected exactly."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import zarr
from onnx import helper, numpy_helper

from streamstats.calibration.layer import Layer, describe, find_arrays
from streamstats.calibration.recorder import Recorder
from streamstats.config import JobConfig
from streamstats.correction import MeanBiasCorrector, NullBiasCorrector
from streamstats.errors import (
    DataError,
    MismatchError,
    MissingDependencyError,
    NonFiniteError,
    OutputError,
    StreamstatsError,
    UsageError,
)
from streamstats.jobs.job import run
from streamstats.models.onnx import files as onnx_files
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.graph import load_model
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.record import record
from streamstats.models.onnx.run import run_model
from streamstats.progress import Quiet, Stage
from streamstats.quantization import fake_quantize
from streamstats.storage.names import check_layer_name, layer_path

Array = npt.NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT


def values(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Reals with a mean that is not zero, so that a shift shows."""
    return np.random.default_rng((seed, *shape)).normal(0.7, 1.0, shape).astype(dtype)


def integers(*shape: int, seed: int = 0) -> Array:
    """Small integers in float32: their sums of products are exact in any order."""
    return np.random.default_rng((seed, *shape)).integers(-3, 5, shape).astype(np.float32)


def make_model(
    nodes: Sequence[Any],
    constants: dict[str, Array],
    inputs: dict[str, tuple[Any, ...]],
    outputs: Sequence[str] = ("y",),
    *,
    dtype: int = FLOAT,
    ir: int = 8,
    opset: int = 17,
) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    if ir < 4:
        graph.input.extend(helper.make_tensor_value_info(k, dtype, v.shape) for k, v in constants.items())
    model = helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])
    return model if any(each.domain for each in nodes) else onnx.shape_inference.infer_shapes(model)


def node(op: str, inputs: Sequence[str], output: str = "y", name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [output], name=name, **attributes)


def saved(model: Any, folder: Path, name: str = "model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def save_means(out: Path, means: dict[str, Array]) -> Path:
    """What `streamstats run` leaves, of the means that the test knows."""
    for layer, mean in means.items():
        MeanBiasCorrector(mean).save(layer_path(out / "correctors", layer))
    return out


def channel_mean(x: Array, axis: int) -> Array:
    return x.astype(np.float64).mean(axis=tuple(a for a in range(x.ndim) if a != axis % x.ndim))


def initializers(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def periodic(n: int, channels: int, spatial: int, seed: int = 0) -> Array:
    """Samples of period 2 on even spatial axes: every tap of an unpadded kernel of 3 sees the same mean."""
    return np.tile(values(n, channels, *(2,) * spatial, seed=seed), (1, 1, *(3,) * spatial))


@dataclass(frozen=True)
class Case:
    """One linear node `layer`, x → y, with constants; `channel_axis` of x."""

    op: str
    constants: dict[str, Array]
    x: Array
    channel_axis: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    def model(self, **options: Any) -> Any:
        linear = node(self.op, ["x", *self.constants], name="/layer", **self.attributes)
        dtype = helper.np_dtype_to_tensor_dtype(self.x.dtype)
        return make_model([linear], self.constants, {"x": ("N", *self.x.shape[1:])}, dtype=dtype, **options)


def weights(*shape: int) -> dict[str, Array]:
    return {"w": values(*shape, seed=1)}


def biased(channels: int, *shape: int) -> dict[str, Array]:
    return {"w": values(*shape, seed=1), "b": values(channels, seed=2)}


CASES = {
    "conv 1x1": Case("Conv", biased(5, 5, 3, 1, 1), values(8, 3, 4, 4)),
    "conv without bias": Case("Conv", weights(5, 3, 1, 1), values(8, 3, 4, 4)),
    "conv 1-d": Case("Conv", biased(4, 4, 3, 3), periodic(8, 3, 1)),
    "conv 2-d": Case("Conv", biased(4, 4, 3, 3, 3), periodic(8, 3, 2)),
    "conv 3-d": Case("Conv", biased(4, 4, 3, 3, 3, 3), periodic(4, 3, 3)),
    "conv depthwise": Case("Conv", biased(6, 6, 1, 3, 3), periodic(8, 6, 2), attributes={"group": 6}),
    "conv multiplier": Case("Conv", biased(6, 6, 1, 3, 3), periodic(8, 3, 2), attributes={"group": 3}),
    "conv grouped": Case("Conv", biased(6, 6, 2, 3, 3), periodic(8, 4, 2), attributes={"group": 2}),
    "transposed 1-d": Case("ConvTranspose", biased(4, 3, 4, 2), values(8, 3, 5), attributes={"strides": [2]}),
    "transposed stride": Case(
        "ConvTranspose", biased(4, 3, 4, 2, 3), values(8, 3, 5, 4), attributes={"strides": [2, 3]}
    ),
    "transposed grouped": Case(
        "ConvTranspose", weights(4, 3, 2, 2), values(8, 4, 5, 4), attributes={"strides": [2, 2], "group": 2}
    ),
    "gemm": Case("Gemm", biased(5, 3, 5), values(32, 3)),
    "gemm transB": Case("Gemm", biased(5, 5, 3), values(32, 3), attributes={"transB": 1}),
    "gemm without C": Case("Gemm", weights(5, 3), values(32, 3), attributes={"transB": 1, "beta": 0.5}),
    "gemm alpha beta": Case("Gemm", biased(5, 3, 5), values(32, 3), attributes={"alpha": 2.5, "beta": -0.5}),
    "gemm beta zero": Case("Gemm", biased(5, 3, 5), values(32, 3), attributes={"alpha": 0.25, "beta": 0.0}),
    "gemm C scalar": Case("Gemm", {**weights(3, 5), "b": np.float32(2.5).reshape(())}, values(32, 3)),
    "gemm C row": Case("Gemm", {**weights(3, 5), "b": values(1, 5)}, values(32, 3)),
    "matmul 2-d": Case("MatMul", weights(3, 5), values(32, 3), -1),
    "matmul 3-d": Case("MatMul", weights(3, 5), values(8, 7, 3), -1),
    "matmul float64": Case("MatMul", {"w": values(3, 5, dtype="float64")}, values(8, 3, dtype="float64"), -1),
    "gemm float64": Case("Gemm", {"w": values(3, 5, dtype="float64")}, values(8, 3, dtype="float64"), -1),
    "conv float16": Case(
        "Conv",
        {"w": values(5, 3, 1, 1, dtype="float16"), "b": values(5, dtype="float16")},
        values(8, 3, 4, 4, dtype="float16"),
    ),
}
TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-13}


def corrected_case(case: Case, folder: Path, **options: Any) -> tuple[Path, Path, Path, list[Any]]:
    source = saved(case.model(), folder)
    out = save_means(folder / "out", {"layer": channel_mean(case.x, case.channel_axis)})
    target, plain = folder / "corrected.onnx", folder / "plain.onnx"
    return source, target, plain, correct(source, out, target, uncorrected=plain, **options).layers


def mean_output(path: Path, x: Array, axis: int) -> Array:
    return channel_mean(run_model(path, x), axis)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_corrected_layer_has_the_mean_output_of_the_float_layer(
    case: Case, per_channel: bool, tmp_path: Path
) -> None:
    source, target, plain, (outcome,) = corrected_case(case, tmp_path, bits=3, per_channel=per_channel)
    expected = mean_output(source, case.x, case.channel_axis)
    tolerance = TOLERANCE[case.x.dtype.name] * np.abs(expected).max()
    shift = mean_output(plain, case.x, case.channel_axis) - expected
    np.testing.assert_allclose(mean_output(target, case.x, case.channel_axis), expected, atol=tolerance, rtol=0)
    assert np.abs(shift).max() > 4 * tolerance
    assert outcome.corrected
    assert outcome.quantized
    assert outcome.reason == ""
    assert outcome.layer == "layer"
    assert outcome.op == case.op
    assert outcome.outputs == expected.size
    np.testing.assert_allclose(outcome.largest, np.abs(shift).max(), atol=2 * tolerance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_corrected_model_is_valid_and_keeps_its_dtypes_and_weights_on_the_levels(case: Case, tmp_path: Path) -> None:
    _, target, plain, _ = corrected_case(case, tmp_path, bits=4, symmetric=True)
    for path in (target, plain):
        onnx.checker.check_model(str(path), full_check=True)
        written = initializers(path)
        assert {array.dtype for array in written.values()} == {case.x.dtype}
        np.testing.assert_array_equal(written["w"], fake_quantize(case.constants["w"], 4, symmetric=True))
    assert set(initializers(plain)) == set(case.constants)
    assert [v.name for v in onnx.load(target).graph.output] == ["y"]


def test_each_output_channel_has_its_own_levels() -> None:
    for name, axis in {
        "conv 2-d": 0,
        "gemm": 1,
        "gemm transB": 0,
        "matmul 2-d": 1,
        "transposed stride": 1,
    }.items():
        ((layer,), _) = survey(CASES[name].model())
        expected = fake_quantize(layer.weight, 3, axis=axis)
        found = layer.fake_quantized(3, per_channel=True, symmetric=False)
        np.testing.assert_array_equal(found, expected)
        assert layer.output_axis == axis


def test_a_grouped_transposed_convolution_has_levels_for_each_group_and_channel() -> None:
    ((layer,), _) = survey(CASES["transposed grouped"].model())
    found = layer.fake_quantized(3, per_channel=True, symmetric=False)
    for group in range(2):
        for channel in range(3):
            part = np.s_[2 * group : 2 * group + 2, channel]
            np.testing.assert_array_equal(found[part], fake_quantize(layer.weight[part], 3))
    assert layer.outputs == 6


def test_correcting_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _, target, plain, _ = corrected_case(CASES["matmul 3-d"], tmp_path / name, bits=4)
        contents.append((target.read_bytes(), plain.read_bytes()))
    assert contents[0] == contents[1]


def test_corrections_carry_through_a_chain_of_linear_layers(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w1"], "h1"),
        node("Gemm", ["h1", "w2", "b2"], "h2"),
        node("MatMul", ["h2", "w3"], "y"),
    ]
    constants = {"w1": values(3, 4), "w2": values(4, 5), "b2": values(5), "w3": values(5, 2)}
    source = saved(make_model(nodes, constants, {"x": ("N", 3)}), tmp_path)
    x = values(64, 3)
    h1 = x.astype(np.float64) @ constants["w1"]
    h2 = h1 @ constants["w2"] + constants["b2"]
    means = {"h1": channel_mean(x, 1), "h2": channel_mean(h1, 1), "y": channel_mean(h2, 1)}
    correct(source, save_means(tmp_path / "out", means), tmp_path / "c.onnx", bits=4)
    expected = mean_output(source, x, 1)
    np.testing.assert_allclose(mean_output(tmp_path / "c.onnx", x, 1), expected, rtol=1e-5)


def test_a_shared_weight_is_quantised_once_and_each_layer_corrected_for_its_own_input(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", ["x", "w", "b"], "y", "first"),
        node("Neg", ["x"], "n"),
        node("Gemm", ["n", "w", "b"], "z", "second"),
        node("Add", ["x", "b"], "other"),
    ]
    constants = {"w": values(3, 3), "b": values(3)}
    model = make_model(nodes, constants, {"x": ("N", 3)}, ["y", "z", "other"])
    source, x = saved(model, tmp_path), values(64, 3)
    out = save_means(tmp_path / "out", {"first": channel_mean(x, 1), "second": channel_mean(-x, 1)})
    correct(source, out, tmp_path / "c.onnx", bits=3)
    written = initializers(tmp_path / "c.onnx")
    np.testing.assert_array_equal(written["w"], fake_quantize(constants["w"], 3))
    np.testing.assert_array_equal(written["b"], constants["b"])
    assert len(written) == 4
    for expected, found in zip(all_outputs(source, x), all_outputs(tmp_path / "c.onnx", x), strict=True):
        np.testing.assert_allclose(channel_mean(found, 1), channel_mean(expected, 1), atol=1e-5)


def all_outputs(path: Path, x: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


def test_a_bias_that_only_corrected_layers_share_leaves_no_unused_tensor(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w", "b"], "h", "first"), node("Gemm", ["h", "v", "b"], "y", "second")]
    model = make_model(nodes, {"w": values(3, 3), "v": values(3, 3, seed=5), "b": values(3)}, {"x": ("N", 3)})
    out = save_means(tmp_path / "out", {"first": np.ones(3), "second": np.ones(3)})
    correct(saved(model, tmp_path), out, tmp_path / "c.onnx", bits=3)
    graph = onnx.load(tmp_path / "c.onnx").graph
    used = {name for each in graph.node for name in each.input}
    assert {tensor.name for tensor in graph.initializer} == used - {"x", "h"}


def test_a_weight_with_other_users_stays_as_it_was_for_them(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "y", "layer"), node("Gather", ["w", "i"], "rows")]
    constants = {"w": values(3, 3), "i": np.array([0, 1], np.int64)}
    source, x = saved(make_model(nodes, constants, {"x": ("N", 3)}, ["y", "rows"]), tmp_path), values(8, 3)
    correct(source, save_means(tmp_path / "out", {"layer": np.ones(3)}), tmp_path / "c.onnx", bits=3)
    np.testing.assert_array_equal(all_outputs(tmp_path / "c.onnx", x)[1], constants["w"][:2])


def test_a_weight_read_along_both_axes_has_levels_for_each_reading(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], "y", "a", transB=1), node("Gemm", ["x", "w"], "z", "b")]
    w = values(3, 3)
    source = saved(make_model(nodes, {"w": w}, {"x": ("N", 3)}, ["y", "z"]), tmp_path)
    out, x = save_means(tmp_path / "out", {"a": np.zeros(3), "b": np.zeros(3)}), np.eye(3, dtype=np.float32)
    correct(source, out, tmp_path / "c.onnx", bits=3, per_channel=True)
    first, second = all_outputs(tmp_path / "c.onnx", x)
    np.testing.assert_array_equal(first.T, fake_quantize(w, 3, axis=0))
    np.testing.assert_array_equal(second, fake_quantize(w, 3, axis=1))


def test_levels_of_the_whole_tensor_are_shared_by_all_its_readers(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], "y", "a", transB=1), node("Gemm", ["x", "w"], "z", "b")]
    source = saved(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}, ["y", "z"]), tmp_path)
    out = save_means(tmp_path / "out", {"a": np.zeros(3), "b": np.zeros(3)})
    correct(source, out, tmp_path / "c.onnx", bits=3, uncorrected=tmp_path / "u.onnx")
    assert list(initializers(tmp_path / "u.onnx")) == ["w"]


@pytest.mark.parametrize("direct", [True, False])
def test_a_weight_that_a_subgraph_reads_stays_as_it_was_for_it(direct: bool, tmp_path: Path) -> None:
    name = "w" if direct else "v"
    branch = helper.make_graph(
        [] if direct else [node("Identity", ["w"], "v")],
        "branch",
        [],
        [helper.make_tensor_value_info(name, FLOAT, (3, 3))],
    )
    nodes = [
        node("MatMul", ["x", "w"], "y", "layer"),
        node("If", ["yes"], "z", then_branch=branch, else_branch=branch),
    ]
    constants = {"w": values(3, 3), "yes": np.array(False)}
    source = saved(make_model(nodes, constants, {"x": ("N", 3)}, ["y", "z"]), tmp_path)
    correct(source, save_means(tmp_path / "out", {"layer": np.ones(3)}), tmp_path / "c.onnx", bits=3)
    np.testing.assert_array_equal(initializers(tmp_path / "c.onnx")["w"], constants["w"])


@pytest.mark.parametrize("through", [[], ["Identity"], ["Identity", "Identity"]], ids=len)
def test_a_weight_in_a_constant_node_or_behind_identities_is_a_weight(through: list[str], tmp_path: Path) -> None:
    w, x = values(3, 5), values(32, 3)
    names = [f"w{index}" for index in range(len(through) + 1)]
    nodes = [
        node("Constant", [], names[0], value=numpy_helper.from_array(w)),
        *(node("Identity", [left], right) for left, right in pairwise(names)),
        node("MatMul", ["x", names[-1]], name="layer"),
    ]
    source = saved(make_model(nodes, {}, {"x": ("N", 3)}), tmp_path)
    out = save_means(tmp_path / "out", {"layer": channel_mean(x, 1)})
    correct(source, out, tmp_path / "c.onnx", bits=3)
    onnx.checker.check_model(str(tmp_path / "c.onnx"), full_check=True)
    np.testing.assert_allclose(mean_output(tmp_path / "c.onnx", x, 1), mean_output(source, x, 1), rtol=1e-5, atol=1e-5)
    assert [each.op_type for each in onnx.load(tmp_path / "c.onnx").graph.node] == ["MatMul", "Add"]


def test_a_bias_that_the_model_computes_is_corrected_too(tmp_path: Path) -> None:
    nodes = [
        node("Neg", ["b"], "computed"),
        node("Conv", ["x", "w", "computed"], "h", "conv"),
        node("Flatten", ["h"], "flat"),
        node("Gemm", ["flat", "v", "computed"], "y", "gemm", beta=2.0),
    ]
    constants = {"w": values(4, 3, 1), "b": values(4), "v": values(8, 4)}
    source, x = saved(make_model(nodes, constants, {"x": ("N", 3, 2)}), tmp_path), values(64, 3, 2)
    hidden = np.einsum("oi,nit->not", constants["w"][:, :, 0].astype(np.float64), x) - constants["b"][:, None]
    means = {"conv": channel_mean(x, 1), "gemm": channel_mean(hidden.reshape(64, 8), 1)}
    correct(source, save_means(tmp_path / "out", means), tmp_path / "c.onnx", bits=6, per_channel=True)
    onnx.checker.check_model(str(tmp_path / "c.onnx"), full_check=True)
    shift = mean_output(tmp_path / "c.onnx", x, 1) - mean_output(source, x, 1)
    ((layer_conv, layer_gemm), _) = survey(load_model(source))
    conv_hat = layer_conv.fake_quantized(6, per_channel=True, symmetric=False).astype(np.float64)[:, :, 0]
    gemm_hat = layer_gemm.fake_quantized(6, per_channel=True, symmetric=False).astype(np.float64)
    term = (constants["w"][:, :, 0] - conv_hat) @ means["conv"]
    moved = np.einsum("oi,nit->not", conv_hat, x) + (term - constants["b"])[:, None]
    expected = (moved.reshape(64, 8).mean(axis=0) - means["gemm"]) @ gemm_hat
    np.testing.assert_allclose(shift, expected, atol=1e-4)


def test_a_bias_whose_factor_is_zero_may_be_an_input_of_the_model(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w", "c"], name="layer", beta=0.0)]
    source = saved(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3), "c": (3,)}), tmp_path)
    correct(source, save_means(tmp_path / "out", {"layer": np.ones(3)}), tmp_path / "c.onnx", bits=3)
    assert [v.name for v in onnx.load(tmp_path / "c.onnx").graph.input] == ["x", "c"]


def test_models_of_old_versions_list_their_new_tensors_as_inputs(tmp_path: Path) -> None:
    case = CASES["conv without bias"]
    source = saved(case.model(ir=3, opset=8), tmp_path)
    out = save_means(tmp_path / "out", {"layer": channel_mean(case.x, 1)})
    correct(source, out, tmp_path / "c.onnx", bits=3)
    onnx.checker.check_model(str(tmp_path / "c.onnx"))
    np.testing.assert_allclose(mean_output(tmp_path / "c.onnx", case.x, 1), mean_output(source, case.x, 1), atol=1e-5)


def test_external_data_is_read_and_a_model_too_large_for_one_file_is_written_as_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, x = values(40, 30), values(32, 40)
    model = make_model([node("MatMul", ["x", "w"], name="layer")], {"w": w}, {"x": ("N", 40)})
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="m.weights", size_threshold=0)
    np.save(tmp_path / "x.npy", x)
    assert record(source, tmp_path / "x.npy", tmp_path / "store")[0].samples == 32
    out = save_means(tmp_path / "out", {"layer": channel_mean(x, 1)})
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_BYTES", 1000)
    correct(source, out, tmp_path / "large" / "c.onnx", bits=3)
    target = tmp_path / "large" / "c.onnx"
    assert sorted(path.name for path in target.parent.iterdir()) == ["c.onnx", "c.onnx.data"]
    onnx.checker.check_model(str(target))
    np.testing.assert_allclose(mean_output(target, x, 1), mean_output(source, x, 1), atol=1e-5)


def test_a_layer_without_a_corrector_is_quantised_and_says_so(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "h", "a"), node("MatMul", ["h", "v"], "y", "b")]
    constants = {"w": values(3, 3), "v": values(3, 3, seed=3)}
    source = saved(make_model(nodes, constants, {"x": ("N", 3)}), tmp_path)
    out = save_means(tmp_path / "out", {"a": np.ones(3), "stray/x y": np.ones(3)})
    first, second, stray = correct(source, out, tmp_path / "c.onnx", bits=3).layers
    assert first.corrected
    assert second.quantized
    assert not second.corrected
    assert "no corrector" in second.reason
    np.testing.assert_array_equal(initializers(tmp_path / "c.onnx")["v"], fake_quantize(constants["v"], 3))
    assert (stray.layer, stray.quantized, stray.corrected) == ("stray/x y", False, False)
    assert "no such layer" in stray.reason


def test_a_null_corrector_leaves_the_bias_as_it_is(tmp_path: Path) -> None:
    case = CASES["gemm"]
    NullBiasCorrector().save(tmp_path / "out" / "correctors" / "layer.safetensors")
    (outcome,) = correct(saved(case.model(), tmp_path), tmp_path / "out", tmp_path / "c.onnx", bits=3).layers
    np.testing.assert_array_equal(initializers(tmp_path / "c.onnx")["b"], case.constants["b"])
    assert (outcome.quantized, outcome.corrected, outcome.largest) == (True, False, 0.0)


def run_results(out: Path, means: dict[str, Array]) -> Path:
    """What `streamstats run` leaves of stores with these means, manifest and all."""
    with Recorder(out.parent / f"{out.name}.zarr") as recorder:
        for layer, mean in means.items():
            recorder.append(layer, np.stack([mean, mean]))
    run(JobConfig(source=str(out.parent / f"{out.name}.zarr"), output=str(out)))
    return out


def two_layers(folder: Path) -> Path:
    nodes = [node("MatMul", ["x", "w"], "h", "a"), node("MatMul", ["h", "v"], "y", "b")]
    constants = {"w": values(3, 3), "v": values(3, 3, seed=3)}
    return saved(make_model(nodes, constants, {"x": ("N", 3)}), folder)


def test_the_correctors_of_a_run_are_used_and_those_it_did_not_leave_are_said_to_be_none(tmp_path: Path) -> None:
    out = run_results(tmp_path / "out", {"a": values(3), "other": values(3)})
    MeanBiasCorrector(np.ones(3)).save(layer_path(out / "correctors", "b"))  # no run vouches for it
    first, second, stray = correct(two_layers(tmp_path), out, tmp_path / "c.onnx", bits=3).layers
    assert (first.corrected, second.quantized, second.corrected) == (True, True, False)
    assert "no corrector: the run left none" in second.reason
    assert stray.layer == "other"


def test_a_layer_that_has_no_mean_is_not_corrected(tmp_path: Path) -> None:
    nothing = np.full(3, np.nan, np.float32)
    with Recorder(tmp_path / "store") as recorder:
        recorder.append("a", np.ones((2, 3), np.float32))
        recorder.append("b", nothing[None])
    run(JobConfig(source=str(tmp_path / "store"), output=str(tmp_path / "out"), nonfinite="skip"))
    first, second = correct(two_layers(tmp_path), tmp_path / "out", tmp_path / "c.onnx", bits=3).layers
    assert (first.corrected, second.corrected) == (True, False)


def test_a_corrector_that_is_not_that_of_the_manifest_is_refused_by_name(tmp_path: Path) -> None:
    source, out = two_layers(tmp_path), run_results(tmp_path / "out", {"a": values(3), "b": values(3)})
    newer = run_results(tmp_path / "newer", {"a": values(3, seed=1), "b": values(3)})
    path = layer_path(out / "correctors", "a")
    path.write_bytes(layer_path(newer / "correctors", "a").read_bytes())
    one_line(
        lambda: correct(source, out, tmp_path / "c.onnx", bits=3),
        DataError,
        f"{path} does not have the SHA-256 in manifest.json: a run was stopped while it wrote its results, or the file",
        "run the job again",
    )
    path.unlink()
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=3), DataError, str(path))
    assert not (tmp_path / "c.onnx").exists()


# --- finding layers


def test_names_come_from_the_node_or_its_output_and_are_usable_and_unique() -> None:
    labels = [
        "/features/0/Conv",
        "",
        "a",
        "a",
        "a_2",
        "block",
        "block/fc",
        "../up//x/",
        "line\nbreak\\",
        "zarr.json",
        ".zmetadata",
    ]
    nodes = [node("MatMul", ["x", "w"], f"out{index}", label) for index, label in enumerate(labels)]
    layers, _ = survey(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}, ["out0"]))
    names = [layer.name for layer in layers]
    expected = ["features/0/Conv", "out1", "a", "a_3", "a_2", "block_2", "block/fc", "__/up/_/x/_"]
    assert names == [*expected, "line_break_", "zarr_json", "_zmetadata"]
    assert [check_layer_name(name) for name in names] == names
    assert not any(other.startswith(f"{name}/") for name in names for other in names)


def test_names_are_those_under_which_a_store_finds_its_layers_again(tmp_path: Path) -> None:
    labels = ["/a", "a", "a/b", "a/b/c", "./d", "e\\f", "é ü", "zarr.json", "g/.zmetadata"]
    nodes = [node("MatMul", ["x", "w"], f"out{index}", label) for index, label in enumerate(labels)]
    source = saved(make_model(nodes, {"w": values(3, 3)}, {"x": ("N", 3)}, ["out0"]), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    recorded = record(source, tmp_path / "x.npy", tmp_path / "store")
    assert sorted(stored_layers(tmp_path / "store")) == sorted(layer.layer for layer in recorded)
    assert len(recorded) == len(labels)


def test_every_linear_operator_is_a_layer_or_left_out_with_a_reason() -> None:
    inner = helper.make_graph(
        [node("MatMul", ["x", "w"], "inner_out", "inner")],
        "inner",
        [],
        [helper.make_tensor_value_info("inner_out", FLOAT, None)],
    )
    nodes = [
        node("Gemm", ["x", "w"], "o0", "transposed", transA=1),
        node("MatMul", ["x", "x"], "o1", "computed"),
        node("MatMul", ["w", "x"], "o2", "constant first"),
        node("MatMul", ["x", "stack"], "o3", "stacked"),
        node("MatMul", ["x", "whole"], "o4", "integer"),
        node("Conv", ["x", "w"], "o5", "flat"),
        node("Conv", ["x", "kernel"], "o6", "uneven", group=2),
        node("ConvInteger", ["x", "kernel"], "o7", "integer conv"),
        node("If", ["yes"], "o8", "branch", then_branch=inner, else_branch=inner),
        node("MatMul", ["x", "w"], "y", "good"),
        node("Relu", ["x"], "o9", "relu"),
    ]
    constants = {
        "w": values(3, 3),
        "stack": values(2, 3, 3),
        "kernel": values(3, 3, 1),
        "yes": np.array(True),
    }
    constants["whole"] = np.ones((3, 3), np.int64)
    model = make_model(nodes, constants, {"x": ("N", 3)})
    layers, skipped = survey(model)
    reasons = {left.name: left.reason for left in skipped}
    assert [layer.name for layer in layers] == ["good"]
    fragments = {
        "transposed": "transA",
        "computed": "computed",
        "constant first": "input w is a constant",
        "stacked": "(2, 3, 3)",
        "integer": "int64",
        "flat": "(3, 3)",
        "uneven": "2 groups",
        "integer conv": "not supported",
        "inner": "subgraph of the If branch",
    }
    assert set(reasons) == set(fragments)
    assert all(fragment in reasons[name] for name, fragment in fragments.items()), reasons


def test_operators_in_functions_of_the_model_are_left_out_with_a_reason() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = helper.make_function("own", "Twice", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], "c", "mm")], opsets)
    model = make_model([node("Twice", ["x", "w"], domain="own")], {"w": values(3, 3)}, {"x": ("N", 3)})
    model.functions.append(body)
    layers, (left,) = survey(model)
    assert layers == []
    assert (left.name, left.op) == ("mm", "MatMul")
    assert "function Twice" in left.reason


def test_a_layer_says_what_its_weight_is() -> None:
    ((layer,), _) = survey(CASES["transposed grouped"].model())
    assert (layer.layout, layer.groups, layer.geometry.strides, layer.channel_axis) == ("IOHW", 2, (2, 2), 1)
    assert (layer.input, layer.weight_name, layer.op) == ("x", "w", "ConvTranspose")
    ((layer,), _) = survey(CASES["gemm transB"].model())
    assert (layer.layout, layer.groups, layer.geometry.strides, layer.channel_axis) == ("OI", 1, (), -1)


# --- recording


@dataclass(frozen=True)
class Network:
    """conv 1x1 → relu → (3-D matmul, flatten → gemm), of integers: its activations are exact in numpy."""

    path: Path
    x: Array
    constants: dict[str, Array]

    def activations(self) -> dict[str, Array]:
        hidden = np.einsum("oi,nihw->nohw", self.constants["w1"][:, :, 0, 0], self.x)
        relu = np.maximum(hidden + self.constants["b1"][:, None, None], 0)
        return {"conv": self.x, "rows": relu, "head/fc": relu.reshape(len(relu), -1)}


class Seen(Quiet):
    """What a recording reports: the rows of each stage, and those of each batch."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, list[int]]] = {}

    def begin(self, stage: Stage) -> None:
        self.stages[stage.what] = (stage.rows, [])

    def advance(self, rows: int, size: int = 0) -> None:
        assert size == 0
        list(self.stages.values())[-1][1].append(rows)


AXES = {"conv": 1, "rows": 3, "head/fc": 1}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    nodes = [
        node("Conv", ["x", "w1", "b1"], "h", "/conv"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "w2"], "rows"),
        node("Flatten", ["r"], "f"),
        node("Gemm", ["f", "w3"], "y", "/head/fc"),
    ]
    constants = {
        "w1": integers(4, 3, 1, 1),
        "b1": integers(4),
        "w2": integers(6, 2),
        "w3": integers(4 * 5 * 6, 2),
    }
    x = integers(11, 3, 5, 6)
    model = make_model(nodes, constants, {"x": ("N", 3, 5, 6)}, ["y", "rows"])
    np.save(tmp_path / "x.npy", x)
    return Network(saved(model, tmp_path), x, constants)


def stored_layers(store: Path) -> dict[str, Layer]:
    return {name: describe(str(store), name, array) for name, array in find_arrays(store).items()}


def stored(store: Path) -> dict[str, Array]:
    return {name: zarr.open_array(str(store), path=name, mode="r")[:] for name in stored_layers(store)}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_the_store_holds_the_input_of_every_layer(network: Network, tmp_path: Path, batch_size: int) -> None:
    seen = Seen()
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=batch_size, progress=seen)
    expected, found = network.activations(), stored(tmp_path / "store")
    assert [layer.layer for layer in recorded] == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.float32
        assert stored_layers(tmp_path / "store")[name].channel_axis == AXES[name]
    assert all((layer.samples, layer.reason, layer.dtype) == (11, "", "float32") for layer in recorded)
    assert {layer.layer: layer.channel_axis for layer in recorded} == AXES
    assert seen.stages == {"recording 3 layers": (11, [min(batch_size, 11 - n) for n in range(0, 11, batch_size)])}


def test_two_recordings_leave_the_same_files(network: Network, tmp_path: Path) -> None:
    for name, batch_size in (("a", 4), ("b", 4)):
        record(network.path, tmp_path / "x.npy", tmp_path / name, batch_size=batch_size, storage="int8")
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("a", "b")
    }
    assert files["a"] == files["b"]
    assert len(files["a"]) >= 6


def test_int8_storage_is_within_half_a_step(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=4, storage="int8")
    found, layers = stored(tmp_path / "store"), stored_layers(tmp_path / "store")
    for name, real in network.activations().items():
        quantization = layers[name].quantization
        assert quantization is not None
        assert found[name].dtype == np.int8
        assert quantization.channels is None
        error = np.abs(quantization.dequantize(found[name]) - real).max()
        assert error <= quantization.step * 0.5000001
        assert -128 <= quantization.zero_point <= 127
        assert quantization.step <= (max(real.max(), 0) - min(real.min(), 0)) / 255 * 1.0000001
    assert [layer.quantization for layer in recorded] == [layers[layer.layer].quantization for layer in recorded]


def test_what_was_recorded_and_corrected_is_told_in_json_with_the_same_keys(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", storage="int8")
    out = save_means(tmp_path / "out", {"conv": np.ones(3)})
    corrected = correct(network.path, out, tmp_path / "c.onnx", bits=4).layers
    quantization = recorded[0].quantization
    assert quantization is not None
    assert json.loads(json.dumps(recorded[0].document())) == {
        "layer": "conv",
        "operator": "Conv",
        "samples": 11,
        "shape": [3, 5, 6],
        "dtype": "int8",
        "channel_axis": 1,
        "quantization": quantization.to_metadata(),
        "reason": "",
    }
    assert json.loads(json.dumps(corrected[0].document())) == {
        "layer": "conv",
        "operator": "Conv",
        "quantized": True,
        "corrected": True,
        "change": "float bias changed",
        "reason": "",
        "largest_term": corrected[0].largest,
        "outputs": 4,
        "largest_bias_step": None,
    }
    (plain, *_) = record(network.path, tmp_path / "x.npy", tmp_path / "reals", layers=["conv"])
    assert plain.document()["quantization"] is None


def test_the_passes_of_int8_storage_are_two_stages(network: Network, tmp_path: Path) -> None:
    seen = Seen()
    record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=8, storage="int8", progress=seen)
    assert seen.stages == {"measuring the ranges of 3 layers": (11, [8, 3]), "recording 3 layers": (11, [8, 3])}


def test_one_batch_of_activations_is_alive_at_a_time(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[weakref.ref[Array]]] = []
    original = Recorder.append

    def append(self: Recorder, layer: str, samples: Array, **options: Any) -> None:
        if layer == "conv":
            gc.collect()
            assert not any(ref() is not None for batch in batches for ref in batch)
            batches.append([])
        batches[-1].append(weakref.ref(samples))
        original(self, layer, samples, **options)

    monkeypatch.setattr(Recorder, "append", append)
    record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=2)
    assert [len(batch) for batch in batches] == [3] * 6


def test_layers_are_chosen_by_globs(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["head/*", "co?v"])
    assert [layer.layer for layer in recorded] == ["conv", "head/fc"]
    assert sorted(stored_layers(tmp_path / "store")) == ["conv", "head/fc"]


@pytest.mark.parametrize("storage", ["float", "int8"])
def test_samples_are_appended_on_request_only(network: Network, tmp_path: Path, storage: str) -> None:
    x, store = tmp_path / "x.npy", tmp_path / "store"
    record(network.path, x, store, storage=storage)
    once = stored(store)
    with pytest.raises(UsageError, match="holds 11 samples of layer conv already"):
        record(network.path, x, store, storage=storage)
    record(network.path, x, store, storage=storage, append=True)
    for name, array in stored(store).items():
        np.testing.assert_array_equal(array, np.concatenate([once[name], once[name]]))
    with pytest.raises(MismatchError, match="to append are"):
        record(network.path, x, store, storage="int8" if storage == "float" else "float", append=True)


def test_codes_are_never_saturated_by_appending(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", storage="int8")
    before = stored(tmp_path / "store")
    np.save(tmp_path / "wide.npy", network.x * 2)
    with pytest.raises(MismatchError, match=r"layer conv: the samples to append range over \[-6, 8\]"):
        record(network.path, tmp_path / "wide.npy", tmp_path / "store", storage="int8", append=True)
    for name, array in stored(tmp_path / "store").items():
        np.testing.assert_array_equal(array, before[name])


def test_a_store_may_hold_other_layers(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["conv"])
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["rows"])
    assert sorted(stored_layers(tmp_path / "store")) == ["conv", "rows"]


def test_consolidated_metadata_does_not_hide_a_layer_that_is_in_the_store(network: Network, tmp_path: Path) -> None:
    x, store = tmp_path / "x.npy", tmp_path / "store"
    record(network.path, x, store, layers=["conv"])
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(store))
    record(network.path, x, store, layers=["rows"])
    with pytest.raises(UsageError, match="holds 11 samples of layer rows already"):
        record(network.path, x, store, layers=["rows"])
    np.testing.assert_array_equal(stored(store)["rows"], network.activations()["rows"])


def test_the_samples_of_several_inputs_come_from_an_npz(tmp_path: Path) -> None:
    nodes = [node("Add", ["a", "b"], "s"), node("MatMul", ["s", "w"], name="layer")]
    source = saved(make_model(nodes, {"w": integers(3, 2)}, {"a": ("N", 3), "b": ("N", 3)}), tmp_path)
    a, b = integers(5, 3), integers(5, 3, seed=1)
    np.savez(tmp_path / "x.npz", a=a, b=b, labels=np.arange(5))
    record(source, tmp_path / "x.npz", tmp_path / "store", batch_size=2)
    np.testing.assert_array_equal(stored(tmp_path / "store")["layer"], a + b)
    np.savez(tmp_path / "y.npz", a=a, labels=np.arange(5))
    with pytest.raises(UsageError, match="holds the arrays a, labels; the model's inputs are a, b"):
        record(source, tmp_path / "y.npz", tmp_path / "other")
    np.savez(tmp_path / "z.npz", a=a, b=b[:4])
    one_line(lambda: record(source, tmp_path / "z.npz", tmp_path / "other"), MismatchError, "{'a': 5, 'b': 4}")


def test_a_model_of_one_input_takes_the_only_array_of_an_npz(network: Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", anything=network.x)
    record(network.path, tmp_path / "x.npz", tmp_path / "store")
    np.testing.assert_array_equal(stored(tmp_path / "store")["conv"], network.x)


def test_a_model_with_a_fixed_batch_is_fed_batches_of_it(tmp_path: Path) -> None:
    model = make_model([node("MatMul", ["x", "w"], name="layer")], {"w": integers(3, 2)}, {"x": (4, 3)})
    source, x = saved(model, tmp_path), integers(12, 3)
    np.save(tmp_path / "x.npy", x)
    record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=5)
    np.testing.assert_array_equal(stored(tmp_path / "store")["layer"], x)
    np.testing.assert_array_equal(run_model(source, x), x @ integers(3, 2))
    np.save(tmp_path / "x.npy", x[:10])
    with pytest.raises(UsageError, match="10 samples, but the model takes batches of exactly 4; give a multiple"):
        record(source, tmp_path / "x.npy", tmp_path / "other")


def test_a_layer_whose_input_mixes_samples_is_left_out_with_a_reason(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h", "good"),
        node("Reshape", ["h", "shape"], "folded"),
        node("MatMul", ["folded", "w"], "z", "folded"),
        node("ReduceMean", ["h"], "flat", axes=[0], keepdims=0),
        node("MatMul", ["flat", "w"], "y", "reduced"),
        node("Transpose", ["h"], "t", perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], "u", "swapped"),
    ]
    constants = {"w": integers(3, 3), "shape": np.array([-1, 3], np.int64)}
    source = saved(make_model(nodes, constants, {"x": ("N", 2, 3)}, ["y", "z", "u"]), tmp_path)
    np.save(tmp_path / "x.npy", integers(6, 2, 3))
    recorded = {layer.layer: layer for layer in record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2)}
    assert recorded["good"].samples == 6
    for name in ("folded", "reduced", "swapped"):
        assert recorded[name].samples == 0
        assert "expected samples on axis 0" in recorded[name].reason
    assert list(stored_layers(tmp_path / "store")) == ["good"]
    with pytest.raises(UsageError, match="nothing to record: layer folded: its input folded has the shape"):
        record(source, tmp_path / "x.npy", tmp_path / "other", layers=["folded"])


def test_a_batch_in_which_a_layer_loses_samples_is_refused_whole(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "h", "first"),
        node("ReduceMin", ["x"], "least", axes=[1], keepdims=0),
        node("Greater", ["least", "zero"], "kept"),
        node("Compress", ["x", "kept"], "c", axis=0),
        node("MatMul", ["c", "w"], "y", "second"),
    ]
    model = make_model(nodes, {"w": integers(3, 2), "zero": np.float32(0)}, {"x": ("N", 3)}, ["h", "y"])
    x = np.ones((6, 3), np.float32)
    x[5] = -1
    np.save(tmp_path / "x.npy", x)
    one_line(
        lambda: record(saved(model, tmp_path), tmp_path / "x.npy", tmp_path / "store", batch_size=2),
        MismatchError,
        "layer second: its input for the samples 4:6 has the shape (1, 3)",
    )
    assert not (tmp_path / "store").exists()


def test_activations_that_cannot_be_coded_are_refused_and_those_of_float_storage_kept(tmp_path: Path) -> None:
    nodes = [node("Log", ["x"], "l"), node("MatMul", ["l", "w"], name="layer")]
    source = saved(make_model(nodes, {"w": integers(3, 2)}, {"x": ("N", 3)}), tmp_path)
    x = np.ones((6, 3), np.float32)
    x[4, 1] = -1
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(NonFiniteError, match=r"layer layer: its input for the samples 4:6 holds NaN"):
        record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2, storage="int8")
    assert not (tmp_path / "store").exists()
    record(source, tmp_path / "x.npy", tmp_path / "store", batch_size=2)
    assert np.isnan(stored(tmp_path / "store")["layer"][4, 1])


def test_recorded_means_correct_the_model_they_were_recorded_from(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["conv"])
    means = {name: channel_mean(array, AXES[name]) for name, array in stored(tmp_path / "store").items()}
    outcomes = correct(network.path, save_means(tmp_path / "out", means), tmp_path / "c.onnx", bits=4).layers
    assert [outcome.layer for outcome in outcomes if outcome.corrected] == ["conv"]


# --- bad input


def one_line(call: Callable[[], object], kind: type[StreamstatsError], *fragments: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x00" * 64, bytes(range(256)), None, "folder"], ids=repr)
def test_a_file_that_is_not_a_model_is_refused_in_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    np.save(tmp_path / "x.npy", values(4, 3))
    out = save_means(tmp_path / "out", {"layer": np.ones(3)})
    one_line(lambda: load_model(path), UsageError, "bad.onnx")
    one_line(lambda: record(path, tmp_path / "x.npy", tmp_path / "store"), UsageError, "bad.onnx")
    one_line(lambda: correct(path, out, tmp_path / "c.onnx", bits=4), UsageError, "bad.onnx")
    one_line(lambda: run_model(path, values(4, 3)), UsageError)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "c.onnx").exists()


def test_missing_external_data_is_refused_in_one_line(tmp_path: Path) -> None:
    onnx.save(
        CASES["gemm"].model(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="gone",
        size_threshold=0,
    )
    (tmp_path / "gone").unlink()
    one_line(lambda: load_model(tmp_path / "m.onnx"), UsageError, "m.onnx")


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named_with_its_remedy(
    module: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    one_line(
        lambda: record(network.path, tmp_path / "x.npy", tmp_path / "store"),
        MissingDependencyError,
        module,
        "pip install '.[onnx]'",
    )


BAD_SAMPLES: dict[str, tuple[Any, type[StreamstatsError], str]] = {
    "missing": (None, UsageError, "No such file"),
    "empty file": (b"", UsageError, "not a .npy or .npz file"),
    "noise": (b"hello, world", UsageError, "not a .npy or .npz file"),
    "broken zip": (b"PK\x03\x04nothing", UsageError, "not a .npy or .npz file"),
    "objects": (np.array([{}], dtype=object), UsageError, "not a .npy or .npz file"),
    "float64": (integers(4, 3, 5, 6).astype(np.float64), MismatchError, "expects float32"),
    "big-endian": (integers(4, 3, 5, 6).astype(">f4"), MismatchError, ">f4"),
    "strings": (np.array(["a"]), MismatchError, "expects float32"),
    "rank": (integers(4, 3, 5), MismatchError, "(4, 3, 5); the model expects (N, 3, 5, 6)"),
    "extent": (integers(4, 5, 6, 3), MismatchError, "(4, 5, 6, 3); the model expects (N, 3, 5, 6)"),
    "scalar": (np.float32(1), MismatchError, "the shape ()"),
    "no samples": (integers(0, 3, 5, 6), UsageError, "holds no samples"),
}


@pytest.mark.parametrize(("content", "kind", "fragment"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_samples_that_do_not_fit_are_refused_in_one_line(
    content: Any, kind: type[StreamstatsError], fragment: str, network: Network, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    one_line(lambda: record(network.path, path, tmp_path / "store"), kind, "bad.npy", fragment)
    assert not (tmp_path / "store").exists()


def test_a_store_without_room_for_a_layer_is_refused_before_anything_is_written(
    network: Network, tmp_path: Path
) -> None:
    def attempt(store: Path) -> Callable[[], object]:
        return lambda: record(network.path, tmp_path / "x.npy", store, append=True)

    zarr.open_group(tmp_path / "above", mode="a").create_array("head", shape=(2, 2), dtype="f4")
    one_line(attempt(tmp_path / "above"), UsageError, "head is a layer, so head/fc cannot be")
    zarr.open_group(tmp_path / "below", mode="a").create_array("conv/deep", shape=(2, 2), dtype="f4")
    one_line(attempt(tmp_path / "below"), UsageError, "conv is a group of layers")
    one_line(attempt(tmp_path / "below" / "conv" / "deep"), UsageError, "not a zarr group")
    assert list(find_arrays(tmp_path / "above")) == ["head"]
    assert list(find_arrays(tmp_path / "below")) == ["conv/deep"]
    (tmp_path / "file").write_text("hello")
    one_line(attempt(tmp_path / "file"), OutputError, "file")


def test_requests_to_record_that_make_no_sense_are_refused_in_one_line(network: Network, tmp_path: Path) -> None:
    def attempt(**options: Any) -> Callable[[], object]:
        return lambda: record(network.path, tmp_path / "x.npy", tmp_path / "store", **options)

    one_line(attempt(storage="int4"), UsageError, "storage is 'int4'; expected one of float, int8")
    one_line(attempt(batch_size=0), UsageError, "batch_size is 0")
    one_line(attempt(layers=["nothing*"]), UsageError, "match nothing*", "conv, rows, head/fc")
    assert not (tmp_path / "store").exists()


def test_a_model_that_cannot_be_run_is_refused_in_one_line(tmp_path: Path) -> None:
    model = make_model([node("MatMul", ["x", "w"], domain="")], {"w": values(3, 2)}, {"x": ("N", 4)})
    np.save(tmp_path / "x.npy", values(4, 4))
    one_line(lambda: record(saved(model, tmp_path), tmp_path / "x.npy", tmp_path / "s"), UsageError, "onnxruntime")
    reshape = [node("Reshape", ["x", "shape"], "h"), node("MatMul", ["h", "w"])]
    constants = {"w": values(3, 2), "shape": np.array([1, 3], np.int64)}
    path = saved(make_model(reshape, constants, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    one_line(lambda: record(path, tmp_path / "x.npy", tmp_path / "s"), UsageError, "2 samples at once", "dynamic")
    assert not (tmp_path / "s").exists()


def test_a_corrector_of_other_channels_is_refused_and_nothing_written(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "h", "a"), node("MatMul", ["h", "v"], "y", "b")]
    source = saved(make_model(nodes, {"w": values(3, 4), "v": values(4, 3)}, {"x": ("N", 3)}), tmp_path)
    out = save_means(tmp_path / "out", {"a": np.ones(3), "b": np.ones(7)})
    one_line(
        lambda: correct(source, out, tmp_path / "c.onnx", bits=4, uncorrected=tmp_path / "u.onnx"),
        MismatchError,
        "layer b",
        "4 input channels",
        "7",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out"]


def test_requests_to_correct_that_make_no_sense_are_refused_in_one_line(tmp_path: Path) -> None:
    case = CASES["gemm"]
    source, out = (
        saved(case.model(), tmp_path),
        save_means(tmp_path / "out", {"layer": channel_mean(case.x, 1)}),
    )
    other = save_means(tmp_path / "other", {"elsewhere": np.ones(3)})
    (tmp_path / "bare" / "correctors").mkdir(parents=True)

    def attempt(folder: Path = out, target: Path = tmp_path / "c.onnx", **options: Any) -> Callable[[], object]:
        return lambda: correct(source, folder, target, **{"bits": 4, **options})

    one_line(attempt(bits=1), UsageError, "bits is 1;")
    one_line(attempt(bits=17), UsageError, "bits is 17")
    one_line(attempt(tmp_path / "nowhere"), UsageError, "nowhere", "streamstats run")
    one_line(attempt(tmp_path / "bare"), UsageError, "no corrector for a layer of the model", "layer")
    one_line(attempt(other), UsageError, "no corrector for a layer of the model")
    one_line(attempt(target=source), UsageError, "would be overwritten")
    one_line(attempt(uncorrected=tmp_path / "c.onnx"), UsageError, "for both outputs")
    (out / "correctors" / "layer.safetensors").write_bytes(b"damaged")
    one_line(attempt(), DataError, "layer.safetensors")
    assert not (tmp_path / "c.onnx").exists()


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    w = values(3, 3)
    w[1, 1] = np.nan
    source = saved(make_model([node("MatMul", ["x", "w"], name="a/b")], {"w": w}, {"x": ("N", 3)}), tmp_path)
    out = save_means(tmp_path / "out", {"a/b": np.ones(3)})
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=4), UsageError, "layer a/b", "finite")


def test_a_bias_beyond_its_dtype_is_left_as_it_is(tmp_path: Path) -> None:
    w = values(3, 3, dtype="float16")
    model = make_model([node("Gemm", ["x", "w"], name="g")], {"w": w}, {"x": ("N", 3)}, dtype=onnx.TensorProto.FLOAT16)
    out = save_means(tmp_path / "out", {"g": np.full(3, 1e9)})
    (outcome,) = correct(saved(model, tmp_path), out, tmp_path / "c.onnx", bits=3).layers
    assert not outcome.corrected
    assert "more than float16 can hold" in outcome.reason


def test_operator_sets_without_broadcasting_are_refused(tmp_path: Path) -> None:
    source = saved(CASES["conv 1x1"].model(opset=6, ir=3), tmp_path)
    out = save_means(tmp_path / "out", {"layer": np.ones(3)})
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=3), UsageError, "operator set 6")


def test_a_model_without_linear_layers_has_nothing_to_record_or_correct(tmp_path: Path) -> None:
    source = saved(make_model([node("Relu", ["x"])], {}, {"x": ("N", 3)}), tmp_path)
    np.save(tmp_path / "x.npy", values(4, 3))
    out = save_means(tmp_path / "out", {"layer": np.ones(3)})
    one_line(lambda: record(source, tmp_path / "x.npy", tmp_path / "s"), UsageError, "no linear layers")
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=3), UsageError, "no corrector for a layer")


# --- running


def test_run_model_gives_the_first_output_of_all_samples(network: Network) -> None:
    expected = network.activations()["head/fc"] @ network.constants["w3"]
    np.testing.assert_array_equal(run_model(network.path, network.x, batch_size=4), expected)
    one_line(lambda: run_model(network.path, network.x.astype(np.float64)), MismatchError, "expects float32")
    one_line(lambda: run_model(network.path, network.x[:, :2]), MismatchError, "(N, 3, 5, 6)")


def test_importing_the_modules_imports_neither_library() -> None:
    code = "import sys, streamstats.models.onnx; assert not {'onnx', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_store_that_could_not_be_finished_is_removed(tmp_path):
    model = saved(
        make_model([node("Gemm", ["x", "w"], name="g")], {"w": np.eye(3, dtype=np.float32)}, {"x": ("N", 3)}), tmp_path
    )
    np.save(tmp_path / "x.npy", np.ones((8, 3), np.float32))

    class Stopping(Quiet):
        def advance(self, rows: int, size: int = 0) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2, progress=Stopping())
    assert not (tmp_path / "s").exists()
    record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        record(model, tmp_path / "x.npy", tmp_path / "s", batch_size=2, append=True, progress=Stopping())
    assert (tmp_path / "s").exists()


def test_a_corrector_of_another_layer_and_an_output_that_is_no_model_are_refused(tmp_path: Path) -> None:
    source = saved(make_model([node("Gemm", ["x", "w"], name="g")], {"w": integers(3, 2)}, {"x": ("N", 3)}), tmp_path)
    corrector = tmp_path / "out/correctors/g.safetensors"
    MeanBiasCorrector(np.ones(3), {"layer": "other"}).save(corrector)
    with pytest.raises(DataError, match="was made for layer other, not for g"):
        correct(source, tmp_path / "out", tmp_path / "fixed.onnx", bits=3)
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        correct(source, tmp_path / "out", corrector, bits=3)
    assert not (tmp_path / "fixed.onnx").exists()
