"""Answers: errors in one form, JSON with the cause and the remedy; results with an `ETag` of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ..errors import StreamstatsError
from .errors import status_of

KINDS = {".html": "text/html; charset=utf-8", ".json": "application/json", ".onnx": "application/octet-stream"}
BINARY = "application/octet-stream"
RETRY_SECONDS = 5


def problem(status: int, message: str) -> Response:
    """An error: its status, and its message in one sentence."""
    message = message.encode("utf-8", "replace").decode()  # a client may send unpaired surrogates
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": str(RETRY_SECONDS)}}.get(status)
    return JSONResponse({"error": {"status": status, "message": message}}, status, headers)


def refused(error: StreamstatsError, public: Callable[[str], str]) -> Response:
    """The answer to a request that raised `error`; `public` removes from the message what clients must not see."""
    return problem(status_of(error), " ".join(public(str(error)).split()))


def file_answer(
    request: Request, path: Path, digest: str, extra: Mapping[str, str] | None = None, *, name: str | None = None
) -> Response:
    """A file whose content has this digest, or a range of it, or 304 if the client has the file."""
    headers = {"etag": f'"{digest}"', "cache-control": "private, no-cache", **(extra or {})}
    if _has_it(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    kind = KINDS.get(path.suffix, BINARY)
    return FileResponse(
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
