"""`streamstats compare`: its table, its JSON, and the exit status that a nightly job acts on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from stores import Array, build_store

from streamstats.cli import compare_command, main
from streamstats.config import JobConfig
from streamstats.jobs.run import run


def reduced(folder: Path, layers: dict[str, Array], *statistics: str) -> str:
    store = build_store(folder / "s.zarr", layers)
    run(JobConfig(source=str(store), output=str(folder / "out"), statistics=list(statistics)).job())
    return str(folder / "out")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("outputs")
    random = np.random.default_rng(0)
    layers = {name: random.normal(size=(32, 4)).astype("float32") for name in ("a", "b")}
    moved = {"a": layers["a"], "b": layers["b"] + np.array([0, 0, 2, 0], np.float32)}
    kinds = ("spread", "histogram")
    return {
        "first": reduced(folder / "first", layers, *kinds),
        "again": reduced(folder / "again", layers, *kinds),
        "moved": reduced(folder / "moved", moved, *kinds),
        "plain": reduced(folder / "plain", layers),
        "plain moved": reduced(folder / "plain-moved", moved),
        "fewer": reduced(folder / "fewer", {"a": layers["a"]}, *kinds),
        "folder": str(folder),
    }


def test_equal_outputs_say_so_and_end_with_0(outputs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", outputs["first"], outputs["again"], "--threshold", "0"]) == 0
    shown = capsys.readouterr()
    assert "2 layers: equal to the bit; both outputs cover rows of the same numbers, of different stores" in shown.err
    assert [line.split()[0] for line in shown.out.splitlines()] == ["layer", "a", "b"]
    assert shown.out.count("nothing") == 2


def test_the_worst_layer_comes_first_with_its_channel(
    outputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", outputs["first"], outputs["moved"]]) == 0
    shown = capsys.readouterr()
    line = shown.out.splitlines()[1]
    assert re.match(
        r"b +32 +[\d.]+ std\. errors +2 +\+[\d.]+% +0\.\d+ +0\.\d+ +mean, extrema, histogram, spread$", line
    )
    assert "1 of 2 layers differs; both outputs cover rows of the same numbers, of different stores" in shown.err


def test_quantisations_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes, outputs = np.arange(24, dtype="int8").reshape(4, 6), []
    for name, step in (("one", 0.5), ("two", [0.25, 1, 1, 1, 1, 2])):
        attributes = {"a": {"quantization": {"step": step, "zero_point": -128}}}
        store = build_store(tmp_path / name / "s.zarr", {"a": codes}, attributes=attributes)
        outputs.append(str(tmp_path / name / "out"))
        run(JobConfig(source=str(store), output=outputs[-1]).job())
    assert main(["compare", *outputs]) == 0
    said = "quantisation step 0.5, zero point -128 and step [0.25, 1.0, … 4 more], zero point -128"
    assert said in capsys.readouterr().out
    assert main(["merge", *outputs, "-o", str(tmp_path / "all")]) == 2
    said = "quantisation step 0.5, zero point -128 and step [0.25, 1.0, 1.0, 1.0, 1.0, 2.0], zero point -128; expected"
    assert said in capsys.readouterr().err


CASES = {
    "drift": ("first", "moved", "5", 3, r"layer b has drifted: the means of channel 2 differ by [\d.]+ std\. errors"),
    "less than the threshold": (
        *("first", "moved", "100", 0),
        r"no layer has drifted: the means differ by at most [\d.]+ std\. errors; --threshold is 100",
    ),
    "by the range": ("plain", "plain moved", "20", 3, r"the means of channel 2 differ by [\d.]+% of range"),
    "less than that of the range": ("plain", "plain moved", "60", 0, r"at most [\d.]+% of range"),
    "one has no spread": ("plain", "moved", "99", 3, r"only OUT2 counted `spread`, and .* by [\d.]+% of range"),
    "one has no spread, which is not a small drift": (
        "first",
        "plain",
        "99",
        3,
        "layer a .*: only OUT1 counted `spread`",
    ),
    "no drift at all": ("first", "again", "5", 0, "no layer has drifted: the means differ by at most 0;"),
    "a layer is gone": ("first", "fewer", "5", 3, "layer b has drifted: it is only in OUT1; --threshold is 5"),
    "a negative threshold": ("first", "again", "-1", 2, "--threshold is -1; expected"),
    "no number": ("first", "again", "nan", 2, "--threshold is nan; expected"),
    "no output": ("first", "folder", "5", 2, "has no manifest.json; expected the output folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_threshold_decides_the_exit_status(
    outputs: dict[str, str], capsys: pytest.CaptureFixture[str], case: str
) -> None:
    first, second, threshold, status, said = CASES[case]
    assert main(["compare", outputs[first], outputs[second], "--threshold", threshold]) == status
    assert re.search(said, capsys.readouterr().err)


def test_json_is_complete(outputs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", outputs["first"], outputs["moved"], "--json", "--threshold", "5", "--layers", "b"]
    assert main(arguments) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["threshold"], document["beyond_threshold"]) == (5, ["b"])
    assert (document["first"], document["second"]) == (outputs["first"], outputs["moved"])
    (layer,) = document["layers"]
    assert layer["differing"] == ["mean", "extrema", "histogram", "spread"]
    assert layer["apart"]["worst_mean"]["channel"] == 2


def test_of_jobs_only_what_is_compared_is_downloaded(
    outputs: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_command, "client_of", lambda _: Serving(Path(outputs["first"])))
    assert main(["compare", "0" * 16, "1" * 16]) == 0
    assert "equal to the bit" in capsys.readouterr().err


class Serving:
    """A client of a service, all of whose jobs have the results in `folder`. Only statistics are asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fetch(self, _job: str, folder: Path, *, files: Sequence[str]) -> None:
        for path in filter(Path.is_file, self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if any(fnmatchcase(name, glob) for glob in files):
                assert name.startswith(("manifest.json", "state/")), name
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / name)


def test_what_describes_a_layer_differently_is_shown(
    outputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", outputs["first"], outputs["plain"], "--layers", "a"]) == 0
    assert "statistics mean + extrema + histogram + spread and mean + extrema" in capsys.readouterr().out
