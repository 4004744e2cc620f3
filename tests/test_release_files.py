"""What is given away beside the package agrees with it: the recipe for conda, the citation, the changelog."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import streamstats

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = {"dask": "dask-core", "isal": "python-isal", "ml-dtypes": "ml_dtypes"}
"""What conda calls distributions that have another name there."""


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    return found


def test_the_recipe_needs_what_the_package_needs(recipe: dict[str, Any]) -> None:
    parts = [re.fullmatch(r"([\w-]+)(.*)", each) for each in PROJECT["dependencies"]]
    needed = [f"{CONDA.get(each[1], each[1])} {each[2]}" for each in parts if each]
    python = f"python {PROJECT['requires-python']}"
    assert recipe["requirements"]["run"] == [python, *needed]
    assert recipe["requirements"]["host"][0] == python
    assert recipe["package"]["name"] == PROJECT["name"]
    assert recipe["build"]["python"]["entry_points"] == [f"{name} = {of}" for name, of in PROJECT["scripts"].items()]


def test_all_name_the_same_version(recipe: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.search(r"^## .*\b(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes is not None
    assert {recipe["context"]["version"], citation["version"], changes[1]} == {streamstats.__version__}


def test_the_container_copies_only_what_is_there() -> None:
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert {name for names in copied for name in names if not (ROOT / name).exists()} == set()
    extras = next(match for line in lines if (match := re.search(r"'\.\[(.+)\]'", line)))
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


def test_files_at_the_root_and_the_examples_are_in_the_sdist() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "Containerfile"):
        assert re.search(rf"^include .*\b{re.escape(name)}\b", manifest, re.MULTILINE), name
    for line in ("recursive-include examples *.py *.ipynb *.md", "recursive-include recipe *.yaml"):
        assert line in manifest
