"""`streamstats run CONFIG` as a process: the start of Python, the reduction, and the files it writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import streamstats, write_config
from measuring import Run
from stores import Source


@contextmanager
def opened(source: Source, threads: int) -> Iterator[Callable[[], Run]]:
    """Run the command into a new folder each time."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), source, cluster={"workers": "local", "threads": threads})
        yield lambda: Run(streamstats("run", str(config)))
