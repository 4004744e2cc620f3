"""Saving what is counted while the work continues, and locking the output against other processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ..progress import QUIET, Progress
from ..storage.locks import locked
from .ledger import Ledger
from .manifest import MANIFEST
from .results import STATE, write_states

LOCK = "run.lock"
SAVE_SECONDS = 3.0
"""The shortest time between two saves."""
SAVING_SHARE = 50
"""Saving takes at most about 1/SAVING_SHARE of the time."""


@contextmanager
def held(
    output: Path, source: str, rows: Mapping[str, int], readers: Mapping[str, Sequence[str]] | None = None
) -> Iterator[None]:
    """Keep other runs out of `output` while the `with` block runs.

    If the first run in `output` is interrupted, the lock file stays: it says what the job was, the `rows` of each array
    and the layers that are its `readers`. Raises `OutputError`,
    naming the process, if another one holds the output.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": socket.gethostname(), "process": os.getpid(), "since": since}

    def first_was_interrupted() -> bool:
        return (output / STATE).exists() and not (output / MANIFEST).exists()

    document = {**who, "source": source, "layers": dict(rows), "readers": dict(readers or {})}
    with locked(output / LOCK, document, keep=first_was_interrupted):
        yield


class Saver:
    """Saves changed states, every few seconds and at the end."""

    def __init__(
        self, output: Path, ledgers: Iterable[Ledger], progress: Progress = QUIET, *, together: bool = False
    ) -> None:
        """`ledgers` are those before any change. With `together`, the first save has all of them.

        So the empty ledgers of a restart never mix with old ones.
        """
        self._output, self._progress, self._together = output, progress, together
        self._ledgers = {each.layer: each for each in ledgers}
        self._changed: set[str] = set()
        self._next = time.monotonic() + SAVE_SECONDS

    def changed(self, ledger: Ledger) -> None:
        """Note that `ledger` has changed, and save all changes if a save is due."""
        self._ledgers[ledger.layer] = ledger
        self._changed.add(ledger.layer)
        if time.monotonic() >= self._next:
            self.save()

    def save_all(self) -> None:
        """Save every ledger: those without a change say which rows remain. Raises `OutputError`."""
        self._changed.update(self._ledgers)
        self.save()

    def save(self) -> None:
        """Save all changes now. Raises `OutputError`."""
        if not self._changed:
            return
        started = time.monotonic()
        names = self._ledgers.keys() if self._together else self._changed
        write_states(self._output, [self._ledgers[name] for name in sorted(names)])
        self._together = False
        self._changed.clear()
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, SAVING_SHARE * (now - started))
        self._progress.saved(now - started)
