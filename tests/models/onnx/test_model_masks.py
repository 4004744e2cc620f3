"""A mask of the model's own: padding is in no mean, no range, no correction and no judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import make_model, node, saved, values
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from told import Told

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import UsageError
from streamstats.jobs.run import run
from streamstats.models.onnx.by_outputs import Outputs
from streamstats.models.onnx.correct import How, correct, correct_outputs
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import measure, record
from streamstats.outputs.results import open_results

Array = np.ndarray[Any, Any]
N, T, C = 24, 6, 5
RNG = np.random.default_rng(3)
MASK = (np.arange(T) < RNG.integers(1, T + 1, (N, 1))).astype("int64")
X = np.where(MASK[..., None] == 1, values(N, T, C), np.float32(40))  # padding that would show in every figure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nodes = [
        node("MatMul", ["x", "w1"], "a", "first"),
        node("Add", ["a", "b1"], "ab"),
        node("Relu", ["ab"], "h"),
        node("MatMul", ["h", "w2"], "s", "second"),
        node("Add", ["s", "b2"], "y"),
        node("ReduceMean", ["h"], "p", axes=[1], keepdims=0),
        node("Gemm", ["p", "w3", "b3"], "pooled", "head"),
        node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT),
    ]
    constants = {"w1": values(C, 8, seed=1), "w2": values(8, 7, seed=2), "w3": values(8, 3, seed=4)}
    constants |= {"b1": values(8, seed=5), "b2": values(7, seed=6), "b3": values(3, seed=7)}
    model = make_model(nodes, constants, {"x": ("N", T, C)})
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", T]))
    for name in ("ab", "pooled", "mask"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    saved(model, tmp_path)
    np.savez(tmp_path / "x.npz", x=X, attention_mask=MASK)
    np.savez(tmp_path / "held.npz", x=X[::2] * np.float32(0.9), attention_mask=MASK[::2])
    return tmp_path


def outputs(path: Path, samples: Path, *names: str) -> list[Array]:
    with np.load(samples) as arrays:
        found: list[Array] = onnxruntime.InferenceSession(str(path)).run(names, dict(arrays))
        return found


def counted(folder: Path, **options: Any) -> Path:
    record(folder / "model.onnx", folder / "x.npz", folder / "s.zarr", mask="attention_mask", **options)
    settings = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "statistics": ["histogram"]}
    run(JobConfig.model_validate(settings).job())
    return folder / "out"


def test_padding_is_in_no_mean_and_no_range(folder: Path) -> None:
    found = open_results(counted(folder))
    hidden = np.maximum(X.astype("f8") @ values(C, 8, seed=1) + values(8, seed=5), 0)
    for layer, inputs in (("first", X), ("second", hidden)):
        statistics, rows = found.statistics(layer), inputs[MASK == 1].astype("f8")
        np.testing.assert_allclose(statistics.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.maximum, rows.max(axis=0), rtol=1e-5)
        assert statistics.masked == (N * T - MASK.sum(), N * T)
    assert found.statistics("head").masked is None  # one vector for each sample
    assert found.masked(found.layers) == ["first", "second"]


def test_measuring_gives_the_same(folder: Path) -> None:
    _, measured = measure(
        folder / "model.onnx", folder / "x.npz", folder / "m", statistics=["histogram"], mask="attention_mask"
    )
    found = open_results(counted(folder))
    assert {layer: found.statistics(layer).statistics for layer in found.layers} == {
        layer: each.statistics for layer, each in measured.items()
    }


def test_mean_outputs_are_those_of_the_positions_that_count(folder: Path) -> None:
    quantize_dynamic(folder / "model.onnx", folder / "quantized.onnx", reduce_range=True)
    how = How(outputs=Outputs(folder / "x.npz", folder / "work", mask="attention_mask"))
    done = correct_outputs(folder / "model.onnx", folder / "quantized.onnx", folder / "fixed.onnx", how=how)
    assert [each.layer for each in done.layers if each.corrected] == ["first", "second", "head"]
    parts = []
    for path in (folder / "model.onnx", folder / "fixed.onnx"):
        for start in range(0, N, 16):  # as in the correction: scales are per batch
            rows = slice(start, start + 16)
            np.savez(folder / "part.npz", x=X[rows], attention_mask=MASK[rows])
            parts.append(outputs(path, folder / "part.npz", "ab", "y", "pooled"))
    for place in range(3):
        float_mean, mean = (
            np.concatenate([parts[each][place], parts[each + 1][place]]).astype("f8") for each in (0, 2)
        )
        counts = MASK == 1 if place < 2 else np.ones(N, bool)
        np.testing.assert_allclose(mean[counts].mean(axis=0), float_mean[counts].mean(axis=0), atol=2e-3)


def test_mean_outputs_of_merged_rows_are_those_of_the_positions_that_count(folder: Path) -> None:
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", T])
    weight = values(C, 8, seed=1)
    original = make_model([node("MatMul", ["x", "w"], "y", "only")], {"w": weight}, {"x": ("N", T, C)})
    spoilt = weight + 0.3 * values(C, 8, seed=2)
    codes = np.clip(np.rint(spoilt * 30), -128, 127).astype(np.int8)
    merged = [
        node("Reshape", ["x", "rows"], "r"),
        node("DequantizeLinear", ["codes", "step"], "w"),
        node("Gemm", ["r", "w"], "g", "product"),
        node("Reshape", ["g", "samples"], "y"),
    ]
    shapes = {"rows": np.array([-1, C]), "samples": np.array([-1, T, 8])}
    quantized = make_model(
        merged, {"codes": codes, "step": np.asarray(1 / 30, np.float32), **shapes}, {"x": ("N", T, C)}
    )
    for model, name in ((original, "float.onnx"), (quantized, "quantized.onnx")):
        model.graph.input.append(mask)
        onnx.save(model, folder / name)
    how = How(outputs=Outputs(folder / "x.npz", folder / "work", mask="attention_mask"))
    done = correct_outputs(folder / "float.onnx", folder / "quantized.onnx", None, how=how)
    (only,) = done.layers
    counted = X[MASK == 1].astype("f8")
    change = weight.astype("f8") - codes * np.float64(np.float32(1 / 30))
    np.testing.assert_allclose(only.term, (counted @ change).mean(axis=0), rtol=1e-4, atol=1e-5)


def test_codes_are_those_of_the_range_of_what_counts(folder: Path) -> None:
    statistics = open_results(counted(folder, storage="int8")).statistics("first")
    low, high = X[MASK == 1].min(), X[MASK == 1].max()
    assert statistics.quantization is not None
    np.testing.assert_allclose(statistics.quantization.step, (max(high, 0) - min(low, 0)) / 255, rtol=1e-6)


def test_whatever_lies_under_the_mask_has_no_code(folder: Path) -> None:
    hidden = np.where(MASK[..., None] == 1, X, np.float32(np.nan))
    np.savez(folder / "x.npz", x=hidden, attention_mask=MASK)
    record(
        folder / "model.onnx",
        folder / "x.npz",
        folder / "s.zarr",
        mask="attention_mask",
        storage="int8",
        layers=["first"],
    )
    np.savez(folder / "x.npz", x=hidden, attention_mask=np.zeros_like(MASK))
    options: dict[str, Any] = {"storage": "int8", "layers": ["first"], "append": True}
    record(folder / "model.onnx", folder / "x.npz", folder / "s.zarr", mask="attention_mask", **options)
    run(JobConfig(source=str(folder / "s.zarr"), output=str(folder / "out")).job())
    found = open_results(folder / "out").statistics("first")
    assert found.masked == (2 * N * T - MASK.sum(), 2 * N * T)
    np.testing.assert_allclose(found.mean, X[MASK == 1].mean(axis=0, dtype="f8"), atol=0.02)


@pytest.mark.parametrize("form", ["full", "change", None])
def test_a_correction_undoes_the_shift_of_what_counts(folder: Path, form: str | None) -> None:
    out, fixed = counted(folder), folder / "fixed.onnx"
    iterative = form and Iterative(folder / "x.npz", folder / "work", form, mask="attention_mask")
    held_out = HeldOut(folder / "held.npz", mask="attention_mask")
    found = correct(folder / "model.onnx", out, fixed, bits=3, how=How(iterative or None, held_out))
    mine, theirs = (outputs(path, folder / "x.npz", "ab")[0] for path in (fixed, folder / "model.onnx"))
    shift = (mine - theirs)[MASK == 1].mean(axis=0)
    np.testing.assert_allclose(shift, 0, atol=1e-5)
    if form == "full":
        mine, theirs = (outputs(path, folder / "x.npz", "y")[0] for path in (fixed, folder / "model.onnx"))
        np.testing.assert_allclose((mine - theirs)[MASK == 1].mean(axis=0), 0, atol=1e-4)
    assert found.judgement is not None
    mine, theirs = (outputs(path, folder / "held.npz", "y")[0] for path in (fixed, folder / "model.onnx"))
    judged = (mine - theirs)[MASK[::2] == 1]
    quality = found.judgement.layers["second"]["corrected"]
    np.testing.assert_allclose(quality.shift, judged.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(quality.noise, (judged.astype("f8") ** 2).mean(), rtol=1e-4)


def test_the_same_positions_must_count_everywhere(folder: Path) -> None:
    out, model = counted(folder), folder / "model.onnx"
    how = How(held_out=HeldOut(folder / "held.npz"))
    with pytest.raises(UsageError, match=r"layer first was counted with a mask; name the input .* \(--mask\)"):
        correct(model, out, None, bits=3, how=how)
    record(model, folder / "x.npz", folder / "plain.zarr")
    run(JobConfig(source=str(folder / "plain.zarr"), output=str(folder / "plain")).job())
    how = How(held_out=HeldOut(folder / "held.npz", mask="attention_mask"))
    with pytest.raises(UsageError, match="no layer was counted with a mask"):
        correct(model, folder / "plain", None, bits=3, how=how)


def test_a_mask_that_leaves_everything_out_is_told_by_measuring_and_correcting(folder: Path) -> None:
    np.savez(folder / "x.npz", x=X, attention_mask=np.zeros_like(MASK))
    of_all, told = "the mask of first, second is 0 everywhere", Told()
    measure(folder / "model.onnx", folder / "x.npz", folder / "whole", mask="attention_mask", progress=told)
    assert [of_all in each for each in told.messages if "everywhere" in each] == [True]
    alone = {"layers": ["first", "second"], "mask": "attention_mask"}
    measure(folder / "model.onnx", folder / "x.npz", folder / "out", **alone)
    correcting = {"bits": 4, "output": folder / "fixed.onnx"}
    with pytest.raises(UsageError, match=r"no corrector .*: first, second \(its mask is 0 everywhere"):
        correct(folder / "model.onnx", folder / "out", **correcting)
    with pytest.raises(UsageError, match=r"no-such-folder does not exist; expected the output folder"):
        correct(folder / "model.onnx", folder / "no-such-folder", **correcting)
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has neither manifest\.json nor a folder correctors"):
        correct(folder / "model.onnx", folder / "empty", **correcting)


def test_what_is_no_mask_is_refused_before_anything_is_written(folder: Path) -> None:
    samples = folder / "x.npz"
    for mask, said in {
        "padding": "the mask is padding, but the model's inputs are x, attention_mask",
        "x": r"the mask x has the shape \(6, 5\) for each sample, and no recorded tensor has these positions",
    }.items():
        with pytest.raises(UsageError, match=said):
            record(folder / "model.onnx", samples, folder / "s.zarr", mask=mask)
    np.savez(samples, x=X, attention_mask=MASK * 2)
    with pytest.raises(UsageError, match="the mask attention_mask holds 2; expected 1"):
        record(folder / "model.onnx", samples, folder / "s.zarr", mask="attention_mask")
    assert not (folder / "s.zarr").exists()


def test_the_commands_take_it_and_say_when_it_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, samples = str(folder / "model.onnx"), str(folder / "x.npz")
    assert main(["record", model, "--samples", samples, "-o", str(folder / "plain.zarr")]) == 0
    assert "note: padding counts like data; leave it out with `--mask attention_mask`" in capsys.readouterr().err
    mask = ["--mask", "attention_mask"]
    again = ["record", model, "--samples", samples, "-o", str(folder / "plain.zarr")]
    assert main(again) == 2
    assert "append to this one with --append" in capsys.readouterr().err
    assert main([*again, *mask, "--append"]) == 2
    assert "plain.zarr holds it without a mask" in capsys.readouterr().err
    assert main([*again[:-1], str(folder / "s.zarr"), *mask]) == 0
    assert main([*again[:-1], str(folder / "s.zarr"), "--append"]) == 2
    assert "s.zarr holds it with a mask, first.mask, but" in (said := capsys.readouterr().err)
    assert "as in `--mask attention_mask`" in said
    assert main(["measure", model, "--samples", samples, "-o", str(folder / "out"), *mask]) == 0
    command = ["correct", model, "--bits", "4", "--correctors", str(folder / "out"), "-o", str(folder / "f.onnx")]
    assert main([*command, *mask]) == 2
    assert "--mask goes with --iterative, --outputs or --held-out" in capsys.readouterr().err
    assert main([*command, "--iterative", "--samples", samples, *mask]) == 0
