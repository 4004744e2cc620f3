"""Paths for those who operate the service, and what clients ask before they submit: limits, sources, statistics."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from shutil import disk_usage

from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .. import __version__
from ..errors import StreamstatsError
from ..statistics.kinds import optional
from . import manual
from .access import MANUAL
from .answers import problem
from .messages import OWN, V1, AliveView, CallerView, ReadyView, ServiceView, StatisticView
from .metrics import Moment
from .parameters import Whose, errors, text
from .paths import Paths
from .service import Service

PAGE_FILES = files(__package__).joinpath("page")
TO_THE_MANUAL = f'    <a href="{MANUAL}">Manual</a>\n'
"""A line of the page."""


class OperationRoutes:
    """The paths that belong to no job, store or upload."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def router(self) -> Paths:
        """The paths, described for OpenAPI."""
        routes = Paths(tags=["operations"])
        routes.get("/", include_in_schema=False)(self.page)
        routes.get("/healthz", responses=errors(opened=True))(self.alive)
        routes.get("/readyz", responses=errors(503, opened=True), response_model=ReadyView)(self.ready)
        routes.get("/metrics", responses=errors() | text("text/plain"), response_class=Response)(self.metrics)
        routes.get(V1, responses=errors())(self.about)
        routes.get(f"{V1}/statistics", responses=errors())(self.statistics)
        return routes

    def page(self) -> Response:
        """The page for a browser; it leads to the manual if the package has it."""
        text = PAGE_FILES.joinpath("index.html").read_text(encoding="utf-8")
        return HTMLResponse(text if manual.is_built() else text.replace(TO_THE_MANUAL, ""))

    async def alive(self) -> AliveView:
        """The process responds: in the event loop, so that it needs no thread."""
        return AliveView(version=__version__)

    async def ready(self) -> Response:
        """The service accepts work: it is not shutting down, the disk has room, and nothing fails at the moment."""
        found = self._hindrances()
        return problem(503, "; ".join(found)) if found else JSONResponse(ReadyView().model_dump())

    def _hindrances(self) -> list[str]:
        stopping = self._service.stopping.is_set()
        return ["the service is shutting down"] if stopping else self._service.problems()

    def _moment(self) -> Moment:
        """What holds now. What the database hides while it cannot be read is unknown."""
        service, limits = self._service, self._service.config.limits
        unknown = Moment(False, disk_usage(service.data).free, limits.free, limits.waiting_jobs)
        try:
            ready, jobs, waited = not self._hindrances(), service.table.counts(), service.table.waited()
        except StreamstatsError:
            return unknown
        return replace(unknown, ready=ready, jobs=jobs, waited=waited)

    def metrics(self) -> Response:
        """Metrics in the format of Prometheus."""
        return Response(self._service.metrics.text(self._moment()), media_type=CONTENT_TYPE_LATEST)

    def about(self, caller: Whose) -> ServiceView:
        """The version, who asks, the sources that jobs may read, and the limits."""
        service = self._service
        return ServiceView(
            version=__version__,
            you=CallerView(name=caller.name, role=caller.role),
            sources=[*service.sources.listed(), *(f"{OWN}{name}" for name in service.stores.names())],
            prefixes=list(service.sources.prefixes),
            hooks=sorted(service.config.hooks),
            memory=service.config.memory,
            limits=service.config.limits,
            jobs=service.table.counts(),
        )

    def statistics(self) -> list[StatisticView]:
        """The statistics that a job counts if its `statistics` name them, besides those that it always counts."""
        return optional_statistics()


def optional_statistics() -> list[StatisticView]:
    """The statistics that a job counts on request, in alphabetical order."""
    return [StatisticView(name=name, description=text) for name, text in sorted(optional().items())]
