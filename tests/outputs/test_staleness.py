"""Merged results say so once their parts have changed: rows that were forgotten there are still counted here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from stores import build_store, samples

import streamstats as ss
from streamstats.cli import main
from streamstats.jobs.forget import forget
from streamstats.jobs.merge import merge
from streamstats.jobs.status import status

READERS = [["inspect"], ["ranges", "--method", "minmax"], ["report"]]


@pytest.fixture
def jobs(tmp_path: Path) -> list[ss.Job]:
    found = []
    for seed, name in enumerate("ab"):
        store = build_store(tmp_path / f"{name}.zarr", {"layer": samples(20, 3, seed=seed)})
        found.append(ss.Job(str(store), str(tmp_path / name)))
        ss.run(found[-1])
    return found


def test_what_merged_results_lack_comes_from_another_merge(
    jobs: list[ss.Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = [replace(jobs[0], rows=rows, output=str(tmp_path / f"{rows[0]}")) for rows in ((0, 5), (10, 15))]
    for job in ranges:
        ss.run(job)
    merge([Path(job.output) for job in ranges], tmp_path / "merged")
    assert main(["status", str(tmp_path / "merged")]) == 3
    assert "then run in the outputs that were merged, and merge them again" in capsys.readouterr().err


def test_it_is_stale_once_rows_of_a_part_are_forgotten(
    jobs: list[ss.Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    merge([Path(job.output) for job in jobs], merged)
    ss.run(jobs[0])  # counts nothing new
    assert status(merged).complete
    forget(jobs[0], (3, 5))
    assert status(merged).stale == [jobs[0].output]
    assert main(["status", str(merged), "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["stale"] == [jobs[0].output]
    assert f"stale: rows were counted or forgotten in {jobs[0].output} since the merge; merge again" in printed.err
    for command, *options in READERS:
        assert main([command, str(merged), *options]) == 0
        assert "stale: " in capsys.readouterr().err, command
    merge([Path(job.output) for job in jobs], merged)
    assert status(merged).complete


def test_a_part_that_is_gone_tells_nothing(jobs: list[ss.Job], tmp_path: Path) -> None:
    merge([Path(job.output) for job in jobs], tmp_path / "merged")
    shutil.rmtree(jobs[0].output)
    assert status(tmp_path / "merged").complete
