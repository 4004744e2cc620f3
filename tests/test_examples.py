"""Each example runs as it stands, without a warning, and the README of the examples lists it."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import streamstats as ss

FOLDER = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
NEEDED = {"torch_own_loop.py": "torch", "transformer_masks.py": "torch", "nightly_prefect.py": "prefect"}
"""What is not installed for `make test`; `make models` installs it."""
LONG = {"cluster.py", "onnx_quantised_by_onnxruntime.ipynb", "service_client.py"}
"""Those that take more than five seconds of processor time: `make soak` runs them."""
SHOWN = {
    "cluster.py": "threads and address: the same bytes",
    "nightly_prefect.py": "night 2: 300 rows counted in all",
    "onnx_quantised_by_onnxruntime.ipynb": "corrected  99.0% of the held-out digits",
    "service_client.py": "add to the bias of fc:",
    "torch_own_loop.py": "6 corrected",
    "transformer_masks.py": "counted 2,144;",
    "xarray_store.ipynb": "values per channel that are not missing",
}
"""What each example prints once it has done what it is for."""


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    return found


def program(name: str, folder: Path) -> Path:
    """The example as a program: of a notebook, the cells of code in order."""
    if name.endswith(".py"):
        return FOLDER / name
    code = ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]
    path = folder / "notebook.py"
    path.write_text("\n\n".join(code), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] if name in LONG else []) for name in [*PROGRAMS, *NOTEBOOKS]]
)
def test_each_runs_without_a_warning_of_ours(name: str, tmp_path: Path) -> None:
    needed = NEEDED.get(name)
    if needed and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    strict = [] if needed else ["-W", "error"]  # torch and Prefect warn of themselves
    done = subprocess.run(
        [sys.executable, *strict, str(program(name, tmp_path))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert SHOWN[name] in done.stdout


def test_the_nightly_job_fails_every_night_until_the_drift_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect = SimpleNamespace(flow=lambda each: each, task=lambda each=None, **_: each or (lambda found: found))
    monkeypatch.setitem(sys.modules, "prefect", cast(ModuleType, prefect))
    nightly = runpy.run_path(str(FOLDER / "nightly_prefect.py"))["nightly"]
    store, output = tmp_path / "s.zarr", tmp_path / "out"
    for sign in (1, 1, -1, -1):
        with ss.Recorder(store) as recorder:
            recorder.append("fc", np.full((10, 2), sign, np.float32))
        if sign > 0:
            nightly(store, output)
        else:
            with pytest.raises(RuntimeError, match="drifted: fc"):
                nightly(store, output)
            with pytest.raises(RuntimeError, match="drifted: fc"):  # though it adds nothing
                nightly(store, output)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_what_they_printed(name: str) -> None:
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


def test_the_readme_lists_each_of_them() -> None:
    listed = re.findall(r"^\| \[([^]]+)\]\(\1\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*PROGRAMS, *NOTEBOOKS])
