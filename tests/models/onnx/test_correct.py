"""A corrected model has the mean outputs of the float model, layer by layer, and stays a valid model."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest
from graphs import (
    AXES,
    CASES,
    FLOAT,
    Array,
    Case,
    Network,
    all_outputs,
    channel_mean,
    initializers,
    integers,
    make_model,
    mean_output,
    node,
    one_line,
    save_means,
    saved,
    stored,
    values,
)
from onnx import helper, numpy_helper

from streamstats.calibration.recorder import Recorder
from streamstats.config import JobConfig
from streamstats.correction import MeanBiasCorrector, NullBiasCorrector
from streamstats.errors import DataError, MismatchError, UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx import files as onnx_files
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.graph import load_model
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.record import measure, record
from streamstats.quantization import fake_quantize
from streamstats.storage.names import layer_path

TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-13}


def corrected_case(case: Case, folder: Path, **options: Any) -> tuple[Path, Path, Path, list[Any]]:
    source = saved(case.model(), folder)
    out = save_means(folder / "out", {"layer": channel_mean(case.x, case.channel_axis)})
    target, plain = folder / "corrected.onnx", folder / "plain.onnx"
    return source, target, plain, correct(source, out, target, uncorrected=plain, **options).layers


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
    conv_hat = layer_conv.fake_quantized(6, per_channel=True, symmetric=False, weight_range="minmax").astype(
        np.float64
    )[:, :, 0]
    gemm_hat = layer_gemm.fake_quantized(6, per_channel=True, symmetric=False, weight_range="minmax").astype(np.float64)
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
    run(JobConfig(source=str(out.parent / f"{out.name}.zarr"), output=str(out)).job())
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
    run(JobConfig(source=str(tmp_path / "store"), output=str(tmp_path / "out"), nonfinite="skip").job())
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
        f"{path} does not match its SHA-256 in manifest.json: a run was interrupted while it wrote its results",
        "run the job again",
    )
    path.unlink()
    one_line(lambda: correct(source, out, tmp_path / "c.onnx", bits=3), DataError, str(path))
    assert not (tmp_path / "c.onnx").exists()


def test_what_was_recorded_and_corrected_is_told_in_json_with_the_same_keys(network: Network, tmp_path: Path) -> None:
    recorded = record(network.path, tmp_path / "x.npy", tmp_path / "store", storage="int8")
    out = save_means(tmp_path / "out", {"conv": np.ones(3)})
    corrected = correct(network.path, out, tmp_path / "c.onnx", bits=4).layers
    quantization = recorded[0].quantization
    assert quantization is not None
    assert json.loads(json.dumps(recorded[0].document())) == {
        "layer": "conv",
        "operator": "Conv",
        "recorded": True,
        "skipped": False,
        "samples": 11,
        "shape": [3, 5, 6],
        "dtype": "int8",
        "channel_axis": 1,
        "quantization": quantization.to_metadata(),
        "reason": "",
        "array": "conv",
        "tensor": "x",
        "mask": None,
        "rows_are": "samples",
    }
    assert json.loads(json.dumps(corrected[0].document())) == {
        "layer": "conv",
        "operator": "Conv",
        "quantized": True,
        "corrected": True,
        "outcome": "corrected",
        "change": "float bias changed",
        "reason": "",
        "difference": "",
        "largest_term": corrected[0].largest,
        "outputs": 4,
        "largest_bias_step": None,
    }
    (plain, *_) = record(network.path, tmp_path / "x.npy", tmp_path / "reals", layers=["conv"])
    assert plain.document()["quantization"] is None


def test_recorded_means_correct_the_model_they_were_recorded_from(network: Network, tmp_path: Path) -> None:
    record(network.path, tmp_path / "x.npy", tmp_path / "store", layers=["conv"])
    means = {name: channel_mean(array, AXES[name]) for name, array in stored(tmp_path / "store").items()}
    outcomes = correct(network.path, save_means(tmp_path / "out", means), tmp_path / "c.onnx", bits=4).layers
    assert [outcome.layer for outcome in outcomes if outcome.corrected] == ["conv"]


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
    np.save(tmp_path / "x.npy", np.ones((4, 3, 5, 5), np.float32))
    for refused in (
        lambda: correct(source, out, tmp_path / "c.onnx", bits=3),
        lambda: record(source, tmp_path / "x.npy", tmp_path / "s.zarr"),
        lambda: measure(source, tmp_path / "x.npy", tmp_path / "measured"),
    ):
        one_line(refused, UsageError, "operator set 6; expected 7 or later: convert it with onnx.version_converter")
    assert not (tmp_path / "s.zarr").exists()


def test_a_model_that_was_converted_as_the_message_says_is_recorded(tmp_path: Path) -> None:
    source = saved(CASES["conv 1x1"].model(opset=6, ir=3), tmp_path)
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 13), tmp_path / "new.onnx")
    shape = [each.dim_value or 4 for each in onnx.load(source).graph.input[0].type.tensor_type.shape.dim]
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    (layer,) = record(tmp_path / "new.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    assert layer.samples == shape[0]


def test_a_corrector_of_another_layer_and_an_output_that_is_no_model_are_refused(tmp_path: Path) -> None:
    source = saved(make_model([node("Gemm", ["x", "w"], name="g")], {"w": integers(3, 2)}, {"x": ("N", 3)}), tmp_path)
    corrector = tmp_path / "out/correctors/g.safetensors"
    MeanBiasCorrector(np.ones(3), {"layer": "other"}).save(corrector)
    with pytest.raises(DataError, match="was made for layer other, not for g"):
        correct(source, tmp_path / "out", tmp_path / "fixed.onnx", bits=3)
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        correct(source, tmp_path / "out", corrector, bits=3)
    assert not (tmp_path / "fixed.onnx").exists()
