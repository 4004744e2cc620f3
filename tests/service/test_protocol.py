"""What HTTP promises: `HEAD` for every `GET`, `Allow`, `Location`, types of bodies, errors of ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from loops import awaited
from served import STORE, Served, npy

import streamstats as ss
from streamstats.service.database import Database
from streamstats.service.messages import JobView
from streamstats.service.metrics import Metrics
from streamstats.service.middleware import Watched

V1 = "/api/v1"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def done(service: Served) -> JobView:
    with service.client() as client:
        client.ingest("protocol", "l", np.ones((2, 2), np.float32))
        return client.wait(client.submit({"kind": "run", "source": STORE}).id)


def filled(path: str, job: JobView) -> str:
    """An address for `path` of the description."""
    layer = "fc" if "/jobs/" in path else "l"
    return path.format(job=job.id, layer=layer, name="manifest.json", store="protocol", upload="0" * 64)


def test_every_get_answers_head_with_the_same_headers_and_no_body(
    service: Served, described: dict[str, Any], done: JobView
) -> None:
    paths = [filled(path, done) for path, methods in described["paths"].items() if "get" in methods]
    assert len(paths) > 15
    changing = {"date", "x-request-id"}
    with service.http() as http:
        for path in [*paths, "/", "/static/style.css", f"{V1}/openapi.json", f"{V1}/docs"]:
            head, get = http.head(path), http.get(path)
            assert head.status_code == get.status_code, path
            assert not head.content
            if not path.endswith(("/events", "/metrics", V1)):  # what changes, or has no length
                assert [each for each in head.headers.items() if each[0] not in changing] == [
                    each for each in get.headers.items() if each[0] not in changing
                ], path


def test_a_parameter_that_a_path_does_not_have_is_refused(
    service: Served, described: dict[str, Any], done: JobView
) -> None:
    paths = [(each, filled(each, done)) for each, methods in described["paths"].items() if "get" in methods]
    with service.http() as http:
        for described_as, path in paths:
            known = [each["name"] for each in described["paths"][described_as]["get"].get("parameters", [])]
            found = http.get(path, params={"sorted": "x"})
            if described_as.startswith(V1):
                assert found.status_code == 422, path
                said = found.json()["detail"]
                assert said.startswith("unknown parameter `sorted`; "), path
                assert "limit" not in known or "expected one of" in said
            else:
                assert found.status_code in (200, 503), path  # /readyz may not be ready
        meant = http.get(f"{V1}/jobs", params={"status": "done"}).json()["detail"]
        assert "expected one of state, submitter, source, tag, text, before, limit; did you mean state?" in meant
        assert http.post(f"{V1}/jobs?until=1", json={}).status_code == 422


def test_another_method_is_answered_with_those_that_the_path_has(
    service: Served, described: dict[str, Any], done: JobView
) -> None:
    with service.http() as http:
        for path, methods in described["paths"].items():
            has = {each.upper() for each in methods} | ({"HEAD"} if "get" in methods else set())
            for method in set(METHODS) - has:
                answer = http.request(method, filled(path, done))
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) == has, (method, path)
        for path in ("/", "/static/style.css", f"{V1}/openapi.json", f"{V1}/docs"):
            assert http.delete(path).headers["allow"] == "GET, HEAD", path


def test_what_was_made_is_where_location_says(service: Served) -> None:
    with service.http() as http:
        job = http.post(f"{V1}/jobs", json={"kind": "run", "source": STORE})
        upload = http.post(f"{V1}/uploads", content=b"x")
        sent = http.post(
            f"{V1}/stores/located/layers/a/b", content=npy(np.ones((2, 2))), headers={"Idempotency-Key": "k"}
        )
        for answer in (job, upload, sent):
            assert answer.status_code == 201
            assert http.get(answer.headers["location"]).status_code == 200
        assert http.get(job.headers["location"]).json()["id"] == job.json()["id"]
        assert http.get(upload.headers["location"]).json() == upload.json()
        assert http.get(sent.headers["location"]).json()["layers"] == {"a/b": 2}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", None])
def test_a_job_of_another_type_than_json_is_refused(service: Served, kind: str | None) -> None:
    with service.http(headers={} if kind is None else {"Content-Type": kind}) as http:
        answer = http.post(f"{V1}/jobs", content=b'{"kind": "run", "source": "small.zarr"}')
    assert answer.status_code == 415
    assert answer.json()["detail"].endswith("send it with `Content-Type: application/json`")


@pytest.mark.parametrize(
    ("kind", "status"), [("application/json", 415), ("application/octet-stream", 201), (None, 201)]
)
def test_a_file_of_another_type_than_bytes_is_refused(service: Served, kind: str | None, status: int) -> None:
    with service.http(headers={} if kind is None else {"Content-Type": kind}) as http:
        answers = [
            http.post(f"{V1}/uploads", content=b"content"),
            http.post(
                f"{V1}/stores/typed/layers/l", content=npy(np.ones((2, 2))), headers={"Idempotency-Key": str(kind)}
            ),
        ]
    assert [answer.status_code for answer in answers] == [status, status]


def test_a_parameter_with_one_value_is_given_once(service: Served) -> None:
    with service.http() as http:
        once = http.get(f"{V1}/jobs?state=done&state=failed&limit=1")
        twice = http.get(f"{V1}/jobs?limit=1&limit=2")
    assert (once.status_code, twice.status_code) == (200, 422)
    assert "limit is given more than once" in twice.json()["detail"]


def test_a_body_that_may_be_left_out_needs_no_type(service: Served) -> None:
    with service.http() as http:
        optional, needed = http.post(f"{V1}/prune?dry_run=true"), http.post(f"{V1}/jobs")
    assert (optional.status_code, needed.status_code) == (200, 422)


def test_a_charset_is_no_other_type(service: Served, client: ss.Client) -> None:
    with service.http(headers={"Content-Type": "Application/JSON; charset=utf-8"}) as http:
        answer = http.post(f"{V1}/jobs", content=b'{"kind": "run", "source": "small.zarr"}')
    assert answer.status_code == 201
    client.wait(answer.json()["id"])


@pytest.mark.parametrize(("asked", "status"), [("bytes=0-3", 206), ("bytes=9999999-", 416), ("bytes=x", 400)])
def test_a_range_that_a_file_lacks_is_refused_in_the_form_of_all_errors(
    service: Served, done: JobView, asked: str, status: int
) -> None:
    path = f"{V1}/jobs/{done.id}/files/manifest.json"
    with service.http() as http:
        whole, part = http.get(path), http.get(path, headers={"Range": asked})
    assert part.status_code == status
    if status == 206:
        assert part.content == whole.content[:4]
        return
    assert part.headers["content-type"] == "application/problem+json"
    assert part.json()["status"] == status
    assert ("content-range" in part.headers) == (status == 416)


def test_a_failure_before_the_paths_is_answered_in_the_form_of_all_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: object) -> None:
        raise OSError("the reason")

    app = Watched(fails, Metrics(Database(tmp_path / "x.sqlite")))
    transport = httpx.ASGITransport(app=app)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.get("/anything")

    answer = awaited(ask())
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["request"] == answer.headers["x-request-id"]
    assert "the reason" in caplog.text
    assert "the reason" not in answer.text
