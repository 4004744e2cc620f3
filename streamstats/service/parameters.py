"""The parameters and errors that several paths share, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request
from fastapi import Path as InPath

from .access import CALLER
from .answers import BINARY
from .messages import STORE_NAME, UPLOAD_ID
from .tokens import Caller

NUMBER = "streamstats-results"
"""The response header with the number of the result set."""
BINARY_BODY = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in {
        400: "The request cannot be parsed",
        401: "The token is missing or wrong",
        403: "The token does not allow it, or the request comes from a page of another origin",
        404: "It does not exist",
        409: "The current state does not allow it, or the key was used with another request",
        410: "The result set was replaced",
        413: "Larger than the service accepts",
        421: "The Host header names another server",
        422: "The request is invalid; the message names what to change",
        503: "No capacity at the moment",
        507: "The disk is full",
    }.items()
}


def errors(*statuses: int) -> Responses:
    """The errors that every path can give, and those of `statuses`."""
    return {status: ERRORS[status] for status in sorted({400, 401, 403, 421, *statuses})}


def _caller(request: Request) -> Caller:
    found: Caller = request.scope[CALLER]
    return found


Whose = Annotated[Caller, Depends(_caller)]
"""Who sends the request."""
JobId = Annotated[str, InPath(pattern=r"^[0-9a-f]{16}$", description="The `id` that the submission returned.")]
UploadId = Annotated[str, InPath(pattern=UPLOAD_ID)]
StoreName = Annotated[str, InPath(pattern=STORE_NAME)]
LayerName = Annotated[str, InPath(min_length=1, max_length=1000)]
Key = Annotated[str, Header(alias="Idempotency-Key", pattern=r"^[!-~]{1,128}$")]
OptionalKey = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[!-~]{1,128}$")]
LinkedPath = Annotated[str, Query(max_length=2000, pattern=r"^(files/.+|report|archive)$")]
Number = Annotated[
    int | None,
    Query(
        ge=1,
        le=2**31,
        alias="results",
        description="An earlier result set that is still retained; default the current one.",
    ),
]
