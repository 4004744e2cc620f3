"""Paths of jobs: submit, list, inspect, cancel, delete, follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from ..config import Pattern
from .errors import FullError
from .events import job_events
from .filters import Wanted
from .job_table import STATES
from .messages import MOST_TAGS, V1, About, JobPage, JobRequest, JobView, SubmittedView, Tag, UploadView
from .parameters import Before, JobId, OptionalKey, Responses, Whose, created, errors, text
from .paths import Paths
from .places import Places
from .service import Service
from .tokens import Caller

State = Annotated[str, Pattern(f"^({'|'.join(STATES)})$", f"one of {', '.join(STATES)}")]
States = Annotated[list[State], Query(max_length=len(STATES), alias="state", description="In one of these states.")]
Submitter = Annotated[str | None, Query(min_length=1, max_length=64, description="Of this submitter.")]
Source = Annotated[
    str | None, Query(min_length=1, max_length=1024, description="That read this source, however they name it.")
]
Tags = Annotated[list[Tag], Query(max_length=MOST_TAGS, alias="tag", description="With all of these tags.")]
Text = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        description="In whose id, name, tags, note, submitter, source or message this occurs, in either case.",
    ),
]
LastEvent = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]
EVENTS = "text/event-stream"


class JobRoutes:
    """The paths below `/jobs` that are about jobs themselves."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._streams = Places(service.config.limits.streams)
        service.metrics.watch("streams", "Clients that follow events of jobs", self._streams)

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=f"{V1}/jobs", tags=["jobs"], responses=errors(404, 409, 413, 415, 422, 503, 507))
        repeated: Responses = {200: {"description": "The key was used before", "model": SubmittedView}}
        routes.post("", status_code=201, responses=created(SubmittedView) | repeated | errors(408))(self.submit)
        routes.get("")(self.jobs)
        routes.get("/{job}")(self.inspect)
        routes.patch("/{job}")(self.describe)
        routes.post("/{job}/cancel")(self.cancel)
        routes.post("/{job}/uploads")(self.restore_uploads)
        routes.post("/{job}/forget")(self.forget)
        routes.delete("/{job}", status_code=204)(self.delete)
        routes.get("/{job}/events", responses=text(EVENTS), response_class=StreamingResponse)(self.events)
        return routes

    def submit(
        self, request: JobRequest, caller: Whose, response: Response, idempotency_key: OptionalKey = None
    ) -> SubmittedView:
        """Submit a job. A repeated key of the same submitter returns the job that it returned before, with 200."""
        if self._service.stopping.is_set():
            raise FullError("the service is shutting down; submit the job again later")
        job = self._service.submit(request, idempotency_key, caller)
        response.status_code = 200 if job.repeated else 201
        response.headers["location"] = f"{V1}/jobs/{job.id}"
        return job

    def jobs(
        self,
        states: States = [],  # noqa: B006 - FastAPI copies it
        submitter: Submitter = None,
        source: Source = None,
        tags: Tags = [],  # noqa: B006
        text: Text = None,
        before: Before = 2**53,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> JobPage:
        """The jobs, newest first; only those for which all that is given holds."""
        sources = [] if source is None else self._service.sources.spellings(source)
        wanted = Wanted(states, submitter, sources, tags, text)
        found, following = self._service.table.newest(wanted, before=before, limit=limit)
        return JobPage(jobs=[*map(self._service.jobs.shown, found)], next=following)

    def inspect(self, job: JobId) -> JobView:
        """The state and progress of a job; its place, while it is queued."""
        return self._service.jobs.get(job)

    def describe(self, job: JobId, about: About, caller: Whose) -> JobView:
        """Change the name, the tags or the note of a job; what the request leaves out stays as it is."""
        self._check_owns(caller, job)
        return self._service.jobs.describe(job, about.stated())

    def cancel(self, job: JobId, caller: Whose) -> JobView:
        """Cancel a job; its results so far are retained."""
        self._check_owns(caller, job)
        return self._service.jobs.cancel(job)

    def restore_uploads(self, job: JobId, caller: Whose) -> list[UploadView]:
        """Make the files that an `onnx` job was submitted with uploads again, so that it can be submitted again."""
        return self._service.restore_uploads(job, caller)

    def forget(self, job: JobId, caller: Whose) -> JobView:
        """Subtract the batches that were withdrawn from what a job has counted, exactly, as a new result set."""
        self._check_owns(caller, job)
        return self._service.forget(job)

    def delete(self, job: JobId, caller: Whose) -> None:
        """Delete a job that has ended, and its results."""
        self._check_owns(caller, job)
        self._service.jobs.delete(job)

    def _check_owns(self, caller: Caller, job: str) -> None:
        caller.check_owns(f"job {job}", self._service.table.get(job).submitter)

    async def events(self, request: Request, job: JobId, last_event_id: LastEvent = None) -> Response:
        """Server-sent events: `job` (its state and progress), `message` (a line of its log), `end`."""
        await asyncio.to_thread(self._service.table.get, job)
        most = self._streams.most
        self._streams.check(f"{most:,} clients already follow jobs, the limit of this service; poll the job instead")
        if request.method == "HEAD":
            return Response(media_type=EVENTS)
        stream = self._counted(request, job, _number(last_event_id))
        return StreamingResponse(stream, media_type=EVENTS, headers={"x-accel-buffering": "no"})

    async def _counted(self, request: Request, job: str, after: int) -> AsyncIterator[str]:
        with self._streams.taken():
            async for event in job_events(self._service, job, after):
                if self._service.tokens.caller(request.headers.get("authorization")) is None:  # it was revoked
                    return
                yield event


def _number(last_event_id: str | None) -> int:
    """The number of the last event that a client has, 0 if it has none."""
    known = last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit()
    return min(int(last_event_id or 0), 2**53) if known else 0
