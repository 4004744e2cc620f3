"""The service over HTTP: its paths put together, and the place where errors become answers. The rest is in `Service`.

Everything below `/api/v1` is described by OpenAPI at `/api/v1/openapi.json`. Errors have one form, whoever raised them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from .. import __version__
from ..config import explain
from ..errors import StreamstatsError
from .access import Guard, named_hosts
from .answers import problem, refused
from .job_routes import job_routes
from .messages import OnnxRequest, RunRequest
from .middleware import REQUEST_NUMBER, SmallBodies, Watched
from .parameters import ERRORS, V1, errors
from .result_routes import result_routes
from .service import Service
from .store_routes import store_routes, upload_routes

PAGE = files(__package__).joinpath("page")


def make_app(service: Service) -> ASGIApp:
    """The application; it starts and stops `service` with its own life."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="streamstats",
        version=__version__,
        summary="Exact calibration statistics as jobs",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=f"{V1}/openapi.json",
        lifespan=life,
    )
    app.add_exception_handler(StreamstatsError, lambda _, error: refused(error, service.public))
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, lambda request, _: problem(500, _unforeseen(request)))
    app.add_exception_handler(HTTPException, lambda _, error: problem(error.status_code, str(error.detail)))
    for routes in (_operations, job_routes, result_routes, store_routes, upload_routes):
        app.include_router(routes(service))
    app.mount("/static", StaticFiles(directory=str(PAGE)))
    config = service.config
    hosts = named_hosts(config.host, config.allowed_hosts)
    guard = Guard(SmallBodies(app), service.token, hosts, tls=config.tls is not None)
    return Watched(guard, service.metrics)


def _unforeseen(request: Request) -> str:
    return f"this should not have happened; the log has it under {request.scope.get(REQUEST_NUMBER)}"


def _invalid(_: Request, error: RequestValidationError) -> Response:
    found = [each for each in error.errors() if each["type"] == "json_invalid"]
    if found:
        return problem(422, f"the body is not JSON: {found[0].get('ctx', {}).get('error', '')}")
    problems = []
    for each in error.errors():
        place = tuple(part for part in each["loc"][1:] if part not in ("run", "onnx")) or each["loc"]
        problems.append({**each, "loc": place})
    return problem(422, explain(problems, OnnxRequest if "onnx" in error.errors()[0]["loc"] else RunRequest))


def _operations(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(str(PAGE.joinpath("index.html")))

    @routes.get("/healthz", tags=["operations"])
    def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": __version__}

    @routes.get("/readyz", tags=["operations"], responses={503: ERRORS[503]})
    def ready() -> Response:
        """It takes work: not while it is being stopped, or without room."""
        found = ["the service is being stopped"] if service.stopping.is_set() else service.problems()
        return problem(503, "; ".join(found)) if found else JSONResponse({"status": "ready"})

    @routes.get("/metrics", tags=["operations"], responses=errors(), response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(service.jobs.counts), media_type=CONTENT_TYPE_LATEST)

    @routes.get(V1, tags=["operations"], responses=errors())
    def about() -> dict[str, Any]:
        """The version, what clients may have read, and the limits."""
        return {
            "version": __version__,
            "sources": [*service.sources.listed(), *(f"store:{name}" for name in service.stores.names())],
            "prefixes": list(service.sources.prefixes),
            "memory": service.config.memory,
            "limits": service.config.limits.model_dump(),
            "jobs": service.jobs.counts(),
        }

    return routes
