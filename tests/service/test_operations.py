"""Health, metrics, logs, and a description that is true."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import STORE, Served, npy, served

import streamstats as ss
from streamstats.service.client import RefusedError
from streamstats.service.logs import JsonLines


def samples_of(service: Served) -> dict[str, float]:
    with service.http() as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return {
            each.name + ("".join(sorted(each.labels.values())) if each.labels else ""): each.value
            for family in families
            for each in family.samples
        }


def test_health_and_readiness_need_no_token(service: Served) -> None:
    assert httpx.get(f"{service.url}/healthz").json()["version"] == ss.__version__
    assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}


def test_metrics_count_rows_bytes_jobs_and_saves(tmp_path: Path) -> None:
    import numpy as np

    with served(tmp_path) as service, service.client() as client:
        block = np.ones((8, 3), np.float32)
        client.ingest("s", "l", block)
        client.ingest("s", "l", block, key="same")
        client.ingest("s", "l", block, key="same")
        job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
        found = samples_of(service)
        assert found["streamstats_rows_counted_total"] == job.rows == 64
        assert found["streamstats_bytes_decoded_total"] == job.total_bytes
        assert found["streamstats_ingested_rows_total"] == 16
        assert found["streamstats_ingested_bytes_total"] == 2 * block.nbytes
        assert found["streamstats_jobsdone"] == 1
        assert found["streamstats_jobsfailed"] == 0
        assert found["streamstats_task_failures_total"] == 0
        assert "streamstats_save_seconds_count" in found


def test_made_up_methods_and_paths_are_one_series(service: Served) -> None:
    for number in range(5):
        httpx.request(f"MADEUP{number}", f"{service.url}/made/up/{number}")
    with service.http() as http:
        text = http.get("/metrics").text
    assert "MADEUP" not in text
    assert "made/up" not in text


def test_logs_are_json_with_the_job(service: Served, client: ss.Client) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
    lines = [json.loads(line) for line in service.said if line.startswith("{")]
    mine = [line["event"] for line in lines if line.get("job") == job.id]
    assert mine[:2] == ["submitted", "started"]
    assert mine[-1] == "ended"
    assert all({"at", "level", "event"} <= set(line) for line in lines)


def test_a_log_line_is_one_line_whatever_is_in_it() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, 'a "quote"\nand a line', (), None)
    text = JsonLines().format(record)
    assert "\n" not in text
    assert json.loads(text)["event"] == 'a "quote"\nand a line'


def test_statistics_that_are_offered_are_described_and_accepted(service: Served, client: ss.Client) -> None:
    with service.http() as http:
        offered = http.get("/api/v1/statistics").json()
    names = [each["name"] for each in offered]
    assert names
    assert names == sorted(names)
    assert all(each["description"] for each in offered)
    layers = [{"match": "*", "geometry": {"kernel": []}}]  # what some statistics need to know
    job = client.wait(client.submit({"kind": "run", "source": STORE, "statistics": names, "layers": layers}).id)
    assert job.state == "done", job.message
    with pytest.raises(RefusedError, match="statistics"):
        client.submit({"kind": "run", "source": STORE, "statistics": ["mean of everything"]})


def test_errors_have_one_form(service: Served) -> None:
    with service.http() as http:
        answers = [
            http.get("/api/v1/nowhere"),
            http.put("/api/v1/jobs"),
            http.post("/api/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}),
            http.get("/api/v1/jobs?limit=0"),
            http.get("/api/v1/jobs/xyz"),
            http.post("/api/v1/stores/s/layers/l", content=npy(__import__("numpy").ones((2, 2)))),
        ]
    assert [answer.status_code for answer in answers] == [404, 405, 422, 422, 422, 422]
    for answer in answers:
        assert answer.headers["content-type"] == "application/problem+json"
        found = answer.json()
        assert set(found) == {"type", "title", "status", "detail", "request"}
        assert (found["type"], found["status"]) == ("about:blank", answer.status_code)
        assert found["title"] == HTTPStatus(answer.status_code).phrase
        assert found["detail"]
        assert found["request"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/healthz", "/", "/static/style.css", "/api/v1/openapi.json", "/api/v1/docs"])
def test_what_is_open_tells_nothing_of_anybody(service: Served, path: str) -> None:
    text = httpx.get(service.url + path).text
    assert str(service.data) not in text
    assert service.token not in text
