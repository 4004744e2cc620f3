"""The journal of a layer's idempotency keys: a file in the store itself, one line of JSON for each request.

The law: all rows that a reader counts have a key in the store, wherever it is copied to, with or without the database.
A request is noted before its rows are written; lines beyond the rows of the layer are of requests that were never
acknowledged. `settle` makes the database, the journal and the rows agree, after a kill or in a copy.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sqlite3 import Row

from ..coverage import Coverage
from ..errors import DataError
from ..storage.files import append_bytes, read_bytes, remove, write_bytes
from .database import Database
from .errors import ConflictError

FOLDER = ".keys"
IDENTITY = "identity"
"""The file, in that folder, with what tells a store from others that had or will have its name."""
LONGEST_LINE = 2**16
"""More than the longest line, whose digest has the description of a layer: 17 KiB, or twice that with its escapes."""


@dataclass(frozen=True)
class Noted:
    """Rows `start` to `stop` of a layer: those of the request with this `key` and this `digest` of its content."""

    key: str
    digest: str
    start: int
    stop: int
    sender: str = field(default="", compare=False)  # journals of older versions lack it

    @property
    def line(self) -> str:
        """The line of the journal."""
        return json.dumps(asdict(self)) + "\n"


class Journal:
    """The journal of `layer` in the folder of its store."""

    def __init__(self, store: Path, layer: str) -> None:
        name = hashlib.sha256(layer.encode()).hexdigest()  # a path from the name could be a folder of another layer's
        self.path = store / FOLDER / f"{name}.jsonl"
        self._withdrawn = store / FOLDER / f"{name}.withdrawn.json"

    def note(self, requests: Sequence[Noted]) -> None:
        """Add `requests`; they are on the disk when this returns. Raises `OutputError`."""
        append_bytes(self.path, "".join(each.line for each in requests).encode())

    def replace(self, requests: Sequence[Noted]) -> None:
        """Hold `requests` and no others. Raises `OutputError`."""
        write_bytes(self.path, "".join(each.line for each in requests).encode())

    def read(self) -> tuple[list[Noted], bool]:
        """(the requests in order, whether the file ends in a whole line). Raises `DataError`."""
        if not self.path.exists():
            return [], True
        *lines, rest = read_bytes(self.path).split(b"\n")
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)], not rest

    def last(self) -> Noted | None:
        """The last request, None without one, or if the file does not end in a whole line."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - LONGEST_LINE))
            *lines, rest = file.read().split(b"\n")
        return None if rest or not lines else self._parsed(-1, lines[-1])

    def __len__(self) -> int:
        """How many lines it has."""
        return read_bytes(self.path).count(b"\n") if self.path.exists() else 0

    def withdrawn(self) -> dict[str, float]:
        """When which keys were withdrawn. Raises `DataError`."""
        try:
            found: dict[str, float] = json.loads(read_bytes(self._withdrawn)) if self._withdrawn.exists() else {}
        except ValueError as error:
            raise DataError(f"{self._withdrawn} is damaged: {error}; restore it from a backup") from error
        return found

    def withdraw(self, keys: Mapping[str, float]) -> None:
        """Note when `keys` were withdrawn, unless it is known; it is on the disk when this returns.

        Raises `OutputError`, `DataError`.
        """
        self._replace_withdrawn({**keys, **self.withdrawn()})

    def keep_withdrawn(self, keys: Collection[str]) -> dict[str, float]:
        """Drop all withdrawn keys but these `keys`; when those were withdrawn. Raises as `withdraw`."""
        self._replace_withdrawn({key: at for key, at in self.withdrawn().items() if key in keys})
        return self.withdrawn()

    def _replace_withdrawn(self, keys: Mapping[str, float]) -> None:
        if keys != self.withdrawn():
            write_bytes(self._withdrawn, json.dumps(keys).encode())

    def remove(self) -> None:
        """Remove the files."""
        remove(self.path)
        remove(self._withdrawn)

    def _parsed(self, number: int, line: bytes) -> Noted:
        try:
            found = Noted(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged in line {number}: {error}; restore it from a backup, or remove it: the "
                "database has the keys, too"
            ) from error
        return found


class Keys:
    """The idempotency keys of `store` in the database."""

    def __init__(self, database: Database, store: str) -> None:
        self._database, self._store = database, store

    def known(self, layer: str, key: str) -> Noted | None:
        """What the request with this `key` appended. Raises `ConflictError` if that was withdrawn."""
        row = self._database.one(
            "SELECT * FROM ingests WHERE store = ? AND layer = ? AND idempotency_key = ?", (self._store, layer, key)
        )
        if row is not None and row["withdrawn"] is not None:
            raise ConflictError(f"the batch with the key {key} was withdrawn; to send it again, use a new key")
        return None if row is None else _noted(row)

    def claim(self, owner: str, identity: str) -> None:
        """Note whose store it is, and its own `identity`. Keys of an earlier store are removed."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM ingests WHERE store = ?", (self._store,))
            connection.execute("DELETE FROM removed_layers WHERE store = ?", (self._store,))
            connection.execute(
                "INSERT OR REPLACE INTO stores (name, owner, appended, identity) VALUES (?, ?, ?, ?)",
                (self._store, owner, time.time(), identity),
            )

    def identity(self) -> str:
        """The identity of the store that the keys are of, "" if it is not known."""
        row = self._database.one("SELECT identity FROM stores WHERE name = ?", (self._store,))
        return "" if row is None else str(row["identity"])

    def layers(self) -> set[str]:
        """The layers that have keys."""
        rows = self._database.query("SELECT DISTINCT layer FROM ingests WHERE store = ?", (self._store,))
        return {row["layer"] for row in rows}

    def add(self, layer: str, requests: Sequence[Noted]) -> None:
        """Note which rows each key stands for."""
        rows = [(self._store, layer, each.key, each.digest, each.start, each.stop, each.sender) for each in requests]
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO ingests (store, layer, idempotency_key, digest, start, stop, sender) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.execute("UPDATE stores SET appended = ? WHERE name = ?", (time.time(), self._store))

    def last(self, layer: str) -> Noted | None:
        """The request with the last rows that a key stands for."""
        row = self._database.one(
            "SELECT * FROM ingests WHERE store = ? AND layer = ? ORDER BY stop DESC LIMIT 1", (self._store, layer)
        )
        return None if row is None else _noted(row)

    def count(self, layer: str) -> int:
        """How many keys `layer` has."""
        (found,) = self._database.query(
            "SELECT count(*) AS n FROM ingests WHERE store = ? AND layer = ?", (self._store, layer)
        )
        return int(found["n"])

    def withdrawn(self, layer: str) -> dict[str, float]:
        """When which keys were withdrawn."""
        rows = self._database.query(
            "SELECT idempotency_key, withdrawn FROM ingests WHERE store = ? AND layer = ? AND withdrawn IS NOT NULL",
            (self._store, layer),
        )
        return {row["idempotency_key"]: row["withdrawn"] for row in rows}

    def since(self, layer: str, start: int) -> list[Noted]:
        """The requests whose rows begin at `start` or later, in order."""
        rows = self._database.query(
            "SELECT * FROM ingests WHERE store = ? AND layer = ? AND start >= ? ORDER BY start",
            (self._store, layer, start),
        )
        return [_noted(row) for row in rows]

    def take_back(self, layer: str, requests: Sequence[Noted]) -> None:
        """Remove the keys of these `requests`."""
        rows = [(self._store, layer, each.key) for each in requests]
        with self._database.writing() as connection:
            connection.executemany("DELETE FROM ingests WHERE store = ? AND layer = ? AND idempotency_key = ?", rows)

    def withdraw(self, layer: str, keys: Mapping[str, float]) -> None:
        """Note when these `keys` were withdrawn, unless it is known."""
        rows = [(at, self._store, layer, key) for key, at in keys.items()]
        with self._database.writing() as connection:
            connection.executemany(
                "UPDATE ingests SET withdrawn = coalesce(withdrawn, ?) "
                "WHERE store = ? AND layer = ? AND idempotency_key = ?",
                rows,
            )

    def remove(self, layer: str | None = None) -> None:
        """Remove all keys of `layer`, and note that no job has counted the next one of its name; or those of the store,
        and whose it is.
        """
        with self._database.writing() as connection:
            if layer is None:
                for table, column in (("ingests", "store"), ("removed_layers", "store"), ("stores", "name")):
                    connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (self._store,))
            elif connection.execute("DELETE FROM ingests WHERE store = ? AND layer = ?", (self._store, layer)).rowcount:
                connection.execute(
                    "INSERT OR REPLACE INTO removed_layers SELECT ?, ?, coalesce(max(number), 0) FROM jobs",
                    (self._store, layer),
                )

    def last_jobs(self) -> dict[str, int]:
        """The number of the last job that may have counted an earlier layer of the name, by layer.

        No job that has not ended reads a layer that is deleted, so all later ones have counted the layer that is there.
        """
        rows = self._database.query("SELECT layer, last_job FROM removed_layers WHERE store = ?", (self._store,))
        return {row["layer"]: row["last_job"] for row in rows}


def _noted(row: Row) -> Noted:
    return Noted(row["idempotency_key"], row["digest"], row["start"], row["stop"], row["sender"])


def identify(keys: Keys, store: Path) -> None:
    """Make the database know this store; keys of an earlier or later store of its name are removed from it.

    As when an older database is put back. Raises `OutputError`.
    """
    path, known = store / FOLDER / IDENTITY, keys.identity()
    if path.exists():
        found = read_bytes(path).decode()
        if found != known:
            keys.claim("", found)
    elif known:
        write_bytes(path, known.encode())


def settle(keys: Keys, journal: Journal, layer: str, rows: int) -> int:
    """Make the database and the journal agree on the `rows` that `layer` has; returns how many of these have a key.

    What either of them lacks, it gets from the other one. Where they contradict each other, the journal is right: it
    lies in the store, and the database may be that of an earlier store of this name. Raises `OutputError`, `DataError`.
    """
    last = keys.last(layer)
    if last == journal.last() and _stop(last) == rows and len(journal) == keys.count(layer):
        return rows
    noted, is_whole = journal.read()
    stored = [each for each in noted if each.stop <= rows]
    known = keys.since(layer, 0)
    there = {*stored}
    others = [each for each in known if each not in there]
    lacking = _within(others, Coverage.first(rows) - Coverage.of((each.start, each.stop) for each in stored))
    wrong = set(others).difference(lacking)
    if wrong:  # a transaction waits for its turn and the disk
        keys.take_back(layer, [*wrong])
    if added := there.difference(known):  # adding says that activations were appended
        keys.add(layer, [*added])
    whole = sorted([*stored, *lacking], key=lambda each: each.start)
    if whole != noted or not is_whole:  # an older version wrote no journals
        journal.replace(whole)
    return _stop(whole[-1] if whole else None)


def _within(requests: Sequence[Noted], rows: Coverage) -> list[Noted]:
    """Those of the `requests` all of whose rows are among `rows`."""
    return [each for each in requests if any(start <= each.start and each.stop <= stop for start, stop in rows.ranges)]


def _stop(request: Noted | None) -> int:
    return 0 if request is None else request.stop
