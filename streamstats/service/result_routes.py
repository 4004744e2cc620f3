"""Paths of results: layers, channels, files, archive, report, corrections; each tells which set it is from."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from ..storage.files import write_archive
from .access import REPORT_POLICY
from .answers import BINARY, KINDS, bytes_answer, file_answer, json_answer
from .bodies import Body
from .errors import NotFoundError
from .messages import LinkView
from .parameters import BINARY_BODY, NUMBER, V1, JobId, LayerName, Number, errors
from .published import archive_of
from .service import Service


def result_routes(service: Service) -> APIRouter:
    """The paths below `/jobs/JOB` that are about its results."""
    routes = APIRouter()
    responses = errors(404, 410, 413, 422, 507)
    here = f"{V1}/jobs/{{job}}"
    options: dict[str, Any] = {"tags": ["results"], "responses": responses, "response_class": Response}

    @routes.get(f"{here}/layers", **options)
    def layers(request: Request, job: JobId, results: Number = None) -> Response:
        """The layers: rows, coverage, what is missing, ranges."""
        number, found = service.layers(job, results)
        return json_answer(request, {"results": number, "layers": found}, {NUMBER: str(number)})

    @routes.get(f"{here}/layers/{{layer:path}}", **options)
    def channels(request: Request, job: JobId, layer: LayerName, results: Number = None) -> Response:
        """The statistics of each channel of a layer."""
        number, found = service.channels(job, layer, results)
        return json_answer(request, {"results": number, **found}, {NUMBER: str(number)})

    @routes.get(f"{here}/report", **options)
    def report(request: Request, job: JobId, results: Number = None) -> Response:
        """The report, a page of HTML."""
        number, text = service.report(job, results)
        headers = {NUMBER: str(number), "content-security-policy": REPORT_POLICY}
        return bytes_answer(request, text.encode(), KINDS[".html"], headers)

    @routes.get(f"{here}/manifest", **options)
    def manifest(request: Request, job: JobId, results: Number = None) -> Response:
        """The manifest: every file with its SHA-256, the rows behind it, what is missing."""
        number, folder, digests = service.files(job, results)
        return file_answer(request, folder / "manifest.json", digests["manifest.json"], {NUMBER: str(number)})

    @routes.get(f"{here}/files", **options)
    def list_files(request: Request, job: JobId, results: Number = None) -> Response:
        """The files of the results, and the SHA-256 of each."""
        number, _, digests = service.files(job, results)
        return json_answer(request, {"results": number, "files": digests}, {NUMBER: str(number)})

    @routes.get(f"{here}/files/{{name:path}}", **options)
    def file(request: Request, job: JobId, name: LayerName, results: Number = None) -> Response:
        """A file of the results, or ranges of it."""
        number, folder, digests = service.files(job, results)
        if name not in digests:
            raise NotFoundError(f"the results have no file {name[:200]!r}")
        policy = {"content-security-policy": REPORT_POLICY} if name.endswith(".html") else {}
        return file_answer(request, folder / name, digests[name], {NUMBER: str(number), **policy})

    @routes.get(f"{here}/archive", **options)
    def archive(request: Request, job: JobId, results: Number = None) -> Response:
        """All files of one set of results, as a zip archive."""
        number, folder, digests = service.files(job, results)
        path = archive_of(folder)
        if not path.exists():
            write_archive(path, {name: folder / name for name in digests})
        return file_answer(request, path, f"{job}-{number}", {NUMBER: str(number)}, name=f"{job}.zip")

    @routes.post(f"{here}/links", **{**options, "response_class": JSONResponse}, response_model=LinkView)
    def link(
        job: JobId, path: Annotated[str, Query(max_length=2000, pattern=r"^(files/.+|report|archive)$")]
    ) -> LinkView:
        """A link to a file of the job, its report or archive, that a browser can fetch for a minute."""
        service.jobs.get(job)
        return LinkView(path=service.token.signed(f"{V1}/jobs/{job}/{path}"))

    @routes.post(
        f"{here}/corrections",
        **options,
        openapi_extra=BINARY_BODY,
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

    return routes
