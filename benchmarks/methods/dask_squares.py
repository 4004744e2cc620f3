"""`dask.array`: squares alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from measuring import Run
from stores import Source

from .idioms import computing


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """As `idioms.computing`."""
    with computing(source, threads, "squares") as run:
        yield run
