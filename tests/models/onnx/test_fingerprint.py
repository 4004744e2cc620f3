"""What was recorded of one model is not used for another: the store, the state and the manifest say which it was."""

from __future__ import annotations

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
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.fingerprint import fingerprint
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
        *("layer first", "retrained.onnx", fingerprint(model)[:17], fingerprint(other)[:17], "--other-weights"),
    )
    assert not target.exists()
    correct(tmp_path / "float.onnx", out, target, bits=4)
    done = correct(tmp_path / "retrained.onnx", out, target, bits=4, how=How(other_weights=True))
    assert any(each.corrected for each in done.layers)


def test_the_command_line_refuses_and_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "float.onnx")
    onnx.save(retrained(), tmp_path / "retrained.onnx")
    out = run_out(tmp_path, X)
    command = ["report", str(out), "--model", str(tmp_path / "retrained.onnx"), "--bits", "4"]
    assert main(command) != 0
    assert "add --other-weights" in capsys.readouterr().err
    assert main([*command, "--other-weights"]) == 0


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


def test_a_merged_output_names_both_models(tmp_path: Path) -> None:
    paths = []
    for name, model, x in (("one", network(), X), ("other", retrained(), X + 1)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        np.save(tmp_path / f"{name}.npy", x)
        paths.append(tmp_path / f"{name}.onnx")
        measure(paths[-1], tmp_path / f"{name}.npy", tmp_path / name)
    merge([tmp_path / "one", tmp_path / "other"], tmp_path / "both")
    expected = sorted(fingerprint(onnx.load(path)) for path in paths)
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
