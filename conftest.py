"""What the examples in docstrings find: `np`, `ss`, and the folder that their files are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamstats as ss


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `calibration.zarr`, four samples of two channels, and `out`, the output of a run over it."""
    folder = tmp_path_factory.mktemp("examples")
    with ss.Recorder(folder / "calibration.zarr") as recorder:
        recorder.append("fc", np.array([[1, 2], [3, 4], [5, 6], [7, 12]], np.float32))
    ss.run(ss.Job(str(folder / "calibration.zarr"), str(folder / "out")).counting("histogram", "spread"))
    return folder


@pytest.fixture(autouse=True)
def _in_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("doctest_namespace").update(np=np, ss=ss)
        monkeypatch.chdir(request.getfixturevalue("examples"))
