"""streamstats' own reduction with every kind of statistic that a run can count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import Source

from streamstats.jobs.workers import Cluster
from streamstats.statistics.kinds import optional

from .reduction import reducing

LEFT_OUT = ("positions",)


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """As `reduction`."""
    kinds = tuple(name for name in optional() if name not in LEFT_OUT)
    with reducing(source, Cluster(threads=threads), kinds) as run:
        yield run
