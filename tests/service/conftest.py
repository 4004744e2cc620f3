"""One service for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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
