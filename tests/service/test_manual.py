"""The manual at /manual/, which anybody may read: as it was built, or how to get it."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from loops import awaited

from streamstats.service import manual
from streamstats.service.access import POLICY
from streamstats.service.app import make_app
from streamstats.service.service import Service
from streamstats.service.settings import ServiceConfig

SCRIPT = "document.title = 'ß'"


def answers(data: Path, *paths: str) -> list[httpx.Response]:
    """What a new service answers to requests without a token."""

    async def asked() -> list[httpx.Response]:
        service = Service(ServiceConfig(data=data))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = [await client.get(path) for path in paths]
        service.stop()
        return found

    return awaited(asked())


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "manual"
    (folder / "how-to").mkdir(parents=True)
    (folder / "index.html").write_text(f"<script>{SCRIPT}</script>start", encoding="utf-8")
    (folder / "how-to" / "s3.html").write_text('<script src="../a.js"></script>', encoding="utf-8")
    monkeypatch.setattr(manual, "FOLDER", folder)
    return tmp_path / "data"


def test_it_needs_no_token_and_the_page_of_the_service_leads_to_it(built: Path) -> None:
    page, bare, start, first, inner, none = answers(
        built, "/", "/manual", "/manual/", "/manual/index.html", "/manual/how-to/s3.html", "/manual/nowhere.html"
    )
    assert 'href="/manual/"' in page.text
    assert (bare.status_code, bare.headers["location"]) == (307, "/manual/")
    assert (start.status_code, start.headers["location"]) == (307, "/manual/index.html")
    assert first.text.endswith("start")
    assert inner.status_code == 200
    assert (none.status_code, none.headers["content-type"]) == (404, "application/problem+json")


def test_only_the_scripts_that_were_built_run_and_only_there(built: Path) -> None:
    page, first, outside = answers(built, "/", "/manual/index.html", "/manual/..%2fapp.py")
    scripts = re.findall("script-src ([^;]*)", first.headers["content-security-policy"])
    assert scripts == [f"'self' 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'"]
    assert page.headers["content-security-policy"] == POLICY
    assert outside.status_code == 404


def test_without_it_the_answer_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual, "FOLDER", tmp_path / "none")
    page, start, inner = answers(tmp_path / "data", "/", "/manual/", "/manual/how-to/s3.html")
    assert "/manual/" not in page.text
    for answer in (start, inner):
        assert answer.status_code == 404
        assert "make docs" in answer.json()["detail"]
