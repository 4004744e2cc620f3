"""What was recorded of one model is not used for another: the store, the state and the manifest say which it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import one_line
from networks import Array, chain, model_of, run_out, values
from onnx import helper

from streamstats.cli import main
from streamstats.errors import MismatchError
from streamstats.jobs.merge import merge
from streamstats.jobs.meter import Meter
from streamstats.models.advice import IN_A_JOB
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.fingerprint import fingerprint, fingerprints
from streamstats.models.onnx.record import measure, record
from streamstats.outputs.results import load, open_results

X = values(12, 3, 6, 6)


def network(**changed: Array) -> Any:
    nodes, constants = chain()
    return model_of(nodes, constants | changed, X)


def retrained() -> Any:
    """The same layers, under the same names, with other weights."""
    return network(w=chain()[1]["w"] * np.float32(1.5))


def test_a_model_exported_again_keeps_its_fingerprint(tmp_path: Path) -> None:
    """Other names, another order, tensors in another file or in Constant nodes change nothing."""
    model = network()
    again = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = [*again.graph.initializer]
    del again.graph.initializer[:]
    again.graph.initializer.extend(reversed(tensors[1:]))
    again.graph.node.insert(0, helper.make_node("Constant", [], [tensors[0].name], value=tensors[0]))
    again.graph.name = "other"
    onnx.save(again, tmp_path / "again.onnx", save_as_external_data=True, size_threshold=0)
    assert fingerprint(onnx.load(tmp_path / "again.onnx")) == fingerprint(model)
    assert fingerprint(retrained()) != fingerprint(model)


def test_correctors_of_another_version_of_the_model_are_refused(tmp_path: Path) -> None:
    model, other = network(), retrained()
    onnx.save(model, tmp_path / "float.onnx")
    onnx.save(other, tmp_path / "retrained.onnx")
    out = run_out(tmp_path, X)
    assert {entry.models[0] for entry in open_results(out).manifest.layers.values()} == {fingerprint(model)}
    target = tmp_path / "fixed.onnx"
    one_line(
        lambda: correct(tmp_path / "retrained.onnx", out, target, bits=4),
        MismatchError,
        "the weight of layer first in",
        *("retrained.onnx is not the one that was recorded", "or record", "into another store and run again"),
        *("retrained.onnx", *(fingerprints(each).weights["first"][:17] for each in (model, other)), "--other-weights"),
    )
    assert not target.exists()
    in_a_job = How(advice=IN_A_JOB)
    one_line(
        lambda: correct(tmp_path / "retrained.onnx", out, target, bits=4, how=in_a_job),
        MismatchError,
        "submit the job again, which measures the model that it corrects",
    )
    correct(tmp_path / "float.onnx", out, target, bits=4)
    done = correct(tmp_path / "retrained.onnx", out, target, bits=4, how=How(other_weights=True))
    assert any(each.corrected for each in done.layers)


def test_the_command_line_refuses_and_takes_them_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), tmp_path / "float.onnx")
    onnx.save(retrained(), tmp_path / "retrained.onnx")
    out = run_out(tmp_path, X)
    command = ["report", str(out), "--model", str(tmp_path / "retrained.onnx"), "--bits", "4"]
    assert main(command) != 0
    assert "add --other-weights" in capsys.readouterr().err
    assert main([*command, "--other-weights"]) == 0
    said = "the weight of layer first in"
    assert f"warning: {said}" in capsys.readouterr().err
    assert said in json.loads((out / "report.json").read_text())["about"]["other_weights"]
    assert f"The means are those of another model: {said}" in (out / "report.html").read_text()


def test_rows_of_another_version_of_the_model_are_not_appended(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "float.onnx")
    onnx.save(retrained(), tmp_path / "retrained.onnx")
    np.save(tmp_path / "x.npy", X)
    record(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    one_line(
        lambda: record(tmp_path / "retrained.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", append=True),
        MismatchError,
        *("retrained.onnx has other weights than the model recorded in", f"{tmp_path}/s.zarr ("),
        *(fingerprint(retrained())[:17], fingerprint(network())[:17], "give that model, or record into another store"),
    )
    record(tmp_path / "float.onnx", tmp_path / "x.npy", tmp_path / "s.zarr", append=True)


def test_outputs_of_two_models_are_merged_only_if_that_is_meant_and_name_both(tmp_path: Path) -> None:
    paths = []
    for name, model, x in (("one", network(), X), ("other", retrained(), X + 1)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        np.save(tmp_path / f"{name}.npy", x)
        paths.append(tmp_path / f"{name}.onnx")
        measure(paths[-1], tmp_path / f"{name}.npy", tmp_path / name)
    expected = sorted(fingerprint(onnx.load(path)) for path in paths)
    outs = [tmp_path / "one", tmp_path / "other"]
    one_line(
        lambda: merge(outs, tmp_path / "both"),
        MismatchError,
        *(f"{outs[1]}: layer first", f"than in {outs[0]}", expected[0][:17], expected[1][:17], "add --other-weights"),
    )
    assert main(["merge", *map(str, outs), "-o", str(tmp_path / "both"), "--other-weights"]) == 0
    assert [*load(tmp_path / "both")["first"].models] == expected
    one_line(lambda: correct(paths[0], tmp_path / "both", None, bits=4), MismatchError, "layer first")


def test_an_export_with_another_version_of_the_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), tmp_path / "float.onnx")
    onnx.save(retrained(), tmp_path / "retrained.onnx")
    out = run_out(tmp_path, X)
    command = ["export", str(out), "-o", str(tmp_path / "ranges.json"), "--format", "onnxruntime"]
    command += ["--method", "minmax", "--model"]
    assert main([*command, str(tmp_path / "retrained.onnx")]) != 0
    assert "name the tensors with --names" in capsys.readouterr().err
    assert not (tmp_path / "ranges.json").exists()
    main([*command, str(tmp_path / "float.onnx")])
    assert (tmp_path / "ranges.json").exists()


# Names of layers


ROWS = values(64, 8)


def multilayer(*names: str, weights: dict[str, Array] | None = None) -> Any:
    """A matrix product for each of `names`, all of one shape; `weights` names them in the order in which they run."""
    found = weights or {f"w{at}": values(8, 8, seed=at) for at in range(len(names))}
    tensors = ["x", *(f"t{at}" for at in range(1, len(names))), "y"]
    nodes = [
        helper.make_node("MatMul", [tensors[at], weight], [tensors[at + 1]], name=name)
        for at, (name, weight) in enumerate(zip(names, found, strict=True))
    ]
    return model_of(nodes, found, ROWS)


def recorded(folder: Path, model: Any) -> Path:
    onnx.save(model, folder / "float.onnx")
    return run_out(folder, ROWS, "spread")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("m3", "m6", "m9", "m12"), "m0 → m3, m3 → m6, m6 → m9, m9 → m12;"),
        (("m0", "m6", "m3", "m9"), "m3 → m6, m6 → m3;"),
        (("a", "b", "c", "d"), "m0 → a, m3 → b, m6 → c, m9 → d;"),
        (("m0", "m3", "m6", "last"), "m9 → last;"),
    ],
    ids=["shifted", "swapped", "renamed", "one"],
)
def test_layers_never_get_what_was_counted_of_others(
    names: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have the same weights, so the fingerprints of the models are equal: the names tell layers apart."""
    model, again = multilayer("m0", "m3", "m6", "m9"), multilayer(*names)
    assert fingerprint(again) == fingerprint(model)
    out, path = recorded(tmp_path, model), tmp_path / "again.onnx"
    onnx.save(again, path)
    words = (f"{out}: layers of {path} have weights that were recorded under other names (recorded → here):",)
    for how in (How(), How(other_weights=True)):
        one_line(lambda how=how: correct(path, out, None, bits=4, how=how), MismatchError, *words, said)
    store = tmp_path / "s.zarr"
    one_line(lambda: record(path, tmp_path / "x.npy", store, append=True), MismatchError, f"{store}: layers of", said)
    command = ["export", str(out), "-o", str(tmp_path / "ranges.json"), "--format", "onnxruntime", "--method", "minmax"]
    assert main([*command, "--model", str(path)]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ranges.json").exists()


def test_the_remedy_for_other_names_is_to_record_into_another_store(tmp_path: Path) -> None:
    recorded(tmp_path, multilayer("m0", "m3"))
    (tmp_path / "other").mkdir()
    out = recorded(tmp_path / "other", multilayer("m3", "m6"))
    assert all(each.corrected for each in correct(tmp_path / "other" / "float.onnx", out, None, bits=4).layers)


def test_equal_weights_belong_to_layers_by_name(tmp_path: Path) -> None:
    w = values(8, 8)
    model = multilayer("a", "b", "c", weights={"w": w, "v": w.copy(), "u": values(8, 8, seed=1)})
    out = recorded(tmp_path, model)
    assert all(each.corrected for each in correct(tmp_path / "float.onnx", out, None, bits=4).layers)


def test_weights_that_nobody_recorded_are_not_compared(tmp_path: Path) -> None:
    """A store that another program wrote knows neither the model nor its weights."""
    onnx.save(multilayer("m0", "m3"), tmp_path / "float.onnx")
    meter = Meter()
    for name in ("m0", "m3"):
        meter.append(name, ROWS)
    meter.save(tmp_path / "out")
    assert all(each.corrected for each in correct(tmp_path / "float.onnx", tmp_path / "out", None, bits=4).layers)


def gemms(*, swap: bool, share: bool, unused: bool) -> Any:
    w, zero = values(8, 8), np.zeros(8, np.float32)
    constants = {"w": w.T.copy() if swap else w, "v": values(8, 8, seed=1), "b": zero}
    constants |= ({} if share else {"c": zero}) | ({"unused": values(3, 3)} if unused else {})
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["t"], name="first", transB=int(swap)),
        helper.make_node("Gemm", ["t", "v", "b" if share else "c"], ["y"], name="second"),
    ]
    return model_of(nodes, constants, ROWS)


@pytest.mark.parametrize("what", ["swap", "share", "unused"])
def test_what_exporters_change_about_equal_layers_is_no_other_model(what: str, tmp_path: Path) -> None:
    """A matrix that lies the other way, equal biases that are one, and a constant that nothing reads."""
    plain = {"swap": False, "share": False, "unused": False}
    out = recorded(tmp_path, gemms(**plain))
    onnx.save(gemms(**plain | {what: True}), tmp_path / "again.onnx")
    assert all(each.corrected for each in correct(tmp_path / "again.onnx", out, None, bits=4).layers)


def test_a_bias_that_has_changed_makes_another_model(tmp_path: Path) -> None:
    """The inputs of later layers are others, although no weight of a layer has changed."""
    onnx.save(network(), tmp_path / "float.onnx")
    onnx.save(network(shift=values(4, seed=9)), tmp_path / "other.onnx")
    out = run_out(tmp_path, X)
    one_line(lambda: correct(tmp_path / "other.onnx", out, None, bits=4), MismatchError, "with other weights than")


def test_appending_other_layers_to_a_store_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path, multilayer("m0", "m3"))
    onnx.save(multilayer("a", "b", weights={"w": values(8, 8, seed=7), "v": values(8, 8, seed=8)}), tmp_path / "o.onnx")
    command = ["record", str(tmp_path / "o.onnx"), "--samples", str(tmp_path / "x.npy"), "--append"]
    command += ["-o", str(tmp_path / "s.zarr")]
    assert main(command) == 0
    said = f"warning: {tmp_path}/s.zarr holds none of these layers, only m0, m3; the layers of this model are"
    assert said in capsys.readouterr().err


def test_merging_swapped_layers_is_refused(tmp_path: Path) -> None:
    """The fingerprints of the models are equal; those of the weights of a layer are not."""
    for at, names in enumerate((("a", "b"), ("b", "a"))):
        onnx.save(multilayer(*names), tmp_path / f"{at}.onnx")
        np.save(tmp_path / f"{at}.npy", ROWS + at)
        measure(tmp_path / f"{at}.onnx", tmp_path / f"{at}.npy", tmp_path / f"out{at}")
    outs = [tmp_path / "out0", tmp_path / "out1"]
    one_line(lambda: merge(outs, tmp_path / "both"), MismatchError, "layer a", "the fingerprints of the weight are")


def test_an_export_names_tensors_as_the_model_does_that_is_given(tmp_path: Path) -> None:
    """Layers have the names that were recorded, but another export may name tensors anew."""
    model = multilayer("m0", "m3")
    out = recorded(tmp_path, model)
    for node, tensor in ((model.graph.node[0], "output"), (model.graph.node[1], "input")):
        getattr(node, tensor)[0] = "other"
    onnx.save(model, tmp_path / "again.onnx")
    command = ["export", str(out), "-o", str(tmp_path / "ranges.json"), "--format", "onnxruntime", "--method", "minmax"]
    main([*command, "--model", str(tmp_path / "again.onnx")])
    found = json.loads((tmp_path / "ranges.json").read_text())
    assert found["data"].keys() == {"x", "other"}


def test_layers_of_two_models_in_one_store_are_exported_with_the_model_of_each(tmp_path: Path) -> None:
    others = {"w": values(8, 8, seed=7), "v": values(8, 8, seed=8)}
    onnx.save(multilayer("d0", "d1", weights=others), tmp_path / "d.onnx")
    np.save(tmp_path / "x.npy", ROWS)
    record(tmp_path / "d.onnx", tmp_path / "x.npy", tmp_path / "s.zarr")
    out = recorded(tmp_path, multilayer("m0", "m3"))
    command = ["export", str(out), "-o", str(tmp_path / "ranges.json"), "--format", "onnxruntime", "--method", "minmax"]
    main([*command, "--model", str(tmp_path / "float.onnx"), "--layers", "m*"])
    assert json.loads((tmp_path / "ranges.json").read_text())["data"].keys() == {"x", "t1"}
