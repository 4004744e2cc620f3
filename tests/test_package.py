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

ROOT = Path(__file__).parents[1]
FOLDERS = ("streamstats", "tests", "configs", "benchmarks", "docs", ".ci")
FILES = ("README.md", "pyproject.toml", "MANIFEST.in", "Makefile", "conftest.py")
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
