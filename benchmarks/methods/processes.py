"""streamstats' own reduction by worker processes of one thread each, which are there before the time begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import Source

from methods.reduction import reducing
from streamstats.jobs.workers import Cluster


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """As `reduction`, with `threads` processes."""
    with reducing(source, Cluster(workers=threads, threads=1)) as run:
        yield run
