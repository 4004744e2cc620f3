"""What every request passes besides `Guard`: the limit of JSON bodies, the metrics and the log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import UNSAFE
from .answers import REQUEST_NUMBER, problem
from .messages import V1
from .metrics import Metrics

METHODS, OTHER = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"), "other"
NOT_JSON = re.compile(rf"{V1}/(uploads|stores/[^/]+/layers/.*|jobs/[^/]+/corrections)", re.DOTALL)
"""Paths of bodies that are not JSON."""
BEFORE_VALUES = (b",", b"[", b"{")
"""Each value of a JSON document but the first follows one of these, or a key that does."""
UNFORESEEN = "the service failed unexpectedly; its log has the details under the number in `request`"

log = logging.getLogger("streamstats.service")


class SmallBodies:
    """Limits the size of JSON bodies, the values in them and the time to send one.

    They are parsed and checked in one go, during which nothing else is done: that takes some tens of milliseconds at
    most. Bodies that are not JSON are limited where they are read.
    """

    MOST = 2**20
    MOST_VALUES = 20_000
    SECONDS = 30.0

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http" or scope["method"] not in UNSAFE or NOT_JSON.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            messages = await asyncio.wait_for(self._received(receive), self.SECONDS)
        except TimeoutError:
            await problem(408, f"the body did not arrive within {self.SECONDS:.0f} s; send the request again")(
                scope, receive, send
            )
            return
        parts = [each.get("body", b"") for each in messages]
        for found, most, what in (
            (sum(map(len, parts)), self.MOST, "bytes"),
            (sum(part.count(sign) for part in parts for sign in BEFORE_VALUES), self.MOST_VALUES, "values"),
        ):
            if found > most:
                refusal = problem(413, f"the body has more than {most:,} {what}, the limit of this path; send less")
                await refusal(scope, receive, send)
                return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    async def _received(self, receive: Receive) -> list[Message]:
        """The messages of the body, up to the one that exceeds the limit."""
        messages: list[Message] = []
        received = 0
        while True:
            messages.append(await receive())
            received += len(messages[-1].get("body", b""))
            if received > self.MOST or messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
                return messages


class Watched:
    """Measures and logs every request, under a number that the header `x-request-id` gives to the client."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        number = scope[REQUEST_NUMBER] = os.urandom(6).hex()

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        except Exception:
            log.exception("failed", extra={"request": number, "method": scope["method"], "path": scope["path"]})
            if not status:
                await problem(500, UNFORESEEN)(scope, receive, send_watched)
        self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Put a request that was answered into the metrics and the log."""
        route = getattr(scope.get("route"), "path", OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER  # clients may invent any number of methods
        self._metrics.requests.labels(method, route, status).observe(seconds)
        client = scope.get("client")
        found = {
            "request": scope[REQUEST_NUMBER],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
            "address": client[0] if client else None,
        }
        level = logging.INFO if scope["method"] != "GET" or status >= 400 else logging.DEBUG
        log.log(level, "request", extra=found)
