"""The database: jobs, their messages, and the idempotency keys of activations. SQLite, one file.

Every change is one transaction, which is on the disk before it is acknowledged (write-ahead log, synchronous). A
database of an older version is migrated step by step when it is opened; one of a newer version is refused.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        submitter TEXT NOT NULL,
        idempotency_key TEXT,
        request TEXT NOT NULL,
        kind TEXT NOT NULL,
        priority INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL DEFAULT 'queued',
        submitted REAL NOT NULL,
        started REAL,
        ended REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        follows INTEGER NOT NULL,
        speed REAL NOT NULL DEFAULT 0,
        results INTEGER,
        rows INTEGER NOT NULL DEFAULT 0,
        total_rows INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        total_bytes INTEGER NOT NULL DEFAULT 0,
        message TEXT NOT NULL DEFAULT ''
    );
    CREATE UNIQUE INDEX jobs_by_key ON jobs (submitter, idempotency_key) WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_by_state ON jobs (state, number);
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        at REAL NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX events_by_job ON events (job, number);
    CREATE TABLE ingests (
        store TEXT NOT NULL,
        layer TEXT NOT NULL,
        idempotency_key TEXT NOT NULL,
        digest TEXT NOT NULL,
        start INTEGER NOT NULL,
        stop INTEGER NOT NULL,
        PRIMARY KEY (store, layer, idempotency_key)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE jobs ADD COLUMN name TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN forgets TEXT;
    ALTER TABLE jobs ADD COLUMN notify TEXT NOT NULL DEFAULT '[]';
    CREATE TABLE notices (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL,
        hook TEXT NOT NULL,
        body TEXT NOT NULL,
        due REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX notices_by_hook ON notices (hook, due);
    CREATE TABLE tokens (
        digest BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        made REAL NOT NULL,
        maker TEXT NOT NULL,
        until REAL
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        who TEXT NOT NULL,
        entry TEXT NOT NULL
    );
    CREATE TABLE stores (
        name TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        appended REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE uploads (
        id TEXT NOT NULL,
        owner TEXT NOT NULL,
        uploaded REAL NOT NULL,
        PRIMARY KEY (id, owner)
    ) WITHOUT ROWID;
    ALTER TABLE ingests ADD COLUMN sender TEXT NOT NULL DEFAULT '';
    ALTER TABLE ingests ADD COLUMN withdrawn REAL;
    """,
    """
    ALTER TABLE jobs ADD COLUMN stage TEXT NOT NULL DEFAULT '';
    CREATE TABLE totals (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
    """,
)
"""The first n scripts make version n of the database."""


class Database:
    """Connections to the file at `path`, one per thread. Raises `DataError` for a file that is not our database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._migrate()

    def _migrate(self) -> None:
        with self.writing() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise DataError(
                    f"{self._path} has version {version}; this program supports versions up to {len(MIGRATIONS)}; "
                    "use the newer program"
                )
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, script.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            try:
                connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
                connection.row_factory = sqlite3.Row
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    connection.execute(f"PRAGMA {pragma}")
            except sqlite3.DatabaseError as error:
                raise DataError(
                    f"{self._path} is damaged or not a database of the service: {error}; "
                    "restore it from a backup, or use another `data`"
                ) from error
            self._local.connection = connection
        return self._local.connection  # type: ignore[no-any-return]

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when the block ends, or none of it. Raises `OutputError`."""
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise OutputError(
                    f"cannot write {self._path}: {error}; check that the disk has room and responds"
                ) from error
            raise

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows that `statement` selects."""
        return self._connection().execute(statement, parameters).fetchall()

    def one(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row that `statement` selects, None if there is none."""
        found: sqlite3.Row | None = self._connection().execute(statement, parameters).fetchone()
        return found
