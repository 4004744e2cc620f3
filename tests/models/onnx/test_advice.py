"""What a message tells the user to do works: each test takes its advice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime
import pytest
from graphs import FLOAT, Array, make_model, node, run_model, saved, values
from networks import Batches, chain, model_of, run_out
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from told import Told

from streamstats.errors import UsageError
from streamstats.models.onnx.correct import correct, correct_quantized
from streamstats.models.onnx.record import measure, record

SAMPLES = 64


def advice(call: Callable[[], object], pattern: str) -> str:
    """What the error of `call` says that matches `pattern`."""
    with pytest.raises(UsageError) as caught:
        call()
    found = re.search(pattern, str(caught.value))
    assert found is not None, str(caught.value)
    return found.group()


def old_model(opset: int, ir: int, *, listed: bool = True) -> Any:
    """A convolution and a matrix with a bias, in this operator set; the constants are `listed` among the inputs."""
    nodes = [
        node("Conv", ["x", "w", "b"], "c", "conv"),
        node("Relu", ["c"], "r"),
        node("Flatten", ["r"], "f"),
        node("MatMul", ["f", "v"], "y", "fc"),
    ]
    constants = {"w": values(4, 3, 1, 1), "b": values(4), "v": values(4 * 9, 5, seed=1) / 6}
    model = make_model(nodes, constants, {"x": ("N", 3, 3, 3)}, opset=opset, ir=ir)
    if not listed:
        del model.graph.input[1:]
    return model


def mean_shift(path: Path, model: Path, x: Array) -> float:
    """How far the mean outputs of the model at `path` are from those of the float `model`, as the largest."""
    ours, theirs = (run_model(each, x).astype(np.float64).mean(axis=0) for each in (path, model))
    return float(np.abs(ours - theirs).max())


class Case:
    """A float model at `folder`, its samples, and what was measured of it."""

    def __init__(self, folder: Path, model: Any, x: Array) -> None:
        self.folder, self.x = folder, x
        self.source = saved(model, folder, "float.onnx")
        np.save(folder / "x.npy", x)

    def measured(self) -> Path:
        if not (self.folder / "out").exists():
            measure(self.source, self.folder / "x.npy", self.folder / "out")
        return self.folder / "out"

    def quantized(self, form: QuantFormat, per_channel: bool) -> Path:
        """What onnxruntime makes of the model."""
        target = self.folder / "quantized.onnx"
        quantize_static(
            str(self.source),
            str(target),
            Batches(self.x),
            quant_format=form,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # codes of 7 bits, whose products processors without VNNI do not saturate
        )
        return target

    def corrected(self, quantized: Path) -> Path:
        target = self.folder / "fixed.onnx"
        done = correct_quantized(self.source, quantized, self.measured(), target)
        assert [each.outcome for each in done.layers] == ["corrected"] * len(done.layers)
        return target


IMAGES = values(SAMPLES, 3, 3, 3)
READ = [(7, 3, True), (8, 3, True), (11, 3, False), (9, 4, False), (11, 6, False), (13, 7, False), (21, 10, False)]
READ += [(27, 13, False)] if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 32) else []


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize(("opset", "ir", "listed"), READ)
def test_models_of_old_and_new_versions_are_read_and_corrected(
    tmp_path: Path, opset: int, ir: int, listed: bool, form: QuantFormat
) -> None:
    case = Case(tmp_path, old_model(opset, ir, listed=listed), IMAGES)
    quantized = case.quantized(form, per_channel=False)
    fixed = case.corrected(quantized)
    onnx.checker.check_model(onnx.load(fixed))
    assert mean_shift(fixed, case.source, IMAGES) < mean_shift(quantized, case.source, IMAGES)
    done = correct(case.source, tmp_path / "out", tmp_path / "here.onnx", bits=3, uncorrected=tmp_path / "bad.onnx")
    assert [each.outcome for each in done.layers] == ["corrected"] * 2
    shifts = [mean_shift(tmp_path / name, case.source, IMAGES) for name in ("here.onnx", "bad.onnx")]
    assert shifts[0] < shifts[1] / 2


@pytest.mark.parametrize(("opset", "ir", "per_channel"), [(9, 3, True), (9, 4, True), (10, 5, False), (12, 7, True)])
def test_a_float_model_that_is_converted_as_the_message_says_is_quantised_and_corrected(
    tmp_path: Path, opset: int, ir: int, per_channel: bool
) -> None:
    case = Case(tmp_path, old_model(opset, ir), IMAGES)
    quantized, out = case.quantized(QuantFormat.QDQ, per_channel), case.measured()
    said = advice(lambda: correct_quantized(case.source, quantized, out, None), r"onnx\.version_converter\.\w+\(.*?\)")
    new = tmp_path / "new"
    new.mkdir()
    again = Case(new, eval(said, {"onnx": onnx, "model": onnx.load(case.source)}), IMAGES)
    fixed = again.corrected(again.quantized(QuantFormat.QDQ, per_channel))
    np.testing.assert_allclose(run_model(again.source, IMAGES), run_model(case.source, IMAGES), rtol=1e-5, atol=1e-5)
    assert mean_shift(fixed, case.source, IMAGES) < 0.05


def test_an_old_model_that_is_converted_as_the_message_says_is_rounded(tmp_path: Path) -> None:
    case = Case(tmp_path, old_model(9, 4), IMAGES)
    measure(case.source, tmp_path / "x.npy", tmp_path / "out", statistics=["histogram"])

    def rounded(source: Path) -> object:
        return correct(source, tmp_path / "out", tmp_path / "fixed.onnx", bits=4, activation_bits=8)

    said = advice(lambda: rounded(case.source), r"onnx\.version_converter\.\w+\(.*?\)")
    onnx.save(eval(said, {"onnx": onnx, "model": onnx.load(case.source)}), tmp_path / "new.onnx")
    rounded(tmp_path / "new.onnx")
    assert run_model(tmp_path / "fixed.onnx", IMAGES).shape == (SAMPLES, 5)


ROWS = values(SAMPLES, 6)


def two_matrices() -> Any:
    nodes = [node("MatMul", ["x", "w"], "h", "one"), node("Relu", ["h"], "r"), node("MatMul", ["r", "v"], "y", "two")]
    return make_model(nodes, {"w": values(6, 8), "v": values(8, 4, seed=1)}, {"x": ("N", 6)}, opset=21, ir=10)


def test_a_model_of_dynamic_quantisation_is_corrected_when_quantised_statically(tmp_path: Path) -> None:
    case = Case(tmp_path, two_matrices(), ROWS)
    quantize_dynamic(str(case.source), str(tmp_path / "dynamic.onnx"))
    dynamic, out = tmp_path / "dynamic.onnx", case.measured()
    advice(lambda: correct_quantized(case.source, dynamic, out, None), "the float model with quantize_static")
    quantized = case.quantized(QuantFormat.QDQ, per_channel=False)
    assert mean_shift(case.corrected(quantized), case.source, ROWS) < mean_shift(quantized, case.source, ROWS)


def test_weights_packed_for_one_operator_are_corrected_in_the_form_that_the_message_names(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    case = Case(tmp_path, two_matrices(), ROWS)

    def packed(form: QuantFormat) -> Path:
        made = MatMulNBitsQuantizer(onnx.load(case.source), block_size=16, is_symmetric=True, quant_format=form)
        made.process()
        made.model.save_model_to_file(str(tmp_path / "packed.onnx"))
        return tmp_path / "packed.onnx"

    quantized, out = packed(QuantFormat.QOperator), case.measured()
    said = advice(lambda: correct_quantized(case.source, quantized, out, None), r"quant_format=QuantFormat\.\w+")
    quantized = packed(eval(said.partition("=")[2]))
    before = mean_shift(quantized, case.source, ROWS)
    done = correct_quantized(case.source, quantized, out, tmp_path / "fixed.onnx")
    assert [each.outcome for each in done.layers] == ["corrected", "corrected"]
    assert mean_shift(tmp_path / "fixed.onnx", case.source, ROWS) < before / 2


def test_functions_that_are_inlined_as_the_message_says_are_recorded(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = helper.make_function("own", "Layer", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], "c", "mm")], opsets)
    model = make_model([node("Layer", ["x", "w"], domain="own")], {"w": values(6, 3)}, {"x": ("N", 6)})
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    case = Case(tmp_path, model, ROWS)
    said = advice(lambda: record(case.source, tmp_path / "x.npy", tmp_path / "s.zarr"), r"onnx\.inliner\.\w+\(.*?\)")
    onnx.save(eval(said, {"onnx": onnx, "model": onnx.load(case.source)}), tmp_path / "inlined.onnx")
    (layer,) = record(tmp_path / "inlined.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    assert (layer.op, layer.samples) == ("MatMul", SAMPLES)


def test_a_model_is_recorded_as_it_was_before_the_optimiser(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], "c", "conv"), node("Relu", ["c"], "y")]
    case = Case(tmp_path, make_model(nodes, {"w": values(8, 3, 3, 3)}, {"x": (1, 3, 5, 5)}), values(4, 3, 5, 5))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    onnxruntime.InferenceSession(str(case.source), options, providers=["CPUExecutionProvider"])
    optimised = tmp_path / "optimised.onnx"
    if [each.op_type for each in onnx.load(optimised).graph.node] == ["Conv", "Relu"]:
        pytest.skip("the optimiser of this machine fuses nothing")
    store = tmp_path / "s.zarr"
    assert advice(lambda: record(optimised, tmp_path / "x.npy", store), "take the model as it was before the optimiser")
    assert [each.layer for each in record(case.source, tmp_path / "x.npy", store)] == ["conv"]


def test_models_in_the_wrong_places_are_told_apart(tmp_path: Path) -> None:
    case = Case(tmp_path, two_matrices(), ROWS)
    quantized, out = case.quantized(QuantFormat.QDQ, per_channel=False), case.measured()
    said = advice(lambda: correct_quantized(quantized, case.source, out, None), r"\S+ second, if \S+ is the float")
    assert said == f"{quantized} second, if {case.source} is the float"
    case.corrected(quantized)
    other = saved(onnx.load(quantized), tmp_path, "other.onnx")
    said = advice(
        lambda: correct_quantized(other, quantized, out, None), "expected the float model that both came from"
    )
    assert said
    advice(lambda: correct(quantized, out, None, bits=4), "expected the float model, whose weights are quantised here")
    with pytest.raises(UsageError, match="is quantised, and has no layer"):
        record(saved(on_codes(), tmp_path, "codes.onnx"), tmp_path / "x.npy", tmp_path / "s.zarr")


def on_codes() -> Any:
    """A product of codes."""
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    constants = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((6, 3), np.uint8)}
    return make_model([node("QLinearMatMul", names)], constants, {"x": ("N", 6)}, dtype=TensorProto.UINT8)


def test_a_float_model_in_place_of_the_quantised_one_is_quantised_with_bits(tmp_path: Path) -> None:
    case = Case(tmp_path, two_matrices(), ROWS)
    out = case.measured()
    copy = saved(onnx.load(case.source), tmp_path, "copy.onnx")
    assert advice(lambda: correct_quantized(case.source, copy, out, None), "bits to quantise the weights here")
    done = correct(case.source, out, tmp_path / "fixed.onnx", bits=4)
    assert [each.outcome for each in done.layers] == ["corrected", "corrected"]


def test_activations_that_are_quantised_alone_are_no_float_model(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("MatMul", ["d", "w"], "y", "one"),
    ]
    weight = {"w": values(6, 3)}
    case = Case(tmp_path, make_model([node("MatMul", ["x", "w"], name="one")], weight, {"x": ("N", 6)}), ROWS)
    constants = {**weight, "s": np.float32(0.05), "z": np.uint8(128)}
    rounded = saved(make_model(nodes, constants, {"x": ("N", 6)}), tmp_path, "rounded.onnx")
    done = correct_quantized(case.source, rounded, case.measured(), None)
    assert [(each.layer, each.outcome) for each in done.layers] == [("one", "never quantised")]


def test_models_of_other_networks_are_told_with_what_was_not_compared(tmp_path: Path) -> None:
    case = Case(tmp_path, two_matrices(), ROWS)
    other = two_matrices()
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values(*tensor.dims, seed=9), tensor.name))
    other.graph.node.append(node("Einsum", ["y", "e"], "z", "einsum", equation="ij,jk->ik"))
    other.graph.initializer.append(numpy_helper.from_array(values(4, 4), "e"))
    other.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", FLOAT, ["N", 4]))
    path = saved(other, tmp_path, "other.onnx")
    with pytest.raises(UsageError, match=r"which needs no weights; operators that were not compared: einsum \("):
        correct_quantized(case.source, path, case.measured(), None)


def test_taps_are_counted_where_corrections_are_approximate(tmp_path: Path) -> None:
    nodes, constants = chain()
    x = values(8, 3, 6, 6)
    onnx.save(model_of(nodes, constants, x), tmp_path / "float.onnx")
    said = []
    for statistics in ("spread", "taps"):
        (folder := tmp_path / statistics).mkdir()
        (folder / "float.onnx").symlink_to(tmp_path / "float.onnx")
        told = Told()
        out, fixed = run_out(folder, x, statistics), folder / "fixed.onnx"
        correct(folder / "float.onnx", out, fixed, bits=4, rounding="nearest", weight_range="mse", progress=told)
        said.append([each for each in told.messages if "approximate" in each])
    assert said == [
        [
            "note: the means of first, second, third are of all positions, but each tap of a kernel sees only some, so "
            "the corrections are approximate; `statistics: [taps]` in the run's configuration counts what each tap sees"
        ],
        [],
    ]
