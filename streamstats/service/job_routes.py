"""Paths of jobs: submit, list, inspect, cancel, delete, follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from .errors import FullError
from .events import job_events
from .jobs import STATES
from .messages import JobPage, JobRequest, JobView
from .parameters import V1, JobId, OptionalKey, errors
from .service import Service


def job_routes(service: Service) -> APIRouter:
    """The paths below `/jobs`."""
    routes = APIRouter()
    responses = errors(404, 409, 422, 503, 507)
    streams = 0

    @routes.post(f"{V1}/jobs", status_code=201, tags=["jobs"], responses=responses)
    def submit(request: JobRequest, idempotency_key: OptionalKey = None) -> JobView:
        """Submit a job. The same key of the same submitter gives the job that it gave before."""
        if service.stopping.is_set():
            raise FullError("the service is being stopped; submit again later")
        return service.submit(request, idempotency_key)

    @routes.get(f"{V1}/jobs", tags=["jobs"], responses=responses)
    def jobs(
        state: Annotated[str | None, Query(pattern=f"^({'|'.join(STATES)})$")] = None,
        before: Annotated[int | None, Query(ge=1, le=2**53, description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> JobPage:
        """The jobs, the newest first."""
        found, following = service.jobs.newest(before=before, limit=limit, state=state)
        return JobPage(jobs=found, next=following)

    @routes.get(f"{V1}/jobs/{{job}}", tags=["jobs"], responses=responses)
    def inspect(job: JobId) -> JobView:
        """A job, and how far it is."""
        return service.jobs.get(job)

    @routes.post(f"{V1}/jobs/{{job}}/cancel", tags=["jobs"], responses=responses)
    def cancel(job: JobId) -> JobView:
        """Stop a job; results that it has stay."""
        return service.jobs.cancel(job)

    @routes.delete(f"{V1}/jobs/{{job}}", status_code=204, tags=["jobs"], responses=responses)
    def delete(job: JobId) -> None:
        """Remove a job that has ended, and its results."""
        service.jobs.delete(job)

    @routes.get(
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
                async for event in job_events(service, job, min(after, 2**53)):
                    yield event
            finally:
                streams -= 1

        return StreamingResponse(counted(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return routes
