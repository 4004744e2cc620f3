"""The service over HTTP: paths, what they take and answer. What they do is in `Service`.

Everything below `/api/v1` is described by OpenAPI at `/api/v1/openapi.json`. Errors have one form, whoever raised them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..artifacts import write_archive
from ..config import QuantizationConfig, explain
from ..errors import StreamstatsError, UsageError
from .access import REPORT_POLICY, Guard, named_hosts
from .answers import BINARY, KINDS, bytes_answer, file_answer, json_answer, problem, refused
from .bodies import Body
from .errors import FullError, NotFoundError
from .jobs import ENDED
from .messages import (
    STORE_NAME,
    UPLOAD_ID,
    IngestView,
    JobPage,
    JobRequest,
    JobView,
    LinkView,
    OnnxRequest,
    RunRequest,
    StoreView,
    UploadView,
)
from .published import archive_of
from .service import Service
from .stores import Activations

V1 = "/api/v1"
REQUEST_NUMBER = "streamstats.request"
"""The key in the scope of a request of the number that the log has for it."""
TICK_SECONDS, SILENCE_SECONDS = 0.5, 15.0
"""Between two events of a job, at least; and at most, so that everybody between knows that it lives."""
PAGE = files(__package__).joinpath("page")
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

log = logging.getLogger("streamstats.service")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
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
    app.state.stopping = asyncio.Event()
    app.add_exception_handler(StreamstatsError, lambda _, error: refused(error, service.public))
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, lambda request, _: problem(500, _unforeseen(request.scope)))
    app.add_exception_handler(HTTPException, lambda _, error: problem(error.status_code, str(error.detail)))
    _add_operations(app, service)
    _add_jobs(app, service)
    _add_results(app, service)
    _add_stores(app, service)
    _add_uploads(app, service)
    app.mount("/static", StaticFiles(directory=str(PAGE)))
    config = service.config
    hosts = named_hosts(config.host, config.allowed_hosts)
    small = _SmallBodies(app)
    guard = Guard(small, service.token, hosts, tls=config.tls is not None)
    watched = _Watched(guard, service)
    watched.state = app.state
    return watched


def _unforeseen(scope: Scope) -> str:
    return f"this should not have happened; the log has it under {scope.get(REQUEST_NUMBER)}"


def _invalid(_: Request, error: RequestValidationError) -> Response:
    found = [each for each in error.errors() if each["type"] == "json_invalid"]
    if found:
        return problem(422, f"the body is not JSON: {found[0].get('ctx', {}).get('error', '')}")
    problems = []
    for each in error.errors():
        place = tuple(part for part in each["loc"][1:] if part not in ("run", "onnx")) or each["loc"]
        problems.append({**each, "loc": place})
    return problem(422, explain(problems, OnnxRequest if "onnx" in error.errors()[0]["loc"] else RunRequest))


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(str(PAGE.joinpath("index.html")))

    @app.get("/healthz", tags=["operations"])
    def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/readyz", tags=["operations"], responses={503: ERRORS[503]})
    def ready() -> Response:
        """It takes work: not while it is being stopped, or without room."""
        found = ["the service is being stopped"] if app.state.stopping.is_set() else service.problems()
        return problem(503, "; ".join(found)) if found else JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["operations"], responses=_errors(), response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(service.jobs.counts), media_type=CONTENT_TYPE_LATEST)

    @app.get(V1, tags=["operations"], responses=_errors())
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


def _add_jobs(app: FastAPI, service: Service) -> None:
    responses = _errors(404, 409, 422, 503, 507)
    streams = 0

    @app.post(f"{V1}/jobs", status_code=201, tags=["jobs"], responses=responses)
    def submit(request: JobRequest, idempotency_key: OptionalKey = None) -> JobView:
        """Submit a job. The same key of the same submitter gives the job that it gave before."""
        if app.state.stopping.is_set():
            raise FullError("the service is being stopped; submit again later")
        return service.submit(request, idempotency_key)

    @app.get(f"{V1}/jobs", tags=["jobs"], responses=responses)
    def jobs(
        state: Annotated[str | None, Query(pattern="^[a-z]{1,20}$")] = None,
        before: Annotated[int | None, Query(ge=1, le=2**53, description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> JobPage:
        """The jobs, the newest first."""
        found, following = service.jobs.newest(before=before, limit=limit, state=state)
        return JobPage(jobs=found, next=following)

    @app.get(f"{V1}/jobs/{{job}}", tags=["jobs"], responses=responses)
    def inspect(job: JobId) -> JobView:
        """A job, and how far it is."""
        return service.jobs.get(job)

    @app.post(f"{V1}/jobs/{{job}}/cancel", tags=["jobs"], responses=responses)
    def cancel(job: JobId) -> JobView:
        """Stop a job; what it counted is kept."""
        return service.jobs.cancel(job)

    @app.delete(f"{V1}/jobs/{{job}}", status_code=204, tags=["jobs"], responses=responses)
    def delete(job: JobId) -> None:
        """Remove a job that has ended, and its results."""
        service.jobs.delete(job)

    @app.get(
        f"{V1}/jobs/{{job}}/events",
        tags=["jobs"],
        responses={**responses, 200: {"content": {"text/event-stream": {}}}},
        response_class=StreamingResponse,
    )
    async def events(
        job: JobId,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
    ) -> Response:
        """Server-sent events: `job` (the job, as it is now), `message` (what was said of it), `end`."""
        nonlocal streams
        await asyncio.to_thread(service.jobs.get, job)
        if streams >= service.config.limits.streams:
            raise FullError(f"{streams} clients follow jobs, which is the most; ask for the job from time to time")
        after = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else 0

        async def counted() -> AsyncIterator[str]:
            nonlocal streams
            streams += 1
            try:
                async for event in job_events(service, job, min(after, 2**53), app.state.stopping):
                    yield event
            finally:
                streams -= 1

        return StreamingResponse(counted(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def job_events(service: Service, job: str, after: int, stopping: asyncio.Event) -> AsyncIterator[str]:
    """Events of a job as text, until it has ended."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(name: str) -> None:
        if name == job:
            loop.call_soon_threadsafe(changed.set)

    unlisten = service.jobs.listen(wake)
    last = ""
    try:
        while True:
            changed.clear()
            try:
                view = await asyncio.to_thread(service.jobs.get, job)
                said = await asyncio.to_thread(service.jobs.events, job, after)
            except NotFoundError:  # deleted
                yield _event("end", '{"state": "deleted"}')
                return
            for each in said:
                after = each["number"]
                yield _event("message", json.dumps(each), after)
            text = view.model_dump_json()
            if text != last:
                last = text
                yield _event("job", text)
            if view.state in ENDED:
                yield _event("end", text)
                return
            await _woken(changed, stopping)
            if stopping.is_set():
                return
            if not changed.is_set():
                yield ": nothing new\n\n"
            await asyncio.sleep(TICK_SECONDS)
    finally:
        unlisten()


async def _woken(changed: asyncio.Event, stopping: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(each.wait()) for each in (changed, stopping)]
    try:
        await asyncio.wait(waiting, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _event(kind: str, text: str, number: int | None = None) -> str:
    return f"{f'id: {number}' + chr(10) if number is not None else ''}event: {kind}\ndata: {text}\n\n"


def _add_results(app: FastAPI, service: Service) -> None:
    responses = _errors(404, 410, 413, 422, 507)
    here = f"{V1}/jobs/{{job}}"
    options: dict[str, Any] = {"tags": ["results"], "responses": responses, "response_class": Response}

    @app.get(f"{here}/layers", **options)
    def layers(request: Request, job: JobId, results: Number = None) -> Response:
        """The layers: rows, coverage, what is missing, ranges."""
        number, found = service.layers(job, results)
        return json_answer(request, {"results": number, "layers": found}, {NUMBER: str(number)})

    @app.get(f"{here}/layers/{{layer:path}}", **options)
    def channels(request: Request, job: JobId, layer: LayerName, results: Number = None) -> Response:
        """The statistics of each channel of a layer."""
        number, found = service.channels(job, layer, results)
        return json_answer(request, {"results": number, **found}, {NUMBER: str(number)})

    @app.get(f"{here}/report", **options)
    def report(request: Request, job: JobId, results: Number = None) -> Response:
        """The report, a page of HTML."""
        number, text = service.report(job, results)
        headers = {NUMBER: str(number), "content-security-policy": REPORT_POLICY}
        return bytes_answer(request, text.encode(), KINDS[".html"], headers)

    @app.get(f"{here}/manifest", **options)
    def manifest(request: Request, job: JobId, results: Number = None) -> Response:
        """The manifest: every file with its SHA-256, the rows behind it, what is missing."""
        number, folder, digests = service.files(job, results)
        return file_answer(request, folder / "manifest.json", digests["manifest.json"], {NUMBER: str(number)})

    @app.get(f"{here}/files", **options)
    def list_files(request: Request, job: JobId, results: Number = None) -> Response:
        """The files of the results, and the SHA-256 of each."""
        number, _, digests = service.files(job, results)
        return json_answer(request, {"results": number, "files": digests}, {NUMBER: str(number)})

    @app.get(f"{here}/files/{{name:path}}", **options)
    def file(request: Request, job: JobId, name: LayerName, results: Number = None) -> Response:
        """A file of the results, or ranges of it."""
        number, folder, digests = service.files(job, results)
        if name not in digests:
            raise NotFoundError(f"the results have no file {name[:200]!r}")
        policy = {"content-security-policy": REPORT_POLICY} if name.endswith(".html") else {}
        return file_answer(request, folder / name, digests[name], {NUMBER: str(number), **policy})

    @app.get(f"{here}/archive", **options)
    def archive(request: Request, job: JobId, results: Number = None) -> Response:
        """All files of one set of results, as a zip archive."""
        number, folder, digests = service.files(job, results)
        path = archive_of(folder)
        if not path.exists():
            write_archive(path, {name: folder / name for name in digests})
        return file_answer(request, path, f"{job}-{number}", {NUMBER: str(number)}, name=f"{job}.zip")

    @app.post(f"{here}/links", **{**options, "response_class": JSONResponse}, response_model=LinkView)
    def link(
        job: JobId, path: Annotated[str, Query(max_length=2000, pattern=r"^(files/.+|report|archive)$")]
    ) -> LinkView:
        """A link to a file of the job, its report or archive, that a browser can fetch for a minute."""
        service.jobs.get(job)
        return LinkView(path=service.token.signed(f"{V1}/jobs/{job}/{path}"))

    @app.post(
        f"{here}/corrections",
        **options,
        openapi_extra={
            "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def corrections(
        request: Request, job: JobId, layout: Annotated[list[str], Query(min_length=1, max_length=1000)]
    ) -> Response:
        """What to add to each bias, safetensors, for safetensors with LAYER.weight and LAYER.fake_quantized."""
        await asyncio.to_thread(service.results, job)
        body = await Body.received(request, service.incoming, service.config.limits.body)
        try:
            content, outcomes = await asyncio.to_thread(service.corrections, job, body, layout)
        finally:
            await asyncio.to_thread(body.discard)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"layers": {each.layer: each.document() for each in outcomes}})
        return Response(content, media_type=BINARY)


def _add_stores(app: FastAPI, service: Service) -> None:
    responses = _errors(404, 409, 413, 422, 503, 507)
    under_way = 0

    @app.get(f"{V1}/stores", tags=["stores"], responses=responses)
    def stores() -> list[str]:
        """The stores that the service owns."""
        return service.stores.names()

    @app.get(f"{V1}/stores/{{store}}", tags=["stores"], responses=responses)
    def store(store: StoreName) -> StoreView:
        """The rows of each layer."""
        return service.stores.view(store)

    @app.delete(f"{V1}/stores/{{store}}", status_code=204, tags=["stores"], responses=responses)
    def delete_store(store: StoreName) -> None:
        """Take a store away; jobs keep what they counted."""
        service.delete_store(store)

    @app.post(
        f"{V1}/stores/{{store}}/layers/{{layer:path}}",
        status_code=201,
        tags=["stores"],
        responses={**responses, 200: {"description": "The same key was given before", "model": IngestView}},
        response_model=IngestView,
        openapi_extra={
            "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def ingest(
        request: Request,
        response: Response,
        store: StoreName,
        layer: LayerName,
        idempotency_key: Key,
        channel_axis: Annotated[int, Query(ge=-64, le=64)] = -1,
        quantization: Annotated[
            str | None,
            Query(
                max_length=2**14,
                pattern=r"^[ -~]*$",
                description="JSON, as in a configuration: scale, scale_is, zero_point.",
            ),
        ] = None,
    ) -> IngestView:
        """Append activations, `.npy` or safetensors with one tensor, samples on axis 0; made if it is not there.

        They are on the disk when this answers 201. A request with the same key is counted once, and answered with 200.
        """
        nonlocal under_way
        given, about = _quantization(quantization), f" {channel_axis} {quantization or ''}"
        if under_way >= service.config.limits.ingests or app.state.stopping.is_set():
            raise FullError("too many send activations, or the service is being stopped; send it again later")
        under_way += 1
        try:
            body = await Body.received(request, service.incoming, service.config.limits.body)
            try:
                waiting = await asyncio.to_thread(
                    lambda: service.stores.append(
                        store,
                        Activations(layer, idempotency_key, body.digest + about, body.samples(), channel_axis, given),
                    )
                )
                done = await asyncio.shield(asyncio.wrap_future(waiting))
            finally:
                body.discard()
        finally:
            under_way -= 1
        response.status_code = 200 if done.repeated else 201
        return done


_QUANTIZATION = TypeAdapter(QuantizationConfig)


def _quantization(text: str | None) -> Any:
    """The quantisation that a client gives as JSON. Raises `UsageError`."""
    if text is None:
        return None
    try:
        return _QUANTIZATION.validate_json(text).quantization()
    except ValidationError as error:
        raise UsageError(f"quantization: {explain(error.errors(), QuantizationConfig)}") from error


def _add_uploads(app: FastAPI, service: Service) -> None:
    responses = _errors(404, 413, 422, 507)

    @app.get(f"{V1}/uploads", tags=["uploads"], responses=responses)
    def uploads() -> list[UploadView]:
        """What was uploaded."""
        return service.uploads.listed()

    @app.post(
        f"{V1}/uploads",
        status_code=201,
        tags=["uploads"],
        responses=responses,
        openapi_extra={
            "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
        },
    )
    async def upload(request: Request) -> UploadView:
        """Upload a model or samples for an `onnx` job; the id is the SHA-256 of the content."""
        body = await Body.received(request, service.uploads.folder, service.config.limits.upload)
        try:
            return await asyncio.to_thread(service.uploads.keep, body)
        finally:
            await asyncio.to_thread(body.discard)

    @app.delete(f"{V1}/uploads/{{upload}}", status_code=204, tags=["uploads"], responses=responses)
    def delete_upload(upload: UploadId) -> None:
        """Jobs that were submitted with it have it still."""
        service.uploads.delete(upload)


class _SmallBodies:
    """Bodies of JSON have a limit, and come in time. The others are counted where they are read."""

    MOST = 2**20
    SECONDS = 30.0

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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


class _Watched:
    """Measures and logs every request, and answers what nobody foresaw with 500 and a number to look for in the log."""

    state: Any

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(scope["method"], route, status).observe(seconds)
        level = logging.INFO if scope["method"] != "GET" or status >= 400 else logging.DEBUG
        said = {"request": number, "method": scope["method"], "path": scope["path"], "status": status}
        client = scope.get("client")
        log.log(
            level, "request", extra={**said, "seconds": round(seconds, 6), "address": client[0] if client else None}
        )
