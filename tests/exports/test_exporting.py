"""Exporting, whatever the format: names, requests that cannot be met, and what is written or left alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantizing import output_of

import streamstats as ss
from streamstats.config import load_names
from streamstats.errors import MissingDependencyError, UsageError
from streamstats.exports.exporting import FORMATS, OF_RANGES

MINMAX = ss.RangeChoice("minmax", symmetric=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(0).normal(size=(20, 3)).astype("f4")
    layers = {"a/q": values, "a/k": values, "b": values * 2, "dead": np.full((20, 3), np.nan, "f4")}
    folder = tmp_path_factory.mktemp("run")
    return output_of(folder, layers, statistics=("squares", "gram"), nonfinite="skip")


def names_in(path: Path) -> set[str]:
    return set(json.loads(path.read_text())["data"])


def test_names_come_from_the_user_or_from_the_layers(tmp_path: Path, out: Path) -> None:
    names = {"a/q": ["t1", "t2"], "a/k": None}
    written = ss.export(out, "onnxruntime", tmp_path / "c.json", names=names, ranges=MINMAX)
    assert written.layers == {"b": "b", "t1": "a/q", "t2": "a/q"}
    assert names_in(tmp_path / "c.json") == written.layers.keys()


def test_layers_that_read_one_tensor_are_one_entry(tmp_path: Path, out: Path) -> None:
    written = ss.export(out, "onnxruntime", tmp_path / "c.json", names={"a/q": "x", "a/k": "x"}, ranges=MINMAX)
    assert set(written.layers) == {"b", "x"}
    with pytest.raises(UsageError, match="layers a/k and b are both called x, but their statistics differ"):
        ss.export(out, "onnxruntime", tmp_path / "d.json", names={"a/k": "x", "b": "x"}, ranges=MINMAX)


@pytest.mark.parametrize("file_format", OF_RANGES)
def test_a_layer_without_values_is_left_out_and_named(tmp_path: Path, out: Path, file_format: str) -> None:
    written = ss.export(out, file_format, tmp_path / "file", ranges=MINMAX)
    assert written.notes == ("left out, because they have no finite value: dead",)
    with pytest.raises(UsageError, match="no layer that is exported has a finite value"):
        ss.export(out, file_format, tmp_path / "other", layers="dead", ranges=MINMAX)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_output_gives_the_same_bytes_without_paths(tmp_path: Path, out: Path, file_format: str) -> None:
    contents = []
    for name in ("1", "2"):
        ss.export(out, file_format, tmp_path / name, ranges=MINMAX if file_format in OF_RANGES else None)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert str(out.parent).encode() not in contents[0]


def test_statistics_that_were_measured_without_a_store_are_exported(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 3)).astype("f4")
    meter = ss.Meter(["squares"], name="s.zarr")
    meter.append("b", values)
    meter.save(tmp_path / "metered")
    out = output_of(tmp_path, {"b": values}, statistics=("squares",))
    for file_format in ("imatrix", "csv"):
        ss.export(tmp_path / "metered", file_format, tmp_path / "1")
        ss.export(out, file_format, tmp_path / "2")
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"file_format": "tflite"}, f"the format is 'tflite'; expected one of {', '.join(FORMATS)}"),
    "no ranges": ({"file_format": "aimet"}, "the aimet file holds a range for each layer; choose how to find it: with"),
    "ranges": ({"file_format": "csv", "ranges": MINMAX}, "the csv file holds no ranges; leave out the method, or"),
    "version": ({"file_format": "csv", "encoding_version": "1.0.0"}, "goes with aimet, not with csv"),
    "merge": ({"file_format": "csv", "merge": "x"}, "merging a file goes with imatrix, not with csv"),
    "method": ({"ranges": "best"}, "the method is 'best'; expected one of minmax"),
    "histogram": ({"ranges": ss.RangeChoice("mse")}, "no histogram was counted; add `statistics: [histogram]`"),
    "layer": ({"ranges": MINMAX, "layers": "z*"}, "has no layer that matches 'z*'"),
    "name": ({"ranges": MINMAX, "names": {"z": "y"}}, "names for layers that are not exported: z"),
    "empty name": ({"ranges": MINMAX, "names": {"b": ""}}, "layer b has an empty name; expected text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_cannot_be_met_gets_the_reason(tmp_path: Path, out: Path, case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(UsageError, match=re.escape(message)):
        ss.export(out, **({"file_format": "onnxruntime", "path": tmp_path / "file"} | options))
    assert list(tmp_path.iterdir()) == []


def test_a_choice_of_ranges_is_checked_at_once() -> None:
    with pytest.raises(UsageError, match=r"the method is 'msee'; expected one of .*; did you mean mse"):
        ss.RangeChoice("msee")
    with pytest.raises(UsageError, match="bits is 17; expected an integer from 2 to 16"):
        ss.RangeChoice("minmax", 17)


def test_a_method_is_a_choice_of_ranges(tmp_path: Path, out: Path) -> None:
    ss.export(out, "aimet", tmp_path / "1", ranges="minmax")
    ss.export(out, "aimet", tmp_path / "2", ranges=ss.RangeChoice("minmax"))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "state/b.safetensors", "correctors/new"])
def test_results_are_never_overwritten(out: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="would be among the results"):
        ss.export(out, "json", out / name)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("file_format", "library"), [("imatrix", "gguf"), ("parquet", "parquet")])
def test_a_missing_library_is_named_with_the_extra(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, {"parquet": "pyarrow"}.get(library, library), None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'streamstats-calibration\[{library}\]'"):
        ss.export(out, file_format, tmp_path / "file", layers="b")


def test_names_are_read_from_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text("a/q: x\na/k: [y, z]\nb: null\n")
    (tmp_path / "n.json").write_text('{"a/q": "x", "a/k": ["y", "z"], "b": null}')
    expected = {"a/q": "x", "a/k": ["y", "z"], "b": None}
    assert load_names(tmp_path / "n.yaml") == load_names(tmp_path / "n.json") == expected


@pytest.mark.parametrize("text", ["", "- a\n", "a: 3\n", "1: a\n", "a: [b, 1]\n", "a: {b: c}\n"])
def test_names_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"n\.yaml: .*expected"):
        load_names(tmp_path / "n.yaml")
