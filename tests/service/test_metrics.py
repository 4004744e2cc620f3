"""Metrics, and the example alerts and dashboard that rely on them."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from served import STORE, Served, served, wait_until

from streamstats.service.database import Database
from streamstats.service.job_table import STATES, JobTable, Submitted
from streamstats.service.metrics import Metrics, Moment
from streamstats.service.totals import Totals

CONFIGS = Path(__file__).parents[2] / "configs/service"
WORDS = {"sum", "rate", "increase", "delta", "changes", "histogram_quantile", "by", "or", "and", "label_values"}
"""What an expression has besides metrics and labels."""
BLOCK = np.ones((8, 3), np.float32)


class Sample:
    """The samples of one scrape: the value by name and labels, and the names of the labels by name."""

    def __init__(self, service: Served) -> None:
        with service.http() as http:
            families = list(text_string_to_metric_families(http.get("/metrics").text))
        self.help = {family.name: family.documentation for family in families}
        found = [each for family in families for each in family.samples]
        self.values = {(each.name, *each.labels.values()): each.value for each in found}
        self.labels: dict[str, set[str]] = {}
        for each in found:
            self.labels.setdefault(each.name, {"job", "instance"}).update(each.labels)


def test_totals_go_on_after_a_restart_and_after_a_kill(tmp_path: Path) -> None:
    with served(tmp_path) as service, service.client() as client:
        client.ingest("s", "l", BLOCK)
        client.wait(client.submit({"kind": "run", "source": STORE}).id)
        names = ("rows_counted", "bytes_decoded", "ingested_rows", "ingested_bytes", "task_failures")
        totals = [(f"streamstats_{name}_total",) for name in names]
        first = Sample(service).values
        assert [first[each] > 0 for each in totals] == [True, True, True, True, False]
        service.kill()
        service.start()
        assert [Sample(service).values[each] for each in totals] == [first[each] for each in totals]
        with service.client() as again:
            again.ingest("s", "l", BLOCK)
        assert service.stop() == 0  # without a scrape
        assert Totals(Database(service.data / "service.sqlite")).new("streamstats_ingested_rows", "").value == 16


def test_a_total_never_falls_although_it_cannot_be_stored(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite")
    totals, registry = Totals(database), CollectorRegistry()
    registry.register(totals)
    total = totals.new("things", "Things")

    def shown() -> float:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return next(each.value for family in families for each in family.samples if each.name == "things_total")

    total.inc(3)
    assert shown() == 3
    with database.writing() as connection:
        connection.execute("ALTER TABLE totals RENAME TO gone")
    total.inc(4)
    assert shown() == 3  # what a killed service would go on from
    with database.writing() as connection:
        connection.execute("ALTER TABLE gone RENAME TO totals")
    assert shown() == 7
    assert Totals(database).new("things", "Things").value == 7


def test_the_service_shows_itself_its_disk_and_its_places(service: Served) -> None:
    with service.client() as client:
        client.ingest("measured", "l", BLOCK)
        job = client.submit({"kind": "run", "source": "store:measured", "follow": {}})
        with service.http() as http, http.stream("GET", f"/api/v1/jobs/{job.id}/events") as events:
            lines = events.iter_lines()
            next(lines)
            found = Sample(service)
        client.cancel(job.id)
        client.wait(job.id)
    wait_until(lambda: Sample(service).values[("streamstats_streams",)] == 0)
    assert found.values[("streamstats_streams",)] == 1
    assert found.values[("streamstats_streams_limit",)] == 256
    assert found.values[("streamstats_ready",)] == 1
    assert found.values[("streamstats_ingest_seconds_count",)] >= 1
    assert found.values[("streamstats_queue_limit",)] == 1000
    assert found.values[("process_start_time_seconds",)] > 0
    free = os.statvfs(service.data)
    assert math.isclose(found.values[("streamstats_disk_free_bytes",)], free.f_bavail * free.f_frsize, rel_tol=0.5)
    assert all("since the service started" in found.help[f"streamstats_{name}_seconds"] for name in ("ingest", "save"))
    assert "continues after a restart" in found.help["streamstats_rows_counted"]


def test_the_age_of_the_queue_is_that_of_the_oldest_job_that_was_never_started(tmp_path: Path) -> None:
    table = JobTable(Database(tmp_path / "x.sqlite"))
    assert table.waited() == 0
    request = {"kind": "run", "submitter": "ann", "priority": 0, "source": STORE}
    for name in ("first", "second", "third"):
        table.add(name, Submitted(request, None))
    table.update("first", submitted=time.time() - 5000, started=time.time())  # interrupted: it resumes
    table.update("second", submitted=time.time() - 1000)
    table.update("third", submitted=time.time() + 1000)  # the clock was set back
    assert 1000 <= table.waited() < 1100
    table.update("second", state="cancelled", ended=time.time())
    assert table.waited() == 0


def test_what_the_database_hides_is_unknown_and_not_zero(tmp_path: Path) -> None:
    metrics = Metrics(Database(tmp_path / "x.sqlite"))
    text = metrics.text(Moment(False, 1, 2, 3)).decode()
    assert "streamstats_ready 0.0" in text
    assert "streamstats_queue_oldest_seconds NaN" in text
    assert all(f'streamstats_jobs{{state="{state}"}} NaN' in text for state in STATES)


def expressions(document: Any) -> Iterator[str]:
    """Every value of a key `expr`, and what a variable of a dashboard asks for."""
    if isinstance(document, dict):
        yield from (document[key] for key in ("expr", "query") if isinstance(document.get(key), str))
        document = list(document.values())
    for each in document if isinstance(document, list) else []:
        yield from expressions(each)


def metrics_of(expression: str) -> Iterator[tuple[str, set[str]]]:
    """(name, names of labels) of each metric in an expression."""
    bare = re.sub(r"\bby \([^)]*\)|\[[^]]*\]", "", expression)
    for name, labels in re.findall(r"([a-z_]+)(?![a-z_(])(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', bare)):
        if name not in WORDS:
            yield name, {each.split("=")[0].strip() for each in re.split(r",", labels) if each}


def test_the_test_finds_what_an_expression_names() -> None:
    text = 'histogram_quantile(0.9, sum by (le) (rate(a_b{job="$job", x=~"y.z"}[5m]))) > 2 * c_d or up == 0'
    assert list(metrics_of(text)) == [("a_b", {"job", "x"}), ("c_d", set()), ("up", set())]


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_the_examples_name_only_metrics_and_labels_that_the_service_has(service: Served, name: str) -> None:
    with service.client() as client:
        client.ingest("measured", "l", BLOCK)
        client.wait(client.submit({"kind": "run", "source": STORE}).id)
    has = {**Sample(service).labels, "up": {"job", "instance"}, "job": set()}
    text = (CONFIGS / name).read_text(encoding="utf-8")
    found = [each for each in expressions(yaml.safe_load(text)) if each != "prometheus"]
    assert len(found) > 10
    for expression in found:
        for metric, labels in metrics_of(expression):
            assert metric in has, expression
            assert labels <= has[metric], expression


def test_alerts_say_what_they_mean() -> None:
    (group,) = yaml.safe_load((CONFIGS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names))
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    panels = json.loads((CONFIGS / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
