"""Layer after layer: what a layer gets in the quantised network is measured, not what it would get in the float one."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import FORMS, chain, folded, model_of, quantized, random_network, run_out, values
from onnx import helper

from streamstats.cli import main
from streamstats.errors import DataError, UsageError
from streamstats.models.onnx import iterative as onnx_iterative
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.iterative import Iterative, stages
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.layers import survey
from streamstats.models.onnx.subject import quantized_by_others
from streamstats.progress import Quiet, Stage


def prepared(folder: Path, form: str = "qdq", *, optimised: bool = False) -> tuple[Path, Path, Any]:
    """(the quantised chain, the output of the run of the float one, the samples)."""
    x = values(48, 3, 8, 8)
    nodes, constants = chain()
    path = quantized(model_of(*(folded(nodes, constants) if optimised else (nodes, constants)), x), folder, x, form)
    onnx.save(model_of(nodes, constants, x), folder / "float.onnx")
    return path, run_out(folder, x), x


def corrected(folder: Path, path: Path, out: Path, form: str = "full", name: str = "fixed.onnx", **how: Any) -> Any:
    iterative = Iterative(folder / "x.npy", folder / "work", form)
    return correct_quantized(folder / "float.onnx", path, out, folder / name, how=How(iterative, **how))


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_full_form_gives_every_layer_of_the_network_the_mean_output_of_the_float_one(
    tmp_path: Path, form: str, optimised: bool
) -> None:
    path, out, x = prepared(tmp_path, form, optimised=optimised)
    np.save(tmp_path / "same.npy", x)
    done = corrected(tmp_path, path, out, held_out=HeldOut(tmp_path / "same.npy"))
    onnx.checker.check_model(onnx.load(tmp_path / "fixed.onnx"))
    outcomes = {each.layer: each for each in done.layers}
    assert sorted(outcomes) == ["first", "last", "second", "third"]
    for layer, found in done.judgement.layers.items():
        step = 0.0 if outcomes[layer].step is None else outcomes[layer].step
        allowed = step + 2e-6 * np.sqrt(found["corrected"].signal) + 2e-6
        assert (np.abs(found["corrected"].shift) <= allowed).all(), layer
        assert (np.abs(found["quantised"].shift) > 4 * allowed).any(), layer


def check_random_network(folder: Path, seed: int) -> None:
    """Every layer of the corrected network has the float network's mean output, over the samples of the calibration."""
    nodes, constants, sample = random_network(seed)
    x = values(24, *sample, seed=seed)
    form = list(FORMS)[seed % len(FORMS)]
    path = quantized(model_of(nodes, constants, x), folder, x, form)
    np.save(folder / "same.npy", x)
    done = corrected(folder, path, run_out(folder, x), held_out=HeldOut(folder / "same.npy"))
    onnx.checker.check_model(onnx.load(folder / "fixed.onnx"))
    outcomes = {each.layer: each for each in done.layers}
    assert {layer for layer, each in outcomes.items() if each.corrected} == set(done.judgement.layers), outcomes
    assert len(done.judgement.layers) == sum(node.name != "" for node in nodes)
    for layer, found in done.judgement.layers.items():
        step = 0.0 if outcomes[layer].step is None else outcomes[layer].step
        allowed = step + 3e-6 * np.sqrt(found["corrected"].signal) + 3e-6
        assert (np.abs(found["corrected"].shift) <= allowed).all(), (seed, form, layer)


@pytest.mark.parametrize("seed", range(7))
def test_random_networks_have_the_mean_outputs_of_the_float_ones(tmp_path: Path, seed: int) -> None:
    check_random_network(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 300))
def test_many_random_networks_have_the_mean_outputs_of_the_float_ones(tmp_path: Path, seed: int) -> None:
    check_random_network(tmp_path, seed)


@pytest.mark.soak
def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_undisturbed_correction(tmp_path: Path) -> None:
    nodes, constants, sample = random_network(8)
    x = values(2000, *sample, seed=8)
    path = quantized(model_of(nodes, constants, x), tmp_path, x[:200], "qdq")
    run_out(tmp_path, x)
    command = [sys.executable, "-m", "streamstats", "correct", str(tmp_path / "float.onnx"), str(path)]
    command += ["--correctors", str(tmp_path / "out"), "--iterative", "--samples", str(tmp_path / "x.npy")]
    subprocess.run([*command, "-o", str(tmp_path / "undisturbed.onnx")], check=True, capture_output=True)
    random, kills = np.random.default_rng(0), 0
    while kills < 20:
        with subprocess.Popen([*command, "-o", str(tmp_path / "fixed.onnx")], stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(random.uniform(0.5, 5.0))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
                continue
        (tmp_path / "fixed.onnx").unlink()
    subprocess.run([*command, "-o", str(tmp_path / "fixed.onnx")], check=True, capture_output=True)
    assert (tmp_path / "fixed.onnx").read_bytes() == (tmp_path / "undisturbed.onnx").read_bytes()
    assert not (tmp_path / "fixed.work").exists()


def test_the_form_of_the_change_takes_what_the_quantised_network_gives(tmp_path: Path) -> None:
    constants = {"w": values(4, 6), "v": values(6, 5, seed=1)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    x = values(32, 4)
    onnx.save(model_of(nodes, constants, x), tmp_path / "float.onnx")
    out = run_out(tmp_path, x)
    layers = {}
    for form in ("change", "full"):
        how = How(Iterative(tmp_path / "x.npy", tmp_path / "work", form))
        done = correct(tmp_path / "float.onnx", out, tmp_path / "fixed.onnx", bits=3, how=how)
        layers[form] = {each.layer: each.term for each in done.layers}
    (one, two), _ = survey(done.subject.quantized)
    first = x.astype(np.float64).mean(axis=0) @ (constants["w"] - one.weight).astype(np.float64)
    np.testing.assert_allclose(layers["change"]["one"], first, rtol=1e-5)
    np.testing.assert_allclose(layers["full"]["one"], first, rtol=1e-5)
    given = np.maximum(x.astype(np.float64) @ one.weight + first, 0).mean(axis=0)
    wanted = np.maximum(x.astype(np.float64) @ constants["w"], 0).mean(axis=0)
    change = given @ (constants["v"] - two.weight).astype(np.float64)
    np.testing.assert_allclose(layers["change"]["two"], change, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        layers["full"]["two"], wanted @ constants["v"] - given @ two.weight, rtol=1e-4, atol=1e-6
    )


def test_layers_that_do_not_depend_on_each_other_are_one_stage(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="left"),
        helper.make_node("MatMul", ["x", "v"], ["b"], name="right"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["c"], name="longer"),
        helper.make_node("Add", ["c", "b"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="end"),
    ]
    x = values(8, 4)
    model = model_of(nodes, {"w": values(4, 4), "v": values(4, 4, seed=1)}, x)
    onnx.save(model, tmp_path / "m.onnx")
    subject = quantized_by_others(tmp_path / "m.onnx", tmp_path / "m.onnx")
    found = [[pair.original.name for pair in stage] for stage in stages(subject.quantized, subject.pairs)]
    assert found == [["left", "right"], ["longer"], ["end"]]


def test_it_goes_on_with_the_stage_it_was_stopped_at_and_keeps_one_store_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, _ = prepared(tmp_path)
    corrected(tmp_path, path, out, name="undisturbed.onnx")
    assert not (tmp_path / "work").exists()
    recorded: list[list[str]] = []
    real = onnx_iterative.record_layers

    def stopped(run: Any, layers: Any, *rest: Any, **options: Any) -> Any:
        assert not glob.glob(str(tmp_path / "work" / "*.zarr"))
        recorded.append([layer.name for layer in layers])
        if len(recorded) == 3:
            raise KeyboardInterrupt
        return real(run, layers, *rest, **options)

    monkeypatch.setattr(onnx_iterative, "record_layers", stopped)
    with pytest.raises(KeyboardInterrupt):
        corrected(tmp_path, path, out)
    assert not (tmp_path / "fixed.onnx").exists()
    with pytest.raises(UsageError, match="another iterative correction"):
        corrected(tmp_path, path, out, "change")
    corrected(tmp_path, path, out)
    assert recorded == [["first"], ["second"], ["third"], ["third"], ["last"]]
    assert (tmp_path / "fixed.onnx").read_bytes() == (tmp_path / "undisturbed.onnx").read_bytes()
    assert not (tmp_path / "work").exists()


def test_what_is_damaged_in_the_work_folder_is_named_and_other_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, _ = prepared(tmp_path)
    real, calls = onnx_iterative.record_layers, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(onnx_iterative, "record_layers", stopped)
    with pytest.raises(KeyboardInterrupt):
        corrected(tmp_path, path, out)
    stage = tmp_path / "work" / "stage0000.safetensors"
    stage.write_bytes(stage.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DataError, match="stage0000"):
        corrected(tmp_path, path, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("not ours")
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "other"))
    with pytest.raises(UsageError, match="files in it"):
        correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "f.onnx", how=how)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "not ours"
    how = How(Iterative(tmp_path / "x.npy", tmp_path / "float.onnx"))
    with pytest.raises(UsageError, match="is a file"):
        correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "f.onnx", how=how)


def test_the_command_line_says_what_goes_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, _ = prepared(tmp_path)
    start = [
        "correct",
        str(tmp_path / "float.onnx"),
        str(path),
        "--correctors",
        str(out),
        "-o",
        str(tmp_path / "f.onnx"),
    ]
    assert main([*start, "--iterative"]) == 2
    assert "--samples" in capsys.readouterr().err
    assert main([*start, "--work", "w"]) == 2
    assert main([*start, "--labels", "l"]) == 2
    assert main([*start, "--do-no-harm"]) == 2
    assert main([*start, "--json", "--iterative", "--samples", str(tmp_path / "x.npy")]) == 0
    said = capsys.readouterr()
    assert "stage 4 of 4: last" in said.err
    assert {each["corrected"] for each in json.loads(said.out)["layers"].values()} == {True}
    assert (tmp_path / "f.report.html").is_file()


def test_a_correction_that_is_stopped_while_it_is_judged_goes_on_with_the_judging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, x = prepared(tmp_path)
    np.save(tmp_path / "same.npy", x)
    corrected(tmp_path, path, out, name="undisturbed.onnx")

    class Stopping(Quiet):
        def begin(self, stage: Stage) -> None:
            if stage.what.startswith("judging the corrected"):
                raise KeyboardInterrupt

    how = How(Iterative(tmp_path / "x.npy", tmp_path / "work"), HeldOut(tmp_path / "same.npy"))
    with pytest.raises(KeyboardInterrupt):
        correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "fixed.onnx", how=how, progress=Stopping())
    monkeypatch.setattr(onnx_iterative, "record_layers", None)
    corrected(tmp_path, path, out)
    assert (tmp_path / "fixed.onnx").read_bytes() == (tmp_path / "undisturbed.onnx").read_bytes()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("wrong", ["noise", "half"])
def test_other_samples_than_those_recorded_are_noticed(tmp_path: Path, wrong: str) -> None:
    path, out, x = prepared(tmp_path)
    np.save(tmp_path / "x.npy", x / 2 if wrong == "half" else values(48, 3, 8, 8, seed=5) - 1)
    with pytest.raises(UsageError, match="not the samples that were recorded"):
        corrected(tmp_path, path, out)
    assert not (tmp_path / "work").exists()


def test_samples_that_were_recorded_do_not_judge(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was recorded"):
        How(Iterative(tmp_path / "x.npy", tmp_path / "work"), HeldOut(tmp_path / "x.npy"))


def test_models_in_the_wrong_place_are_refused(tmp_path: Path) -> None:
    path, out, x = prepared(tmp_path)
    with pytest.raises(UsageError, match="expected the float model first"):
        correct_quantized(path, tmp_path / "float.onnx", out, tmp_path / "f.onnx")
    corrected(tmp_path, path, out)
    with pytest.raises(UsageError, match="has already been corrected"):
        correct_quantized(tmp_path / "float.onnx", tmp_path / "fixed.onnx", out, tmp_path / "f.onnx")
    with pytest.raises(UsageError, match="has already been corrected"):
        correct(tmp_path / "fixed.onnx", out, tmp_path / "f.onnx", bits=4)
    nodes, constants = chain()
    onnx.save(model_of(nodes, {name: values(*each.shape, seed=77) for name, each in constants.items()}, x), path)
    with pytest.raises(UsageError, match="models of the same network"):
        correct_quantized(tmp_path / "float.onnx", path, out, tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()
