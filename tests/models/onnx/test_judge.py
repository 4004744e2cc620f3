"""Judging: shifts, noise and accuracy on samples held out, and corrections that do harm."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import FORMS, chain, model_of, quantized, run_out, values
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import quantize_dynamic
from told import Told

from streamstats import MeanBiasCorrector
from streamstats.cli import main
from streamstats.errors import MismatchError, NonFiniteError, UsageError
from streamstats.models.harm import HARMFUL
from streamstats.models.judgement import UNKNOWN
from streamstats.models.onnx.by_outputs import Outputs
from streamstats.models.onnx.correct import How, correct, correct_outputs, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.plain import plainly
from streamstats.models.onnx.scoring import scored
from streamstats.models.quality import Quality
from streamstats.progress import QUIET, Progress

WEIGHTS = {"w": values(4, 6), "v": values(6, 3, seed=1)}
NODES = [
    helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
    helper.make_node("Relu", ["a"], ["r"]),
    helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x = values(64, 4)
    onnx.save(model_of(NODES, WEIGHTS, x), tmp_path / "float.onnx")
    run_out(tmp_path, x)
    np.save(tmp_path / "held.npy", values(50, 4, seed=9))
    return tmp_path


def judged(folder: Path, do_no_harm: bool = False, progress: Progress = QUIET, **held_out: Any) -> Any:
    how = How(None, HeldOut(folder / "held.npy", **held_out), do_no_harm)
    return correct(folder / "float.onnx", folder / "out", folder / "fixed.onnx", bits=3, how=how, progress=progress)


def test_shift_signal_and_noise_are_those_of_the_outputs_of_each_layer(folder: Path) -> None:
    done = judged(folder, batch_size=7)
    x = np.load(folder / "held.npy").astype(np.float64)
    (one, two), terms = (pair.quantized.weight for pair in done.subject.pairs), {e.layer: e.term for e in done.layers}

    def outputs(w: Any, v: Any, b: Any = 0.0, c: Any = 0.0) -> list[Any]:
        first = x @ w + b
        return [first, np.maximum(first, 0) @ v + c]

    wanted = outputs(WEIGHTS["w"], WEIGHTS["v"])
    for model, found in {
        "quantised": outputs(one, two),
        "corrected": outputs(one, two, terms["one"], terms["two"]),
    }.items():
        for layer, y, y_hat in zip(("one", "two"), wanted, found, strict=True):
            quality = done.judgement.layers[layer][model]
            np.testing.assert_allclose(quality.shift, (y_hat - y).mean(axis=0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(quality.signal, (y**2).mean(), rtol=1e-5)
            np.testing.assert_allclose(quality.noise, ((y_hat - y) ** 2).mean(), rtol=1e-4)
            np.testing.assert_allclose(
                quality.sqnr, 10 * np.log10((y**2).mean() / ((y_hat - y) ** 2).mean()), rtol=1e-4
            )
        outputs_too = done.judgement.outputs[model]
        np.testing.assert_allclose(outputs_too.noise, ((found[1] - wanted[1]) ** 2).mean(), rtol=1e-4)
        np.testing.assert_array_equal(outputs_too.shift, done.judgement.layers["two"][model].shift)
    assert done.judgement.samples == 50
    assert done.judgement.harmful == ()


def test_ratios_without_signal_or_noise() -> None:
    zero = np.zeros(2)
    assert Quality(zero, 1.0, 0.0).sqnr == np.inf
    assert Quality(zero, 0.0, 1.0).sqnr == -np.inf
    assert np.isnan(Quality(zero, 0.0, 0.0).sqnr)


def test_a_correction_that_does_harm_is_named_and_left_out_on_request(folder: Path) -> None:
    path = folder / "out" / "correctors" / "two.safetensors"
    mean = MeanBiasCorrector.load(path).input_mean
    (folder / "out" / "manifest.json").unlink()
    MeanBiasCorrector(-3 * mean, {"layer": "two"}).save(path)
    assert judged(folder).judgement.harmful == ("two",)
    told = Told()
    done = judged(folder, do_no_harm=True, progress=told)
    assert [stage.what for stage in told.stages if "corrected" in stage.what] == [
        "judging the corrected model",
        "judging the corrected model again, without the corrections of two",
    ]
    outcomes = {each.layer: each for each in done.layers}
    assert outcomes["one"].corrected
    assert not outcomes["two"].corrected
    assert outcomes["two"].reason == HARMFUL
    assert done.judgement.harmful == ()
    found = done.judgement.outputs
    assert found["corrected"].noise < found["quantised"].noise


def test_labels_give_the_accuracy_of_every_model(folder: Path) -> None:
    x = np.load(folder / "held.npy")
    labels = (np.maximum(x @ WEIGHTS["w"], 0) @ WEIGHTS["v"]).argmax(axis=1)
    np.save(folder / "labels.npy", labels)
    how = How(Iterative(folder / "x.npy", folder / "work"), HeldOut(folder / "held.npy", folder / "labels.npy"))
    done = correct(folder / "float.onnx", folder / "out", folder / "fixed.onnx", bits=3, how=how)
    assert set(done.judgement.accuracy) == {"float", "quantised", "one pass", "corrected"}
    assert done.judgement.accuracy["float"] == 1.0
    for name, model in {"quantised": done.subject.quantized, "corrected": onnx.load(folder / "fixed.onnx")}.items():
        logits = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        assert done.judgement.accuracy[name] == (logits.argmax(axis=1) == labels).mean()
        assert 0 < done.judgement.accuracy[name] < 1


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("form", ["qdq", "codes"])
def test_figures_of_a_model_on_codes_say_that_kernels_may_give_others(form: str, reduced: bool, folder: Path) -> None:
    path = quantized(onnx.load(folder / "float.onnx"), folder, values(64, 4), form, reduce_range=reduced)
    held_out = HeldOut(folder / "held.npy")
    models = folder / "float.onnx", path
    done = correct_quantized(*models, folder / "out", None, how=How(held_out=held_out))
    assert bool(done.judgement.caveat) != reduced
    command = shlex.join([sys.executable, "-c", "print(1)", "{model}"])
    scored = correct_quantized(
        *models, folder / "out", None, how=How(held_out=HeldOut(folder / "held.npy", score=command))
    )
    assert scored.judgement.caveat == ""
    assert judged(folder).judgement.caveat == ""  # weights on levels, multiplied in floats


def test_figures_of_a_model_that_rounds_on_the_fly_say_of_which_batches_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx")
    models = ["correct", f"{folder}/float.onnx", f"{folder}/dynamic.onnx", "-o", f"{folder}/fixed.onnx"]
    given = [*models, "--outputs", "--samples", f"{folder}/x.npy", "--held-out", f"{folder}/held.npy"]
    found = {}
    for size, samples in ((1, "1 sample"), (7, "7 samples"), (64, "50 samples")):
        assert main([*given, "--json", "--batch-size", str(size)]) == 0
        judgement = json.loads(capsys.readouterr().out)["judgement"]
        assert judgement["batches"].endswith(f"batches of {samples}")
        assert judgement["unjudged"] == {"one": UNKNOWN, "two": UNKNOWN}
        found[size] = judgement["network"]["quantised"]["sqnr_db"]
    assert len({*found.values()}) == 3
    assert main(given) == 0
    said = capsys.readouterr().err
    assert "batches of 8 samples; choose another with --batch-size\n" in said
    assert f"not judged by their own outputs: one, two: {UNKNOWN}\n" in said
    assert f"Not judged: one, two. T{UNKNOWN[1:]}." in (folder / "fixed.report.html").read_text()
    assert judged(folder).judgement.batches == ""
    assert main([*models, "--correctors", f"{folder}/out", "--batch-size", "4"]) == 2
    assert "--batch-size goes with" in capsys.readouterr().err


def test_held_out_samples_that_were_counted_are_warned_of(folder: Path) -> None:
    counted, held = np.load(folder / "x.npy"), np.load(folder / "held.npy")
    cases = {
        "same": (counted, True),
        "shuffled": (counted[::-1], True),
        "as many others": (np.random.default_rng(0).permuted(counted, axis=0) + np.float32(0.5), False),
        "some": (np.concatenate([counted[:9], held]), False),
        "others": (held, False),
    }
    for name, (samples, warned) in cases.items():
        np.save(folder / "held.npy", samples)
        told = Told()
        judged(folder, progress=told)
        assert any("layer one has as many rows with the same means" in each for each in told.messages) == warned, name
    for samples, number in ((counted[::-1], 64), (np.concatenate([counted[:9], held]), 9), (held, 0)):
        np.save(folder / "held.npy", samples)
        told, how = Told(), How(Iterative(folder / "x.npy", folder / "work"), HeldOut(folder / "held.npy"))
        correct(folder / "float.onnx", folder / "out", None, bits=3, how=how, progress=told)
        found = [each for each in told.messages if "are among those of" in each]
        assert [each.split()[1] for each in found] == ([str(number)] if number else [])


@pytest.mark.parametrize("method", ["one pass", "outputs"])
@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (0.3, False), (255.0, True), (1 / 255, True)])
def test_held_out_samples_of_another_size_are_warned_of(method: str, scale: float, warned: bool, folder: Path) -> None:
    for number in (1, 4, 50):
        np.save(folder / "held.npy", values(number, 4, seed=number) * np.float32(scale))
        told, model = Told(), folder / "float.onnx"
        if method == "outputs":
            path = quantized(onnx.load(model), folder, values(64, 4), "qdq")
            how = How(held_out=HeldOut(folder / "held.npy"), outputs=Outputs(folder / "x.npy", folder / "work"))
            correct_outputs(model, path, None, how=how, progress=told)
        else:
            judged(folder, progress=told)
        found = [each for each in told.messages if "check the preprocessing" in each]
        assert len(found) == warned
        assert all(each.startswith("warning: the inputs of layer one differ in size") for each in found)


@pytest.mark.parametrize(
    "labels", [np.zeros(7, np.int64), np.zeros((50, 1), np.int64), np.zeros(50, np.float32), None, "text"]
)
def test_labels_that_do_not_fit_are_refused(folder: Path, labels: Any) -> None:
    path = folder / "labels.npy"
    if isinstance(labels, str):
        path.write_text(labels)
    elif labels is not None:
        np.save(path, labels)
    with pytest.raises((MismatchError, UsageError), match=r"labels\.npy"):
        judged(folder, labels=path)
    assert not (folder / "fixed.onnx").exists()


def test_a_command_scores_the_models(folder: Path) -> None:
    code = "import sys, os; print('loaded 3 things'); print('score:', os.path.getsize(sys.argv[1]))"
    done = judged(folder, score=f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{model}}")
    assert set(done.judgement.scores) == {"float", "quantised", "corrected"}
    assert done.judgement.scores["corrected"] == (folder / "fixed.onnx").stat().st_size


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit('no such data set')", "no such data set"), ("print('well done')", "no score")],
)
def test_a_command_that_does_not_score_is_named(folder: Path, code: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        judged(folder, score=f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{model}}")
    with pytest.raises(UsageError, match="model"):
        HeldOut(folder / "held.npy", score="python score.py")
    with pytest.raises(UsageError, match="cannot be read"):
        HeldOut(folder / "held.npy", score="python 'score.py {model}")
    with pytest.raises(UsageError, match="no-such-program"):
        judged(folder, score="no-such-program {model}")


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("0.5 {}", 0.5),
        ("0.5 epoch7b {} done", 0.5),
        ("mAP: 12 -3.5e-1;", -0.35),
        ("loss (.25).", 0.25),
        ("3 files\\n\\nscore: 7\\n", 7),
        ("score: nan {} done", None),
        ("epoch 3, score: None", None),
        ("score 3 inf", None),
        ("0.5\\n{}", None),
        ("f1=0.5 93% v2", None),
        ("", None),
    ],
)
def test_only_a_number_that_is_a_word_of_the_last_line_is_a_score(
    printed: str, score: float | None, tmp_path: Path
) -> None:
    code = f"import sys; print('{printed}'.format(sys.argv[1]))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{model}}"
    path = tmp_path / "a1b2.onnx"
    if score is not None:
        assert scored(command, path) == score
        return
    with pytest.raises(UsageError, match="printed no score; expected a finite number") as refused:
        scored(command, path)
    assert printed.split("\\n")[-1].format(path) in str(refused.value)


@pytest.mark.parametrize("where", ["float", "quantised"])
def test_a_model_with_an_unknown_operator_is_named_without_the_temporary_file(where: str, folder: Path) -> None:
    path = quantized(onnx.load(folder / "float.onnx"), folder, values(64, 4), "qdq")
    custom = folder / "float.onnx" if where == "float" else path
    model = onnx.load(custom)
    last = next(node for node in model.graph.node if "y" in node.output)
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Foo", ["before"], ["y"], domain="my.ops"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    onnx.save(model, custom)
    how = How(held_out=HeldOut(folder / "held.npy"))
    with pytest.raises(UsageError, match=f"cannot run the {where} model: .*my.ops:Foo") as refused:
        correct_quantized(folder / "float.onnx", path, folder / "out", None, how=how)
    assert "judged.onnx" not in str(refused.value)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("codes")])
def test_a_model_in_plain_arithmetic_gives_the_codes_of_the_one_it_stands_for(tmp_path: Path, form: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["c"], name="second", group=2, strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"], name="last"),
    ]
    constants = {"w": values(4, 3, 3, 3), "b": values(4), "v": values(4, 2, 3, 3, seed=1), "m": values(36, 5, seed=2)}
    x = values(16, 3, 8, 8)
    model = onnx.load(quantized(model_of(nodes, constants, x), tmp_path, x, form))
    plain = plainly(model).model
    assert not {node.op_type for node in plain.graph.node} & {"QLinearConv", "QLinearMatMul", "QGemm"}
    onnx.checker.check_model(plain)
    model.opset_import[0].version = 19  # the oldest that the reference has these operators of
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = onnxruntime.InferenceSession(plain.SerializeToString(), options).run(None, {"x": x})
    step = next(float(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer if t.name == "y_scale")
    assert np.abs(found - wanted).max() <= 2.01 * step
    assert (np.abs(found - wanted) < 0.01 * step).mean() > 0.9


def test_a_quantised_model_is_judged_by_what_its_layers_give_before_rounding(tmp_path: Path) -> None:
    x = values(48, 3, 8, 8)
    path = quantized(model_of(*chain(), x), tmp_path, x, "codes, per channel")
    done = correct_quantized(
        tmp_path / "float.onnx", path, run_out(tmp_path, x), None, how=How(None, HeldOut(tmp_path / "x.npy"))
    )
    assert set(done.judgement.layers) == {"first", "second", "third", "last"}
    for found in done.judgement.layers.values():
        assert found["corrected"].size < found["quantised"].size
    assert not list(tmp_path.glob("fixed*"))


def test_the_shift_of_several_outputs_is_that_of_all_their_channels(tmp_path: Path) -> None:
    x = values(40, 4)
    model = model_of(NODES, WEIGHTS, x)
    model.graph.output.append(helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    done = correct(tmp_path / "float.onnx", out, None, bits=3, how=How(None, HeldOut(tmp_path / "x.npy")))
    layers, found = done.judgement.layers, done.judgement.outputs["quantised"]
    shifts = [layers["two"]["quantised"].shift, layers["one"]["quantised"].shift]
    np.testing.assert_array_equal(found.shift, np.concatenate(shifts))
    noise = layers["two"]["quantised"].noise * 3 + layers["one"]["quantised"].noise * 6
    assert found.noise == pytest.approx(noise / 9)


def test_samples_and_labels_beyond_what_they_may_be_are_named(folder: Path) -> None:
    np.save(folder / "labels.npy", np.arange(50) % 4)
    with pytest.raises(MismatchError, match="expected 0 to 2"):
        judged(folder, labels=folder / "labels.npy")
    x = np.load(folder / "held.npy")
    x[17, 2] = np.nan
    np.save(folder / "held.npy", x)
    with pytest.raises(NonFiniteError, match=r"sample 17 of the input x"):
        judged(folder)


def test_a_model_that_lacks_an_output_is_refused(tmp_path: Path) -> None:
    x = values(40, 4)
    np.save(tmp_path / "held.npy", x)
    path = quantized(model_of(NODES, WEIGHTS, x), tmp_path, x, "qdq")
    model = onnx.load(tmp_path / "float.onnx")
    model.graph.output.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["n", 6]))
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(MismatchError, match="but not r of the float model"):
        correct_quantized(
            tmp_path / "float.onnx", path, run_out(tmp_path, x), None, how=How(None, HeldOut(tmp_path / "held.npy"))
        )
