"""Batches: what each request appended to a layer, by its idempotency key, and whether that was withdrawn.

The rows of a batch that is withdrawn stay where they are, so that no other row changes its number; jobs forget them.
"""

from __future__ import annotations

from sqlite3 import Row

from ..coverage import Coverage
from .database import Database
from .errors import NotFoundError
from .messages import BatchView

COLUMNS = "layer, idempotency_key, start, stop, sender, withdrawn"


class Batches:
    """The batches in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def listed(self, store: str, layer: str, *, start: int, limit: int) -> list[BatchView]:
        """The first `limit` batches of a layer that begin at row `start` or after it, in order."""
        rows = self._database.query(
            f"SELECT {COLUMNS} FROM ingests WHERE store = ? AND layer = ? AND start >= ? ORDER BY start LIMIT ?",
            (store, layer, start, limit),
        )
        return [_view(row) for row in rows]

    def get(self, store: str, layer: str, key: str) -> BatchView:
        """A batch. Raises `NotFoundError`."""
        row = self._database.one(
            f"SELECT {COLUMNS} FROM ingests WHERE store = ? AND layer = ? AND idempotency_key = ?", (store, layer, key)
        )
        if row is None:
            raise NotFoundError(f"layer {layer} of store {store} has no batch with the key {key}")
        return _view(row)

    def withdrawn(self, store: str) -> dict[str, Coverage]:
        """The rows of batches that were withdrawn, by layer."""
        rows = self._database.query(
            "SELECT layer, start, stop FROM ingests WHERE store = ? AND withdrawn IS NOT NULL ORDER BY layer", (store,)
        )
        found: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            found.setdefault(row["layer"], []).append((row["start"], row["stop"]))
        return {layer: Coverage.of(ranges) for layer, ranges in found.items()}


def _view(row: Row) -> BatchView:
    fields = {name: row[name] for name in BatchView.model_fields if name != "key"}
    return BatchView(key=row["idempotency_key"], **fields)
