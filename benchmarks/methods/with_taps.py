"""streamstats' own reduction with `taps` beside the means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import Source

from streamstats.jobs.workers import Cluster

from .reduction import reducing


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """As `reduction`."""
    with reducing(source, Cluster(threads=threads), ("taps",)) as run:
        yield run
