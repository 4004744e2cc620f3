"""Answers: errors in one form, that of RFC 9457; results with an `ETag` of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..errors import StreamstatsError
from .errors import status_of
from .messages import Problem

KINDS = {".html": "text/html; charset=utf-8", ".json": "application/json", ".onnx": "application/octet-stream"}
BINARY = "application/octet-stream"
PROBLEM = "application/problem+json"
REQUEST_NUMBER = "streamstats.request"
"""The key, in the scope of a request, of its number in the log."""
RETRY_SECONDS = 5
SIZE = "content-range"


class ProblemAnswer(Response):
    """An error. The number of the request becomes known when the error is sent."""

    media_type = PROBLEM

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=status, headers=headers)
        self._message = message.encode("utf-8", "replace").decode()  # a client may send unpaired surrogates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        title, number = HTTPStatus(self.status_code).phrase, scope.get(REQUEST_NUMBER, "")
        found = Problem(title=title, status=self.status_code, detail=self._message, request=number)
        self.body = found.model_dump_json().encode()
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error: its status, and its message in one sentence."""
    usual = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": str(RETRY_SECONDS)}}.get(status, {})
    return ProblemAnswer(status, message, {**usual, **(headers or {})})


def refused(error: StreamstatsError, public: Callable[[str], str]) -> Response:
    """The answer to a request that raised `error`; `public` removes from the message what clients must not see."""
    return problem(status_of(error), " ".join(public(str(error)).split()))


class RangedFile(FileResponse):
    """A file or ranges of it. Ranges that it does not have are refused in the form of all errors, and so is a file that
    was deleted a moment ago: the head is sent once the file is open.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        sending = _Sending(send)
        try:
            await super().__call__(scope, receive, sending)
        except (FileNotFoundError, RuntimeError):  # the latter is what Starlette raises for it
            if Path(self.path).exists():
                raise
            gone = "the file was deleted a moment ago, with its job or its result set; list the files again"
            sending.refusal = problem(410, gone)
        if sending.refusal is not None:
            await sending.refusal(scope, receive, send)


class _Sending:
    """Sends an answer, its head with the first part of its body. One that refuses is not sent, but is the `refusal`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self.refusal: Response | None = None

    async def __call__(self, message: Message) -> None:
        """As `Send`."""
        if message["type"] == "http.response.start":
            self._head, self.refusal = message, _of_range(message)
        elif self.refusal is None:
            if self._head is not None:
                await self._send(self._head)
                self._head = None
            await self._send(message)


def _of_range(head: Message) -> Response | None:
    """The refusal of a range, in the form of all errors, if `head` is that of one."""
    if head["status"] < 400:
        return None
    sizes = {name: value for name, value in Headers(raw=head["headers"]).items() if name == SIZE}
    return problem(head["status"], "the header Range names no range of the file; leave it out", sizes)


def file_answer(
    request: Request, path: Path, digest: str, extra: Mapping[str, str] | None = None, *, name: str | None = None
) -> Response:
    """A file whose content has this digest, or a range of it, or 304 if the client has the file."""
    headers = {"etag": f'"{digest}"', "cache-control": "private, no-cache", **(extra or {})}
    if _has_it(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    kind = KINDS.get(path.suffix, BINARY)
    return RangedFile(
        path, headers=headers, media_type=kind, filename=name or path.name, content_disposition_type=_shown(path)
    )


def json_answer(request: Request, document: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> Response:
    """`document` with the tag of its content, or 304 if the client has it."""
    return bytes_answer(request, json.dumps(document, allow_nan=False).encode(), "application/json", extra)


def bytes_answer(request: Request, content: bytes, kind: str, extra: Mapping[str, str] | None = None) -> Response:
    """`content` with its tag, or 304 if the client has it."""
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"etag": etag, "cache-control": "private, no-cache", **(extra or {})}
    if _has_it(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


def _has_it(request: Request, etag: str) -> bool:
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return etag in known or "*" in known


def _shown(path: Path) -> str:
    return "inline" if path.suffix in (".html", ".json") else "attachment"
