"""Jobs of the service: submitted, run in processes of their own, watched, cancelled, taken up again after a restart.

What is true of a job is what the database says. Its results are in its folder, where `run` keeps what was counted; a
job whose process or whose service was killed is queued again and goes on from there.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from sqlite3 import IntegrityError, Row
from typing import Any

from ..errors import OutputError, StreamstatsError
from ..storage.files import make_folders, remove_folder, write_json
from . import published
from .database import Database
from .errors import ConflictError, FullError, NotFoundError
from .messages import JobView
from .metrics import Metrics
from .queueing import Waiting, next_job
from .runner import REQUEST

QUEUED, RUNNING, CANCELLING = "queued", "running", "cancelling"
DONE, INCOMPLETE, FAILED, CANCELLED = "done", "incomplete", "failed", "cancelled"
ENDED = (DONE, INCOMPLETE, FAILED, CANCELLED)
STATES = (QUEUED, RUNNING, CANCELLING, *ENDED)
BY_STATUS = {0: DONE, 3: INCOMPLETE}
MOST_ATTEMPTS = 5
"""Times that a job is begun again after its process ended without a word."""
STOP_SECONDS = 30.0
"""For how long a process that was asked to stop may save."""
LONGEST_MESSAGE = 2000
LAST_LINES = 40
"""Of what a process complains of, in the log."""

log = logging.getLogger("streamstats.service")


@dataclass
class _Process:
    """A job's process: whose job, whether it follows a store, what it said at the end, until when it has to end."""

    submitter: str
    follows: bool
    process: subprocess.Popen[str]
    ended: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    kill_at: float | None = None
    thread: threading.Thread | None = None

    def terminate(self) -> None:
        """Ask it to save and stop, which it does in STOP_SECONDS or never."""
        self.process.send_signal(signal.SIGTERM)
        self.kill_at = time.monotonic() + STOP_SECONDS


class Jobs:
    """The jobs in `folder`. `start` takes up what was running; `stop` ends it in a way that can be taken up again.

    `complete` makes of the folder and the request of a job what its process is to do, just before it begins; it raises
    `StreamstatsError` for a request that cannot be met any more. `public` takes from messages what is not for clients.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        complete: Callable[[Path, Mapping[str, Any]], dict[str, Any]],
        metrics: Metrics,
        *,
        public: Callable[[str], str] = lambda text: text,
        running: int = 1,
        following: int = 4,
        waiting: int = 1000,
    ) -> None:
        self._database, self._folder, self._complete, self._metrics = database, folder, complete, metrics
        self._public = public
        self._places = {False: running, True: following}
        self._most_waiting = waiting
        self._lock = threading.Condition()
        self._processes: dict[str, _Process] = {}
        self._stopping = False
        self._listeners: set[Callable[[str], None]] = set()
        self._thread = threading.Thread(target=self._supervise, name="jobs", daemon=True)

    # What clients ask for

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        key: str | None = None,
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> JobView:
        """Queue a job; the same `key` of the same submitter gives the job it gave before.

        `prepare` checks a new one, and puts what it needs into its folder. Raises `ConflictError`, `FullError`, and
        what that raises.
        """
        text = json.dumps(request, sort_keys=True)
        submitter = str(request["submitter"])
        known = self._by_key(submitter, key, text)
        if known is not None:
            return known
        follows = request.get("follow") is not None
        if follows and not self._places[True]:
            raise ConflictError("this service has no places for jobs that follow a store; leave `follow` out")
        (waiting,) = self._database.query("SELECT count(*) AS n FROM jobs WHERE state = ?", (QUEUED,))
        if waiting["n"] >= self._most_waiting:
            raise FullError(f"{waiting['n']} jobs are waiting, which is the most; try again later")
        name = secrets.token_hex(8)
        prepare(self.folder(name))
        values = (name, submitter, key, text, request["kind"], request["priority"], follows, time.time())
        try:
            with self._database.writing() as connection:
                connection.execute(
                    "INSERT INTO jobs (id, submitter, idempotency_key, request, kind, priority, follows, submitted) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
        except IntegrityError:  # the same key, at the same moment
            remove_folder(self.folder(name))
            known = self._by_key(submitter, key, text)
            assert known is not None
            return known
        log.info("submitted", extra={"job": name, "submitter": submitter, "kind": request["kind"]})
        self._changed(name)
        return self.get(name)

    def _by_key(self, submitter: str, key: str | None, request: str) -> JobView | None:
        if key is None:
            return None
        row = self._database.one("SELECT * FROM jobs WHERE submitter = ? AND idempotency_key = ?", (submitter, key))
        if row is not None and row["request"] != request:
            raise ConflictError(f"the idempotency key {key} was given with another request; take a new one for this")
        return None if row is None else _view(row)

    def get(self, name: str) -> JobView:
        """Raises `NotFoundError`."""
        row = self._database.one("SELECT * FROM jobs WHERE id = ?", (name,))
        if row is None:
            raise NotFoundError(f"there is no job {name}")
        return _view(row)

    def newest(
        self, *, before: int | None = None, limit: int = 100, state: str | None = None
    ) -> tuple[list[JobView], int | None]:
        """Jobs, the newest first, of those with numbers less than `before`; the `before` of what comes after them."""
        conditions = {"number < ?": before, "state = ?": state}
        chosen = {condition: value for condition, value in conditions.items() if value is not None}
        where = " AND ".join(["1", *chosen])
        rows = self._database.query(
            f"SELECT * FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?", (*chosen.values(), limit + 1)
        )
        return [_view(row) for row in rows[:limit]], rows[limit - 1]["number"] if len(rows) > limit else None

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        found = self._database.query("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return dict.fromkeys(STATES, 0) | {row["state"]: row["n"] for row in found}

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """What was said of a job after the event of this number."""
        rows = self._database.query(
            "SELECT * FROM events WHERE job = ? AND number > ? ORDER BY number LIMIT 1000", (name, after)
        )
        return [{"number": row["number"], "at": row["at"], "text": row["text"]} for row in rows]

    def folder(self, name: str) -> Path:
        """Where a job's files are."""
        return self._folder / name

    def reading(self, source: str) -> list[str]:
        """The jobs that have not ended and read `source`, as clients call it."""
        places = ", ".join("?" * len(ENDED))
        rows = self._database.query(f"SELECT id, request FROM jobs WHERE state NOT IN ({places})", ENDED)
        return [row["id"] for row in rows if json.loads(row["request"]).get("source") == source]

    def cancel(self, name: str) -> JobView:
        """Stop a job; results that it has stay. Raises `NotFoundError`, `ConflictError` for one that has ended."""
        with self._lock:
            found = self.get(name)
            if found.state in ENDED:
                raise ConflictError(f"job {name} is {found.state} already")
            running = self._processes.get(name)
            if running is None:
                self._set(name, state=CANCELLED, ended=time.time(), message="cancelled before it began")
            else:
                self._set(name, state=CANCELLING, message="is being cancelled")
                running.terminate()
        log.info("cancelled", extra={"job": name})
        self._changed(name)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Remove a job and its files. Raises `NotFoundError`, `ConflictError` for one that has not ended."""
        with self._lock:
            found = self.get(name)
            if found.state not in ENDED or name in self._processes:
                raise ConflictError(f"job {name} is {found.state}; cancel it first, or wait until it has ended")
            with self._database.writing() as connection:
                connection.execute("DELETE FROM jobs WHERE id = ?", (name,))
            remove_folder(self.folder(name))
        log.info("deleted", extra={"job": name})
        self._changed(name)

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Have `listener` called, from any thread, with the id of a job that has changed; returns how to end that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # Running them

    def start(self) -> None:
        """Take up what an earlier service left, and begin."""
        known = {row["id"]: row["state"] for row in self._database.query("SELECT id, state FROM jobs")}
        for folder in self._folder.iterdir():
            if folder.name not in known:  # its submission, or its deletion, was stopped half way
                remove_folder(folder)
        for name, state in known.items():
            if state == CANCELLING:
                self._set(name, state=CANCELLED, ended=time.time(), message="cancelled")
            elif state == RUNNING:
                self._requeue(name)
        self._thread.start()

    def stop(self) -> None:
        """Ask every process to save and stop, and wait for it; their jobs are queued again."""
        with self._lock:
            self._stopping = True
            for running in self._processes.values():
                running.terminate()
            self._lock.notify_all()
        self._thread.join(2 * STOP_SECONDS)

    def _supervise(self) -> None:
        """Begin jobs where there are places, and see that those end that should; until nothing runs any more."""
        while True:
            with self._lock:
                if self._stopping and not self._processes:
                    return
                try:
                    while not self._stopping and (chosen := self._chosen()) is not None:
                        self._begin(chosen)
                except (StreamstatsError, OSError):  # no room for the database, or no processes left
                    log.exception("cannot begin a job; it is tried again")
                for running in self._processes.values():
                    if running.kill_at is not None and time.monotonic() > running.kill_at:
                        running.process.kill()
                self._lock.wait(1.0)

    def _chosen(self) -> JobView | None:
        """The job to begin now: those that follow a store have places of their own."""
        for follows, places in self._places.items():
            running = [each.submitter for each in self._processes.values() if each.follows == follows]
            rows = self._database.query(
                "SELECT number, id, submitter, priority, started FROM jobs WHERE state = ? AND follows = ?",
                (QUEUED, follows),
            )
            rows = [row for row in rows if row["id"] not in self._processes]  # whose last process is not quite gone
            rows = [row for row in rows if row["started"] is not None] or rows  # what was interrupted goes on first
            if len(running) >= places or not rows:
                continue
            last = self._database.query("SELECT submitter, max(started) AS at FROM jobs GROUP BY submitter")
            waiting = [Waiting(row["number"], row["submitter"], row["priority"]) for row in rows]
            found = next_job(waiting, running, {row["submitter"]: row["at"] or 0.0 for row in last})
            return self.get({row["number"]: row["id"] for row in rows}[found.number]) if found else None
        return None

    def _begin(self, job: JobView) -> None:
        folder = self.folder(job.id)
        try:
            make_folders([folder])
            write_json(folder / REQUEST, self._complete(folder, job.request))
        except StreamstatsError as error:
            text = self._shown(str(error))
            self._set(job.id, saying=text, state=FAILED, ended=time.time(), message=text)
            self._changed(job.id)
            return
        self._set(job.id, state=RUNNING, started=time.time(), attempts=job.attempts + 1, message="begins", speed=0.0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamstats.service.runner", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:  # no processes, memory or files are left
            self._set(job.id, state=QUEUED, attempts=job.attempts, message=f"no process could be started: {error}")
            raise
        running = _Process(job.submitter, job.follows, process)
        running.thread = threading.Thread(target=self._follow, args=(job.id, running), daemon=True)
        self._processes[job.id] = running
        running.thread.start()
        log.info("begun", extra={"job": job.id, "pid": process.pid, "attempt": job.attempts + 1})
        self._changed(job.id)

    def _follow(self, name: str, running: _Process) -> None:
        """Read what a job's process says until it ends, and write down how."""
        process, said = running.process, deque[str](maxlen=LAST_LINES)
        assert process.stderr is not None
        assert process.stdout is not None
        errors = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
        errors.start()
        try:
            with process.stdout as lines:
                for line in lines:
                    self._persist(name, partial(self._hear, name, running, line))
            status = process.wait()
            errors.join()
            if said:
                log.warning("its process said: %s", "".join(said), extra={"job": name})
            while not self._persist(name, partial(self._end, name, running, status, list(said)[-1:])):
                if self._stopping:
                    break
                time.sleep(1.0)  # it is tried again until there is room
        finally:
            with self._lock:
                del self._processes[name]
                self._lock.notify_all()
            self._changed(name)

    def _persist(self, name: str, write: Callable[[], None]) -> bool:
        """Whether `write` could write; a disk that is full does not end a job."""
        try:
            write()
        except OutputError:
            log.exception("cannot write down what a job said", extra={"job": name})
            return False
        return True

    def _hear(self, name: str, running: _Process, line: str) -> None:
        try:
            told = json.loads(line)
        except ValueError:  # what a library prints, or a line that a kill cut off
            log.warning("its process printed: %s", line, extra={"job": name})
            return
        if "plan" in told:
            plan = told["plan"]
            running.rows, running.bytes = plan["before"], 0
            self._set(
                name, rows=plan["before"], total_rows=plan["rows"], bytes=0, total_bytes=plan["bytes"], message=""
            )
        elif "progress" in told:
            found = told["progress"]
            self._count(running, found["rows"], found["bytes"])
            self._metrics.task_failures.inc(found["repeats"])
            self._set(name, rows=found["rows"], bytes=found["bytes"], speed=found["speed"])
        elif "saving" in told:
            self._metrics.save_seconds.observe(told["saving"])
        elif "results" in told:
            self._set(name, results=told["results"])
        elif "message" in told:
            text = self._shown(told["message"])
            log.info(text, extra={"job": name})
            self._set(name, saying=text, message=text)
        else:
            running.ended = told["end"]
        self._changed(name)

    def _count(self, running: _Process, rows: int, size: int) -> None:
        self._metrics.rows.inc(max(0, rows - running.rows))
        self._metrics.bytes.inc(max(0, size - running.bytes))
        running.rows, running.bytes = max(rows, running.rows), max(size, running.bytes)

    def _end(self, name: str, running: _Process, status: int, last: list[str]) -> None:
        ended, now = running.ended, time.time()
        with self._lock:  # a job that ends cannot be cancelled at the same moment
            job = self.get(name)
            if ended.get("status") in BY_STATUS:
                text = self._shown(ended["text"])
                self._set(name, saying=text, state=BY_STATUS[ended["status"]], ended=now, message=text)
            elif job.state == CANCELLING:
                kept = "its results so far are kept" if job.results is not None else "it had no results"
                self._set(name, state=CANCELLED, ended=now, message=f"cancelled; {kept}")
            elif self._stopping:
                self._requeue(name)
            elif ended:
                text = self._shown(ended["text"])
                self._set(name, saying=text, state=FAILED, ended=now, message=text)
            else:
                self._end_unsaid(job, status, last)
        log.info("ended", extra={"job": name, "status": status, "state": self.get(name).state})

    def _requeue(self, name: str) -> None:
        """It was no fault of the job's: the attempt does not count."""
        text = "the service was stopped; it goes on with what was saved"
        self._set(name, saying=text, state=QUEUED, message=text, attempts=self.get(name).attempts - 1)

    def _end_unsaid(self, job: JobView, status: int, last: list[str]) -> None:
        """The process was killed, or failed in a way that nobody foresaw."""
        why = self._shown(f"its process ended with status {status}{': ' if last else ''}{' '.join(last).strip()}")
        self._metrics.task_failures.inc()
        if job.attempts < MOST_ATTEMPTS:
            self._set(job.id, saying=why, state=QUEUED, message=f"{why}; it is begun again")
        else:
            message = f"{why}; tried {job.attempts} times"
            self._set(job.id, saying=why, state=FAILED, ended=time.time(), message=message)

    def _shown(self, text: str) -> str:
        """What clients are shown of `text`."""
        return self._public(text)[:LONGEST_MESSAGE]

    def _set(self, name: str, saying: str | None = None, **values: Any) -> None:
        """Change columns of a job and, in the same transaction, add to what was said of it."""
        with self._database.writing() as connection:
            columns = ", ".join(f"{column} = ?" for column in values)
            connection.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), name))
            if saying is not None:
                connection.execute("INSERT INTO events (job, at, text) VALUES (?, ?, ?)", (name, time.time(), saying))

    def _changed(self, name: str) -> None:
        with self._lock:
            self._lock.notify_all()
        for listener in list(self._listeners):
            listener(name)

    def current(self, name: str) -> int | None:
        """The number of a job's current results."""
        return published.current(self.folder(name))


def _view(row: Row) -> JobView:
    request = json.loads(row["request"])
    fields = {name: row[name] for name in JobView.model_fields if name in row.keys()}  # noqa: SIM118 - a row is no mapping
    speed, running = row["speed"], row["state"] == RUNNING
    left = (row["total_bytes"] - row["bytes"]) / speed if running and speed and row["total_bytes"] else None
    return JobView(
        **{**fields, "request": request, "source": request.get("source")}, bytes_per_second=speed, seconds_left=left
    )
