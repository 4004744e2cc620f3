"""Whatever fails in the service is logged, shown while it lasts, and tried again; the error says what to do."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import STORE, Served, npy, small_store, wait_until

from streamstats.errors import DataError, OutputError
from streamstats.service import database, jobs, stores
from streamstats.service.database import Database
from streamstats.service.errors import BusyError, DamagedError, FullError, status_of
from streamstats.service.faults import Faults, Repeated
from streamstats.service.lanes import Activations
from streamstats.service.messages import RunRequest
from streamstats.service.service import Service
from streamstats.service.settings import ServiceConfig
from streamstats.service.tokens import Caller

ADMIN = Caller("admin", "admin")

CODES = {
    "database is locked": (sqlite3.SQLITE_BUSY, "locked by another process"),
    "database or disk is full": (sqlite3.SQLITE_FULL, "the disk is full"),
    "disk I/O error": (sqlite3.SQLITE_IOERR, "has room and responds"),
    "database disk image is malformed": (sqlite3.SQLITE_CORRUPT, "damaged"),
    "no such table: jobs": (sqlite3.SQLITE_ERROR, "damaged"),
}


def raised(text: str) -> sqlite3.Error:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = CODES[text][0]
    return error


class Failing:
    """A database whose connections raise `error` while there is one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self._connection = Database._connection
        patch.setattr(Database, "_connection", lambda found: self.connection(found))

    def connection(self, found: Database) -> sqlite3.Connection:
        if self.error is not None:
            raise self.error
        return self._connection(found)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    for module in (jobs, stores):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    return Failing(monkeypatch)


@pytest.fixture
def service(tmp_path: Path, failing: Failing) -> Iterator[Service]:
    """A service without HTTP."""
    small_store(tmp_path / "roots" / STORE)
    found = Service(ServiceConfig(data=tmp_path / "data", roots=[tmp_path / "roots"]))
    yield found
    failing.error = None
    found.stop()


def fails_with(service: Service, failing: Failing, error: Exception, said: str, part: str = "") -> None:
    failing.error = error
    wait_until(lambda: any(said in problem and problem.startswith(part) for problem in service.problems()))


def test_nothing_that_a_database_raises_ends_the_queue_or_loses_a_job(service: Service, failing: Failing) -> None:
    service.start()
    hindrance, service.jobs._hindrance = service.jobs._hindrance, lambda: "not yet"
    job = service.submit(RunRequest(kind="run", source=STORE), None, ADMIN).id
    failing.error = raised("disk I/O error")
    service.jobs._hindrance = hindrance
    for text, (_, said) in CODES.items():
        fails_with(service, failing, raised(text), said)
    fails_with(service, failing, MemoryError("no memory"), "no memory")
    failing.error = None
    wait_until(lambda: service.table.get(job).state == "running")
    failing.error = raised("database is locked")
    wait_until(lambda: any("recording" in problem for problem in service.problems()))
    wait_until(lambda: all(each.poll() is not None for each in processes(service)))  # its end cannot be recorded
    for text, (_, said) in CODES.items():
        fails_with(service, failing, raised(text), said, "recording")
    failing.error = None
    wait_until(lambda: service.table.get(job).state == "done")
    wait_until(lambda: not service.problems())
    assert service.table.get(job).attempts == 1
    answer = service.stores.append("s", Activations("a", "k", "d", np.ones((2, 3), np.float32)))
    assert answer.result(60).stop == 2


def processes(service: Service) -> list[Any]:
    return [each._process for each in service.jobs._processes.values()]


def test_a_lane_survives_what_it_does_not_foresee(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    from streamstats.service import lanes

    found, fails = lanes._batches, [ValueError("unforeseen")]

    def batches(waiting: Any) -> Any:
        if fails:
            raise fails.pop()
        return found(waiting)

    monkeypatch.setattr(lanes, "_batches", batches)
    first = service.stores.append("s", Activations("a", "k", "d", np.ones((2, 3), np.float32)))
    with pytest.raises(OutputError, match="ValueError"):
        first.result(60)
    again = service.stores.append("s", Activations("a", "k", "d", np.ones((2, 3), np.float32)))
    assert again.result(60).stop == 2


def test_a_lane_whose_last_turn_fails_ends_all_the_same(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    from streamstats.service import lanes

    found, begun, go = lanes._batches, threading.Event(), threading.Event()

    def batches(waiting: Any) -> Any:
        if go.is_set():
            raise ValueError("unforeseen")
        begun.set()
        go.wait(60)
        return found(waiting)

    monkeypatch.setattr(lanes, "_batches", batches)
    sent = [service.stores.append("s", Activations("a", "k", "d", np.ones((2, 3), np.float32)))]
    begun.wait(60)
    sent.append(service.stores.append("s", Activations("a", "l", "d", np.ones((2, 3), np.float32))))
    lane = service.stores._lanes["s"]
    closing = threading.Thread(target=lane.close)
    closing.start()
    wait_until(lambda: lane._waiting.qsize() == 2)
    go.set()
    with pytest.raises(OutputError, match="ValueError"):
        sent[1].result(60)
    closing.join(60)
    assert not closing.is_alive()


def test_a_fault_is_logged_once_shown_while_it_lasts_and_logged_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults, done = Faults(), threading.Event()
    outcomes = [ValueError("a"), ValueError("a"), ValueError("b"), None]
    shown: list[list[str]] = []

    def work() -> None:
        shown.append(faults.listed())
        outcome = outcomes.pop(0) if outcomes else None
        if not outcomes:
            done.set()
        if outcome is not None:
            raise outcome

    caplog.set_level("INFO", "streamstats.service")
    repeated = Repeated("a part", work, faults, 0.001)
    repeated.start()
    assert done.wait(60)
    repeated.end()
    assert shown[:4] == [[], ["a part: a"], ["a part: a"], ["a part: b"]]
    assert faults.listed() == []
    assert [record.message for record in caplog.records] == [
        "a part failed and is retried: a",
        "a part failed and is retried: b",
        "a part works again",
    ]


@pytest.mark.soak
def test_a_service_that_cannot_resume_its_jobs_accepts_none_until_it_can(service: Service, failing: Failing) -> None:
    with pytest.raises(FullError, match="the service is starting"):
        service.submit(RunRequest(kind="run", source=STORE), None, ADMIN)
    failing.error = raised("database is locked")
    service.start()
    assert "the queue of jobs: service.sqlite is locked" in " ".join(service.problems())
    failing.error = None
    wait_until(lambda: service.jobs._resumed)
    wait_until(lambda: not service.problems())
    assert service.submit(RunRequest(kind="run", source=STORE), None, ADMIN).state in ("queued", "running")


# Databases that are damaged, locked, removed


def test_a_locked_database_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.01)
    found = Database(tmp_path / "db")
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError, match="locked by another process; end that process") as caught:
            found.check()
        with pytest.raises(BusyError), found.writing():
            pass
        assert status_of(caught.value) == 503
        assert found.query("SELECT count(*) AS n FROM jobs")[0]["n"] == 0
    found.check()


def test_only_the_first_of_several_transactions_waits_long_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.3)
    monkeypatch.setattr(database, "STILL_LOCKED_SECONDS", 0.005)
    found, waited = Database(tmp_path / "db"), []
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(BusyError), found.writing():
                pass
            waited += [row[0] for row in found.query("PRAGMA busy_timeout")]
    for _ in range(2):
        with found.writing():
            waited += [row[0] for row in found.query("PRAGMA busy_timeout")]
    assert waited == [300, 5, 5, 5, 300]


@pytest.mark.parametrize("page", [0, 3])
def test_a_database_that_is_damaged_while_it_is_used_is_said_to_be(tmp_path: Path, page: int) -> None:
    path = tmp_path / "db"
    found = Database(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xa5" * 4096)
    found._damaged = True  # as after a query that came across it
    for _ in range(2):
        with pytest.raises(DamagedError, match="restore the file from a backup") as caught:
            found.check()
        assert status_of(caught.value) == 503
    with pytest.raises(DataError, match="damaged"):
        Database(path)
    path.write_bytes(content)
    found.check()


def test_a_database_that_is_removed_or_replaced_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "db"
    found = Database(path)
    found.check()
    path.rename(tmp_path / "gone")
    with pytest.raises(DamagedError, match="removed or replaced"):
        found.check()
    Database(path)
    with pytest.raises(DamagedError, match="removed or replaced"):
        found.check()


def test_a_service_whose_database_is_damaged_is_not_ready_and_does_not_start(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service._watch, "_seconds", 0.01)
    service.start()
    assert service.problems() == []
    path = service.data / "service.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)
    wait_until(lambda: any(each.startswith("the database") for each in service.problems()))
    assert "the database: service.sqlite is damaged" in " ".join(service.problems())
    assert str(tmp_path) not in "".join(service.problems())
    service.stop()
    with pytest.raises(DamagedError, match="is damaged or not a database of the service"):
        Service(service.config)


# A full disk


@pytest.mark.soak
def test_a_service_starts_on_a_full_disk_so_that_results_can_be_read(tmp_path: Path, service: Service) -> None:
    service.start()
    job = service.submit(RunRequest(kind="run", source=STORE), None, ADMIN).id
    service.stores.append("s", Activations("a", "k", "d", np.ones((2, 3), np.float32))).result(60)
    wait_until(lambda: service.table.get(job).state == "done")
    service.stop()
    with closing(sqlite3.connect(service.data / "service.sqlite")) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("wal", "shm"):  # as after a restart of the machine
        (service.data / f"service.sqlite-{name}").unlink()
    full = Served(tmp_path)
    full.shell = "ulimit -f 0"  # no file can grow
    full.start()
    try:
        with full.client() as client, full.http() as http:
            assert client.job(job).state == "done"
            assert client.channels(job, "fc")["rows"] == 32
            client.fetch(job, tmp_path / "fetched")
            path = "/api/v1/stores/s/layers/a"
            answer = http.post(path, content=npy(np.ones((2, 3), np.float32)), headers={"Idempotency-Key": "x"})
            assert answer.status_code == 507, answer.text
            assert http.post("/api/v1/jobs", json={"kind": "run", "source": STORE}).status_code == 507
            wait_until(lambda: http.get("/readyz").status_code == 503)
            assert "make room" in http.get("/readyz").text
    finally:
        assert full.stop() == 0
    again = Service(service.config)
    again.start()
    assert again.stores.append("s", Activations("a", "x", "d", np.ones((2, 3), np.float32))).result(60).stop == 4
    again.stop()
