"""One service, one browser, for all tests that leave them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from browsing import new_context, started, watched
from playwright.sync_api import Browser, BrowserContext, Page
from served import Served, served

import streamstats as ss


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("service"), limits={"running_jobs": 2, "body": "4MiB"}) as service:
        yield service


@pytest.fixture
def client(service: Served) -> Iterator[ss.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def described(service: Served) -> dict[str, Any]:
    """The service's description of itself."""
    document: dict[str, Any] = httpx.get(f"{service.url}/api/v1/openapi.json").json()
    return document


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    yield from started()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = new_context(browser)
    yield context
    context.close()


@pytest.fixture(scope="session")
def shared(browser: Browser) -> Iterator[BrowserContext]:
    """For pages that leave nothing behind that others notice."""
    context = new_context(browser)
    yield context
    context.close()


@pytest.fixture
def page(shared: BrowserContext, service: Served) -> Iterator[Page]:
    for page in watched(shared, service):
        yield page
        page.close()
