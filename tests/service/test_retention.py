"""Retention: what is removed by age, number and bytes, what never is, and that a dry run tells the truth."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from served import STORE, Served, served, wait_until
from starlette.requests import Request

import streamstats as ss
from streamstats.errors import OutputError
from streamstats.service import result_routes
from streamstats.service.client import RefusedError
from streamstats.service.clock import Clock
from streamstats.service.errors import ConflictError, GoneError
from streamstats.service.job_table import Submitted
from streamstats.service.lanes import Activations
from streamstats.service.messages import RunRequest
from streamstats.service.published import RETAINED_SECONDS, Published, current, discard, numbers
from streamstats.service.result_routes import ResultRoutes
from streamstats.service.retaining import Keep, Thing
from streamstats.service.service import Service
from streamstats.service.settings import RetentionConfig, ServiceConfig
from streamstats.service.tokens import Caller
from streamstats.storage.files import folder_bytes

LIMIT = st.none() | st.integers(0, 30)
DAY = 86400.0
ADMIN = Caller("admin", "admin")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=8), LIMIT, LIMIT, LIMIT)
def test_what_is_kept_is_the_newest_within_all_limits(
    found: list[tuple[int, int]], age: int | None, number: int | None, size: int | None
) -> None:
    things = [Thing(str(index), float(at), size) for index, (at, size) in enumerate(found)]
    gone = {each.name for each, _ in Keep(age, number, size).expired(things, 30.0)}
    kept = [each for each in things if each.name not in gone]
    assert age is None or all(30 - each.at <= age for each in kept)
    assert number is None or len(kept) <= number
    assert size is None or sum(each.bytes for each in kept) <= size
    for each in (each for each in things if each.name in gone):  # nothing is removed that could have been kept
        assert all(each.at <= other.at for other in kept)
        and_newer = [other for other in things if other.at > each.at or (other.at == each.at and other != each)]
        fits = number is None or len([*kept, each]) <= number
        fits = fits and (size is None or sum(other.bytes for other in [*and_newer, each]) <= size)
        assert not fits or (age is not None and 30 - each.at > age)


@pytest.mark.parametrize(("text", "seconds"), [("90d", 90 * DAY), ("12 h", 43200), ("1.5m", 90), ("45s", 45)])
def test_ages_are_read(text: str, seconds: float) -> None:
    assert RetentionConfig.model_validate({"jobs": {"age": text}}).jobs.age == seconds


def test_the_default_that_the_schema_shows_is_the_default() -> None:
    shown = RetentionConfig.model_json_schema()["properties"]["every"]["default"]
    assert RetentionConfig.model_validate({"every": shown}) == RetentionConfig()


@pytest.mark.parametrize("wrong", [{"age": "3 weeks"}, {"age": "0s"}, {"age": 90}, {"number": -1}, {"count": 3}])
def test_wrong_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetentionConfig.model_validate({"jobs": wrong})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("retention")) as service:
        yield service


def changed(service: Served, statement: str, *values: object) -> None:
    """The database, as time would have left it."""
    with sqlite3.connect(service.data / "service.sqlite", timeout=30) as connection:
        connection.execute(statement, values)
    connection.close()


def names(found: list[Any], kind: str) -> list[str]:
    return [each.name for each in found if each.kind == kind]


def test_jobs_go_with_their_files_but_for_those_that_run_or_are_tagged(service: Served, client: ss.Client) -> None:
    request = {"kind": "run", "source": STORE}
    tagged, old = (client.wait(client.submit({**request, **more}).id).id for more in ({"tags": ["keep"]}, {}))
    client.ingest("read", "l", np.ones((4, 2), np.float32))
    running = client.submit({"kind": "run", "source": "store:read", "follow": {}}).id
    for each in (tagged, old, running):
        changed(service, "UPDATE jobs SET submitted = 0, ended = iif(ended, 1, NULL) WHERE id = ?", each)
    keep = {"jobs": {"age": "1d"}, "stores": {"number": 0}}
    told = client.prune(keep, dry_run=True)
    assert names(told, "jobs") == [old]
    assert names(told, "stores") == []  # a job reads it
    assert told[0].bytes > 1000
    assert client.job(old).state == "done"
    assert client.prune(keep) == told
    with pytest.raises(RefusedError, match="there is no job"):
        client.job(old)
    assert not (service.data / "jobs" / old).exists()
    assert client.job(tagged).state == "done"
    client.cancel(running)
    client.wait(running)
    assert names(client.prune(keep), "stores") == ["read"]
    assert client.prune(keep) == []
    who = {(each.who, each.path.removeprefix("/api/v1")) for each in client.audit().entries}
    assert {("admin", f"/jobs/{old}"), ("admin", "/stores/read"), ("admin", "/prune?dry_run=true")} <= who


def test_jobs_without_results_push_out_none_that_have_some(bare: Service) -> None:
    names = [f"{number:016}" for number in range(6)]
    for number, name in enumerate(names):
        ends = {"state": "failed"} if number >= 2 else {"state": "done", "results": 1}
        bare.table.add(name, Submitted(RunRequest(kind="run", source="x").model_dump() | {"submitter": "a"}, None))
        bare.table.update(name, "ended", ended=float(number), **ends)
        (bare.jobs.folder(name) / "out").mkdir(parents=True)
        (bare.jobs.folder(name) / "out" / "file").write_bytes(bytes(10_000))

    def gone(**jobs: int) -> list[str]:
        config = RetentionConfig.model_validate({"jobs": jobs})
        return sorted(each.name for each in bare.retention.prune("a", config, dry_run=True))

    assert gone(number=2) == names[2:4]  # the older ones of the four that failed
    assert gone(number=0) == names
    size = folder_bytes(bare.jobs.folder(names[0]))
    assert gone(bytes=3 * size) == names[2:5]
    assert gone(bytes=size) == [names[0], *names[2:]]


def test_uploads_and_messages_go_by_number_and_bytes(service: Served, client: ss.Client, tmp_path: Path) -> None:
    ids = []
    for number in range(4):
        (tmp_path / "x").write_bytes(bytes([number]) * 100)
        ids.append(client.upload(tmp_path / "x").id)
        changed(service, "UPDATE uploads SET uploaded = ? WHERE id = ?", float(number + 1), ids[-1])
    assert names(client.prune({"uploads": {"bytes": 399}}), "uploads") == [ids[0]]
    assert names(client.prune({"uploads": {"number": 2}}), "uploads") == [ids[1]]
    assert [each["id"] for each in client._asked("GET", "/uploads").json()] == sorted(ids[2:])
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id).id
    before = [each for kind, each in client.events(job) if kind == "message"]
    (told,) = client.prune({"events": {"number": 1}}, dry_run=True)
    assert told.kind == "events"
    assert [each for kind, each in client.events(job) if kind == "message"] == before
    client.prune({"events": {"number": 1}})
    assert [each for kind, each in client.events(job) if kind == "message"] == before[-1:]
    client.prune({"events": {"bytes": 1}})
    assert [each for kind, each in client.events(job) if kind == "message"] == []


def test_replaced_sets_go_and_the_current_one_stays(service: Served, client: ss.Client) -> None:
    block = np.ones((4, 2), np.float32)
    client.ingest("sets", "l", block)
    job = client.submit({"kind": "run", "source": "store:sets", "follow": {"rows": 8}}).id
    wait_until(lambda: client.job(job).results == 1)
    client.ingest("sets", "l", block)
    assert client.wait(job).results == 2
    folder = service.data / "jobs" / job / "results"
    assert sorted(each.name for each in folder.iterdir()) == ["1", "2"]
    assert client.prune({"sets": {"number": 0}}) == []  # a client may be fetching it
    changed(service, "UPDATE jobs SET ended = ended - 3000 WHERE id = ?", job)
    os.utime(folder / "1", (0, time.time() - 3600))
    assert client.prune({"sets": {"number": 0}}) == []  # whatever the wall clock says


def test_sets_that_were_replaced_go_after_a_while(tmp_path: Path) -> None:
    past = 0.0
    clock = Clock(monotonic=lambda: past)
    service = Service(ServiceConfig.model_validate({"data": str(tmp_path / "data")}), clock)
    request = {"kind": "run", "source": STORE, "submitter": "ann", "priority": 0}
    service.table.add("job", Submitted(request, None))
    service.table.update("job", "done", state="done", ended=time.time() - 3000, results=2)
    folder = service.jobs.folder("job")
    for _ in range(2):
        Published(folder, clock, Keep()).publish({"x": service.token_file.path})

    def pruned(**sets: Any) -> list[str]:
        found = [*service.retention.prune("a", RetentionConfig.model_validate({"sets": sets}))]
        assert {each.why for each in found} <= {*sets}
        return names(found, "sets")

    assert pruned(number=0) == []
    past = RETAINED_SECONDS + 1
    assert pruned(age="2h") == []
    assert pruned(number=0) == ["job/1"]
    assert (numbers(folder), current(folder)) == ([2], 2)
    with pytest.raises(GoneError):
        service.results("job", 1)
    service.stop()


def test_the_service_removes_by_itself_what_its_configuration_does_not_keep(tmp_path: Path) -> None:
    keep = {"jobs": {"number": 1}, "every": "1s"}
    service = Service(ServiceConfig.model_validate({"data": str(tmp_path / "data"), "retention": keep}))
    for name in "ab":
        request = {"kind": "run", "source": STORE, "submitter": "ann", "priority": 0}
        service.table.add(name, Submitted(request, None))
        service.table.update(name, "done", state="done", ended=float(ord(name)))
    service.start()
    wait_until(lambda: [each.id for each in service.table.newest()[0]] == ["b"])
    wait_until(lambda: len(service.audit.newest(who="(retention)", before=2**53, limit=9)) == 1)
    service.stop()


def test_results_that_are_deleted_while_their_archive_is_made_are_gone(
    bare: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, manifest = "0" * 16, tmp_path / "manifest.json"
    manifest.write_text("{}")
    bare.table.add(job, Submitted(RunRequest(kind="run", source="x").model_dump() | {"submitter": "a"}, None))
    for _ in range(2):
        Published(bare.jobs.folder(job)).publish({manifest.name: manifest})

    def made(*_: object) -> None:
        discard(bare.jobs.folder(job), 1)
        raise OutputError("manifest.json: No such file or directory")

    monkeypatch.setattr(result_routes, "write_archive", made)
    with pytest.raises(GoneError, match="result set 1 of job 0000000000000000 was replaced; the current one is 2"):
        ResultRoutes(bare).archive(Request({"type": "http", "method": "GET", "headers": []}), job, 1)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Service]:
    """A service without HTTP, with the stores `a` and `b`."""
    service = Service(ServiceConfig.model_validate({"data": str(tmp_path / "data")}))
    service.start()
    for name in "ab":
        append(service, name)
    yield service
    service.stop()


def append(service: Service, store: str) -> None:
    activations = Activations("l", str(time.monotonic()), "digest", np.ones((2, 3), np.float32))
    service.stores.append(store, activations).result(60)


def test_what_was_used_since_it_was_listed_stays(bare: Service) -> None:
    pruned = bare.retention.prune("ann", RetentionConfig.model_validate({"stores": {"number": 0}}))
    gone = next(pruned).name
    (other,) = {"a", "b"} - {gone}
    append(bare, other)
    assert list(pruned) == []
    assert bare.stores.names() == [other]
    (bare.uploads.folder / ("0" * 64)).write_bytes(b"x")
    upload = bare.uploads.view("0" * 64)
    with pytest.raises(ConflictError, match="sent again"):
        bare.uploads.remove(upload.id, listed=upload.uploaded - 1)
    bare.uploads.remove(upload.id, listed=upload.uploaded)


def test_a_store_is_not_deleted_while_a_job_on_it_is_submitted(bare: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = bare.jobs.submit

    def during(*given: Any, **more: Any) -> Any:
        for act in (lambda: bare.delete_store("a", ADMIN), lambda: bare.delete_layer("a", "l", ADMIN)):
            with pytest.raises(ConflictError, match="another request uses the store a"):
                act()
        return submit(*given, **more)

    monkeypatch.setattr(bare.jobs, "submit", during)
    job = bare.submit(RunRequest(kind="run", source="store:a", follow={}), None, ADMIN)
    with pytest.raises(ConflictError, match=f"job {job.id} reads the store a"):
        bare.delete_store("a", ADMIN)
    bare.delete_store("b", ADMIN)
    assert bare.stores.names() == ["a"]


def test_two_do_not_delete_a_store_at_once(bare: Service) -> None:
    def check() -> None:
        with pytest.raises(ConflictError, match="being deleted already"):
            bare.delete_store("a", ADMIN)

    bare.stores.delete_layer("a", "l", check)
    bare.stores.delete("b", lambda: None)


@pytest.fixture
def client(service: Served) -> Iterator[ss.Client]:
    with service.client() as client:
        yield client
