"""The service's page in a real browser: pages that are watched for errors, and jobs that tests look at together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from served import STORE, Served

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 30_000
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TEXTS = """
window.drawnTexts = [];
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  window.drawnTexts.push(text);
  return fillText.call(this, text, ...rest);
};
"""
"""A script that remembers what is written into plots."""
COLOURS = """
(canvas, colour) => {
  document.getElementById("colour").style.color = `var(${colour})`;
  const wanted = getComputedStyle(document.getElementById("colour")).color.match(/\\d+/g).slice(0, 3).map(Number);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const rows = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const same = wanted.every((part, index) => data[at + index] === part) && data[at + 3] === 255;
    if (same) rows.add(Math.floor(at / 4 / canvas.width));
  }
  return [...rows].sort((a, b) => a - b).map((row) => row / canvas.height);
}
"""
"""The rows of a canvas, as shares of its height, in which a colour of the page occurs."""


def started() -> Iterator[Browser]:
    """A browser; without one, the tests are skipped."""
    expect.set_options(timeout=SECONDS)  # a machine that is busy is no fault
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        if not (found or os.environ.get("CI") or Path(playwright.chromium.executable_path).exists()):
            pytest.skip("no browser is installed; `make browser` installs one")
        browser = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield browser
        browser.close()


def new_context(browser: Browser, size: dict[str, int] = WIDE, **options: Any) -> BrowserContext:
    return browser.new_context(viewport=size, accept_downloads=True, locale="en-GB", timezone_id="UTC", **options)  # type: ignore[arg-type]


def watched(context: BrowserContext, pages: Served, view: str = "/jobs") -> Iterator[Page]:
    """A page with the token at `view`; no errors of its own, and nothing asked of anybody else, when it is closed."""
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: None if asked.url.startswith((pages.url, "blob:")) else wrong.append(asked.url))
    page.goto(f"{pages.url}/#token={pages.token}{view}")
    expect(page.locator("h1")).to_be_visible()
    yield page
    assert not wrong, wrong


def to(page: Page, view: str) -> None:
    """Open a view of the page that is open."""
    page.goto(f"{page.url.partition('#')[0]}#{view}")


@cache
def _done(service: Served, text: str) -> str:
    with service.client() as client:
        return client.wait(client.submit(json.loads(text)).id).id


def done_job(service: Served, **request: Any) -> str:
    """A job that has ended, for tests that leave it as it is: the same request is one job."""
    return _done(service, json.dumps({"kind": "run", "source": STORE, **request}, sort_keys=True))


def another_job(service: Served, **request: Any) -> str:
    """A job of its own that has ended."""
    with service.client() as client:
        return client.wait(client.submit({"kind": "run", "source": STORE, **request}).id).id


def rows_with(page: Page, label: str, colour: str) -> list[float]:
    """Where, from 0 at the top to 1, the plot of this label has a colour of the page."""
    found: list[float] = page.get_by_role("slider", name=label).locator("canvas").evaluate(COLOURS, colour)
    return found
