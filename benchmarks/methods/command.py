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
    """Run the command, which writes over what it wrote before."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), source, cluster={"workers": "local", "threads": threads})

        def run() -> Run:
            finished = streamstats("run", str(config))
            return Run(finished.seconds, peak_bytes=finished.peak_bytes)

        yield run
