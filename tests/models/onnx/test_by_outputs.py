"""Correcting from mean outputs: each layer ends with the float model's mean, whatever became of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from networks import FORMS, chain, folded, model_of, quantized, run_out, values
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from safetensors.numpy import load_file
from told import Told

from streamstats.cli import main
from streamstats.errors import MismatchError, NonFiniteError, UsageError
from streamstats.models.onnx.by_outputs import Outputs
from streamstats.models.onnx.correct import How, correct_outputs, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.plain import plainly
from streamstats.models.onnx.record import measure

SAMPLE = (3, 8, 8)


def tensors(model: Any, names: Sequence[str], x: Any) -> dict[str, Any]:
    """The tensors `names` of `model`, computed node by node, float64."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in {each.name for each in model.graph.output}
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return {name: each.astype("f8") for name, each in zip(names, session.run([*names], {"x": x}), strict=True)}


def spoilt(path: Path) -> Path:
    """The model with its weights changed by more than rounding, as training or GPTQ would."""
    model = onnx.load(path)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name.endswith("_quantized") and array.ndim > 1:
            limits = ml_dtypes.iinfo(array.dtype)
            moved = array.astype(np.int64) + random.integers(-9, 10, array.shape) // (1 if limits.bits == 8 else 9)
            changed = np.clip(moved, limits.min, limits.max).astype(array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, path)
    return path


def how(folder: Path, **more: Any) -> How:
    return How(outputs=Outputs(folder / "x.npy", folder / "work", batch_size=10), **more)


def prepared(folder: Path, form: str, network: Any = None) -> tuple[Path, Any]:
    """(the quantised network, the samples), which are saved, too."""
    x = values(48, *SAMPLE)
    np.save(folder / "x.npy", x)
    return spoilt(quantized(model_of(*(network or chain()), x), folder, x, form)), x


def check_means(folder: Path, done: Any, x: Any, wanted: Mapping[str, str]) -> None:
    """Check the mean outputs of the layers in `wanted`, float tensors by layer, of the network that was written."""
    plain, by_name = plainly(onnx.load(folder / "fixed.onnx")), {each.layer: each for each in done.layers}
    products = {pair.name: pair.quantized.node.output[0] for pair in done.subject.pairs}
    found = tensors(plain.model, [plain.outputs[products[layer]] for layer in wanted], x)
    floats = tensors(onnx.load(folder / "float.onnx"), [*wanted.values()], x)
    for (layer, tensor), mine in zip(wanted.items(), found.values(), strict=True):
        theirs = floats[tensor]
        axes = tuple(axis for axis in range(theirs.ndim) if axis != 1)
        step = by_name[layer].step
        room = np.full(theirs.shape[1], 1e-5) if step is None else step / 2 + 1e-5
        assert (np.abs(mine.mean(axis=axes) - theirs.mean(axis=axes)) <= room).all(), layer


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_has_the_mean_outputs_of_the_float_model_whatever_its_weights(tmp_path: Path, form: str) -> None:
    path, x = prepared(tmp_path, form)
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    assert [(each.layer, each.corrected) for each in done.layers] == [
        (name, True) for name in ("first", "second", "third", "last")
    ]
    check_means(tmp_path, done, x, {"first": "a", "second": "c", "third": "d", "last": "y"})
    assert not (tmp_path / "work").exists()


def test_the_terms_are_written_and_are_differences_of_means(tmp_path: Path) -> None:
    path, x = prepared(tmp_path, "qdq")
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    terms = load_file(tmp_path / "fixed.terms.safetensors")
    assert {*terms} == {"first", "second", "third", "last"}
    plain = plainly(onnx.load(path))
    found = tensors(plain.model, ["a"], x)["a"]
    wanted = tensors(onnx.load(tmp_path / "float.onnx"), ["a"], x)["a"]
    np.testing.assert_allclose(terms["first"], (wanted - found).mean(axis=(0, 2, 3)), rtol=1e-9, atol=1e-12)
    for each in done.layers:
        np.testing.assert_array_equal(terms[each.layer], each.term)


@pytest.mark.parametrize("form", ["qdq", "codes"])
def test_without_a_name_in_common_layers_are_matched_by_order_and_what_was_folded_in_is_seen(
    tmp_path: Path, form: str
) -> None:
    path, x = prepared(tmp_path, form, folded(*chain()))
    onnx.save(model_of(*chain(), x), tmp_path / "float.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"n/{node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name in ("x", "y", "") else f"t/{name}" for name in names]
    for tensor in model.graph.initializer:
        tensor.name = f"t/{tensor.name}"
    del model.graph.value_info[:]
    onnx.save(model, path)
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    assert all(each.corrected for each in done.layers)
    check_means(tmp_path, done, x, {"first": "n", "second": "c", "third": "d", "last": "y"})


def test_a_name_does_not_hide_that_the_outputs_are_those_behind_the_normalisation(tmp_path: Path) -> None:
    nodes, constants = chain()
    nodes = [node for node in nodes if node.op_type != "Relu"]
    nodes[2].input[0] = "n"
    path, x = prepared(tmp_path, "qdq", folded(nodes, constants))
    onnx.save(model_of(nodes, constants, x), tmp_path / "float.onnx")
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    first = next(pair for pair in done.subject.pairs if pair.name == "first")
    assert (first.quantized.node.output[0], first.output) == ("a", "n")
    check_means(tmp_path, done, x, {"first": "n"})


def test_operators_that_are_not_known_get_an_addition_behind(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    x = values(40, 7, 6)
    np.save(tmp_path / "x.npy", x)
    weights = {"w": values(6, 8), "v": values(8, 5, seed=1)}
    onnx.save(model_of(nodes, weights, x), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "quantized.onnx")
    path = spoilt(tmp_path / "quantized.onnx")
    assert "MatMulInteger" in {node.op_type for node in onnx.load(path).graph.node}
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    assert [(each.layer, each.change) for each in done.layers] == [
        ("one", "Add inserted after its Mul"),
        ("two", "Add inserted after its Mul"),
    ]
    model = onnx.load(tmp_path / "fixed.onnx")
    parts = [tensors(model, ["a", "y"], x[start : start + 10]) for start in range(0, 40, 10)]  # scales are per batch
    fixed = {name: np.concatenate([part[name] for part in parts]) for name in ("a", "y")}
    first = np.einsum("nti,io->nto", x.astype("f8"), weights["w"])
    last = np.maximum(first, 0) @ weights["v"].astype("f8")
    np.testing.assert_allclose(fixed["a"].mean(axis=(0, 1)), first.mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(fixed["y"].mean(axis=(0, 1)), last.mean(axis=(0, 1)), atol=1e-5)


def plain_layers(*outputs: int) -> tuple[list[Any], dict[str, Any]]:
    """Matrices with these numbers of outputs, Relu between them."""
    nodes, constants, value, width = [], {}, "x", 6
    for number, each in enumerate(outputs):
        last = number == len(outputs) - 1
        constants[f"w{number}"] = values(width, each, seed=number)
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], ["y" if last else f"a{number}"]))
        value, width = f"r{number}", each
        if not last:
            nodes.append(helper.make_node("Relu", [f"a{number}"], [value]))
    return nodes, constants


def renamed(network: tuple[list[Any], dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    nodes, constants = network
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [f"{name}_" if name.startswith(("a", "r")) else name for name in names]
    return nodes, constants


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ((8, 5, 4), "left are 2 layers of the quantised model for 1 of the float model"),
        ((7, 5), "with 7 outputs would be a0 with 8"),
    ],
)
def test_layers_that_cannot_be_matched_are_left_out_with_the_reason(
    tmp_path: Path, theirs: tuple[int, ...], reason: str
) -> None:
    x = values(40, 6)
    np.save(tmp_path / "x.npy", x)
    network = renamed(plain_layers(*theirs))
    network[0][-1].output[0] = "y"
    path = quantized(model_of(*network, x), tmp_path, x, "qdq")
    last = theirs[-1]
    onnx.save(model_of(*plain_layers(8, last), x), tmp_path / "float.onnx")
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    assert any(reason in each.reason for each in done.layers), [each.reason for each in done.layers]
    assert "no output of the quantised model could be matched with its own" in [each.reason for each in done.layers]


def test_outputs_that_do_not_follow_those_of_the_float_model_are_refused(tmp_path: Path) -> None:
    x = values(40, 6)
    np.save(tmp_path / "x.npy", x)
    path = quantized(model_of(*plain_layers(8, 5), x), tmp_path, x, "qdq")
    other, constants = plain_layers(8, 5)
    constants["w0"] = values(6, 8, seed=77)
    onnx.save(model_of(other, constants, x), tmp_path / "float.onnx")
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))
    first = next(each for each in done.layers if each.layer == "a0")
    assert not first.corrected
    assert first.reason.startswith("its outputs are too far from those of a0 in the float model")
    assert "(expected less than 1; unrelated outputs have 2); round it less coarsely" in first.reason


def test_nothing_to_match_is_an_error(tmp_path: Path) -> None:
    x = values(40, 6)
    np.save(tmp_path / "x.npy", x)
    path = quantized(model_of(*renamed(plain_layers(8, 5)), x), tmp_path, x, "qdq")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "z"
    onnx.save(model, path)
    onnx.save(model_of(*plain_layers(4, 4, 4), x), tmp_path / "float.onnx")
    with pytest.raises(UsageError, match="can be matched"):
        correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path))


def test_an_interrupted_correction_resumes_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    path, _ = prepared(tmp_path, "qdq")
    correct_outputs(tmp_path / "float.onnx", path, tmp_path / "whole.onnx", how=how(tmp_path))

    def stop(stage: Any) -> None:
        if stage.what.startswith("stage 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correct_outputs(
            tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path), progress=Told(on_begin=stop)
        )
    assert not (tmp_path / "fixed.onnx").exists()
    told = Told()
    correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=how(tmp_path), progress=told)
    assert [stage.what.split(":")[0] for stage in told.stages] == [
        "measuring the outputs of the float model",
        "stage 3 of 4",
        "stage 4 of 4",
    ]
    assert (tmp_path / "fixed.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_it_is_judged_like_any_correction(tmp_path: Path) -> None:
    path, x = prepared(tmp_path, "qdq")
    np.save(tmp_path / "held.npy", values(64, *SAMPLE, seed=3))
    told = Told()
    options = how(tmp_path, held_out=HeldOut(tmp_path / "held.npy"), do_no_harm=True)
    done = correct_outputs(tmp_path / "float.onnx", path, tmp_path / "fixed.onnx", how=options, progress=told)
    held = np.load(tmp_path / "held.npy")
    wanted = tensors(onnx.load(tmp_path / "float.onnx"), ["y"], held)["y"]
    noise = [
        np.square(tensors(plainly(onnx.load(each)).model, ["y"], held)["y"] - wanted).sum()
        for each in (path, tmp_path / "fixed.onnx")
    ]
    gain = done.judgement.gains["corrected"]
    assert gain.decibels == pytest.approx(10 * np.log10(noise[0] / noise[1]), abs=1e-3)
    assert gain.is_better
    assert len(x) == 48


def test_samples_that_do_not_fit_and_options_that_contradict_are_refused(tmp_path: Path) -> None:
    path, x = prepared(tmp_path, "qdq")
    files = (tmp_path / "float.onnx", path)
    np.save(tmp_path / "x.npy", x[:, :2])
    with pytest.raises(MismatchError, match="the model expects"):
        correct_outputs(*files, tmp_path / "fixed.onnx", how=how(tmp_path))
    x[5, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(NonFiniteError, match="its outputs hold NaN"):
        correct_outputs(*files, tmp_path / "fixed.onnx", how=how(tmp_path))
    with pytest.raises(UsageError, match="expected the samples"):
        correct_outputs(*files, tmp_path / "fixed.onnx", how=How())
    with pytest.raises(UsageError, match="leave out iterative"):
        how(tmp_path, iterative=Iterative("x.npy", "w"))
    with pytest.raises(UsageError, match="was recorded"):
        how(tmp_path, held_out=HeldOut(tmp_path / "x.npy"))
    (tmp_path / "out" / "correctors").mkdir(parents=True)
    with pytest.raises(UsageError):
        correct_quantized(*files, tmp_path / "out", None, how=how(tmp_path))


def test_the_command_writes_the_model_its_terms_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = prepared(tmp_path, "codes, per channel")
    base = ["correct", f"{tmp_path}/float.onnx", str(path)]
    more = ["--samples", f"{tmp_path}/x.npy", "-o", f"{tmp_path}/fixed.onnx"]
    assert main([*base, "--outputs", *more]) == 0
    assert "corrected 4 of 4 quantised layers" in capsys.readouterr().err
    assert {each.name for each in tmp_path.glob("fixed.*")} == {
        *("fixed.onnx", "fixed.terms.safetensors", "fixed.report.html", "fixed.report.json")
    }
    page = (tmp_path / "fixed.report.html").read_text()
    assert "from mean outputs" in page
    assert "The precision of corrections from mean outputs is not estimated." in page
    assert "set `statistics: [spread]`" not in page  # there is no run to set it for


def test_it_is_offered_where_weights_do_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, x = prepared(tmp_path, "qdq")
    files = [f"{tmp_path}/float.onnx", str(path), "--correctors", str(run_out(tmp_path, x))]
    assert main(["correct", *files, "-o", f"{tmp_path}/fixed.onnx"]) == 0
    assert "--outputs can correct it from mean outputs" in capsys.readouterr().err


def test_it_is_not_offered_where_there_is_no_quantised_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path, "qdq")
    measure(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "out", layers=["last"])
    out = ["--correctors", f"{tmp_path}/out", "-o", f"{tmp_path}/fixed.onnx"]
    assert main(["correct", f"{tmp_path}/float.onnx", "--bits", "4", *out]) == 0
    said = capsys.readouterr().err
    assert "refused: " in said
    assert "--outputs" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected --correctors"),
        (["--outputs", "--correctors", "out"], "give one of them"),
        (["--outputs"], "give them with --samples"),
        (["--outputs", "--samples", "x.npy", "--iterative"], "leave out --iterative"),
        (["--correctors", "out", "--trials", "3"], "--trials goes with --do-no-harm"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["correct", "float.onnx", "quantized.onnx", "-o", f"{tmp_path}/fixed.onnx", *options]) == 2
    assert said in capsys.readouterr().err


def test_outputs_go_with_a_quantised_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["correct", "m.onnx", "--bits", "4", "--outputs", "-o", f"{tmp_path}/f.onnx", "--samples", "x.npy"]) == 2
    )
    assert "corrects a model that a quantiser wrote" in capsys.readouterr().err
