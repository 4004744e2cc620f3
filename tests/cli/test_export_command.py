"""`streamstats export`, as a person or a script meets it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from quantizing import output_of
from test_cli import one_line, streamstats

import streamstats as ss
from streamstats.cli import main
from streamstats.cli.parser import make_parser
from streamstats.exports.exporting import FORMATS
from streamstats.exports.imatrix import read_imatrix


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).normal(size=(30, 3)).astype("f4")
    return output_of(tmp_path_factory.mktemp("run"), {"a": values, "block/b": values * 2})


def test_the_file_is_that_of_python_and_a_table_shows_the_names(tmp_path: Path, out: Path) -> None:
    (tmp_path / "n.yaml").write_text("a: input.1\n")
    options = ["--method", "percentile", "--percentile", "99", "--bits", "4", "--codes", "signed", "--names", "n.yaml"]
    done = streamstats("export", out, "--format", "aimet", "-o", "e.json", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [["block/b", "block/b"], ["input.1", "a"]]
    assert one_line(done.stderr) == "streamstats: wrote e.json"
    choice = ss.RangeChoice("percentile", 4, signed=True, percentile=99)
    ss.export(out, "aimet", tmp_path / "python.json", names={"a": "input.1"}, ranges=choice)
    assert (tmp_path / "python.json").read_bytes() == (tmp_path / "e.json").read_bytes()


def test_json_says_what_was_written(tmp_path: Path, out: Path) -> None:
    done = streamstats("export", out, "--format", "csv", "-o", "f.csv", "--layers", "a", "--json", folder=tmp_path)
    assert json.loads(done.stdout) == {"file": "f.csv", "layers": {"a": "a"}, "notes": [], "missing": []}


BAD = {
    "no method": (["--format", "aimet"], "choose how to find it: with --method, or"),
    "no method, but bits": (
        ["--format", "aimet", "--bits", "4"],
        "found --bits, but no --method; add --method, or leave",
    ),
    "no ranges, but bits": (["--format", "csv", "--bits", "4"], "the csv file holds no ranges; leave out --bits, or"),
    "another percentile": (
        ["--format", "aimet", "--method", "mse", "--percentile", "99"],
        "--percentile is 99, but --method is mse; choose --method percentile, or leave --percentile out",
    ),
    "two namings": (["--format", "csv", "--names", "n", "--model", "m"], "not allowed with argument"),
    "names": (["--format", "csv", "--names", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    "model": (["--format", "csv", "--model", "nowhere.onnx"], "cannot read the ONNX model nowhere.onnx"),
    "its own names": (["--format", "csv", "--names", "file"], "file is both the input and the output"),
    "codes": (["--format", "tensorrt", "--method", "minmax"], "--bits 8 --symmetric --codes signed"),
    "squares": (["--format", "imatrix"], "`squares` was not counted for a, block/b; add `statistics: [squares]`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_the_reason_and_status_2(
    tmp_path: Path, out: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert status_of("export", str(out), "-o", "file", *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def status_of(*arguments: str) -> object:
    """The exit status, in this process."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def test_an_earlier_imatrix_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = output_of(tmp_path, {"a": np.ones((4, 3), "f4")}, statistics=("squares",))
    monkeypatch.chdir(tmp_path)
    command = ["export", str(out), "--format", "imatrix", "-o"]
    assert main([*command, "1.gguf"]) == 0
    assert main([*command, "2.gguf", "--merge", "1.gguf"]) == 0
    assert read_imatrix("2.gguf").entries["a.weight"].counts.tolist() == [8]


def test_a_version_of_encodings_is_chosen(tmp_path: Path, out: Path) -> None:
    command = ["export", str(out), "--format", "aimet", "--method", "minmax", "--encoding-version", "2.0.0", "-o"]
    assert main([*command, str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["version"] == "2.0.0"


def test_the_help_names_every_format_and_an_example() -> None:
    shown = streamstats("export", "--help").stdout
    assert "  streamstats export out --format csv" in shown
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    (choice,) = (each for each in commands.choices["export"]._actions if each.dest == "format")
    assert tuple(choice.choices or ()) == FORMATS
    for name in FORMATS:
        assert f" {name} " in shown.replace("\n", " ")
