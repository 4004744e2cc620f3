"""The parameters and errors that several paths share, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request
from fastapi import Path as InPath
from pydantic import BaseModel, Field

from ..config import Pattern
from .access import CALLER
from .answers import PROBLEM
from .messages import JOB_ID, KEY, STORE_NAME, UPLOAD_ID, Problem
from .tokens import Caller

NUMBER = "streamstats-results"
"""The response header with the number of the result set."""
TEXT = {"schema": {"type": "string"}}
DOCUMENT = {"schema": {"type": "object"}}
BYTES = {"schema": {"type": "string", "format": "binary"}}
TAGS = {
    "etag": {"description": "For `If-None-Match`.", "schema": {"type": "string"}},
    NUMBER: {"description": "The number of the result set.", "schema": {"type": "string"}},
}
UNCHANGED = {"description": "The client has it", "headers": TAGS}
Responses = dict[int | str, dict[str, Any]]
REFERENCE = f"#/components/schemas/{Problem.__name__}"
ERRORS: Responses = {
    status: {
        "description": text,
        "content": {PROBLEM: {"schema": {"$ref": REFERENCE}}},
    }
    for status, text in {
        400: "The request cannot be parsed",
        401: "The token is missing or wrong",
        403: "The token does not allow it, or the request comes from a page of another origin",
        404: "It does not exist",
        408: "The body did not arrive in time",
        409: "The current state does not allow it, or the key was used with another request",
        410: "The result set was replaced",
        405: "The path does not have this method; `Allow` names those that it has",
        413: "Larger than the service accepts",
        415: "The body has another type than the path takes",
        416: "The file does not have this range",
        421: "The Host header names another server",
        422: "The request is invalid; the message names what to change",
        500: "The service failed; its log says why",
        503: "No capacity at the moment",
        507: "The disk is full",
    }.items()
}


def errors(*statuses: int, opened: bool = False) -> Responses:
    """The errors that every path can give (one that is `opened` needs no token), and those of `statuses`."""
    usual = {400, 403, 421, 500} if opened else {400, 401, 403, 421, 422, 500, 503}
    return {status: ERRORS[status] for status in sorted({*usual, *statuses})}


def created(model: type[BaseModel]) -> Responses:
    """The answer that something was made, which the header `Location` names."""
    location = {"description": "The path of what was made.", "required": True, "schema": {"type": "string"}}
    return {201: {"model": model, "headers": {"location": location}}}


def text(kind: str) -> Responses:
    """Text of the type `kind`."""
    return {200: {"content": {kind: TEXT}}}


def result(model: type[BaseModel], *texts: str) -> Responses:
    """A document about a result set, or text of one of the types `texts`."""
    content: dict[str, Any] = {"application/json": {}, **dict.fromkeys(texts, TEXT)}  # generated clients take the first
    return {200: {"model": model, "content": content, "headers": TAGS}, 304: UNCHANGED}


def result_text(kind: str) -> Responses:
    """Text about a result set, of the type `kind`."""
    return {200: {**text(kind)[200], "headers": TAGS}, 304: UNCHANGED}


def result_file(*kinds: str) -> Responses:
    """A file of a result set, which has one of the types `kinds`."""
    content = {kind: DOCUMENT if kind == "application/json" else BYTES for kind in kinds}
    whole: Responses = {200: {"content": content, "headers": TAGS}, 304: UNCHANGED}
    return whole | parts(*kinds)


def parts(*kinds: str) -> Responses:
    """Ranges of a file of one of the types `kinds`, of which a client has asked for one or several."""
    content = dict.fromkeys((*kinds, "multipart/byteranges"), BYTES)
    return {206: {"description": "The ranges", "content": content, "headers": TAGS}, 416: ERRORS[416]}


def _caller(request: Request) -> Caller:
    found: Caller = request.scope[CALLER]
    return found


Whose = Annotated[Caller, Depends(_caller)]
"""Who sends the request."""
JobId = Annotated[str, JOB_ID, InPath(description="The `id` that the submission returned.")]
UploadId = Annotated[str, UPLOAD_ID, InPath()]
StoreName = Annotated[str, STORE_NAME, InPath()]
LayerName = Annotated[str, InPath(min_length=1, max_length=1000)]
Key = Annotated[str, KEY, Header(alias="Idempotency-Key")]
OptionalKey = Annotated[Annotated[str, KEY] | None, Header(alias="Idempotency-Key")]
Before = Annotated[int, Query(ge=1, le=2**53, description="The `next` of the previous page.")]
LINKED = Pattern(r"^(files/.+|report|archive)$", "files/NAME, report or archive")
LinkedPath = Annotated[str, Field(max_length=2000), LINKED, Query()]
Number = Annotated[
    int | None,
    Query(
        ge=1,
        le=2**31,
        alias="results",
        description="An earlier result set that is still retained; default the current one.",
    ),
]
