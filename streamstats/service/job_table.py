"""What the database knows of jobs: the request, the state and the progress of each, and the messages of its log.

The database is the truth: a job is in the state that its row says, whatever happened to its process or to the service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from sqlite3 import Connection, IntegrityError, Row
from typing import Any

from ..errors import counted
from .clock import Clock
from .database import Database
from .errors import ConflictError, NotFoundError
from .filters import Wanted
from .messages import OWN, JobSummary, JobView
from .settings import ENDED

QUEUED, RUNNING, CANCELLING = "queued", "running", "cancelling"
DONE, INCOMPLETE, FAILED, CANCELLED = ENDED
STATES = (QUEUED, RUNNING, CANCELLING, *ENDED)
ALL = Wanted()
HAS_ENDED = f"state IN ({', '.join(map(repr, ENDED))})"
EVENT = "INSERT INTO events (job, at, text) VALUES (?, ?, ?)"
NOT_TOLD = {"request", "note", "bytes_per_second", "seconds_left"}
MOST_EVENTS = 1000
"""Messages of a job that are read at once."""
COMPUTED = {
    "source": "json_extract(request, '$.source')",
    "bytes_per_second": "speed",
    "seconds_left": f"CASE WHEN state = '{RUNNING}' AND speed > 0 AND total_bytes > 0 "
    "THEN (total_bytes - bytes) / speed END",
    "place": "NULL",
    "waits_for": "''",
}
"""What clients see of a job that is no column. The queue knows places, and what jobs wait for."""
SUMMARY = ", ".join(f"{COMPUTED.get(name, name)} AS {name}" for name in JobSummary.model_fields)
VIEW = f"{SUMMARY}, request"
SHOWN = 3
"""How many keys of requests that differ are named."""


@dataclass(frozen=True)
class Submitted:
    """A request as it arrived: its text (canonical JSON) is what a repeated idempotency key is compared with.

    `about`, its name, tags, note and hooks, is not part of that.
    """

    request: Mapping[str, Any]
    key: str | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The request as JSON with sorted keys."""
        return json.dumps(self.request, sort_keys=True)

    def differs(self, earlier: str) -> str:
        """Where the request differs from an `earlier` one, given as its text."""
        before = json.loads(earlier)
        keys = [key for key in {**before, **self.request} if before.get(key) != self.request.get(key)]
        shown = [
            f"`{key}` was {json.dumps(before.get(key)):.60} and is {json.dumps(self.request.get(key)):.60}"
            for key in keys[:SHOWN]
        ]
        return ", ".join([*shown, *([f"and {counted(len(keys) - SHOWN, 'more key')}"] if len(keys) > SHOWN else [])])

    @property
    def submitter(self) -> str:
        """Who submits it."""
        return str(self.request["submitter"])

    @property
    def follows(self) -> bool:
        """Whether the job follows a store."""
        return self.request.get("follow") is not None


class JobTable:
    """The jobs in `database`, with the times of `clock`.

    `told` gives the hooks that are told when a job is in a state, among those that it names.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock | None = None,
        told: Callable[[str, Collection[str]], Iterable[str]] = lambda _state, _named: (),
    ) -> None:
        self._database, self.clock, self._told = database, clock or Clock(), told

    def add(self, name: str, submitted: Submitted) -> bool:
        """Queue the job `name`; False if another job has its idempotency key."""
        request = submitted.request
        row = {
            "id": name,
            "submitter": submitted.submitter,
            "idempotency_key": submitted.key,
            "request": submitted.text,
            "kind": request["kind"],
            "priority": request["priority"],
            "follows": submitted.follows,
            "submitted": self.clock.now(),
            **_columns(submitted.about),
        }
        places = ", ".join("?" * len(row))
        try:
            with self._database.writing() as connection:
                connection.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({places})", tuple(row.values()))
        except IntegrityError:
            return False
        return True

    def known(self, submitted: Submitted) -> JobView | None:
        """The job that an earlier request with the same key made. Raises `ConflictError` if that request differs."""
        if submitted.key is None:
            return None
        where = "submitter = ? AND idempotency_key = ?"
        row = self._database.one(f"SELECT {VIEW} FROM jobs WHERE {where}", (submitted.submitter, submitted.key))
        if row is not None and row["request"] != submitted.text:
            differs = submitted.differs(row["request"])
            raise ConflictError(
                f"the idempotency key {submitted.key} was used with another request: {differs}; use a new key for this "
                "one"
            )
        return None if row is None else _view(row)

    def get(self, name: str) -> JobView:
        """Raises `NotFoundError`."""
        row = self._database.one(f"SELECT {VIEW} FROM jobs WHERE id = ?", (name,))
        if row is None:
            raise NotFoundError(f"there is no job {name}")
        return _view(row)

    def newest(
        self, wanted: Wanted = ALL, *, before: int = 2**53, limit: int = 100
    ) -> tuple[list[JobSummary], int | None]:
        """The newest `limit` jobs with numbers below `before`, and the `before` of the page after them, if any."""
        where, values = wanted.where()
        rows = self._database.query(
            f"SELECT {SUMMARY}, number FROM jobs WHERE number < ? AND {where} ORDER BY number DESC LIMIT ?",
            (before, *values, limit + 1),
        )
        following = rows[limit - 1]["number"] if len(rows) > limit else None
        return [JobSummary(**_fields(row)) for row in rows[:limit]], following

    def all(self) -> list[JobView]:
        """All jobs, oldest first."""
        return [_view(row) for row in self._database.query(f"SELECT {VIEW} FROM jobs ORDER BY number")]

    def counts(self) -> dict[str, int]:
        """The number of jobs in each state."""
        found = self._database.query("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return dict.fromkeys(STATES, 0) | {row["state"]: row["n"] for row in found}

    def waiting(self) -> int:
        """The number of queued jobs."""
        (found,) = self._database.query("SELECT count(*) AS n FROM jobs WHERE state = ?", (QUEUED,))
        return int(found["n"])

    def waited(self) -> float:
        """For how many seconds the oldest job has waited that is queued and was never started; 0 if there is none."""
        where = "state = ? AND started IS NULL"
        (found,) = self._database.query(f"SELECT min(submitted) AS oldest FROM jobs WHERE {where}", (QUEUED,))
        return 0.0 if found["oldest"] is None else max(0.0, self.clock.now() - found["oldest"])

    def states(self) -> dict[str, str]:
        """The state of each job, by id."""
        return {row["id"]: row["state"] for row in self._database.query("SELECT id, state FROM jobs")}

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        """The messages of a job with numbers above `after`, oldest first."""
        rows = self._database.query(
            f"SELECT * FROM events WHERE job = ? AND number > ? ORDER BY number LIMIT {MOST_EVENTS}", (name, after)
        )
        return [{"number": row["number"], "at": row["at"], "text": row["text"]} for row in rows]

    def reading(self, source: str) -> list[str]:
        """The jobs that have not ended and whose request names `source`."""
        rows = self._database.query(f"SELECT id, request FROM jobs WHERE NOT {HAS_ENDED}")
        return [row["id"] for row in rows if json.loads(row["request"]).get("source") == source]

    def check_unread(self, store: str) -> None:
        """Raise `ConflictError` while a job reads a store of the service."""
        reading = self.reading(OWN + store)
        if reading:
            raise ConflictError(f"job {reading[0]} reads the store {store}; cancel it first")

    def counted(self, source: str, identity: str, after: int) -> list[str]:
        """The jobs, of those with numbers above `after`, that have results and whose request names the store `source`,
        and that have ended, or are forgetting what was withdrawn before.

        Those of another `identity` counted an earlier store of its name; older services did not note it.
        """
        rows = self._database.query(
            f"SELECT id FROM jobs WHERE ({HAS_ENDED} OR (forgets IS NOT NULL AND state <> '{QUEUED}')) "
            "AND results IS NOT NULL AND json_extract(request, '$.source') = ? "
            "AND coalesce(store_identity, ?) = ? AND number > ? ORDER BY number",
            (source, identity, identity, after),
        )
        return [row["id"] for row in rows]

    def number(self, name: str) -> int:
        """The number of a job: later ones have higher ones. Raises `NotFoundError`."""
        row = self._database.one("SELECT number FROM jobs WHERE id = ?", (name,))
        if row is None:
            raise NotFoundError(f"there is no job {name}")
        return int(row["number"])

    def forgets(self, name: str) -> str | None:
        """The state that a job had before it was queued to forget rows; None if it was not."""
        return self.before(name)[0]

    def before(self, name: str) -> tuple[str | None, str]:
        """The state as `forgets` gives it, and the message with which the job had ended."""
        row = self._database.one("SELECT forgets, ended_as FROM jobs WHERE id = ?", (name,))
        return (None, "") if row is None else (row["forgets"], row["ended_as"])

    def store_identity(self, name: str) -> str | None:
        """The identity of the store of the service that a job has started on; None if it has not, or is older."""
        row = self._database.one("SELECT store_identity FROM jobs WHERE id = ?", (name,))
        return None if row is None else row["store_identity"]

    def ended(self) -> list[dict[str, Any]]:
        """id, end and tags of each job that has ended, and whether it has results."""
        rows = self._database.query(
            f"SELECT id, ended, tags, results IS NOT NULL AS has_results FROM jobs WHERE {HAS_ENDED}"
        )
        return [{**dict(row), "ended": row["ended"] or 0.0, "tags": json.loads(row["tags"])} for row in rows]

    def delete_events(self, last: int) -> None:
        """Delete all messages up to that number."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM events WHERE number <= ?", (last,))

    def queued(self, *, follows: bool) -> list[Row]:
        """number, id, submitter, priority and start of each queued job that does, or does not, follow a store."""
        return self._database.query(
            "SELECT number, id, submitter, priority, started FROM jobs WHERE state = ? AND follows = ?",
            (QUEUED, follows),
        )

    def turns(self) -> dict[str, int]:
        """The number of each submitter's latest start; all starts are counted."""
        rows = self._database.query("SELECT submitter, max(turn) AS latest FROM jobs GROUP BY submitter")
        return {row["submitter"]: row["latest"] for row in rows}

    def begin(self, name: str, attempt: int, store_identity: str | None) -> None:
        """The job starts on the store of that identity, if it reads one of the service, and takes the next turn."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE jobs SET message = 'starts', state = ?, started = ?, attempts = ?, speed = 0, stage = '', "
                "store_identity = coalesce(store_identity, ?), turn = 1 + (SELECT max(turn) FROM jobs) WHERE id = ?",
                (RUNNING, self.clock.now(), attempt, store_identity, name),
            )

    def end(self, name: str, state: str, message: str, **values: Any) -> None:
        """The job ends in `state`; `message` says why, and joins its log."""
        self.update(name, message, logged=True, state=state, ended=self.clock.now(), **values)

    def update(self, name: str, message: str | None = None, *, logged: bool = False, **values: Any) -> None:
        """Set columns of a job and its `message`, which, if `logged`, joins its log in the same transaction."""
        columns = values if message is None else {**values, "message": message}
        assignments = ", ".join(f"{column} = ?" for column in columns)
        with self._database.writing() as connection:
            connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), name))
            if logged:
                connection.execute(EVENT, (name, self.clock.now(), message))
            if values.get("state") in ENDED:
                self._note_end(connection, name)

    def _note_end(self, connection: Connection, name: str) -> None:
        """Note, in the transaction in which a job ends, what hooks will be told, so that none is forgotten."""
        row = connection.execute(f"SELECT {VIEW} FROM jobs WHERE id = ?", (name,)).fetchone()
        job = _view(row).model_dump(exclude=NOT_TOLD)
        at = datetime.fromtimestamp(row["ended"], UTC).isoformat(timespec="seconds")
        body = json.dumps({"type": f"job.{row['state']}", "timestamp": at, "data": job})
        for hook in self._told(row["state"], json.loads(row["notify"])):
            connection.execute("INSERT INTO notices (job, hook, body) VALUES (?, ?, ?)", (name, hook, body))

    def say(self, name: str, text: str) -> None:
        """Add a message to the log of a job, if it still exists."""
        with self._database.writing() as connection, suppress(IntegrityError):
            connection.execute(EVENT, (name, self.clock.now(), text))

    def describe(self, name: str, about: Mapping[str, Any]) -> None:
        """Change what `about` has of the name, the tags and the note of a job."""
        columns = _columns(about)
        if columns:
            assignments = ", ".join(f"{column} = ?" for column in columns)
            with self._database.writing() as connection:
                connection.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), name))

    def delete(self, name: str) -> None:
        """Delete a job with its log."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (name,))


def _columns(about: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}


def _view(row: Row) -> JobView:
    return JobView(**{**_fields(row), "request": json.loads(row["request"])})


def _fields(row: Row) -> dict[str, Any]:
    stage = json.loads(row["stage"]) if row["state"] == RUNNING and row["stage"] else None
    lists = {name: json.loads(row[name]) for name in ("tags", "notify")}
    return {**dict(row), **lists, "stage": stage}
