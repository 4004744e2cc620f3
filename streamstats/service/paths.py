"""Paths of the service, and what holds for every one: a GET also answers HEAD; what is ambiguous is refused.

Both follow from how a path is described, so no path can forget them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, get_origin

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import Scope

from ..errors import UsageError, one_of
from .access import LINK_PARAMETERS
from .answers import BINARY
from .errors import UnsupportedTypeError
from .messages import V1

JSON = "application/json"
LONGEST_NAME = 80
"""Characters of an unknown parameter that are shown."""
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
BINARY_BODY = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
"""The description of a path that takes a file. Its type may be left out."""


Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class Path(APIRoute):
    """A path that refuses, before it reads anything, a body of another type than it describes, a parameter that is
    given twice but has one value and, below V1, one that it does not have: probes and scrapers may add some of theirs.
    """

    def get_route_handler(self) -> Handle:
        """As `APIRoute.get_route_handler`."""
        handle, kinds = super().get_route_handler(), self._kinds()
        known = {each.alias: get_origin(each.field_info.annotation) is list for each in self.dependant.query_params}
        single = {name for name, is_list in known.items() if not is_list}

        async def checked(request: Request) -> Response:
            _check_type(request, kinds)
            if self.path.startswith(V1):
                _check_known(request, [*known])
            for name in single & set(request.query_params):
                if len(request.query_params.getlist(name)) > 1:
                    raise UsageError(f"the parameter {name} is given more than once; expected one value")
            return await handle(request)

        return checked

    def _kinds(self) -> Sequence[str]:
        """The types of bodies that the path takes, the empty one if the type may be left out."""
        if self.body_field is not None:
            return (JSON,)
        return (BINARY, "") if self.openapi_extra == BINARY_BODY else ()


def _check_type(request: Request, kinds: Sequence[str]) -> None:
    headers = request.headers
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kinds and has_body and given not in kinds:
        raise UnsupportedTypeError(
            f"the Content-Type of the body is {given or 'missing'}; send it with `Content-Type: {kinds[0]}`"
        )


def _check_known(request: Request, known: Sequence[str]) -> None:
    """Raise `UsageError` for a parameter that is none of the `known` ones, nor part of a signed link."""
    for name in request.query_params:
        if name not in known and not (request.method in ("GET", "HEAD") and name in LINK_PARAMETERS):
            expected = one_of(name, known) if known else "this path has no parameters"
            raise UsageError(f"unknown parameter `{name[:LONGEST_NAME]}`; {expected}")


class Paths(APIRouter):
    """Paths with the same `prefix`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=Path, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """As `APIRouter.add_api_route`; a path for GET is one for HEAD, too, which needs no description."""
        super().add_api_route(path, endpoint, **options)
        if options.get("methods") == ["GET"]:
            super().add_api_route(path, endpoint, **{**options, "methods": ["HEAD"], "include_in_schema": False})


def allowed(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of `scope` has."""
    whole = {**scope, "root_path": ""}  # a mount has made the path relative to itself
    return [method for method in METHODS if any(_takes(each, {**whole, "method": method}) for each in routes)]


def _takes(route: BaseRoute, scope: Scope) -> bool:
    """Whether `route` takes the request. A mount has files, which can only be read, and leaves methods to them."""
    only_read = isinstance(route, Mount) and scope["method"] not in ("GET", "HEAD")
    return not only_read and route.matches(scope)[0] == Match.FULL
