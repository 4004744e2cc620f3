"""What `status` says of rows that a job leaves out, and of the stores of merged results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stores import build_store, samples

import streamstats as ss
from streamstats.cli import main


def test_status_says_which_rows_the_job_is_limited_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build_store(tmp_path / "s.zarr", {"conv": samples(10, 3)})
    ss.run(ss.Job("s.zarr", "out", rows=(6, None)))
    assert main(["status", "out"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^conv +4 +6: +none +none", shown.out, re.MULTILINE)
    assert "note: `rows` limits the job to rows 6:; others are neither counted nor missing" in shown.err
    assert main(["status", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [6, None]


def test_status_of_merged_results_says_what_is_excluded_of_each_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", 9), ("b", 7)):
        build_store(tmp_path / f"{name}.zarr", {"conv": samples(rows, 3, seed=rows)})
        ss.run(ss.Job(f"{name}.zarr", name))
    ss.forget(ss.Job("a.zarr", "a"), (8, None))
    ss.merge(["a", "b"], "all")
    assert main(["status", "all"]) == 0
    said = capsys.readouterr().err
    assert "conv: counted rows: " in said
    assert "one store 0:8 of 9 (8:9 excluded)" in said
    assert "one store 0:7 of 7" in said
