"""Doing no harm: corrections are judged by the outputs of the network, and no worse model is written in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model_of, run_out, values
from onnx import helper
from told import Told

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import HarmError, UsageError
from streamstats.jobs.run import run
from streamstats.models.advice import ON_COMMAND_LINE
from streamstats.models.effects import Effect
from streamstats.models.harm import HARMFUL, UNSURE, WORSE, tell
from streamstats.models.judgement import Judgement
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import record

STEP = 0.5
FIRST, SECOND = 1.2, 1.3
"""Rounded to multiples of STEP, 1.0 and 1.5: each is off by its own, together they are off by 4 % only."""


def weights(value: float) -> Any:
    return (np.eye(4) * value).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layers whose rounding errors cancel, and a corrector of the first alone: it spoils the network."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="two"),
    ]
    x = values(64, 4) * np.float32(0.1) + np.float32(1.0)
    onnx.save(model_of(nodes, {"w": weights(FIRST), "v": weights(SECOND)}, x), tmp_path / "float.onnx")
    rounded = [
        helper.make_node("DequantizeLinear", ["w_codes", "step", "zero"], ["w"]),
        helper.make_node("DequantizeLinear", ["v_codes", "step", "zero"], ["v"]),
        *nodes,
    ]
    codes = {f"{name}_codes": np.rint(weights(each) / STEP).astype(np.int8) for name, each in (("w", 1.2), ("v", 1.3))}
    constants = {**codes, "step": np.float32(STEP), "zero": np.int8(0)}
    onnx.save(model_of(rounded, {k: np.asarray(v) for k, v in constants.items()}, x), tmp_path / "quantized.onnx")
    out = run_out(tmp_path, x)
    (out / "manifest.json").unlink()
    (out / "correctors" / "two.safetensors").unlink()
    np.save(tmp_path / "held.npy", values(50, 4, seed=9) * np.float32(0.1) + np.float32(1.0))
    return tmp_path


def corrected(folder: Path, progress: Told, **how: Any) -> Any:
    held_out = HeldOut(folder / "held.npy", batch_size=16)
    return correct_quantized(
        folder / "float.onnx",
        folder / "quantized.onnx",
        folder / "out",
        folder / "fixed.onnx",
        how=How(held_out=held_out, **how),
        progress=progress,
    )


def error(x: Any, bias: float) -> float:
    """The squared error of the network with a `bias` behind the first layer."""
    return float(np.square((x * 1.0 + bias) * 1.5 - x * FIRST * SECOND).sum())


def test_a_correction_that_helps_its_layer_and_harms_the_network_is_left_out(folder: Path) -> None:
    told = Told()
    done = corrected(folder, told, do_no_harm=True)
    one = next(each for each in done.layers if each.layer == "one")
    assert (one.corrected, one.reason) == (False, HARMFUL)
    assert done.judgement.gains["corrected"].decibels == 0.0
    assert "warning:" not in " ".join(told.messages)
    fixed, quantized = onnx.load(folder / "fixed.onnx"), onnx.load(folder / "quantized.onnx")
    assert [node.op_type for node in fixed.graph.node] == [node.op_type for node in quantized.graph.node]


def test_if_nothing_was_corrected_the_status_says_so_and_the_model_is_not_marked_as_corrected(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = ["--correctors", f"{folder}/out", "--held-out", f"{folder}/held.npy", "-o"]
    first, again = f"{folder}/first.onnx", f"{folder}/again.onnx"
    left_out = ["correct", f"{folder}/float.onnx", f"{folder}/quantized.onnx", *ends, first, "--do-no-harm"]
    assert main([*left_out, "--fail-if-worse"]) == 3
    assert f"no layer was corrected, for the reasons given; {first} is the quantised model" in capsys.readouterr().err
    assert main(["correct", f"{folder}/float.onnx", first, *ends, again]) == 0
    assert main(["correct", f"{folder}/float.onnx", again, *ends, first]) == 2
    assert "has already been corrected" in capsys.readouterr().err


def test_the_gain_is_that_of_the_outputs_and_a_worse_model_is_told_before_it_is_written(folder: Path) -> None:
    class Listening(Told):
        def say(self, message: str) -> None:
            assert not (folder / "fixed.onnx").exists()
            super().say(message)

    told = Listening()
    done = corrected(folder, told)
    assert done.judgement.layers["one"]["corrected"].noise < done.judgement.layers["one"]["quantised"].noise
    x = np.load(folder / "held.npy").astype(np.float64)
    term = next(each.term for each in done.layers if each.layer == "one")
    expected = 10 * np.log10(error(x, 0.0) / error(x, term))
    assert done.judgement.gains["corrected"].decibels == pytest.approx(expected, abs=0.01)
    assert expected < -10
    assert any(
        each.startswith("warning: the corrected model is worse than the quantised one: -") for each in told.messages
    )
    assert (folder / "fixed.onnx").exists()


def test_a_worse_model_of_another_quantiser_gets_no_advice_about_options_for_rounding_here(folder: Path) -> None:
    told = Told()
    corrected(folder, told)
    (warning,) = (each for each in told.messages if each.startswith("warning: the corrected model is worse"))
    assert "--per-channel" not in warning
    assert "leave out what does harm (--do-no-harm), or quantise the float model less coarsely" in warning


@pytest.mark.parametrize(
    ("tried", "begins"),
    [
        ({"staged": False, "harmless": False}, "correct layer by layer (--iterative), leave out what does harm"),
        ({"staged": True, "harmless": False}, "leave out what does harm (--do-no-harm), or round less coarsely"),
        ({"staged": True, "harmless": True}, "round less coarsely (--weight-range mse"),
    ],
)
def test_the_advice_about_a_worse_model_does_not_repeat_what_was_tried(tried: dict[str, bool], begins: str) -> None:
    assert ON_COMMAND_LINE.after(**tried, rounded=True).worse.startswith(begins)


def test_a_worse_model_is_not_written_if_the_correction_is_to_fail_then(folder: Path) -> None:
    with pytest.raises(HarmError, match="worse than the quantised one: -"):
        corrected(folder, Told(), fail_if_worse=True)
    assert not (folder / "fixed.onnx").exists()
    corrected(folder, Told(), fail_if_worse=True, do_no_harm=True)
    assert (folder / "fixed.onnx").exists()


def test_without_trials_all_corrections_are_left_out_if_the_network_is_worse_with_them(folder: Path) -> None:
    told = Told()
    done = corrected(folder, told, do_no_harm=True, trials=0)
    assert next(each for each in done.layers if each.layer == "one").reason == WORSE
    assert any("1 of 1 corrections are not tried" in each for each in told.messages)


def test_what_is_worse_on_too_few_samples_to_tell_is_left_out_all_the_same(folder: Path) -> None:
    np.save(folder / "held.npy", np.load(folder / "held.npy")[:4])
    done = corrected(folder, Told(), do_no_harm=True)
    assert next(each for each in done.layers if each.layer == "one").reason == WORSE


def test_a_difference_that_may_be_chance_is_told_with_the_number_of_samples_that_would_tell() -> None:
    wanted = np.ones((2, 100))
    noise = values(2, 100) ** 2
    before, after = Effect(("y", "z"), noise, wanted), Effect(("y", "z"), noise * [1 - values(100) * 0.02], wanted)
    judgement = Judgement(100, {}, {}, effects={"quantised": before, "corrected": after})
    told = Told()
    tell(judgement, "corrected", told, fail=True, remedy="")
    gain = after.gain_over(before)
    assert 0 < gain.decibels < 2 * gain.error
    needed = int(np.ceil(100 * (2 * gain.error / gain.decibels) ** 2))
    assert told.messages == [
        f"note: on 100 held-out samples, the difference from the quantised model, {gain}, may be chance; about "
        f"{needed:,} samples would tell"
    ]


def test_options_that_need_held_out_samples_say_so() -> None:
    for how in ({"do_no_harm": True}, {"fail_if_worse": True}):
        with pytest.raises(UsageError, match="give held-out samples"):
            How(**how)
    with pytest.raises(UsageError, match="trials is -1"):
        How(trials=-1)


@pytest.mark.parametrize(("mean", "doubtful"), [(0.0, True), (2.0, False)])
def test_corrections_smaller_than_their_errors_are_told_and_left_out(
    tmp_path: Path, mean: float, doubtful: bool
) -> None:
    w = values(16, 12)
    x = (values(12, 16, seed=5) - np.float32(0.3)) + np.float32(mean)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="one")]
    onnx.save(model_of(nodes, {"w": w}, x), tmp_path / "float.onnx")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "held.npy", values(40, 16, seed=6) - np.float32(0.3) + np.float32(mean))
    record(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    config = {"source": str(tmp_path / "s.zarr"), "output": str(tmp_path / "out"), "statistics": ["spread"]}
    run(JobConfig.model_validate(config).job())
    told = Told()
    how = How(held_out=HeldOut(tmp_path / "held.npy"))
    done = correct(tmp_path / "float.onnx", tmp_path / "out", tmp_path / "f.onnx", bits=3, how=how, progress=told)
    change = w.astype("f8") - done.subject.pairs[0].quantized.weight
    term = x.astype("f8").mean(axis=0) @ change
    variance = (x.astype("f8").var(axis=0, ddof=1) / len(x)) @ change**2
    assert (np.square(term).sum() <= 2 * variance.sum()) == doubtful
    assert any(each.startswith("note: too few samples were counted") for each in told.messages) == doubtful
    careful = How(held_out=HeldOut(tmp_path / "held.npy"), do_no_harm=True)
    done = correct(tmp_path / "float.onnx", tmp_path / "out", tmp_path / "f.onnx", bits=3, how=careful)
    one = done.layers[0]
    assert one.corrected != doubtful
    assert one.reason.startswith(UNSURE) == doubtful


@pytest.mark.parametrize(("after", "worse"), [(66, ["accuracy 20.3% → 11.0%"]), (120, []), (360, [])])
def test_a_lower_accuracy_is_worse_if_it_is_no_chance(after: int, worse: list[str]) -> None:
    right = {name: np.arange(600) < number for name, number in {"quantised": 122, "corrected": after}.items()}
    judged = Judgement(600, {}, {}, right)
    assert judged.worse("corrected") == worse
    told = Told()
    tell(judged, "corrected", told, fail=False, remedy="try again")
    assert [message.partition(" on 600")[0] for message in told.messages] == [
        f"warning: the corrected model is worse than the quantised one: {reason}" for reason in worse
    ]
    if worse:
        with pytest.raises(HarmError, match="nothing was written; try again"):
            tell(judged, "corrected", told, fail=True, remedy="try again")
