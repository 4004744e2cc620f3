"""Layers are shown as they were recorded: in the order of the network, not of the alphabet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import build_store

import streamstats as ss
from streamstats.cli import main
from streamstats.jobs.merge import merge
from streamstats.jobs.status import status

NETWORK = ["stem", "block2", "block10", "head"]


def recorded(store: Path, names: list[str]) -> Path:
    with ss.Recorder(store) as recorder:
        for _ in range(3):
            for name in names:
                recorder.append(name, np.ones((2, 3), np.float32))
    return store


def test_runs_show_layers_as_they_were_recorded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert [*ss.reduce(recorded(tmp_path / "s.zarr", NETWORK))] == NETWORK
    ss.run(ss.Job(str(tmp_path / "s.zarr"), str(out)))
    assert [*ss.load(out)] == NETWORK
    assert [each.layer for each in status(out).layers] == NETWORK
    (out / "manifest.json").unlink()
    assert [each.layer for each in status(out).layers] == NETWORK


def test_the_order_survives_appending_and_merging(tmp_path: Path) -> None:
    recorded(recorded(tmp_path / "a.zarr", NETWORK), NETWORK[::-1])
    recorded(tmp_path / "b.zarr", NETWORK[1:])
    for name in "ab":
        ss.run(ss.Job(str(tmp_path / f"{name}.zarr"), str(tmp_path / name)))
    merged = merge([tmp_path / "b", tmp_path / "a"], tmp_path / "both")
    assert [*merged] == NETWORK
    assert [*ss.load(tmp_path / "both")] == NETWORK


def test_a_meter_has_the_order_of_its_calls(tmp_path: Path) -> None:
    meter = ss.Meter()
    for name in NETWORK:
        meter.append(name, np.ones((2, 3), np.float32))
    meter.save(tmp_path / "out")
    assert [*meter.statistics] == [*ss.load(tmp_path / "out")] == NETWORK


def test_other_stores_are_sorted_by_name_with_numbers_by_value(tmp_path: Path) -> None:
    build_store(tmp_path / "s.zarr", {name: np.ones((2, 3)) for name in NETWORK})
    assert [*ss.reduce(tmp_path / "s.zarr")] == ["block2", "block10", "head", "stem"]


def test_the_command_line_prints_that_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"source: {recorded(tmp_path / 's.zarr', NETWORK)}\noutput: {tmp_path}/out\n")
    assert main(["run", str(tmp_path / "run.yaml"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[1:]] == NETWORK
    assert printed.err.startswith("streamstats: wrote ")
