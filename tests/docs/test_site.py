"""The pages as a site: all of them are in the navigation, no link is broken, nothing comes from another host."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import new_context, started
from pages import DOCS, ROOT
from playwright.sync_api import expect

CONFIGURATION = "zensical.toml"


def pages_in(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    for each in (
        navigation if isinstance(navigation, list) else navigation.values() if isinstance(navigation, dict) else ()
    ):
        yield from pages_in(each)


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = tomllib.loads((ROOT / CONFIGURATION).read_text(encoding="utf-8"))["project"]["nav"]
    assert sorted(pages_in(navigation)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


built = pytest.mark.soak
"""For tests of the built pages, which `make docs` runs, too."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; building them fails for a link to a page or a section that does not exist."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / CONFIGURATION, folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "streamstats" / "service" / "manual"


@built
def test_every_link_of_a_built_page_stays_in_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            links = re.findall(r'(?:href|src)="(?![a-z]+:)([^"#]*)', page.read_text(encoding="utf-8"))
            targets = {(page.parent / link).resolve() for link in links}
            assert {each for each in targets if not each.exists() or not each.is_relative_to(site)} == set(), page.name


@built
def test_no_built_page_takes_anything_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'\bsrc="?(?:https?:)?//|<link[^>]*href="?(?:https?:)?//|@import', text), page.name


@built
def test_the_search_works_from_disk(site: Path) -> None:
    asked: list[str] = []
    for browser in started():
        page = new_context(browser).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.as_uri()}/index.html")
        page.get_by_role("button", name="Search").first.click()
        page.keyboard.type("reciprocal")
        expect(page.get_by_role("status").filter(has_text=re.compile("[1-9][0-9]* results?"))).to_be_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
