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
from streamstats.cli.parser import make_parser
from streamstats.exports.exporting import FORMATS


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
    done = streamstats("export", out, "--format", "csv", "-o", "f.csv", "--layer", "a", "--json", folder=tmp_path)
    assert json.loads(done.stdout) == {"file": "f.csv", "layers": {"a": "a"}, "notes": [], "missing": []}


BAD = {
    "no method": (["--format", "aimet"], "choose how to find it (--method)"),
    "no method, but bits": (["--format", "aimet", "--bits", "4"], "go with --method; add it, or leave them out"),
    "two namings": (["--format", "csv", "--names", "n", "--model", "m"], "not allowed with argument"),
    "names": (["--format", "csv", "--names", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    "model": (["--format", "csv", "--model", "nowhere.onnx"], "cannot read the ONNX model nowhere.onnx"),
    "colon": (["--format", "tensorrt", "--method", "minmax"], "add --symmetric"),
    "squares": (["--format", "imatrix"], "`squares` was not counted for a, block/b; add `statistics: [squares]`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_the_reason_and_status_2(tmp_path: Path, out: Path, case: str) -> None:
    options, message = BAD[case]
    done = streamstats("export", out, "-o", "file", *options, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_format_and_an_example() -> None:
    shown = streamstats("export", "--help").stdout
    assert "  streamstats export out --format csv" in shown
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    (choice,) = (each for each in commands.choices["export"]._actions if each.dest == "format")
    assert tuple(choice.choices or ()) == FORMATS
    for name in FORMATS:
        assert f" {name} " in shown.replace("\n", " ")
