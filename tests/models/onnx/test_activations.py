"""Activations that are fake-quantised: every layer reads the nearest value with a code, in the range that was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import FLOAT, integers, make_model, node, one_line, saved
from networks import chain, model_of, random_network, values
from onnx import numpy_helper

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import record
from streamstats.ranges.finding import METHODS, find_ranges

Array = np.ndarray[Any, Any]
WIDTHS = (2, 4, 8, 12, 16)


def counted(folder: Path, model: Any, x: Array, *, statistics: tuple[str, ...] = ("histogram",)) -> Path:
    """The output of a run over what `model` makes of `x`; both are saved in `folder`."""
    saved(model, folder)
    np.save(folder / "x.npy", x)
    record(folder / "model.onnx", folder / "x.npy", folder / "s.zarr")
    job = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": [*statistics]}
    run(JobConfig.model_validate(job).job())
    return folder / "out"


def real_codes(low: float, high: float, bits: int) -> Array:
    """The real values of the 2^bits affine codes of a range, ascending, float64."""
    step = (high - low) / (2**bits - 1)
    return (np.arange(2**bits) - np.rint(-low / step)) * step


def input_of_layer(path: Path, x: Array) -> Array:
    """The input of the only MatMul, as onnxruntime computes it without optimisations."""
    model = onnx.load(path)
    (name,) = [each.input[0] for each in model.graph.node if each.op_type == "MatMul"]
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_layer_reads_the_nearest_values_with_codes(tmp_path: Path, dtype: str, method: str, bits: int) -> None:
    x = values(40, 8, 8, 3).astype(dtype)
    constants = {"w": values(3, 5).astype(dtype)}
    kind = {"float32": FLOAT, "float64": onnx.TensorProto.DOUBLE, "float16": onnx.TensorProto.FLOAT16}[dtype]
    model = make_model([node("MatMul", ["x", "w"], "y", "fc")], constants, {"x": ("n", 8, 8, 3)}, dtype=kind)
    out = counted(tmp_path, model, x)
    target = tmp_path / "fixed.onnx"
    correct(tmp_path / "model.onnx", out, target, bits=8, activation_bits=bits, activation_range=method)
    onnx.checker.check_model(onnx.load(target), full_check=True)
    found = find_ranges(out, method, bits)["fc"].ranges[0]
    coded = real_codes(found.low, found.high, bits)
    read, step = input_of_layer(target, x).astype(np.float64), coded[1] - coded[0]
    rounding = np.abs(coded).max() * {"float32": 2e-7, "float64": 1e-15, "float16": 1e-3}[dtype]
    nearest = coded[np.clip(np.rint((read - coded[0]) / step), 0, len(coded) - 1).astype(int)]
    assert np.abs(read - nearest).max() <= rounding
    assert np.abs(read - np.clip(x, coded[0], coded[-1])).max() <= step / 2 * (1 + 1e-4) + rounding


def test_without_activation_bits_the_model_is_the_same_as_before(tmp_path: Path) -> None:
    nodes, constants = chain()
    x = values(16, 3, 8, 8)
    out = counted(tmp_path, model_of(nodes, constants, x), x)
    correct(tmp_path / "model.onnx", out, tmp_path / "fixed.onnx", bits=5)
    assert not any(each.op_type in ("Round", "Clip") for each in onnx.load(tmp_path / "fixed.onnx").graph.node)


def test_layers_that_read_one_tensor_share_its_rounding(tmp_path: Path) -> None:
    x, constants = integers(12, 4), {"v": integers(4, 3), "w": integers(4, 2, seed=1)}
    nodes = [node("MatMul", ["x", "v"], "y", "one"), node("MatMul", ["x", "w"], "z", "two"), node("Relu", ["x"], "r")]
    out = counted(tmp_path, make_model(nodes, constants, {"x": ("n", 4)}, ["y", "z", "r"]), x)
    correct(tmp_path / "model.onnx", out, tmp_path / "fixed.onnx", bits=4, activation_bits=3)
    nodes = list(onnx.load(tmp_path / "fixed.onnx").graph.node)
    assert [each.op_type for each in nodes].count("Round") == 1
    assert [list(each.input) for each in nodes if each.op_type == "Relu"] == [
        ["x"]
    ]  # others read what they read before
    rounded = next(each.output[0] for each in nodes if each.op_type == "Mul")
    assert [each.input[0] for each in nodes if each.op_type == "MatMul"] == [rounded] * 2


@pytest.mark.parametrize("seed", range(4))
def test_layer_by_layer_every_layer_has_the_mean_output_of_the_float_one(tmp_path: Path, seed: int) -> None:
    """Also where the rounding of the activations moved the means."""
    nodes, constants, sample = random_network(seed)
    x = values(24, *sample, seed=seed)
    out = counted(tmp_path, model_of(nodes, constants, x), x, statistics=("histogram", "taps"))
    np.save(tmp_path / "same.npy", x)
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work"), HeldOut(tmp_path / "same.npy"))
    options = {"bits": 6, "activation_bits": 3, "activation_range": METHODS[seed]}
    done = correct(tmp_path / "model.onnx", out, tmp_path / "fixed.onnx", how=how, **options)  # type: ignore[arg-type]
    assert done.judgement is not None
    assert len(done.judgement.layers) == sum(each.name != "" for each in nodes)
    for layer, found in done.judgement.layers.items():
        allowed = 3e-6 * np.sqrt(found["corrected"].signal) + 3e-6
        assert (np.abs(found["corrected"].shift) <= allowed).all(), (seed, layer)
    assert any(found["one pass"].size > 1e-3 for found in done.judgement.layers.values())


def test_samples_are_taken_for_those_recorded_however_far_rounding_moves_their_means(tmp_path: Path) -> None:
    x = np.random.default_rng(0).exponential(size=(64, 3)).astype(np.float32)
    x[0] = 40  # the codes are 13 apart: nearly all values become zero
    model = make_model([node("MatMul", ["x", "w"], "y", "fc")], {"w": integers(3, 2)}, {"x": ("n", 3)})
    out = counted(tmp_path, model, x)
    how, options = How(Iterative(tmp_path / "x.npy", tmp_path / "work")), {"bits": 8, "activation_bits": 2}
    done = correct(tmp_path / "model.onnx", out, tmp_path / "fixed.onnx", how=how, **options)  # type: ignore[arg-type]
    assert done.layers[0].corrected
    np.save(tmp_path / "x.npy", x + 30)
    with pytest.raises(UsageError, match="not the samples that were recorded"):
        correct(tmp_path / "model.onnx", out, tmp_path / "fixed.onnx", how=how, **options)  # type: ignore[arg-type]


def test_a_report_says_how_activations_were_rounded(tmp_path: Path) -> None:
    x = integers(12, 4)
    out = counted(tmp_path, make_model([node("MatMul", ["x", "w"])], {"w": integers(4, 3)}, {"x": ("n", 4)}), x)
    done = correct(
        tmp_path / "model.onnx", out, None, bits=4, activation_bits=8, activation_range="mse", weight_range="mse"
    )
    assert done.provenance()["quantized"] == "weights of 4 bits per tensor, activations of 8 bits (mse)"


# What is refused


def test_what_cannot_be_rounded_is_refused_in_one_line(tmp_path: Path) -> None:
    x, constants = integers(12, 4), {"w": integers(4, 3)}
    nodes = [node("MatMul", ["x", "w"], "y", "fc")]
    model = make_model(nodes, constants, {"x": ("n", 4)})
    out = counted(tmp_path, model, x, statistics=())
    target = tmp_path / "fixed.onnx"

    def ask(model_path: Path, bits: int = 8, method: str = "minmax") -> Any:
        return correct(model_path, out, target, bits=4, activation_bits=bits, activation_range=method)

    path = tmp_path / "model.onnx"
    one_line(lambda: ask(path, 17), UsageError, "bits is 17; expected an integer from 2 to 16")
    one_line(lambda: ask(path, 8, "best"), UsageError, "activation_range is 'best'; expected one of minmax")
    one_line(lambda: ask(path, 8, "mse"), UsageError, "layer fc: mse: no histogram was counted", "--restart")
    old = saved(make_model(nodes, constants, {"x": ("n", 4)}, opset=10), tmp_path, "old.onnx")
    one_line(lambda: ask(old), UsageError, "has the operator set 10; expected 11 or later")
    more = [*nodes, node("MatMul", ["y", "v"], "z", "another")]
    other = make_model(more, {**constants, "v": integers(3, 2)}, {"x": ("n", 4)}, ["z"])
    one_line(lambda: ask(saved(other, tmp_path, "other.onnx")), UsageError, "no statistics of another,", "count all")
    assert not target.exists()


def test_steps_that_underflow_are_refused(tmp_path: Path) -> None:
    x = np.full((4, 2), 1e-44, np.float32)
    model = make_model([node("MatMul", ["x", "w"], "y", "fc")], {"w": integers(2, 2)}, {"x": ("n", 2)})
    out = counted(tmp_path, model, x)
    with pytest.raises(UsageError, match=r"layer fc: its activations reach from 0 to .*too close to zero for steps of"):
        correct(tmp_path / "model.onnx", out, None, bits=4, activation_bits=8)


def test_the_command_line_rounds_activations_and_says_what_goes_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, constants = integers(12, 4), {"w": integers(4, 3)}
    out = counted(tmp_path, make_model([node("MatMul", ["x", "w"], "y", "fc")], constants, {"x": ("n", 4)}), x)
    model, fixed = str(tmp_path / "model.onnx"), tmp_path / "fixed.onnx"
    given = ["correct", model, "--correctors", str(out), "-o", str(fixed)]
    rounding = ["--activation-bits", "4", "--activation-range", "entropy"]
    assert main([*given, "--bits", "4", *rounding]) == 0
    target = tmp_path / "same.onnx"
    correct(model, out, target, bits=4, activation_bits=4, activation_range="entropy")
    assert fixed.read_bytes() == target.read_bytes()
    capsys.readouterr()
    for options, said in (
        (["--bits", "4", "--activation-range", "mse"], "--activation-range goes with --activation-bits"),
        (rounding, "give a quantised model after the float one, or --bits"),
        ([model, *rounding], "--activation-bits go with --bits; leave them out"),
    ):
        order = [given[0], model, *options, *given[2:]] if options[0] == model else [*given, *options]
        assert main(order) == 2
        assert said in capsys.readouterr().err


def test_codes_of_a_store_give_the_ranges_in_real_units(tmp_path: Path) -> None:
    x = values(40, 6)
    model = make_model([node("MatMul", ["x", "w"], "y", "fc")], {"w": values(6, 3)}, {"x": ("n", 6)})
    saved(model, tmp_path)
    np.save(tmp_path / "x.npy", x)
    record(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", storage="int8")
    run(JobConfig.model_validate({"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out")}).job())
    correct(tmp_path / "model.onnx", tmp_path / "out", tmp_path / "fixed.onnx", bits=8, activation_bits=8)
    graph = onnx.load(tmp_path / "fixed.onnx").graph
    step = next(numpy_helper.to_array(each) for each in graph.initializer if each.name == "fc.input.scaled.1")
    assert step.shape == ()
    assert step == pytest.approx((x.max() - x.min()) / 255, rel=0.01)
