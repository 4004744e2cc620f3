"""The description of the service for programs: OpenAPI, with who may ask, and the one form of all errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from .access import LINK_SECONDS, OPEN
from .messages import Problem

BEARER = {"bearer": list[str]()}
LINK = {"until": list[str](), "signature": list[str]()}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the service."},
    "until": {
        "type": "apiKey",
        "in": "query",
        "name": "until",
        "description": f"Part of a signed link, which `POST …/links` makes: valid for {LINK_SECONDS} seconds.",
    },
    "signature": {"type": "apiKey", "in": "query", "name": "signature", "description": "Part of a signed link."},
}
LINKED = ("/files/{name}", "/report", "/archive")
"""The ends of paths for which links are signed."""
NUMBER = {"description": "The number of the request in the service's log.", "schema": {"type": "string"}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    parts = document.setdefault("components", {})
    parts["securitySchemes"] = SCHEMES
    parts["schemas"][Problem.__name__] = Problem.model_json_schema()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path not in OPEN:
                operation["security"] = [BEARER, LINK] if path.endswith(LINKED) else [BEARER]
            for answer in operation["responses"].values():
                answer.setdefault("headers", {})["x-request-id"] = NUMBER
    return document


def operation_id(route: APIRoute) -> str:
    """The name of a path's function in a generated client: `job_submit` for `JobRoutes.submit`."""
    owner, _, name = route.endpoint.__qualname__.rpartition(".")
    return f"{owner.removesuffix('Routes').lower()}_{name}"
