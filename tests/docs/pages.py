"""The pages that people read, and the blocks in them: what is between fences, with its language.

Blocks in `bash`, `console` and `python` run, page by page, in a folder of the page that is empty at first. A comment
says what does not run, or starts elsewhere:

    <!-- not run: WHY -->       before a block: this block; elsewhere: the page from here on
    <!-- run in: the demo -->   the folder is the one that `streamstats demo` leaves
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
RUNNABLE = ("bash", "console", "python")
IN_THE_DEMO = "<!-- run in: the demo -->"
NOT_RUN = re.compile(r"<!-- not run: .+ -->")


class Block(NamedTuple):
    """What is between two fences: its language ("" if none is named), the line of its first fence, whether it runs."""

    language: str
    text: str
    line: int
    runs: bool


def name_of(page: Path) -> str:
    """How a test calls the page."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of the page, in order."""
    runs, marked, opened = True, False, None
    found: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is not None:
            if line.startswith("```"):
                language, at = opened
                yield Block(language, "\n".join(found) + "\n", at, runs and not marked and language in RUNNABLE)
                opened, marked = None, False
            else:
                found.append(line)
        elif line.startswith("```"):
            opened, found = (line[3:].strip(), number), []
        elif NOT_RUN.fullmatch(line):
            marked = True
        elif line and marked:
            runs = False


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
