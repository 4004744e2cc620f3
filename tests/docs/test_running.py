"""What the pages show runs, block by block, and prints what they say: signs, SQNR and accuracy exactly; other numbers,
times and sizes may differ.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, HOW_TO, README, ROOT, Block, blocks, name_of

pytestmark = pytest.mark.soak
SECONDS = 600
RUNNING = [page for page in [README, *sorted(DOCS.rglob("*.md"))] if any(block.runs for block in blocks(page))]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    shell("streamstats demo demo", folder)
    return folder / "demo"


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_a_page_runs_and_prints_what_it_says(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.is_relative_to(HOW_TO):
        shutil.copytree(request.getfixturevalue("demo"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = None
    for block in blocks(page):
        if block.runs:
            printed = ran(block, names, page)
        elif block.language == "text" and printed is not None:
            missing = [line for line in shown(block.text) if line not in [*shown(printed)]]
            assert missing == [], f"{page.name}:{block.line}: not printed; printed was:\n{printed}"
            printed = None


def ran(block: Block, names: dict[str, Any], page: Path) -> str:
    """What the block prints. Blocks of Python share the `names` of their page."""
    if block.language == "python":
        printed = StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        return printed.getvalue()
    text = block.text
    if block.language == "console":
        text = "\n".join(re.findall(r"^\$ (.+(?:\\\n.+)*)", text, re.M))
    return shell(text, Path.cwd())


def shell(commands: str, folder: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "250",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode} of\n{commands}\n{done.stdout}"
    return done.stdout


def shown(text: str) -> Iterator[str]:
    """The lines of `text` without what differs from run to run: numbers but for their signs, units, the width of
    columns, and rates, which runs of less than half a second have not. Lines with SQNR or accuracy keep their numbers:
    these must be what a reader gets.
    """
    for line in text.splitlines():
        if not re.search(r"SQNR|accuracy", line):
            line = re.sub(r" [\d.]+ ([kMG]i?)?B/s,", "", line)
            line = re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "0", line)
            line = re.sub(r"\b([kMG]i?)?B\b|\bm?s\b", "", line)
        if "…" not in line and line.strip():
            yield " ".join(line.split())
