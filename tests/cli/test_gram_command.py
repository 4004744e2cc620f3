"""`streamstats gram`, as a person or a script meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from quantizing import output_of
from test_cli import one_line, streamstats

import streamstats as ss
from streamstats.cli import main
from streamstats.exports.exporting import export


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).normal(size=(60, 5)).astype("f4")
    values[:, 2], values[:, 4] = 1.5, -2 * values[:, 1]
    samples = np.random.default_rng(1).integers(-9, 9, (20, 4, 4, 12)).astype("i1")
    numbers = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "output_padding": [0, 0], "transposed": False}
    attributes = {"depthwise": {"kernel": {"taps": [2, 2], "groups": 12, **numbers}}}
    layers = {"block/fc": values, "depthwise": samples}
    return output_of(tmp_path_factory.mktemp("run"), layers, attributes=attributes, statistics=("gram",))


def test_a_table_names_dead_and_duplicate_channels(out: Path) -> None:
    done = streamstats("gram", out, "block/fc")
    assert done.returncode == 0, done.stderr
    heading, line, *names = done.stdout.splitlines()
    assert heading.split()[:4] == ["group", "columns", "rank", "effective"]
    assert line.split()[:3] == ["0", "5", "3"]
    assert line.split()[-2:] == ["1", "1"]
    assert "≥" in line
    assert names == ["dead: channel 2", "duplicates: channel 4 of channel 1, negated"]
    assert one_line(done.stderr) == "streamstats: figures of the covariance over 60 positions"


def test_json_has_every_group_and_a_table_the_worst_first(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gram", str(out), "depthwise", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(json.dumps(ss.LayerSpectrum.of(ss.load(out)["depthwise"]).document()))
    assert sorted(each["group"] for each in document["groups"]) == [*range(12)]
    assert main(["gram", str(out), "depthwise"]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()[1:]]
    assert [int(line[0]) for line in lines] == [each["group"] for each in document["groups"][:8]]
    said = "12 groups, of which the worst 8 are shown (all: --json): 0 without full rank; 0 dead columns and 0"
    assert f"streamstats: {said} duplicate columns in all" in printed.err


def test_plots_go_to_a_file_or_the_terminal(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gram", str(out), "block/fc", "--plot", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"streamstats: wrote {tmp_path / 'p.png'}" in printed.err
    assert main(["gram", str(out), "block/fc", "--plot"]) == 0
    assert capsys.readouterr().out.startswith("block/fc\neigenvalues of the covariance; rank 3 of 5, 60 positions\n")


BAD = {
    "both": (["block/fc", "--plot", "--json"], "--plot and --json cannot be combined; choose one"),
    "suffix": (["block/fc", "--plot", "p.pdf"], "p.pdf has the suffix '.pdf'; expected '.png' or '.svg'"),
    "layer": (["fc"], "has no layer 'fc'; it has block/fc, depthwise"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_requests_get_the_reason_and_status_2(
    out: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gram", str(out), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""


def test_hessians_are_exported_as_in_python(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--format", "hessians", "--damp", "0.01", "--dtype", "float64", "-o", str(tmp_path / "h")]
    assert main(["export", str(out), *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [["block.fc", "block/fc"], ["depthwise", "depthwise"]]
    export(out, "hessians", tmp_path / "python", damp=0.01, dtype="float64")
    assert (tmp_path / "python").read_bytes() == (tmp_path / "h").read_bytes()
