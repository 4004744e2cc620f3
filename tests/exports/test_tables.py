"""Tables for analysis: what standard readers find is what the statistics say, for any kind of statistic."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from safetensors import safe_open
from stores import build_store

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.outputs.results import open_results
from streamstats.statistics.kinds import KINDS

ALL = ("magnitude", "squares", "histogram", "spread", "gram")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    floats = random.normal(size=(30, 3)).astype("f4")
    floats[:, 2] = np.nan
    layers = {'b, "quoted"/floats': floats, "a/codes": np.rint(random.normal(size=(30, 4)) * 30).astype("i1")}
    attributes = {"a/codes": {"quantization": {"step": 0.02, "zero_point": 3}}}
    folder = tmp_path_factory.mktemp("run")
    build_store(folder / "s.zarr", layers, attributes=attributes)
    rules = [{"match": "a/*", "statistics": [*ALL]}, {"match": "*", "statistics": ["squares"]}]
    job = {"source": str(folder / "s.zarr"), "output": str(folder / "out"), "layers": rules, "nonfinite": "skip"}
    run(JobConfig.model_validate(job).job())
    return folder / "out"


def figures(out: Path) -> dict[str, Any]:
    results = open_results(out)
    return {layer: results.statistics(layer).figures() for layer in results.layers}


def expected_rows(out: Path) -> list[dict[str, Any]]:
    """layer, channel, and every figure of every statistic that is known."""
    rows = []
    for layer, found in figures(out).items():
        channels = len(next(iter(found.channels.values())))
        for channel in range(channels):
            row = {"layer": layer, "channel": channel, **{name: each[channel] for name, each in found.channels.items()}}
            rows.append({**row, **{f"layer_{name}": each for name, each in found.layer.items()}})
    return [{name: value for name, value in row.items() if value == value} for row in rows]


def test_csv_has_a_line_for_each_channel_with_all_figures(tmp_path: Path, out: Path) -> None:
    ss.export(out, "csv", tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["layer"], line["channel"]) for line in lines] == [
        *(("a/codes", str(channel)) for channel in range(4)),
        *(('b, "quoted"/floats', str(channel)) for channel in range(3)),
    ]
    for line, row in zip(lines, expected_rows(out), strict=True):
        assert (line.pop("layer_rows"), line.pop("layer_dtype")) in (("30", "int8"), ("30", "float32"))
        known = {name: text for name, text in line.items() if text}
        assert known.keys() == row.keys()
        assert {name: float(known[name]) for name in row if name != "layer"} == {  # the same floats, to the bit
            name: value for name, value in row.items() if name != "layer"
        }


def test_parquet_has_the_same_rows_with_types(tmp_path: Path, out: Path) -> None:
    ss.export(out, "parquet", tmp_path / "f.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet")
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    extra = [{name: row.pop(name) for name in ("layer_rows", "layer_dtype")} for row in rows]
    assert rows == expected_rows(out)
    assert {tuple(each.values()) for each in extra} == {(30, "int8"), (30, "float32")}
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["count"], types["mean"], types["layer"]) == ("int64", "double", "string")
    assert table.column_names[:2] == ["layer", "channel"]


def test_safetensors_has_every_figure_and_table(tmp_path: Path, out: Path) -> None:
    ss.export(out, "safetensors", tmp_path / "f.safetensors")
    with safe_open(tmp_path / "f.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        counted = json.loads(file.metadata()["layers"])
    assert counted["a/codes"]["rows"] == 30
    expected: dict[str, Any] = {}
    for layer, found in figures(out).items():
        expected |= {f"{layer}.{name}": each for name, each in found.channels.items()}
        expected |= {f"{layer}.layer_{name}": each for name, each in found.layer.items()}
        for name, table in found.tables.items():
            columns = zip(table.columns, np.array(table.rows).T, strict=True)
            expected |= {f"{layer}.{name}.{column}": each for column, each in columns}
    assert tensors.keys() == expected.keys()
    assert "a/codes.histogram.count" in expected
    for name, each in expected.items():
        assert np.array_equal(tensors[name], each, equal_nan=True), name


def test_json_has_the_document_of_each_layer(tmp_path: Path, out: Path) -> None:
    ss.export(out, "json", tmp_path / "f.json", layers="a/*", names={"a/codes": "renamed"})
    document = json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)
    assert document["format"] == "streamstats-figures/1"
    found, layer = figures(out)["a/codes"], document["layers"]["renamed"]
    assert layer["per_channel"] == {name: each.tolist() for name, each in found.channels.items()}
    assert layer["tables"].keys() == found.tables.keys()
    assert layer["rows"] == 30


def test_the_tables_have_every_kind_that_needs_no_kernel_and_an_unknown_figure(out: Path) -> None:
    kinds = {kind for each in open_results(out).layers for kind in open_results(out).statistics(each).statistics}
    assert kinds == {name for name, kind in KINDS.items() if not kind.uses_kernel}
    unknown = figures(out)['b, "quoted"/floats'].channels["mean"][2]
    assert math.isnan(unknown)
