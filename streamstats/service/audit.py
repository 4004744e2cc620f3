"""The audit log: who changed what, and who was refused. Entries are added and never changed or removed.

It is written where every request passes, so no path can forget it. Activations are not in it: the keys of a store say
who sent them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import StreamstatsError
from .access import CALLER, changes
from .answers import REQUEST_NUMBER
from .database import Database

LONGEST_PATH = 1000
"""Characters of a path, with its query, in an entry."""
REFUSED, REFUSED_SECONDS = 60, 60.0
"""Entries for requests of one token that are refused, in so many seconds: more would let a reader fill the disk."""

log = logging.getLogger("streamstats.service")


class Audit:
    """The audit log in `database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry. Raises `OutputError`."""
        with self._database.writing() as connection:
            values = (time.time(), entry["who"], json.dumps(entry, sort_keys=True))
            connection.execute("INSERT INTO audit (at, who, entry) VALUES (?, ?, ?)", values)

    def newest(self, *, who: str | None, before: int, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` entries with numbers below `before`."""
        rows = self._database.query(
            "SELECT * FROM audit WHERE number < ? AND who = coalesce(?, who) ORDER BY number DESC LIMIT ?",
            (before, who, limit),
        )
        return [{"number": row["number"], "at": row["at"], **json.loads(row["entry"])} for row in rows]


class Audited:
    """Adds an entry for each request that changes something, or is refused to its caller, before it is answered."""

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app, self._audit, self._refusals = app, audit, Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""

        async def send_audited(message: Message) -> None:
            if message["type"] == "http.response.start" and CALLER in scope:
                status = message["status"]
                left_out = self._refusals.noted(scope[CALLER].name) if status == 403 else 0
                if left_out is not None and (status == 403 or changes(scope["method"], scope["path"])):
                    await asyncio.to_thread(self._record, scope, status, Headers(raw=message["headers"]), left_out)
            await send(message)

        await self._app(scope, receive, send_audited)

    def _record(self, scope: Scope, status: int, headers: Headers, left_out: int) -> None:
        caller, client = scope[CALLER], scope.get("client")
        path, query = (scope[name].decode("latin-1") for name in ("raw_path", "query_string"))  # as sent: no escapes
        entry = {
            "who": caller.name,
            "role": caller.role,
            "method": scope["method"],
            "path": (path + (f"?{query}" if query else ""))[:LONGEST_PATH],
            "status": status,
            "made": headers.get("location"),
            "address": client[0] if client else None,
            "request": scope.get(REQUEST_NUMBER),
            **({"left_out": left_out} if left_out else {}),
        }
        try:
            self._audit.add(entry)
        except StreamstatsError:
            log.exception("the audit log cannot be written: %s", json.dumps(entry))


class Refusals:
    """Counts the refused requests of each token, so that not all of very many have an entry."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._since: dict[str, float] = {}
        self._noted: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def noted(self, who: str) -> int | None:
        """How many refusals of `who` had no entry since the last one with an entry; None if this one gets none."""
        now = self._monotonic()
        if now - self._since.get(who, -REFUSED_SECONDS) >= REFUSED_SECONDS:
            self._since[who], self._noted[who] = now, 0
        if self._noted[who] >= REFUSED:
            self._left_out[who] += 1
            return None
        self._noted[who] += 1
        return self._left_out.pop(who, 0)
