"""The database: jobs, their messages, and the idempotency keys of activations. SQLite, one file.

Every change is one transaction, which is on the disk before it is acknowledged (write-ahead log, synchronous). A
database of an older version is migrated step by step when it is opened; one of a newer version is refused. On a full
disk it can be read. What SQLite raises becomes the error that says what to do: a damaged file, a lock that another
process holds, and a full disk are told apart.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError, OutputError, StreamstatsError
from .errors import BusyError, DamagedError

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
    ALTER TABLE jobs ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN seconds REAL NOT NULL DEFAULT 0;
    UPDATE jobs SET turn = number WHERE started IS NOT NULL;
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
    """
    DROP INDEX notices_by_hook;
    ALTER TABLE notices RENAME TO notices_before;
    CREATE TABLE notices (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job TEXT NOT NULL,
        hook TEXT NOT NULL,
        body TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0
    );
    INSERT INTO notices SELECT number, job, hook, body, attempts FROM notices_before;
    DROP TABLE notices_before;
    CREATE INDEX notices_by_hook ON notices (hook, number);
    """,
    "ALTER TABLE stores ADD COLUMN identity TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN exit_status INTEGER;",
    "ALTER TABLE jobs ADD COLUMN store_identity TEXT;",
    """
    ALTER TABLE jobs ADD COLUMN ended_as TEXT NOT NULL DEFAULT '';
    CREATE TABLE removed_layers (
        store TEXT NOT NULL,
        layer TEXT NOT NULL,
        last_job INTEGER NOT NULL,
        PRIMARY KEY (store, layer)
    ) WITHOUT ROWID;
    """,
)
"""The first n scripts make version n of the database."""


DATABASE = "service.sqlite"
"""The file, in the folder of the service."""
CREATE, WRITE, FROZEN = "mode=rwc", "mode=rw", "immutable=1"
"""How the file is opened. A frozen one is not written, and needs no room on the disk."""
THOROUGH = 60
"""Of so many checks, one reads the whole file."""
LOCK_SECONDS = 10.0
"""How long a transaction waits for one of another process."""
STILL_LOCKED_SECONDS = 0.2
"""How long it waits if an earlier one has waited in vain, and none has succeeded since: a request may need several."""
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLITE_ERROR: a statement of ours names a table that the file lacks."""
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """Connections to the file at `path`, one per thread. All methods raise `StreamstatsError` of these kinds:
    `DamagedError` for a file that is not our database, `BusyError` if another process locks it, `OutputError` for a
    disk that is full or fails, `DataError` for a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._damaged = self._frozen = self._locked = False
        self._generation = self._checks = 0
        try:
            self._check_content(CREATE)
            self._migrate()
        except OutputError:  # a full disk: SQLite cannot make the files beside it
            self._frozen = not self._has_log()
            self._migrate()
        self._file = self._identity()

    @staticmethod
    def copy(path: Path, target: Path) -> None:
        """Copy the database at `path`, which may be changing, to the new file `target`. Raises `DataError`."""
        try:
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
        except sqlite3.Error as error:
            raise DataError(f"cannot copy {path} to {target}: {error}; check both disks, and the database") from error

    def close(self) -> None:
        """Close the connection of this thread."""
        if hasattr(self._local, "connection"):
            self._local.connection.close()
            del self._local.connection, self._local.generation

    def _migrate(self) -> None:
        (version,) = self.query("PRAGMA user_version")[0]
        if version > len(MIGRATIONS):
            raise DataError(
                f"{self._path} has version {version}; this program supports versions up to {len(MIGRATIONS)}; "
                "use the newer program"
            )
        if version == len(MIGRATIONS):  # nothing to write
            return
        with self.writing() as connection:
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, script.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    def _has_log(self) -> bool:
        """Whether changes lie in the log, which a reader needs room to read."""
        log = self._path.with_name(f"{self._path.name}-wal")
        return log.exists() and log.stat().st_size > 0

    def check(self) -> None:
        """Raise what is wrong with the file at the moment, as for a process that opens it now."""
        if self._identity() != self._file:
            self._damaged = True
            raise DamagedError(f"{self._path} was removed or replaced while the service runs; restart the service")
        with self._explained(), closing(self._opened(WRITE)) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")  # writes what it is already
        self._locked = False
        if self._frozen:
            self._frozen = False
            self._generation += 1
        self._checks += 1
        if self._damaged or self._checks % THOROUGH == 0:
            self._check_content()

    def _check_content(self, mode: str = WRITE) -> None:
        with self._explained(), closing(self._opened(mode)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise self._damage(" ".join(str(found).split()))
        self._damaged = False

    def _identity(self) -> tuple[int, int]:
        """Tells the file from another one at its path."""
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino

    def _connection(self) -> sqlite3.Connection:
        generation = self._generation
        if getattr(self._local, "generation", None) != generation:
            self._local.connection = self._opened(FROZEN if self._frozen else WRITE)
            self._local.generation = generation
        return self._local.connection  # type: ignore[no-any-return]

    def _opened(self, mode: str) -> sqlite3.Connection:
        """A new connection."""
        address = f"{self._path.resolve().as_uri()}?{mode}"
        connection = sqlite3.connect(address, uri=True, timeout=self._patience, isolation_level=None)
        connection.row_factory = sqlite3.Row
        for pragma in () if mode == FROZEN else ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @property
    def _patience(self) -> float:
        """How long to wait for another process."""
        return STILL_LOCKED_SECONDS if self._locked else LOCK_SECONDS

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when the block ends, or none of it."""
        with self._explained():
            connection = self._connection()
            connection.execute(f"PRAGMA busy_timeout = {1000 * self._patience:.0f}")
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._locked = False
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows that `statement` selects."""
        with self._explained():
            return self._connection().execute(statement, parameters).fetchall()

    def one(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row that `statement` selects, None if there is none."""
        with self._explained():
            found: sqlite3.Row | None = self._connection().execute(statement, parameters).fetchone()
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite raises into an error that says what to do; `IntegrityError` is for the caller."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}; make room") from error

    def _meaning(self, error: sqlite3.Error) -> StreamstatsError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in DAMAGED:
            return self._damage(str(error))
        if code in LOCKED:
            self._locked = True
            return BusyError(f"{self._path} is locked by another process; end that process, or wait for it")
        if code == sqlite3.SQLITE_FULL or self._frozen:
            return OutputError(f"cannot write {self._path}: the disk is full; make room")
        return OutputError(f"cannot write {self._path}: {error}; check that the disk has room and responds")

    def _damage(self, found: str) -> DamagedError:
        self._damaged = True
        return DamagedError(
            f"{self._path} is damaged or not a database of the service: {found}; stop the service, restore the file "
            "from a backup, and start the service again"
        )
