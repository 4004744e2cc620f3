"""Jobs of the service: submitted, run in processes of their own, watched, cancelled, and taken up again after a restart.

What is true of a job is what the database says. Its results are in its folder, where `run` keeps what was counted; a job
whose process or whose service was killed is queued again and goes on from there.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import IntegrityError, Row
from typing import Any

from ..artifacts import make_folders, remove_folder, write_json
from ..errors import StreamstatsError, UsageError
from .database import Database
from .queueing import Waiting, next_job

QUEUED, RUNNING, CANCELLING = "queued", "running", "cancelling"
DONE, INCOMPLETE, FAILED, CANCELLED = "done", "incomplete", "failed", "cancelled"
ENDED = (DONE, INCOMPLETE, FAILED, CANCELLED)
BY_STATUS = {0: DONE, 3: INCOMPLETE}
MOST_ATTEMPTS = 5
"""Times that a job is begun again after its process ended without a word."""
STOP_SECONDS = 30.0
"""For how long a process that was asked to stop may save."""


class NotFoundError(StreamstatsError):
    """There is no such job."""


class ConflictError(StreamstatsError):
    """The job, or the key of the request, is not in a state for it."""


@dataclass(frozen=True)
class Job:
    """A job as the database has it."""

    id: str
    submitter: str
    kind: str
    config: Mapping[str, Any]
    priority: int
    state: str
    submitted: float
    started: float | None
    ended: float | None
    attempts: int
    rows: int
    total_rows: int
    bytes: int
    total_bytes: int
    message: str

    @classmethod
    def of(cls, row: Row) -> Job:
        """From a row of the table."""
        names = set(cls.__dataclass_fields__)
        return cls(**{name: row[name] for name in row.keys() if name in names} | {"config": json.loads(row["config"])})  # noqa: SIM118

    def document(self) -> dict[str, Any]:
        """JSON-ready, with rate and time left while it runs."""
        now = self.ended or time.time()
        seconds = max(now - self.started, 1e-9) if self.started else 0.0
        rate = self.bytes / seconds if seconds else 0.0
        left = (self.total_bytes - self.bytes) / rate if rate and self.state == RUNNING else None
        return {
            "id": self.id,
            "submitter": self.submitter,
            "kind": self.kind,
            "source": self.config.get("source"),
            "priority": self.priority,
            "state": self.state,
            "submitted": self.submitted,
            "started": self.started,
            "ended": self.ended,
            "attempts": self.attempts,
            "rows": self.rows,
            "total_rows": self.total_rows,
            "bytes": self.bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": rate,
            "seconds_left": left,
            "message": self.message,
        }


@dataclass
class _Process:
    submitter: str
    process: subprocess.Popen[str]
    thread: threading.Thread | None = None
    ended: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """The jobs in `folder`. `start` takes up what was running; `stop` ends it in a way that can be taken up again."""

    def __init__(self, database: Database, folder: Path, *, running: int = 1, waiting: int = 1000) -> None:
        self._database, self._folder = database, folder
        self._most_running, self._most_waiting = running, waiting
        self._lock = threading.Condition()
        self._processes: dict[str, _Process] = {}
        self._stopping = False
        self._listeners: set[Callable[[str], None]] = set()
        self._thread = threading.Thread(target=self._supervise, name="jobs", daemon=True)

    # What clients ask for

    def submit(
        self, kind: str, config: Mapping[str, Any], *, submitter: str, key: str | None = None, priority: int = 0
    ) -> Job:
        """Queue a job; the same `key` of the same submitter gives the job it gave before. Raises `ConflictError`."""
        request = json.dumps([kind, config, priority], sort_keys=True)
        known = self._by_key(submitter, key, request)
        if known is not None:
            return known
        (waiting,) = self._database.query("SELECT count(*) AS n FROM jobs WHERE state = ?", (QUEUED,))
        if waiting["n"] >= self._most_waiting:
            raise ConflictError(f"{waiting['n']} jobs are waiting, which is the most; try again later")
        name = secrets.token_hex(8)
        values = (name, submitter, key, request, kind, json.dumps(config, sort_keys=True), priority, time.time())
        try:
            with self._database.writing() as connection:
                connection.execute(
                    "INSERT INTO jobs (id, submitter, idempotency_key, request, kind, config, priority, submitted) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
        except IntegrityError:  # the same key, at the same moment
            known = self._by_key(submitter, key, request)
            assert known is not None
            return known
        self._changed(name)
        return self.get(name)

    def _by_key(self, submitter: str, key: str | None, request: str) -> Job | None:
        if key is None:
            return None
        row = self._database.one("SELECT * FROM jobs WHERE submitter = ? AND idempotency_key = ?", (submitter, key))
        if row is not None and row["request"] != request:
            raise ConflictError(f"the idempotency key {key} was given with another request; take a new one for this")
        return None if row is None else Job.of(row)

    def get(self, name: str) -> Job:
        """Raises `NotFoundError`."""
        row = self._database.one("SELECT * FROM jobs WHERE id = ?", (name,))
        if row is None:
            raise NotFoundError(f"there is no job {name}")
        return Job.of(row)

    def list(self, *, before: int | None = None, limit: int = 100, state: str | None = None) -> list[tuple[int, Job]]:
        """(number, job) of the newest jobs, or of those with numbers `before` one."""
        conditions, values = ["1"], []
        if before is not None:
            conditions.append("number < ?")
            values.append(before)
        if state is not None:
            conditions.append("state = ?")
            values.append(state)
        where = " AND ".join(conditions)
        rows = self._database.query(f"SELECT * FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?", (*values, limit))
        return [(row["number"], Job.of(row)) for row in rows]

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """What was said of a job after the event of this number."""
        rows = self._database.query("SELECT * FROM events WHERE job = ? AND number > ? ORDER BY number", (name, after))
        return [{"number": row["number"], "at": row["at"], "kind": row["kind"], "text": row["text"]} for row in rows]

    def folder(self, name: str) -> Path:
        """Where a job's files are; its results in `out`."""
        return self._folder / name

    def cancel(self, name: str) -> Job:
        """Stop a job; what it counted stays. Raises `NotFoundError`, `ConflictError` for one that has ended."""
        with self._lock:
            found = self.get(name)
            if found.state in ENDED:
                raise ConflictError(f"job {name} is {found.state} already")
            running = self._processes.get(name)
            if running is None:
                self._set(name, state=CANCELLED, ended=time.time(), message="cancelled before it began")
            else:
                self._set(name, state=CANCELLING, message="is being cancelled")
                running.process.send_signal(signal.SIGTERM)
        self._changed(name)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Remove a job and its files. Raises `NotFoundError`, `ConflictError` for one that has not ended."""
        with self._lock:
            found = self.get(name)
            if found.state not in ENDED:
                raise ConflictError(f"job {name} is {found.state}; cancel it first")
            remove_folder(self.folder(name))
            with self._database.writing() as connection:
                connection.execute("DELETE FROM jobs WHERE id = ?", (name,))
        self._changed(name)

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Have `listener` called, from any thread, with the id of a job that has changed; returns how to end that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # Running them

    def start(self) -> None:
        """Take up what an earlier service left, and begin."""
        with self._database.writing() as connection:
            left = connection.execute(
                "SELECT id, state FROM jobs WHERE state IN (?, ?)", (RUNNING, CANCELLING)
            ).fetchall()
        for row in left:
            if row["state"] == CANCELLING:
                self._set(row["id"], state=CANCELLED, ended=time.time(), message="cancelled")
            else:
                self._set(row["id"], state=QUEUED, message="the service was stopped; it goes on with what was saved")
                self._database.say(row["id"], "message", "the service was stopped; the job goes on")
        self._thread.start()

    def stop(self) -> None:
        """Ask every process to save and stop, and wait for it; their jobs are queued again."""
        with self._lock:
            self._stopping = True
            for running in self._processes.values():
                running.process.send_signal(signal.SIGTERM)
            self._lock.notify_all()
            threads = [running.thread for running in self._processes.values()]
        for thread in filter(None, threads):
            thread.join(STOP_SECONDS)
        with self._lock:
            for running in self._processes.values():
                running.process.kill()
        self._thread.join(STOP_SECONDS)

    def _supervise(self) -> None:
        with self._lock:
            while not self._stopping:
                while len(self._processes) < self._most_running and (chosen := self._chosen()) is not None:
                    self._begin(chosen)
                self._lock.wait(1.0)

    def _chosen(self) -> Job | None:
        rows = self._database.query("SELECT number, id, submitter, priority FROM jobs WHERE state = ?", (QUEUED,))
        names = {row["number"]: row["id"] for row in rows}
        last = self._database.query("SELECT submitter, max(started) AS at FROM jobs GROUP BY submitter")
        found = next_job(
            [Waiting(row["number"], row["submitter"], row["priority"]) for row in rows],
            [running.submitter for running in self._processes.values()],
            {row["submitter"]: row["at"] or 0.0 for row in last},
        )
        return None if found is None else self.get(names[found.number])

    def _begin(self, job: Job) -> None:
        folder = self.folder(job.id)
        make_folders([folder])
        request = {"config": {**job.config, "output": str(folder / "out")}, "kind": job.kind}
        request["follow"] = request["config"].pop("follow", None)
        write_json(folder / "request.json", request)
        self._set(job.id, state=RUNNING, started=time.time(), attempts=job.attempts + 1, message="")
        process = subprocess.Popen(
            [sys.executable, "-m", "streamstats.service.runner", str(folder / "request.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running = _Process(job.submitter, process)
        running.thread = threading.Thread(target=self._follow, args=(job.id, running), daemon=True)
        self._processes[job.id] = running
        running.thread.start()
        self._changed(job.id)

    def _follow(self, name: str, running: _Process) -> None:
        """Read what a job's process says until it ends, and write down how."""
        said: list[str] = []
        assert running.process.stderr is not None
        errors = threading.Thread(target=lambda: said.extend(running.process.stderr or ()), daemon=True)
        errors.start()
        assert running.process.stdout is not None
        for line in running.process.stdout:
            self._hear(name, running, json.loads(line))
        status = running.process.wait()
        errors.join()
        with self._lock:
            self._end(name, running.ended, status, "".join(said).strip().splitlines()[-1:])
            del self._processes[name]
            self._lock.notify_all()
        self._changed(name)

    def _hear(self, name: str, running: _Process, told: Mapping[str, Any]) -> None:
        if "plan" in told:
            plan = told["plan"]
            self._set(name, rows=plan["before"], total_rows=plan["rows"], bytes=0, total_bytes=plan["bytes"])
        elif "progress" in told:
            self._set(name, rows=told["progress"]["rows"], bytes=told["progress"]["bytes"])
        elif "message" in told:
            self._database.say(name, "message", told["message"])
        else:
            running.ended = told["end"]
        self._changed(name)

    def _end(self, name: str, ended: Mapping[str, Any], status: int, last: list[str]) -> None:
        job = self.get(name)
        if job.state == CANCELLING:
            self._set(name, state=CANCELLED, ended=time.time(), message="cancelled; what was counted is kept")
        elif self._stopping:
            self._set(name, state=QUEUED, message="the service was stopped; it goes on with what was saved")
        elif not ended:
            self._end_unsaid(name, job, status, last)
        else:
            state = BY_STATUS.get(ended["status"], FAILED)
            rows = {"rows": job.total_rows, "bytes": job.total_bytes} if state == DONE else {}
            self._set(name, state=state, ended=time.time(), message=ended["text"], **rows)
            self._database.say(name, "end", ended["text"])

    def _end_unsaid(self, name: str, job: Job, status: int, last: list[str]) -> None:
        """The process was killed, or failed in a way that nobody foresaw."""
        why = f"its process ended with status {status}{': ' if last else ''}{' '.join(last)}"
        self._database.say(name, "message", why)
        if job.attempts < MOST_ATTEMPTS:
            self._set(name, state=QUEUED, message=f"{why}; it is begun again")
        else:
            self._set(name, state=FAILED, ended=time.time(), message=f"{why}, for the {job.attempts}th time")

    def _set(self, name: str, **values: Any) -> None:
        with self._database.writing() as connection:
            columns = ", ".join(f"{column} = ?" for column in values)
            connection.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), name))

    def _changed(self, name: str) -> None:
        with self._lock:
            self._lock.notify_all()
        for listener in list(self._listeners):
            listener(name)


def check_submitter(name: str) -> str:
    """Raise `UsageError` for a name that is none."""
    if not (0 < len(name) <= 64 and name.isprintable()):
        raise UsageError(f"the submitter's name has {len(name)} characters; expected 1 to 64 that can be printed")
    return name
