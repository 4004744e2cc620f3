"""`dask.array`: mean, extrema, magnitude, squares, a histogram and percentiles in one compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import Source

from .idioms import computing


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """As `idioms.computing`."""
    with computing(source, threads, "mean", "extrema", "magnitude", "squares", "histogram", "percentile") as run:
        yield run
