"""onnxruntime's calibration cache: `quantize_static` makes a model with our steps and zero points of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import initializers, make_model, node, saved, values
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibraterBase
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from quantizing import output_of

import streamstats as ss
from streamstats.cli import main
from streamstats.errors import UsageError
from streamstats.models.onnx.graph import load_model
from streamstats.models.onnx.quantizable import quantizable_tensors
from streamstats.models.onnx.tensor_names import tensor_names

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes = [
        node("Conv", ["/x", "w1", "b1"], "/h", "/conv1", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["/h"], "/s"),
        node("Conv", ["/s", "w2"], "c", "/conv2"),
        node("Add", ["c", "/s"], "a"),
        node("GlobalAveragePool", ["a"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w3"], "y", "head"),
    ]
    constants = {"w1": values(4, 3, 3, 3), "b1": values(4), "w2": values(4, 4, 1, 1), "w3": values(4, 2)}
    return saved(make_model(nodes, constants, {"/x": ("N", 3, 6, 6)}), tmp_path_factory.mktemp("model"))


def tensors_of(path: Path, x: Array) -> dict[str, Array]:
    """Every tensor that the model computes, and its input."""
    model = onnx.load(path)
    names = [output for each in model.graph.node for output in each.output]
    model.graph.ClearField("output")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {"/x": x, **dict(zip(names, session.run(None, {"/x": x}), strict=True))}


@pytest.fixture(scope="module")
def recorded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = tensors_of(model, values(40, 3, 6, 6, seed=3))
    return output_of(tmp_path_factory.mktemp("run"), {name.lstrip("/"): each for name, each in tensors.items()})


def quantized(model: Path, cache: Path, kind: Any, **options: Any) -> dict[str, Array]:
    """Every constant of the model that onnxruntime quantises with the ranges in `cache`."""
    target = cache.with_suffix(".onnx")
    settings = {"calibration_cache_path": cache, "activation_type": kind, "quant_format": QuantFormat.QDQ}
    quantize_static(str(model), str(target), None, **settings, extra_options=options)
    return initializers(target)


CASES = {
    "minmax": ("minmax", {}, QuantType.QUInt8, {}),
    "percentile": ("percentile", {}, QuantType.QUInt8, {}),
    "mse": ("mse", {}, QuantType.QUInt8, {}),
    "entropy": ("entropy", {}, QuantType.QUInt8, {}),
    "signed": ("percentile", {"signed": True}, QuantType.QInt8, {}),
    "symmetric": ("mse", {"symmetric": True}, QuantType.QInt8, {"ActivationSymmetric": True}),
    "16 bits": ("percentile", {"bits": 16}, QuantType.QUInt16, {"UseQDQContribOps": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quantised_model_has_our_steps_and_zero_points(
    tmp_path: Path, model: Path, recorded: Path, case: str
) -> None:
    method, ours, kind, options = CASES[case]
    choice = ss.RangeChoice(method, percentile=99.0, **ours)
    names = tensor_names(load_model(model), model, [layer for layer, _ in layers(recorded)])
    ss.export(recorded, "onnxruntime", tmp_path / "cache.json", names=names, ranges=choice)
    constants = quantized(model, tmp_path / "cache.json", kind, **options)
    found = ss.find_ranges(recorded, method, percentile=99.0, **ours)
    tensors = [name for name in names.values() if f"{name}_scale" in constants]
    assert set(tensors) >= {"/x", "/h", "/s", "c", "a", "y"}
    for layer, name in names.items():
        if name in tensors:
            step, zero_point = found[layer].quantization.step, found[layer].quantization.zero_point
            assert constants[f"{name}_scale"] == pytest.approx(float(step), rel=2e-7)
            assert constants[f"{name}_zero_point"] == zero_point


def layers(output: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from json.loads((output / "manifest.json").read_text())["layers"].items()


def test_the_tensors_that_are_missing_are_those_of_its_own_calibrator(model: Path) -> None:
    calibrator = CalibraterBase(model, [*QDQRegistry, *QLinearOpsRegistry])
    theirs, _ = calibrator.select_tensors_to_calibrate(calibrator.model)
    assert set(quantizable_tensors(model)) == theirs >= {"/x", "/h", "y"}


def test_layers_are_named_by_the_tensor_that_they_read(model: Path) -> None:
    loaded = load_model(model)
    assert tensor_names(loaded, model, ["conv1", "conv2", "head"]) == {"conv1": "/x", "conv2": "/s", "head": "f"}
    assert tensor_names(loaded, model, ["h", "/h", "a"]) == {"h": "/h", "/h": "/h", "a": "a"}
    with pytest.raises(UsageError, match="has no tensor for conv9;"):
        tensor_names(loaded, model, ["conv1", "conv9"])


def test_the_command_names_tensors_and_lists_those_that_onnxruntime_misses(
    tmp_path: Path, model: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(recorded), "--format", "onnxruntime", "--method", "mse", "--model", str(model), "-o"]
    assert main([*command, str(tmp_path / "all.json")]) == 0
    assert ["/h", "h"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert set(json.loads((tmp_path / "all.json").read_text())["data"]) == {"/x", "/h", "/s", *"capfy"}
    assert main([*command, str(tmp_path / "part.json"), "--layers", "[!hs]", "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["missing"] == ["/h", "/s"]
    assert "onnxruntime also needs 2 tensors: /h, /s" in printed.err
    with pytest.raises(ValueError, match=r"/[hs]"):  # it really does
        quantized(model, tmp_path / "part.json", QuantType.QUInt8)


def test_what_onnxruntime_would_change_is_refused(tmp_path: Path, recorded: Path) -> None:
    choice = ss.RangeChoice("minmax", symmetric=True, signed=False)
    with pytest.raises(UsageError, match="another number of steps"):
        ss.export(recorded, "onnxruntime", tmp_path / "c.json", ranges=choice)
    huge = output_of(tmp_path, {"t": np.array([[1e39]])})
    with pytest.raises(UsageError, match="expected a range within float32"):
        ss.export(huge, "onnxruntime", tmp_path / "c.json", ranges=ss.RangeChoice("minmax"))
    assert not (tmp_path / "c.json").exists()
