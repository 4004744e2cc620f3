"""The description that clients are generated from, and the page made of it: complete, and true of real answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import BaseModel
from served import STORE, Served

from streamstats.service import result_messages as messages
from streamstats.service.messages import JobView
from streamstats.storage.tensors import tensors_bytes

V1 = "/api/v1"
OPEN = {"/healthz", "/readyz"}


@pytest.fixture(scope="module")
def done(service: Served) -> JobView:
    statistics = ["histogram", "magnitude", "squares", "spread"]
    with service.client() as client:
        return client.wait(client.submit({"kind": "run", "source": STORE, "statistics": statistics}).id)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_path_is_described_and_named_once(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.")
    found = list(operations(described))
    assert f"GET {V1}/jobs/{{job}}/events" in dict(found)
    assert all(each.get("description") for _, each in found)
    names = [each["operationId"] for _, each in found]
    assert "job_submit" in names
    assert len(names) == len(set(names))


def test_every_path_says_who_may_ask(described: dict[str, Any]) -> None:
    schemes = described["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer", "description": schemes["bearer"]["description"]}
    for path, operation in operations(described):
        needed = operation.get("security", [])
        assert ({"bearer": []} in needed) == (path.removeprefix("GET ") not in OPEN), path
        assert all(set(each) <= set(schemes) for each in needed)
    link = {"until": [], "signature": []}
    linked = {path for path, each in operations(described) if link in each.get("security", [])}
    assert linked == {f"GET {V1}/jobs/{{job}}/{end}" for end in ("files/{name}", "report", "archive")}


def test_every_answer_has_a_type_and_every_error_is_a_problem(described: dict[str, Any]) -> None:
    for path, operation in operations(described):
        for status, answer in operation["responses"].items():
            if status in ("204", "304"):
                assert "content" not in answer
                continue
            assert answer["content"], (path, status)
            for kind, content in answer["content"].items():
                assert content["schema"], (path, status, kind)
            if int(status) >= 400:
                problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert answer["content"] == {"application/problem+json": problem}, (path, status)


def test_documents_of_results_are_what_they_are_said_to_be(service: Served, done: JobView) -> None:
    models: dict[str, type[BaseModel]] = {
        "layers": messages.LayersView,
        "layers/fc": messages.ChannelsView,
        "manifest": messages.ManifestView,
        "files": messages.FilesView,
    }
    with service.http() as http:
        found = {path: http.get(f"{V1}/jobs/{done.id}/{path}").json() for path in models}
    for path, model in models.items():
        model.model_validate(found[path], strict=True)
    layer = found["layers"]["layers"]["fc"]
    assert set(messages.LayerView.model_fields) <= set(layer)
    assert set(messages.ChannelsView.model_fields) <= set(found["layers/fc"])
    assert set(messages.EntryView.model_fields) <= set(found["manifest"]["layers"]["fc"])
    assert set(messages.ManifestView.model_fields) <= set(found["manifest"])


def test_outcomes_of_corrections_are_what_they_are_said_to_be(service: Served, done: JobView) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    body = tensors_bytes({"fc.weight": weight, "fc.fake_quantized": np.round(weight, 1)}, {})
    with service.http(headers={"Accept": "application/json"}) as http:
        found = http.post(f"{V1}/jobs/{done.id}/corrections?layout=OI", content=body).json()
    assert messages.CorrectionsView.model_validate(found, strict=True).layers["fc"].corrected


def test_the_reference_shows_every_path_and_every_type_and_its_links_lead_somewhere(
    service: Served, described: dict[str, Any]
) -> None:
    answer = httpx.get(f"{service.url}{V1}/docs")
    page = answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for path, operation in operations(described):
        assert f'<h2 id="{operation["operationId"]}"><code>{path}</code></h2>' in page
        assert all(f'id="error-{status}"' in page for status in operation["responses"] if status >= "400")
    for name in described["components"]["schemas"]:
        assert f'<h3 id="type-{name}">' in page
    identities = re.findall(r'id="([^"]+)"', page)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(identities)
    assert not re.search(r"<script|style=|<style| on\w+=|https?://", page)  # the policy allows none of it
