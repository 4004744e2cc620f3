"""The benchmarks still find what they import of the package's inside: nothing else runs all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
NEED_TORCH = {"matrix.py"}
LOAD = """
import importlib, runpy, sys
sys.path.insert(0, ".")
for name in sys.argv[1:]:
    runpy.run_path(name, run_name="loaded") if name.endswith(".py") else importlib.import_module(name)
"""


def test_every_module_loads() -> None:
    """In one process: the programs as `python benchmarks/….py` does, the methods as the programs import them."""
    programs = sorted({path.name for path in FOLDER.glob("*.py")} - NEED_TORCH)
    methods = sorted(f"methods.{path.stem}" for path in FOLDER.glob("methods/*.py"))
    assert "methods.processes" in methods
    command = [sys.executable, "-c", LOAD, *programs, *methods]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
