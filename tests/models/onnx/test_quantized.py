"""Models that a quantiser wrote: layers found by their weights, biases changed in the form they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from graphs import run_model
from networks import FLOAT, FORMS, chain, folded, model_of, on_the_grid, quantized, run_out, values
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from streamstats.cli import main
from streamstats.errors import DataError, UsageError
from streamstats.models.onnx.correct import How, correct_quantized
from streamstats.models.onnx.graph import load_model
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.pairs import pairs
from streamstats.models.onnx.plain import plainly as plain_model
from streamstats.models.onnx.quantized import quantized_layers

Array = npt.NDArray[Any]


def plainly(model: Any, x: Array) -> Array:
    """The first output of `model` as its graph says: kernels for codes saturate on processors without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0])


def layer_outputs(path: Path, x: Array, op: str) -> tuple[Array, float]:
    """Outputs of the only layer, and how far its mean may be from the exact one for rounding of the outputs."""
    model = onnx.load(path)
    node = next((each for each in model.graph.node if each.op_type in (op, "Add")), None)
    if node is not None:  # between DequantizeLinear nodes: a sum of floats
        last = [each for each in model.graph.node if each.op_type in (op, "Add")][-1]
        model.graph.output.insert(0, onnx.ValueInfoProto(name=last.output[0]))
        return plainly(model, x), 0.0
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    last = next(each for each in model.graph.node if each.output[0] == "y")
    return run_model(path, x), 0.25 * float(constants[last.input[1]])


def channel_means(y: Array, axis: int) -> Array:
    return y.astype(np.float64).mean(axis=tuple(a for a in range(y.ndim) if a != axis % y.ndim))


SAME = {"strides": [2, 2], "auto_pad": "SAME_UPPER"}
TRANSPOSED = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
CASES: dict[str, tuple[str, list[str], dict[str, tuple[int, ...]], dict[str, Any], tuple[int, ...], int]] = {
    "conv": ("Conv", ["w", "b"], {"w": (6, 4, 3, 3), "b": (6,)}, {"pads": [1, 1, 1, 1]}, (4, 8, 8), 1),
    "conv without bias": (
        "Conv",
        ["w"],
        {"w": (6, 4, 3, 3)},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        (4, 7, 7),
        1,
    ),
    "grouped": ("Conv", ["w", "b"], {"w": (6, 2, 3, 3), "b": (6,)}, {"group": 2, "dilations": [2, 2]}, (4, 9, 9), 1),
    "depthwise": ("Conv", ["w"], {"w": (4, 1, 3, 3)}, {"group": 4, "pads": [0, 1, 2, 1]}, (4, 8, 8), 1),
    "one axis": ("Conv", ["w", "b"], {"w": (5, 4, 3), "b": (5,)}, {"pads": [1, 1]}, (4, 12), 1),
    "transposed": (
        "ConvTranspose",
        ["w", "b"],
        {"w": (4, 3, 3, 3), "b": (3,)},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        (4, 5, 5),
        1,
    ),
    "gemm": ("Gemm", ["w", "b"], {"w": (8, 5), "b": (5,)}, {}, (8,), -1),
    "gemm, transposed": ("Gemm", ["w", "b"], {"w": (5, 8), "b": (5,)}, {"transB": 1}, (8,), -1),
    "gemm without bias": ("Gemm", ["w"], {"w": (8, 5)}, {}, (8,), -1),
    "matmul": ("MatMul", ["w"], {"w": (8, 5)}, {}, (8,), -1),
    "matmul of three axes": ("MatMul", ["w"], {"w": (8, 5)}, {}, (7, 8), -1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_mean_output_is_that_of_the_float_layer_within_the_step_of_the_bias(
    tmp_path: Path, name: str, form: str
) -> None:
    op, inputs, shapes, attributes, sample, axis = CASES[name]
    constants = {key: values(*shape, seed=index + 1) for index, (key, shape) in enumerate(shapes.items())}
    x = values(64, *sample)
    model = model_of([helper.make_node(op, ["x", *inputs], ["y"], name="layer", **attributes)], constants, x)
    path = quantized(model, tmp_path, x, form)
    x = on_the_grid(path, x) if any(n.op_type == "QuantizeLinear" for n in onnx.load(path).graph.node) else x
    models = tmp_path / "float.onnx", path
    if op == "ConvTranspose" and form.startswith("codes"):  # the quantiser has no such operator on codes
        with pytest.raises(UsageError, match=r"quantized\.onnx is not quantised: its weights are those of"):
            correct_quantized(*models, run_out(tmp_path, x), tmp_path / "fixed.onnx")
        return
    outcomes = correct_quantized(*models, run_out(tmp_path, x), tmp_path / "fixed.onnx").layers
    assert [(each.layer, each.corrected) for each in outcomes] == [("layer", True)], outcomes
    onnx.checker.check_model(onnx.load(tmp_path / "fixed.onnx"))
    wanted = channel_means(run_model(tmp_path / "float.onnx", x), axis)
    found, rounding = layer_outputs(tmp_path / "fixed.onnx", x, op)
    step = 0.0 if outcomes[0].step is None else outcomes[0].step
    allowed = step + rounding + 1e-5 * np.abs(wanted).max()
    assert (np.abs(channel_means(found, axis) - wanted) <= allowed).all()
    before, _ = layer_outputs(path, x, op)
    if form == "qdq, int4":
        assert (np.abs(channel_means(before, axis) - wanted) > 2 * allowed).any()


@pytest.mark.parametrize("form", ["qdq", "codes", "qdq, int4"])
@pytest.mark.parametrize("optimised", [False, True])
def test_layers_are_found_whatever_an_optimiser_did_to_them(tmp_path: Path, form: str, optimised: bool) -> None:
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    given = model_of(*(folded(nodes, constants) if optimised else (nodes, constants)), x)
    path = quantized(given, tmp_path, x, form)
    onnx.save(model_of(nodes, constants, x), tmp_path / "float.onnx")
    outcomes = correct_quantized(tmp_path / "float.onnx", path, run_out(tmp_path, x), tmp_path / "fixed.onnx").layers
    assert sorted(each.layer for each in outcomes if each.corrected) == ["first", "last", "second", "third"]
    wanted, before, after = (
        run_model(each, x).mean(axis=0) for each in (tmp_path / "float.onnx", path, tmp_path / "fixed.onnx")
    )
    if form == "qdq, int4":
        assert np.abs(after - wanted).sum() < 0.5 * np.abs(before - wanted).sum()


def test_layers_that_share_a_weight_are_told_apart_by_their_names_and_get_biases_of_their_own(tmp_path: Path) -> None:
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    path = quantized(model_of(nodes, constants, x), tmp_path, x, "qdq")
    original, (layers, _) = load_model(tmp_path / "float.onnx"), quantized_layers(load_model(path))
    matched, without = pairs(original, survey(original)[0], layers)
    assert not without
    assert {pair.original.name: pair.quantized.name for pair in matched} == {
        name: name for name in ("first", "second", "third", "last")
    }
    correct_quantized(tmp_path / "float.onnx", path, run_out(tmp_path, x), tmp_path / "fixed.onnx")
    fixed = {node.name: node for node in onnx.load(tmp_path / "fixed.onnx").graph.node}
    assert fixed["second"].input[1] == fixed["third"].input[1]
    assert fixed["second"].input[2] != fixed["third"].input[2]


def test_a_layer_without_a_counterpart_and_one_without_a_corrector_are_left_and_said(tmp_path: Path) -> None:
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    path = quantized(model_of(nodes, constants, x), tmp_path, x, "qdq")
    out = run_out(tmp_path, x)
    onnx.save(model_of(nodes, constants | {"w": values(4, 3, 3, 3, seed=99)}, x), tmp_path / "other.onnx")
    done = correct_quantized(tmp_path / "other.onnx", path, out, tmp_path / "f.onnx", how=How(other_weights=True))
    outcomes = {each.layer: each for each in done.layers}
    assert outcomes["first"].reason == "no layer of the float model has a weight that is close to its own"
    for name in ("manifest.json", "correctors/second.safetensors"):
        (out / name).unlink()
    outcomes = {
        each.layer: each for each in correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "f.onnx").layers
    }
    assert outcomes["second"].reason == "no corrector: the run left none for it"
    assert outcomes["third"].corrected


def test_a_corrector_of_another_layer_is_refused(tmp_path: Path) -> None:
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    path = quantized(model_of(nodes, constants, x), tmp_path, x, "qdq")
    out = run_out(tmp_path, x)
    (out / "manifest.json").unlink()
    (out / "correctors/second.safetensors").write_bytes((out / "correctors/first.safetensors").read_bytes())
    with pytest.raises(DataError, match="was made for layer first, not for second"):
        correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()


def test_a_bias_beyond_its_codes_ends_at_the_last_and_is_named(tmp_path: Path) -> None:
    x = values(16, 4, 6, 6)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"], name="layer")], {"w": values(3, 4, 1, 1)}, x)
    path = quantized(model, tmp_path, x, "codes")
    broken = onnx.load(path)
    for tensor in broken.graph.initializer:
        if tensor.name == "x_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(1e-12), "x_scale"))
    onnx.save(broken, path)
    (outcome,) = correct_quantized(tmp_path / "float.onnx", path, run_out(tmp_path, x), tmp_path / "fixed.onnx").layers
    assert outcome.corrected
    assert outcome.change == "int32 bias added, at the limit of its codes for output 1, 2"
    fixed = onnx.load(tmp_path / "fixed.onnx")
    tensors = (numpy_helper.to_array(each) for each in fixed.graph.initializer)
    (bias,) = (each for each in tensors if each.dtype == np.int32 and each.size == 3)
    assert set(np.abs(bias[1:].astype(np.int64)).tolist()) <= {2**31 - 1, 2**31}


def test_the_command_line_takes_either_a_quantised_model_or_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    path = quantized(model_of(nodes, constants, x), tmp_path, x, "codes")
    out = run_out(tmp_path, x)
    common = ["--correctors", str(out), "-o", str(tmp_path / "fixed.onnx")]
    assert main(["correct", str(tmp_path / "float.onnx"), str(path), *common, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert layers["first"]["change"] == "int32 bias changed"
    assert layers["first"]["largest_bias_step"] > 0
    for extra in ([], [str(path), "--bits", "4"], [str(path), "--symmetric"]):
        assert main(["correct", str(tmp_path / "float.onnx"), *extra, *common]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not an ONNX model"):
        correct_quantized(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path, tmp_path / "c.onnx")


def test_the_nearest_weight_decides_and_not_the_name(tmp_path: Path) -> None:
    w, v = np.abs(values(4, 4)), np.abs(values(4, 4)) + np.float32(0.2) * values(4, 4, seed=1)
    x = values(16, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="two"),
    ]
    path = quantized(model_of(nodes, {"w": w, "v": v}, x), tmp_path, x, "qdq")
    swapped = [
        helper.make_node("MatMul", ["x", "w"], ["b"], name="two"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="one"),
    ]
    model = model_of(swapped, {"w": w, "v": v}, x)
    found, _ = pairs(model, survey(model)[0], quantized_layers(onnx.load(path))[0])
    assert [(pair.quantized.name, pair.original.name) for pair in found] == [("one", "two"), ("two", "one")]


def test_one_constant_that_cannot_be_computed_does_not_hide_the_others() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Unheard", ["v"], ["vt"], domain="of.nobody"),
        helper.make_node("MatMul", ["x", "wt"], ["a"], name="known"),
        helper.make_node("MatMul", ["a", "vt"], ["y"], name="unknown"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(values(3, 4), "w"), numpy_helper.from_array(values(3, 2), "v")],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("of.nobody", 1)]
    layers, left_out = survey(helper.make_model(graph, ir_version=8, opset_imports=versions))
    assert [layer.name for layer in layers] == ["known"]
    assert [left.name for left in left_out] == ["unknown"]


def test_a_product_of_codes_with_scales_of_float16_stays_valid_and_is_corrected(tmp_path: Path) -> None:
    x, weight = values(256, 4), values(4, 3, seed=1)
    onnx.save(
        model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weight}, x), tmp_path / "float.onnx"
    )
    step, of_input, of_output = np.float16(0.2), np.float16(0.05), np.float16(0.05)
    codes = np.rint(weight / step).astype(np.int8)
    names = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
    zero = np.int8(0)
    constants = {"sx": of_input, "zx": zero, "w": codes, "sw": step, "zw": zero, "sy": of_output, "zy": zero}
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"], name="fc")],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT8, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT8, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "quantized.onnx")
    done = correct_quantized(
        tmp_path / "float.onnx", tmp_path / "quantized.onnx", run_out(tmp_path, x), tmp_path / "fixed.onnx"
    )
    fixed = onnx.load(tmp_path / "fixed.onnx")
    onnx.checker.check_model(fixed, full_check=True)
    rounded = codes * float(step)
    np.testing.assert_allclose(done.layers[0].term, x.astype("f8").mean(axis=0) @ (weight - rounded), rtol=1e-5)
    inputs = np.clip(np.rint(x / float(of_input)), -128, 127).astype(np.int8)
    wanted = np.rint((inputs * float(of_input) @ rounded + done.layers[0].term) / float(of_output))
    (found,) = ReferenceEvaluator(fixed).run(None, {"x": inputs})
    assert np.abs(np.clip(wanted, -128, 127) - found).max() <= 1  # ties
    (plain,) = ReferenceEvaluator(plain_model(fixed).model).run(None, {"x": inputs})
    assert np.abs(plain.astype(int) - found).max() <= 1
    (before,) = ReferenceEvaluator(plain_model(model).model).run(None, {"x": inputs})
    assert (
        np.abs(np.clip(np.rint(inputs * float(of_input) @ rounded / float(of_output)), -128, 127) - before).max() <= 1
    )
