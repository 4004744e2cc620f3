"""What is given away: the wheel and the sdist are complete, hold nothing else, and the demo runs from either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import streamstats

ROOT = Path(__file__).parents[1]
FOLDERS = ("streamstats", "tests", "configs", "benchmarks", "docs", "examples", "recipe", ".ci")
FILES = (
    *("README.md", "pyproject.toml", "zensical.toml", "MANIFEST.in", "Makefile", "conftest.py", "Containerfile"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"),
)
MINOR_VERSIONS = (11, 12, 13, 14)
"""Of Python 3, those that the package is tried with, where they are installed."""
TRY = """
import numpy as np
import streamstats as ss

with ss.Recorder("small.zarr") as recorder:
    recorder.append("fc", np.arange(600, dtype=np.int8).reshape(6, 100) % 7)
print(ss.reduce("small.zarr")["fc"].rows, "rows")
"""
MADE_BY_USE = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache", ".hypothesis")

pytestmark = pytest.mark.soak


class Built(NamedTuple):
    """The distributions of a copy of the tree, and what building them printed."""

    tree: Path
    wheel: Path
    sdist: Path
    printed: str

    def files(self, *folders: str) -> set[str]:
        found = (path for folder in folders for path in (self.tree / folder).rglob("*"))
        return {path.relative_to(self.tree).as_posix() for path in found if path.is_file()}


def python(minor: int) -> Path | None:
    """Python 3.`minor`: that of this test, one on the path, or one of pyenv."""
    if sys.version_info[1] == minor:
        return Path(sys.executable)
    found = shutil.which(f"python3.{minor}")  # pyenv's own, which may say that it has no such version, is not it
    if found and "shims" not in Path(found).parts:
        return Path(found)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next(iter(sorted(versions.glob(f"3.{minor}.*/bin/python"))), None)


def run(*command: str | Path, folder: Path) -> str:
    """Everything that the command prints, without what the environment of this test would change."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=MADE_BY_USE)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    (tree / "streamstats-demo" / "out").mkdir(parents=True)  # as `make demo` leaves it
    (tree / "streamstats-demo" / "out" / "planted.py").touch()
    printed = run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder=tree)
    (wheel,), (sdist,) = ((folder / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
    return Built(tree, wheel, sdist, printed)


def assert_no_warning(printed: str) -> None:
    assert [line for line in printed.splitlines() if "warning" in line.lower() or "deprecat" in line.lower()] == []


def test_building_prints_no_warning(built: Built) -> None:
    assert_no_warning(built.printed)


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Built) -> None:
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in name}
    assert names == built.files("streamstats")


def test_the_sdist_holds_the_whole_tree_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == built.files(*FOLDERS) | set(FILES)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_demo_runs_in_a_fresh_environment_without_a_warning(built: Built, kind: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", f"{getattr(built, kind)}[demo]", folder=tmp_path)
    for _ in ("compiled", "kept"):
        printed = run(programs / "python", "-W", "default", "-m", "streamstats", "demo", "demo", folder=tmp_path)
        assert_no_warning(printed)
        assert "layer by layer" in printed
    assert (tmp_path / "demo" / "corrected.report.html").is_file()


@pytest.mark.parametrize("minor", MINOR_VERSIONS)
def test_it_installs_as_from_an_index_and_counts_under_each_python(built: Built, minor: int, tmp_path: Path) -> None:
    found = python(minor)
    if found is None:
        pytest.skip(f"Python 3.{minor} is not installed")
    run(found, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    programs, links = tmp_path / "venv" / "bin", built.wheel.parent
    install = ("install", "--quiet", "--find-links", links, f"streamstats-calibration=={streamstats.__version__}")
    run(programs / "python", "-m", "pip", *install, folder=tmp_path)
    assert run(programs / "python", "-W", "error", "-c", TRY, folder=tmp_path) == "6 rows\n"
    assert streamstats.__version__ in run(programs / "streamstats", "--version", folder=tmp_path)
