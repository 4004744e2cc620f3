"""Downsampling by strided 1×1 kernels, as in a ResNet, is corrected exactly without asking for `taps`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import model_of, quantized, run_out, values
from onnx import helper

from streamstats.correction import BiasCorrector, MeanBiasCorrector, TapBiasCorrector
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.layers import survey


def downsampling() -> tuple[list[Any], dict[str, Any]]:
    """A strided 1×1 convolution and a strided 3×3 one read one tensor; the same again behind them."""
    constants = {"a": values(5, 3, 1, 1), "b": values(5, 3, 3, 3), "c": values(6, 5, 1, 1), "d": values(6, 5, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="down", strides=[2, 2]),
        helper.make_node("Conv", ["x", "b"], ["q"], name="conv", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "c"], ["t"], name="down2", strides=[2, 2]),
        helper.make_node("Conv", ["r", "d"], ["u"], name="conv2", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Add", ["t", "u"], ["y"]),
    ]
    return nodes, constants


def images() -> Any:
    """Samples whose values at even places, which the strided kernels read, are larger."""
    x = values(32, 3, 11, 12)
    x[:, :, ::2, ::2] += 2
    return x


def prepared(folder: Path, form: str) -> tuple[Path, Path]:
    """(the quantised network, the output of the run of the float one, without `taps`)."""
    x, (nodes, constants) = images(), downsampling()
    path = quantized(model_of(nodes, constants, x), folder, x, form)
    np.save(folder / "same.npy", x)
    return path, run_out(folder, x, "magnitude")


def test_one_pass_adds_the_shift_of_what_the_layer_reads(tmp_path: Path) -> None:
    _, out = prepared(tmp_path, "qdq")
    done = correct(tmp_path / "float.onnx", out, tmp_path / "fixed.onnx", bits=3)
    rounded = {layer.name: layer.weight for layer in survey(done.subject.quantized)[0]}
    read = images().astype(np.float64)[:, :, ::2, ::2].mean(axis=(0, 2, 3))
    change = (downsampling()[1]["a"].astype(np.float64) - rounded["down"])[:, :, 0, 0]
    term = next(each.term for each in done.layers if each.layer == "down")
    np.testing.assert_allclose(term, change @ read, rtol=1e-12)


@pytest.mark.parametrize("form", ["qdq, per channel", "codes"])
def test_layer_by_layer_downsampling_has_the_mean_output_of_the_float_network(tmp_path: Path, form: str) -> None:
    path, out = prepared(tmp_path, form)
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work"), held_out=HeldOut(tmp_path / "same.npy"))
    done = correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how)
    outcomes = {each.layer: each for each in done.layers}
    assert done.judgement is not None
    for layer in ("down", "down2"):
        found, step = done.judgement.layers[layer], outcomes[layer].step
        allowed = (0.0 if step is None else step) + 3e-6 * np.sqrt(found["corrected"].signal) + 3e-6
        assert (np.abs(found["corrected"].shift) <= allowed).all(), layer
        assert (np.abs(found["quantised"].shift) > 2 * allowed).any(), layer


@pytest.mark.parametrize("form", ["full", "change"])
def test_the_means_of_all_positions_of_older_correctors_are_only_subtracted_from_such_means(
    tmp_path: Path, form: str
) -> None:
    _, out = prepared(tmp_path, "qdq")
    older = tmp_path / "older"
    for path in (out / "correctors").glob("*.safetensors"):
        corrector = BiasCorrector.load(path)
        assert isinstance(corrector, TapBiasCorrector if path.stem.startswith("down") else MeanBiasCorrector)
        MeanBiasCorrector(corrector.input_mean, corrector.provenance).save(older / "correctors" / path.name)
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work", form))
    done = correct(tmp_path / "float.onnx", older, tmp_path / "fixed.onnx", bits=3, how=how)
    rounded = {layer.name: layer.weight for layer in survey(done.subject.quantized)[0]}
    change = (downsampling()[1]["a"].astype(np.float64) - rounded["down"])[:, :, 0, 0]
    term = next(each.term for each in done.layers if each.layer == "down")
    seen = images().astype(np.float64)[:, :, :: 2 if form == "change" else 1, :: 2 if form == "change" else 1]
    np.testing.assert_allclose(term, change @ seen.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
