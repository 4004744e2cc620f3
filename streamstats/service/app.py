"""The service over HTTP: all paths together, and the one place where errors become answers.

What the paths do is in `Service`. OpenAPI describes everything below `/api/v1` at `/api/v1/openapi.json`. All errors
have the same form, whatever raised them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from .. import __version__
from ..config import explain, model_in
from ..errors import StreamstatsError
from .access import DOCS, MANUAL, Guard, named_hosts
from .admin_routes import AdminRoutes
from .answers import problem, refused
from .audit import Audited
from .comparison_routes import ComparisonRoutes
from .description import describe, operation_id
from .job_routes import JobRoutes
from .manual import manual
from .messages import V1, OnnxRequest
from .middleware import UNFORESEEN, SmallBodies, Watched
from .operation_routes import PAGE_FILES, OperationRoutes
from .paths import allowed
from .reference import reference
from .result_routes import ResultRoutes
from .service import Service
from .static import Files
from .store_routes import StoreRoutes
from .upload_routes import UploadRoutes


def make_app(service: Service) -> ASGIApp:
    """The application; it starts `service` when it starts and stops it when it ends."""
    app = FastAPI(
        title="streamstats",
        version=__version__,
        summary="Exact calibration statistics as jobs",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=f"{V1}/openapi.json",
        generate_unique_id_function=operation_id,
        lifespan=_lifespan(service),
    )
    for routes in (
        OperationRoutes,
        JobRoutes,
        ResultRoutes,
        ComparisonRoutes,
        StoreRoutes,
        UploadRoutes,
        AdminRoutes,
    ):
        app.include_router(routes(service).router())
    document = describe(app)
    app.openapi = lambda: document  # type: ignore[method-assign]
    page = HTMLResponse(reference(document))
    app.add_route(DOCS, lambda _: page, include_in_schema=False)
    app.mount("/static", Files(directory=str(PAGE_FILES)))
    app.add_route(MANUAL.rstrip("/"), lambda _: RedirectResponse(MANUAL), include_in_schema=False)
    app.mount(MANUAL.rstrip("/"), manual())
    _answer_errors(app, service)
    return _protected(app, service)


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    return life


def _answer_errors(app: FastAPI, service: Service) -> None:
    app.add_exception_handler(StreamstatsError, lambda _, error: refused(error, service.public))
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, lambda _, __: problem(500, UNFORESEEN))
    app.add_exception_handler(HTTPException, lambda request, error: _http_problem(app, request, error))


def _protected(app: FastAPI, service: Service) -> ASGIApp:
    """`app` behind what every request passes: the log, the audit log, the guard, the limit of JSON bodies."""
    config = service.config
    hosts = named_hosts(config.host, config.allowed_hosts)
    guard = Guard(SmallBodies(app), service.tokens, service.links, hosts, tls=config.tls is not None)
    return Watched(Audited(guard, service.audit), service.metrics)


def _http_problem(app: FastAPI, request: Request, error: HTTPException) -> Response:
    """The answer to a request that no path takes."""
    if error.status_code != 405:
        return problem(error.status_code, str(error.detail), error.headers)
    methods = ", ".join(allowed(app.routes, request.scope))
    message = f"{request.url.path} has no method {request.method}; it has {methods}"
    return problem(405, message, {"allow": methods})


def _invalid(request: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    malformed = next((each for each in found if each["type"] == "json_invalid"), None)
    if malformed is not None:
        return problem(422, f"the body is not JSON: {malformed.get('ctx', {}).get('error', '')}")
    model = OnnxRequest if "onnx" in found[0]["loc"] else _body_of(request)
    return problem(422, explain([{**each, "loc": _place(each["loc"])} for each in found], model))


def _body_of(request: Request) -> type[BaseModel]:
    """The model of the bodies that the path takes; of several, the first."""
    field = request.scope["route"].body_field
    return (model_in(field.field_info.annotation) if field is not None else None) or BaseModel


def _place(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where in the request: without the part of HTTP that it was in, and without the kind of job."""
    _, *inside = location
    return tuple(inside[1:] if inside[:1] in (["run"], ["onnx"]) else inside) or location
