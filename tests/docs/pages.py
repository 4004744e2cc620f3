"""The pages that people read, and the blocks in them: what is between fences, with its language.

Blocks in `bash`, `console` and `python` run, page by page, in a folder of the page: an empty one or, for pages that
say how to do something with what a reader has, one as `streamstats demo` leaves it. What cannot run has a comment
before it, which holds for the next block or, if other text follows, for the rest of the page:

    <!-- not run: WHY -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOW_TO = DOCS / "how-to"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
RUNNABLE = ("bash", "console", "python")
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
