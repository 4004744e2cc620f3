"""Measuring while the model runs: the statistics are, to the bit, those of recording and running."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import Network

from streamstats.cli import main
from streamstats.config import JobConfig
from streamstats.errors import MismatchError, NonFiniteError, UsageError
from streamstats.jobs.compare import compare
from streamstats.jobs.merge import merge
from streamstats.jobs.run import run
from streamstats.models.onnx import record as recording
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.record import measure, record

STATISTICS = ["magnitude", "squares", "histogram", "spread", "taps"]


def test_measuring_gives_the_bits_of_recording_and_running(network: Network, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", network.x)
    record(network.path, tmp_path / "x.npy", tmp_path / "store", batch_size=3)
    source, output = str(tmp_path / "store"), str(tmp_path / "out")
    expected = run(JobConfig(source=source, output=output, statistics=STATISTICS).job()).statistics
    _, found = measure(network.path, tmp_path / "x.npy", tmp_path / "measured", statistics=STATISTICS, batch_size=4)
    assert found.keys() == expected.keys()
    for layer, each in found.items():
        assert each.statistics == expected[layer].statistics
        assert each.rows == expected[layer].rows
    assert all(layer.equal for layer in compare(tmp_path / "out", tmp_path / "measured").layers)
    for output in (tmp_path / "out", tmp_path / "measured"):
        correct(network.path, output, tmp_path / f"{output.name}.onnx", bits=4)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "measured.onnx").read_bytes()


def test_the_command_prints_what_was_measured(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", network.x)
    arguments = ["measure", str(network.path), "--samples", str(tmp_path / "x.npy"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--json", "--statistics", "squares"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert all(layer["statistics"] == ["mean", "extrema", "squares"] for layer in layers.values())
    assert main(arguments) == 2
    assert "holds other results; choose another folder" in capsys.readouterr().err


def test_what_cannot_be_measured_is_said_and_nothing_is_written(network: Network, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", network.x)
    with pytest.raises(UsageError, match="statistics nothing are unknown"):
        measure(network.path, tmp_path / "x.npy", tmp_path / "out", statistics=["nothing"])
    bad = network.x.copy()
    bad[1].flat[0] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(NonFiniteError, match="row 1"):
        measure(network.path, tmp_path / "bad.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_is_refused_before_the_model_runs(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", network.x)
    measure(network.path, tmp_path / "x.npy", tmp_path / "out")
    monkeypatch.setattr(recording, "visit_rows", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UsageError, match="holds other results"):
        measure(network.path, tmp_path / "x.npy", tmp_path / "out")


def test_the_same_samples_are_merged_once_whatever_their_name(network: Network, tmp_path: Path) -> None:
    for name, x in (("a", network.x), ("b", network.x), ("c", network.x + 1)):
        np.save(tmp_path / f"{name}.npy", x)
        measure(network.path, tmp_path / f"{name}.npy", tmp_path / name)
    with pytest.raises(MismatchError, match=r"are counted in .*, too"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    merged = merge([tmp_path / "a", tmp_path / "c"], tmp_path / "merged")
    assert {found.rows for found in merged.values()} == {2 * len(network.x)}
