"""The README, and the pages that it leads to, name only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else page.parent.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else page.parent.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(
        re.findall(r"\b(?:tests|benchmarks|configs|streamstats|docs)/[\w/]*\w\.\w+", page.read_text(encoding="utf-8"))
    )
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_no_row_of_a_table_stands_outside_one() -> None:
    for paragraph in (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n"):
        lines = paragraph.splitlines()
        if lines and lines[0].startswith("|"):
            assert re.fullmatch(r"[|:\- ]+", lines[1]), lines[0]
            assert {line.count("|") for line in lines} == {lines[0].count("|")}, lines[0]


def test_every_section_that_the_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set()
