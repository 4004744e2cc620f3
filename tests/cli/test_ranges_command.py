"""`streamstats ranges`, as a person or a script meets it."""

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
from streamstats.ranges.finding import METHODS


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    layers = {
        "block/floats": random.normal(size=(30, 8)).astype("f4"),
        "block/codes": np.rint(random.normal(size=(30, 8)) * 30).astype("i1"),
    }
    attributes = {"block/codes": {"quantization": {"step": 0.02, "zero_point": 3}}}
    return output_of(tmp_path_factory.mktemp("ranges"), layers, attributes=attributes)


def test_a_table_has_a_line_for_each_layer(out: Path) -> None:
    done = streamstats("ranges", out, "--method", "mse", "--bits", "4")
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["layer", "method", "low", "high", "step", "zero", "point", "MSE", "SQNR", "dB"]
    assert [line.split()[:2] for line in lines] == [["block/codes", "mse"], ["block/floats", "mse"]]
    found = ss.find_ranges(out, "mse", 4)["block/floats"]
    assert lines[1].split()[2] == f"{found.ranges[0].low:.6g}"
    assert one_line(done.stderr) == "streamstats: codes 0 to 15; real values are (code - zero point) * step"


def test_methods_are_compared_side_by_side(out: Path) -> None:
    done = streamstats("ranges", out, "--compare", "--layers", "*/floats", "--codes", "signed")
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["block/floats", each] for each in METHODS]
    assert "codes -128 to 127" in done.stderr


def test_each_channel_has_a_line(out: Path) -> None:
    done = streamstats("ranges", out, "--method", "minmax", "--per-channel", "--symmetric")
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        [layer, str(channel)] for layer in ("block/codes", "block/floats") for channel in range(8)
    ]
    assert {line[6] for line in lines} == {"0"}
    assert "-" not in [cell for line in lines[:8] for cell in line]
    steps = [float(line[5]) for line in lines[8:]]  # floats are not counted per channel: half a step is certain
    assert [line[7] for line in lines[8:]] == ["≤"] * 8
    assert [float(line[8]) for line in lines[8:]] == pytest.approx([(step / 2) ** 2 for step in steps], rel=1e-4)
    assert [line[9:] for line in lines[8:]] == [["-"]] * 8
    said = done.stderr.splitlines()[-1]
    assert said.startswith("streamstats: ≤ and ≥ are bounds, from the extrema and, if counted, `squares`; for block/")
    assert "the histogram of float32 values covers all channels together" in said


def test_json_has_every_number(out: Path) -> None:
    done = streamstats("ranges", out, "--compare", "--bits", "5", "--percentile", "99", "--symmetric", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    layers = json.loads(done.stdout)["layers"]
    assert list(layers) == ["block/codes", "block/floats"]
    for method in METHODS:
        found = ss.find_ranges(out, method, 5, symmetric=True, percentile=99)
        assert {layer: layers[layer][method] for layer in layers} == {
            layer: each.document() for layer, each in found.items()
        }


def test_a_picture_is_written(tmp_path: Path, out: Path) -> None:
    for picture, start in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        layer = "*/floats" if picture == "p.png" else "*/codes"
        done = streamstats("ranges", out, "--compare", "--layers", layer, "--plot", tmp_path / picture)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / picture).read_bytes().startswith(start)


BAD = {
    "no method": ([], "one of the arguments --method --compare is required"),
    "two": (["--method", "mse", "--compare"], "not allowed with argument"),
    "bits": (["--compare", "--bits", "17"], "bits is 17; expected an integer from 2 to 16"),
    "percentile": (["--method", "percentile", "--percentile", "3"], "the percentile is 3; expected"),
    "another percentile": (
        ["--method", "mse", "--percentile", "99"],
        "--percentile is 99, but --method is mse",
    ),
    "layer": (["--compare", "--layers", "conv"], "no layer that matches 'conv'; it has block/codes, block/floats"),
    "floats per channel": (["--compare", "--per-channel"], "layer block/floats: percentile, mse, entropy: the histo"),
    "a picture of two layers": (["--compare", "--plot", "p.svg"], "--plot shows one layer"),
    "a picture of channels": (
        ["--compare", "--plot", "p.svg", "--per-channel", "--layers", "*/codes"],
        "--plot shows one layer without --per-channel",
    ),
    "a picture of another kind": (["--compare", "--plot", "p.gif", "--layers", "*/codes"], "expected '.png' or '.svg'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_the_reason_and_status_2(tmp_path: Path, out: Path, case: str) -> None:
    options, message = BAD[case]
    done = streamstats("ranges", out, *options, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_layer_without_a_histogram_is_named_with_the_remedy(tmp_path: Path) -> None:
    bare = output_of(tmp_path, {"conv": np.ones((4, 3), "f4")}, statistics=())
    done = streamstats("ranges", bare, "--compare")
    assert done.returncode == 2
    assert "layer conv: " in one_line(done.stderr)
    assert "`statistics: [histogram]`" in done.stderr
    assert "--restart" in done.stderr
    assert streamstats("ranges", bare, "--method", "minmax").returncode == 0


def test_the_help_names_every_method_and_an_example() -> None:
    shown = streamstats("ranges", "--help").stdout
    assert "  streamstats ranges out --compare" in shown
    (commands,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    (method,) = (each for each in commands.choices["ranges"]._actions if each.dest == "method")
    assert tuple(method.choices or ()) == METHODS
    for name in METHODS:
        assert f"\n  {name} " in shown
