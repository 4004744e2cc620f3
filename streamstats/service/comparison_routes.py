"""Paths that set results side by side: two jobs, and the result sets of one job that follows a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Query

from .comparisons import ChannelComparisonView, ComparisonView, Side, channel_comparison, comparison
from .development import DevelopmentView, development
from .messages import JOB_ID, V1
from .parameters import JobId, LayerName, errors
from .paths import Paths
from .service import Service

Other = Annotated[str, JOB_ID, Query(alias="with", description="The second job; differences are second − first.")]
Channel = Annotated[int, Query(ge=0, le=2**31, description="The channel whose mean is given.")]


class ComparisonRoutes:
    """The paths below `/jobs/JOB` that compare its results."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(prefix=f"{V1}/jobs/{{job}}", tags=["results"], responses=errors(404, 410, 422))
        routes.get("/comparison")(self.comparison)
        routes.get("/comparison/{layer:path}")(self.channels)
        routes.get("/development/{layer:path}")(self.development)
        return routes

    def comparison(self, job: JobId, other: Other) -> ComparisonView:
        """How far apart the current results of two jobs are, layer by layer."""
        with self._sides(job, other) as (first, second, folders):
            key = (f"{second.job}-{second.results}", first.results, f"\ncomparison with {first.job}")
            return self._service.remembered(key, lambda: comparison(first, second, folders))

    def channels(self, job: JobId, layer: LayerName, other: Other) -> ChannelComparisonView:
        """How far apart a layer of two jobs is, channel by channel."""
        with self._sides(job, other) as sides:
            return channel_comparison(*sides, layer)

    @contextmanager
    def _sides(self, job: str, other: str) -> Iterator[tuple[Side, Side, tuple[Path, Path]]]:
        with self._service.reading(job) as (mine, first), self._service.reading(other) as (theirs, second):
            yield Side(job=job, results=mine), Side(job=other, results=theirs), (first, second)

    def development(self, job: JobId, layer: LayerName, channel: Channel = 0) -> DevelopmentView:
        """How the means of a layer developed while the job followed a store; without points for other jobs."""
        _, newest = self._service.results(job)
        return development(self._service.jobs.folder(job), newest, layer, channel)
