"""Notices: what hooks will be told, in the database from the moment that a job ends until a hook has taken it.

Each hook has a thread of its own, so that a slow one delays no other. A notice is delivered at least once: again after
a failure, with growing pauses, and at once after a restart, until the pauses are used up; then the log of the job says
why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from sqlite3 import Row

from .database import Database
from .faults import RETRY_SECONDS, Faults, Repeated
from .hooks import DeliveryError, Hook
from .job_table import JobTable

PAUSES = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
"""Seconds between two attempts; there is one attempt more."""
LONGEST_WAIT = 60.0

log = logging.getLogger("streamstats.service")


class Notices:
    """Delivers what `table` has noted in `database` for `hooks`, by name."""

    def __init__(
        self,
        database: Database,
        table: JobTable,
        hooks: Mapping[str, Hook],
        faults: Faults,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._database, self._table, self._hooks = database, table, hooks
        self._faults, self._pauses = faults, pauses
        self._monotonic = table.clock.monotonic
        self._later: dict[int, float] = {}
        self._news = {name: threading.Event() for name in hooks}
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(name, hook), name=f"hook {name}", daemon=True)
            for name, hook in hooks.items()
        ]
        self._dropping = Repeated("notices of former hooks", self._drop_former, faults, once=True)

    def start(self) -> None:
        """Begin to deliver; notices for hooks that are no longer configured are dropped."""
        self._dropping.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being delivered; the rest is delivered after the next start."""
        self._stopping = True
        self.wake()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._dropping.end()

    def _drop_former(self) -> None:
        for row in self._database.query("SELECT * FROM notices"):
            if row["hook"] not in self._hooks:
                self._drop(row)

    def wake(self) -> None:
        """Look for new notices now."""
        for news in self._news.values():
            news.set()

    def _work(self, name: str, hook: Hook) -> None:
        while not self._stopping:
            wait = RETRY_SECONDS
            self._news[name].clear()  # first: what is noted from now on wakes it
            with self._faults.noted(f"hook {name}"):
                wait = self._deliver_next(name, hook)
            if not self._stopping:
                self._news[name].wait(wait)

    def _deliver_next(self, name: str, hook: Hook) -> float:
        """Deliver the notice of a hook that is due first, if it is; the seconds until there is more to do."""
        rows = self._database.query("SELECT * FROM notices WHERE hook = ? ORDER BY number", (name,))
        if not rows:
            return LONGEST_WAIT
        row = min(rows, key=self._due)
        wait = self._due(row) - self._monotonic()
        if wait > 0:
            return min(LONGEST_WAIT, wait)
        try:
            hook.tell(f"{row['job']}-{row['number']}", row["body"].encode())
        except DeliveryError as error:
            self._retry(row, str(error))
        else:
            self._drop(row)
            log.info("delivered to hook %s", name, extra={"job": row["job"]})
        return 0.0

    def _due(self, row: Row) -> float:
        """When to deliver a notice: at once, unless it failed since the service started."""
        return self._later.get(row["number"], 0.0)

    def _retry(self, row: Row, why: str) -> None:
        """Try again later, or give up."""
        attempts = row["attempts"] + 1
        log.warning("hook %s: %s (attempt %d)", row["hook"], why, attempts, extra={"job": row["job"]})
        if attempts > len(self._pauses):
            self._drop(row)
            self._table.say(row["job"], f"the hook {row['hook']} could not be told in {attempts} attempts: {why}")
            return
        self._later[row["number"]] = self._monotonic() + self._pauses[attempts - 1]
        with self._database.writing() as connection:
            connection.execute("UPDATE notices SET attempts = ? WHERE number = ?", (attempts, row["number"]))

    def _drop(self, row: Row) -> None:
        self._later.pop(row["number"], None)
        with self._database.writing() as connection:
            connection.execute("DELETE FROM notices WHERE number = ?", (row["number"],))
