"""How a followed layer developed: which points are retained, and what they say. The page draws them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from stores import build_store

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.service.development import MOST, development, keep_point, points
from streamstats.service.errors import NotFoundError


def test_points_are_thinned_so_that_their_rows_grow_evenly(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(2 * MOST, 3)).astype(np.float32)
    rows = range(1, 2 * MOST + 1)
    for number in rows:
        keep_point(tmp_path, number, ss.reduce(build_store(tmp_path / f"{number}.zarr", {"a": values[:number]})))
    found = points(tmp_path)
    assert len(found) == MOST
    assert (found[0].rows, found[-1].rows) == (rows[0], rows[-1])
    growth = [after.rows / before.rows for before, after in pairwise(found)]
    assert max(growth[MOST // 2 :]) < 1.2  # the even thing would be 1.18


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder with results of two layers, of which a point was kept."""
    values = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    store = build_store(tmp_path / "s.zarr", {"a": values, "b": values[:, :2]})
    run(JobConfig(source=str(store), output=str(tmp_path / "out"), statistics=["spread"]).job())
    keep_point(tmp_path, 1, ss.reduce(store))
    return tmp_path


def test_what_is_unknown_is_none_and_what_does_not_exist_is_named(job: Path) -> None:
    found = development(job, job / "out", "a", 2)
    assert [(each.rows, each.standard_error, each.apart) for each in found.points] == [(20, None, 0.0)]
    with pytest.raises(NotFoundError, match="no layer 'c'"):
        development(job, job / "out", "c", 0)
    with pytest.raises(NotFoundError, match="layer b has no channel 2; it has 2 channels, from 0"):
        development(job, job / "out", "b", 2)


def test_a_job_that_followed_nothing_has_no_points(job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert development(tmp_path_factory.mktemp("other"), job / "out", "a", 0).points == []
