"""What paths, queries and headers hold, and which errors there are: the words of the description."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query
from fastapi import Path as InPath

from .answers import BINARY
from .messages import STORE_NAME, UPLOAD_ID

V1 = "/api/v1"
NUMBER = "streamstats-results"
"""The header with the number of the results that an answer is from."""
BINARY_BODY = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in {
        400: "It is no request that can be read",
        401: "The token is missing or wrong",
        403: "A page of another origin asks",
        404: "There is no such thing",
        409: "It is not in a state for this, or the key was given with something else",
        410: "It was replaced",
        413: "More than is taken",
        421: "The Host header names another server",
        422: "The request cannot be met as it stands",
        503: "No place now",
        507: "No room on the disk",
    }.items()
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that any path has, and those of `statuses`."""
    return {status: ERRORS[status] for status in sorted({400, 401, 403, 421, *statuses})}


JobId = Annotated[str, InPath(pattern=r"^[0-9a-f]{16}$", description="What the submission answered as `id`.")]
UploadId = Annotated[str, InPath(pattern=UPLOAD_ID)]
StoreName = Annotated[str, InPath(pattern=STORE_NAME)]
LayerName = Annotated[str, InPath(min_length=1, max_length=1000)]
Key = Annotated[str, Header(alias="Idempotency-Key", pattern=r"^[!-~]{1,128}$")]
OptionalKey = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[!-~]{1,128}$")]
Linked = Annotated[str, Query(max_length=2000, pattern=r"^(files/.+|report|archive)$")]
Number = Annotated[
    int | None, Query(ge=1, le=2**31, alias="results", description="Of an earlier set of results that is still there.")
]
