"""Correcting from mean outputs where samples differ in shape, and where a scale stands between the two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model_of, quantized, values
from onnx import helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from streamstats.cli import main
from streamstats.models.onnx.by_outputs import Outputs
from streamstats.models.onnx.correct import How, correct_outputs
from streamstats.models.onnx.run import open_session
from streamstats.models.onnx.sites import factors

WIDTH = 6


def matrices(first: Any, last: Any) -> Any:
    """Two matrices with Relu between them, for tokens of any number."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    model = model_of(nodes, {"w": first, "v": last}, values(1, 1, WIDTH))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "t"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "t"
    del model.graph.value_info[:]
    return model


def weights() -> tuple[Any, Any]:
    return values(WIDTH, 8, seed=1), values(8, 5, seed=2)


def sentences(folder: Path) -> list[Any]:
    """Sentences of several lengths, one batch in each file of `folder`."""
    folder.mkdir()
    found = [values(2, length, WIDTH, seed=length) for length in (4, 7, 3, 9)]
    for number, each in enumerate(found):
        np.save(folder / f"{number}.npy", each)
    return found


def mean_outputs(model: Path, given: list[Any]) -> Any:
    session = open_session(str(model), model.parent, optimized=False)
    return np.concatenate([session.run(["y"], {"x": each})[0].reshape(-1, 5) for each in given]).mean(axis=0)


@pytest.mark.parametrize("form", ["dynamic", "qdq"])
def test_samples_may_differ_in_shape(tmp_path: Path, form: str) -> None:
    given, model = sentences(tmp_path / "samples"), matrices(*weights())
    if form == "dynamic":
        onnx.save(model, tmp_path / "float.onnx")
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "quantized.onnx", reduce_range=True)
    else:
        quantized(model, tmp_path, given[-1], form)
    how = How(outputs=Outputs(tmp_path / "samples", tmp_path / "work"))
    files = [tmp_path / name for name in ("float.onnx", "quantized.onnx", "fixed.onnx")]
    done = correct_outputs(*files, how=how)
    assert [each.corrected for each in done.layers] == [True, True]
    wanted, before = (mean_outputs(each, given) for each in files[:2])
    assert np.abs(before - wanted).max() > 1e-3
    if form == "dynamic":  # its biases are floats
        np.testing.assert_allclose(mean_outputs(files[2], given), wanted, atol=1e-5)


def test_layers_whose_scale_a_later_layer_undoes_are_refused(tmp_path: Path) -> None:
    first, last = weights()
    scales = np.geomspace(0.4, 1.6, 8).astype(np.float32)
    x = values(64, 5, WIDTH)
    np.save(tmp_path / "x.npy", x)
    quantized(matrices(first * scales, last / scales[:, None]), tmp_path, x, "qdq")
    onnx.save(matrices(first, last), tmp_path / "float.onnx")
    how = How(outputs=Outputs(tmp_path / "x.npy", tmp_path / "work"))
    files = [tmp_path / name for name in ("float.onnx", "quantized.onnx", "fixed.onnx")]
    one, two = correct_outputs(*files, how=how).layers
    assert "its outputs are nearly those of a in the float model times 0.4 to 1.6; if" in one.reason
    assert (one.corrected, two.corrected) == (False, True)


@pytest.mark.parametrize("scales", [np.full(8, 0.1), np.geomspace(0.3, 3, 8)], ids=["one", "each"])
def test_a_scale_that_an_operator_behind_the_layer_undoes_is_not_taken_for_a_shift(tmp_path: Path, scales: Any) -> None:
    first, x = weights()[0], values(64, 5, WIDTH)
    np.save(tmp_path / "x.npy", x)
    plain = [helper.make_node("MatMul", ["x", "w"], ["y"], name="one")]
    onnx.save(model_of(plain, {"w": first}, x), tmp_path / "float.onnx")
    step = np.abs(first * scales).max() / 127
    rounded = (np.rint(first * scales / step) * step).astype(np.float32)
    undone = [
        helper.make_node("MatMul", ["x", "w"], ["scaled"], name="one"),
        helper.make_node("Mul", ["scaled", "back"], ["y"]),
    ]
    constants = {"w": rounded, "back": (1 / scales).astype(np.float32)}
    onnx.save(model_of(undone, constants, x), tmp_path / "quantized.onnx")
    files = [tmp_path / name for name in ("float.onnx", "quantized.onnx", "fixed.onnx")]
    (layer,) = correct_outputs(*files, how=How(outputs=Outputs(tmp_path / "x.npy", tmp_path / "work"))).layers
    assert not layer.corrected
    assert "the quantised model undoes this scale behind it" in layer.reason


def test_rounding_and_few_rows_are_not_taken_for_a_scale() -> None:
    wanted, noise = values(64, 5), values(64, 5, seed=1)
    assert factors(wanted + 0.3 * noise, wanted, -1) is None
    assert factors(wanted[:2] + 0.3 * noise[:2], wanted[:2], -1) is None
    times = factors(wanted * np.float32(1.5), wanted, -1)
    assert times is not None
    np.testing.assert_allclose(times, np.full(5, 1.5), rtol=1e-5)


def test_a_judged_model_of_unknown_operators_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(matrices(*weights()), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "quantized.onnx")
    for name, seed in (("x", 0), ("held", 1)):
        np.save(tmp_path / f"{name}.npy", values(40, 3, WIDTH, seed=seed))
    models = [f"{tmp_path}/float.onnx", f"{tmp_path}/quantized.onnx"]
    given = ["--samples", f"{tmp_path}/x.npy", "--held-out", f"{tmp_path}/held.npy"]
    assert main(["correct", *models, "--outputs", *given, "-o", f"{tmp_path}/fixed.onnx"]) == 0
    assert "SQNR of the outputs" in capsys.readouterr().err
    page = (tmp_path / "fixed.report.html").read_text()
    assert "Layers by shift" not in page
    assert "All layers" in page


@pytest.mark.parametrize("form", ["dynamic", "packed"])
def test_it_is_the_advice_for_operators_that_are_not_known_and_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    onnx.save(matrices(values(WIDTH, 16, seed=1), values(16, 5, seed=2)), tmp_path / "float.onnx")
    if form == "dynamic":
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "quantized.onnx")
    else:
        made = MatMulNBitsQuantizer(onnx.load(tmp_path / "float.onnx"), block_size=16, is_symmetric=True)
        made.process()
        made.model.save_model_to_file(str(tmp_path / "quantized.onnx"))
    np.save(tmp_path / "x.npy", values(40, 3, WIDTH))
    base = ["correct", f"{tmp_path}/float.onnx", f"{tmp_path}/quantized.onnx", "-o", f"{tmp_path}/fixed.onnx"]
    assert main([*base, "--correctors", str(tmp_path)]) == 2
    assert "correct from mean outputs (`correct --outputs`)" in capsys.readouterr().err
    assert main([*base, "--outputs", "--samples", f"{tmp_path}/x.npy"]) == 0
    assert "corrected 2 of 2 quantised layers" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--do-no-harm", "--fail-if-worse"])
def test_without_held_out_samples_the_option_that_gives_them_is_named(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["float.onnx", "quantized.onnx", "-o", "fixed.onnx"]
    assert main(["correct", *files, "--correctors", "out", option]) == 2
    assert "give them with --held-out" in capsys.readouterr().err


def test_layers_whose_weights_are_stored_as_floats_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = weights()
    onnx.save(matrices(first, last), tmp_path / "float.onnx")
    onnx.save(matrices(first.round(1), last.round(1)), tmp_path / "rounded.onnx")
    np.save(tmp_path / "x.npy", values(40, 3, WIDTH))
    models = [f"{tmp_path}/float.onnx", f"{tmp_path}/rounded.onnx", "--samples", f"{tmp_path}/x.npy"]
    assert main(["correct", *models, "--outputs", "-o", f"{tmp_path}/fixed.onnx"]) == 0
    assert "corrected 0 of 0 quantised layers, and 2 whose weights are stored as floats" in capsys.readouterr().err
