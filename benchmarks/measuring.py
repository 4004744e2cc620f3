"""Measuring: every method in a process of its own, so that its peak memory is its own, and runs taken in
turn.

A method is a module of `methods/` with a context manager `opened(source, threads)` that yields a function;
each call of that function is one timed run. What is done once (imports, thread pools, a dask client) is
outside the runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from stores import Source

SPAWN = multiprocessing.get_context("spawn")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes that `getrusage` counts peak memory in."""
PACKAGES = ("streamstats", "numpy", "numba", "llvmlite", "zarr", "numcodecs", "dask", "distributed", "xarray")


@dataclass(frozen=True)
class Run:
    """One timed run: seconds, and the means it found, layer → [C].

    `rows` is how many it read of each layer, empty where it read all. `peak_bytes` is given where
    another process did the work.
    """

    seconds: float
    means: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Measured:
    """The runs of one method on one store: seconds of each, the last in full, peak memory in bytes."""

    seconds: list[float]
    last: Run
    peak_bytes: int

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return median(self.seconds)


class Worker:
    """A process that holds one method open on one store and runs it on request."""

    def __init__(self, method: str, source: Source, threads: int) -> None:
        self.method = method
        self._connection, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(other, method, source, threads))
        self._process.start()
        other.close()

    def run(self) -> tuple[Run, int]:
        """One run, and the peak memory of the process so far. Raises `RuntimeError` where it fails."""
        self._connection.send("run")
        try:
            answer = self._connection.recv()
        except EOFError as error:
            raise RuntimeError(f"the process of {self.method} ended; was there too little memory?") from error
        if isinstance(answer, str):
            raise RuntimeError(f"{self.method}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Any, method: str, source: Source, threads: int) -> None:
    with import_module(f"methods.{method}").opened(source, threads) as run:
        while _asked(connection):
            try:
                answer = run()
            except Exception as error:
                connection.send(f"{type(error).__name__}: {error}")
            else:
                connection.send((answer, answer.peak_bytes or peak_memory()))


def _asked(connection: Any) -> bool:
    try:
        return connection.recv() == "run"
    except EOFError:
        return False


def measure_in_turn(
    methods: Sequence[str], source: Source, *, threads: int, repeats: int, patience: float
) -> dict[str, Measured]:
    """Run every method once, then all again, `repeats` times; a method has enough after `patience` seconds.

    The first round warms up and does not count, except for a method that took longer than `patience` in it.
    """
    workers = {method: Worker(method, source, threads) for method in methods}
    measured: dict[str, Measured] = {}
    try:
        for round_ in range(repeats + 1):
            for method, worker in workers.items():
                before = measured[method].seconds if round_ > 1 and method in measured else []
                if _has_enough(measured.get(method), patience):
                    continue
                run, peak = worker.run()
                measured[method] = Measured([*before, run.seconds], run, peak)
    finally:
        for worker in workers.values():
            worker.close()
    return measured


def _has_enough(measured: Measured | None, patience: float) -> bool:
    return measured is not None and sum(measured.seconds) > patience


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function(*arguments)`, whose memory is given back with its process."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory() -> int:
    """The peak resident memory of this process in bytes, imports included.

    Linux counts it from the start of the program; `getrusage` from the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def repeated_seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """The seconds of each of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def rates_in_turn(functions: Mapping[str, Callable[[], object]], size: int, repeats: int) -> dict[str, float]:
    """Bytes a second of each function over `size` bytes: medians, in turn, the first round not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            taken = repeated_seconds(function, 1)
            if round_:
                seconds[name] += taken
    return {name: size / median(values) for name, values in seconds.items()}


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What the figures depend on: processor, memory, load, versions."""
    memory = psutil.virtual_memory()
    load = psutil.getloadavg()[0]
    return {
        "processor": f"{_processor_name()}, {available_cores()} cores",
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available",
        "load before": f"{load:.1f} runnable tasks",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(import_module(package), "__version__", "?"))


def float64_means(means: Any) -> npt.NDArray[np.float64]:
    """`means` as float64, without rounding what was found."""
    return np.asarray(means, dtype=np.float64)


def common_options(document: str, what: str) -> argparse.Namespace:
    """The options of a benchmark that has no others; `document` is its docstring, `what` it generates data for."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.4, metavar="GB", help=f"decoded, per {what} (default 0.4)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: the number of cores")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (default 7)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    return parser.parse_args()
