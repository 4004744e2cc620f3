"""What every request goes through beside `Guard`: its body has a limit, it is measured and logged."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import problem
from .messages import V1
from .metrics import Metrics

REQUEST_NUMBER = "streamstats.request"
"""The key in the scope of a request of the number that the log has for it."""
METHODS, OTHER = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"), "other"

log = logging.getLogger("streamstats.service")


class SmallBodies:
    """Bodies of JSON have a limit, and come in time. The others are counted where they are read."""

    MOST = 2**20
    SECONDS = 30.0

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", f"{V1}/jobs"):
            await self._app(scope, receive, send)
            return
        try:
            messages = await asyncio.wait_for(self._received(receive), self.SECONDS)
        except TimeoutError:
            await problem(408, f"the body did not come within {self.SECONDS:.0f} s")(scope, receive, send)
            return
        if sum(len(each.get("body", b"")) for each in messages) > self.MOST:
            await problem(413, f"the body has more than {self.MOST:,} bytes, the most here")(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    async def _received(self, receive: Receive) -> list[Message]:
        """All of the body, or the first of it that is too much."""
        messages: list[Message] = []
        received = 0
        while True:
            messages.append(await receive())
            received += len(messages[-1].get("body", b""))
            if received > self.MOST or messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
                return messages


class Watched:
    """Measures and logs every request, and answers what nobody foresaw with 500 and a number to look for in the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
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
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER  # clients may make up any number of them
        self._metrics.requests.labels(method, route, status).observe(seconds)
        level = logging.INFO if scope["method"] != "GET" or status >= 400 else logging.DEBUG
        said = {"request": number, "method": scope["method"], "path": scope["path"], "status": status}
        client = scope.get("client")
        log.log(
            level, "request", extra={**said, "seconds": round(seconds, 6), "address": client[0] if client else None}
        )
