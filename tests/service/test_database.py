"""The database: migrated from day one, durable as a whole or not at all."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from streamstats.errors import DataError
from streamstats.service import database
from streamstats.service.database import Database

MIGRATIONS = database.MIGRATIONS
VERSION_1 = MIGRATIONS[:1]
INGEST = "INSERT INTO ingests (store, layer, idempotency_key, digest, start, stop) VALUES ('s', 'l', ?, 'd', 0, 1)"
ADDED = "CREATE TABLE added (x INTEGER); INSERT INTO added SELECT count(*) FROM jobs;"


def test_a_database_of_an_older_version_is_migrated_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    monkeypatch.setattr(database, "MIGRATIONS", VERSION_1)
    older = Database(path)
    with older.writing() as connection:
        connection.execute(
            "INSERT INTO jobs (id, submitter, request, kind, submitted, follows) VALUES ('a', 'ann', '{}', 'run', 0, 0)"
        )
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, ADDED))
    newer = Database(path)
    assert [tuple(row) for row in newer.query("SELECT x FROM added")] == [(1,)]
    assert len(Database(path).query("SELECT x FROM added")) == 1  # once


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    Database(path)
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE added (x); CREATE TABLE jobs (y)"))
    with pytest.raises(DataError, match="table jobs already exists"):
        Database(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'added'").fetchone() == (0,)
    connection.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "db"
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, ADDED))
    Database(path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="has version"):
        Database(path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"something else, and long enough to look like a file of its own" * 20)
    with pytest.raises(DataError, match="not a database"):
        Database(path)


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    found = Database(tmp_path / "db")
    with pytest.raises(sqlite3.Error), found.writing() as connection:
        connection.executemany(INGEST, [("k",), (object(),)])
    assert found.query("SELECT * FROM ingests") == []


def test_threads_write_one_after_the_other(tmp_path: Path) -> None:
    found = Database(tmp_path / "db")

    def write(number: int) -> None:
        for index in range(20):
            with found.writing() as connection:
                connection.execute(INGEST, (f"{number}-{index}",))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found.query("SELECT * FROM ingests")) == 160
