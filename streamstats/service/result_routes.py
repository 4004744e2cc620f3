"""Paths of results: layers, channels, files, archive, report, corrections. Every answer names its result set."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response

from ..errors import counted
from ..outputs.manifest import MANIFEST
from ..storage.files import write_archive
from .access import REPORT_POLICY
from .answers import BINARY, KINDS, bytes_answer, file_answer, json_answer
from .bodies import Body, Terms
from .correcting import Correcting
from .errors import NotFoundError
from .headers import JudgedTensors
from .messages import V1, LinkView
from .parameters import (
    BYTES,
    NUMBER,
    JobId,
    LayerName,
    LinkedPath,
    Number,
    Responses,
    errors,
    parts,
    result,
    result_file,
    result_text,
)
from .paths import BINARY_BODY, Paths
from .places import Places
from .published import archive_of
from .result_messages import ChannelsView, CorrectionsView, FilesView, LayersView, ManifestView
from .service import Service

Layouts = Annotated[list[str], Query(min_length=1, max_length=1000)]
Form = Annotated[Literal["json", "csv"], Query(alias="format")]


CORRECTIONS: Responses = {200: {"content": {BINARY: BYTES}, "model": CorrectionsView}, **errors(413, 415)}
FILES = (BINARY, "text/html", "application/json")
"""The types of the files of a result set."""


class ResultRoutes:
    """The paths below `/jobs/JOB` that are about its results."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._corrections = Places(service.config.limits.corrections)
        most = service.config.limits.body
        self._terms = Terms(most, service.config.connections.body_seconds, JudgedTensors(most))

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=f"{V1}/jobs/{{job}}", tags=["results"], responses=errors(404, 410, 422, 507))
        raw: dict[str, Any] = {"response_class": Response}
        routes.get("/layers", responses=result(LayersView), **raw)(self.layers)
        routes.get("/layers/{layer:path}", responses=result(ChannelsView, "text/csv"), **raw)(self.channels)
        routes.get("/report", responses=result_text("text/html"), **raw)(self.report)
        routes.get("/manifest", responses=result(ManifestView) | parts("application/json"), **raw)(self.manifest)
        routes.get("/files", responses=result(FilesView), **raw)(self.list_files)
        routes.get("/files/{name:path}", responses=result_file(*FILES), **raw)(self.file)
        routes.get("/archive", responses=result_file(BINARY), **raw)(self.archive)
        routes.post("/links")(self.link)
        routes.post("/corrections", responses=CORRECTIONS, openapi_extra=BINARY_BODY, **raw)(self.corrections)
        return routes

    def layers(self, request: Request, job: JobId, results: Number = None) -> Response:
        """For each layer: its rows, coverage, missing rows and ranges."""
        number, found = self._service.layers(job, results)
        return json_answer(request, {"results": number, "layers": found}, _numbered(number))

    def channels(
        self, request: Request, job: JobId, layer: LayerName, results: Number = None, form: Form = "json"
    ) -> Response:
        """The statistics of a layer, channel by channel; as CSV, those of its channels alone."""
        number, found = self._service.channels(job, layer, results)
        if form == "csv":
            return bytes_answer(request, _csv(found["per_channel"]), "text/csv; charset=utf-8", _numbered(number))
        return json_answer(request, {"results": number, **found}, _numbered(number))

    def report(self, request: Request, job: JobId, results: Number = None) -> Response:
        """The report, an HTML page."""
        number, text = self._service.report(job, results)
        return bytes_answer(request, text.encode(), KINDS[".html"], _numbered(number, REPORT_POLICY))

    def manifest(self, request: Request, job: JobId, results: Number = None) -> Response:
        """The manifest: each file with its SHA-256, the rows that it covers, and the rows that are missing."""
        number, folder, digests = self._service.files(job, results)
        return file_answer(request, folder / MANIFEST, digests[MANIFEST], _numbered(number))

    def list_files(self, request: Request, job: JobId, results: Number = None) -> Response:
        """The files of the result set, with the SHA-256 of each."""
        number, _, digests = self._service.files(job, results)
        return json_answer(request, {"results": number, "files": digests}, _numbered(number))

    def file(self, request: Request, job: JobId, name: LayerName, results: Number = None) -> Response:
        """A file of the result set, or ranges of it."""
        number, folder, digests = self._service.files(job, results)
        if name not in digests:
            raise NotFoundError(f"the results have no file {name[:200]!r}; `files` lists those that they have")
        policy = REPORT_POLICY if name.endswith(".html") else None
        return file_answer(request, folder / name, digests[name], _numbered(number, policy))

    def archive(self, request: Request, job: JobId, results: Number = None) -> Response:
        """All files of one result set, as a zip archive."""
        number, folder, digests = self._service.files(job, results)
        path = archive_of(folder)
        if not path.exists():
            with self._service.reading(job, number):
                write_archive(path, {name: folder / name for name in digests})
        return file_answer(request, path, f"{job}-{number}", _numbered(number), name=f"{job}.zip")

    def link(self, job: JobId, path: LinkedPath) -> LinkView:
        """A link to a file, the report or the archive of a job, which a browser can open for one minute."""
        self._service.table.get(job)
        return LinkView(path=self._service.links.signed(f"{V1}/jobs/{job}/{path}"))

    async def corrections(self, request: Request, job: JobId, layout: Layouts) -> Response:
        """The term to add to each bias, as safetensors, for safetensors with LAYER.weight and LAYER.fake_quantized."""
        _, folder = await asyncio.to_thread(self._service.results, job)
        most, seconds = self._corrections.most, self._service.config.limits.correction_seconds
        self._corrections.check(f"this service computes at most {counted(most, 'correction')} at a time; retry later")
        with self._corrections.taken():
            body = await Body.received(request, self._service.incoming, self._terms)
            try:
                path = str(await asyncio.to_thread(lambda: body.path))  # which may have to be written
                content, outcomes = await Correcting(path, str(folder), layout, seconds).done()
            finally:
                await asyncio.to_thread(body.discard)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"layers": {each["layer"]: each for each in outcomes}})
        return Response(content, media_type=BINARY)


def _csv(columns: Mapping[str, Sequence[float | None]]) -> bytes:
    """A row per channel, a column per figure; what JSON has as null is empty."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["channel", *columns])
    lines.writerows([channel, *values] for channel, values in enumerate(zip(*columns.values(), strict=True)))
    return text.getvalue().encode()


def _numbered(number: int, policy: str | None = None) -> dict[str, str]:
    """The headers of an answer from result set `number`; `policy` is its content security policy, if it needs one."""
    return {NUMBER: str(number)} | ({"content-security-policy": policy} if policy else {})
