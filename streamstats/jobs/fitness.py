"""What runs on a dask worker: finding out whether it is fit, preparing it, and calls.

A worker is unfit if it cannot give the results of the client: another version of streamstats or of Python, a library
that is missing, another view of the store.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..calibration.describing import seen_differently
from ..calibration.layer import Layer
from ..calibration.zarr_settings import set_decoding
from .workers import UnfitError

LIBRARIES = ("dask", "distributed", "llvmlite", "numba", "numcodecs", "numpy", "zarr")
"""The libraries that measuring needs, of which client and worker should have the same version."""
MISSING = "missing"
IN_PROCESS = "inproc:"
"""How the addresses of workers begin that are threads of the client's process."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3): how much free memory the process retains, and from which size an allocation is mapped separately."""
KEPT_BYTES = 2**26
_EXAMINED: set[str] = set()
"""The runs for which this process has proved fit."""


@dataclass(frozen=True)
class Sight:
    """What each worker of the run called `run` is compared with: the client's versions, and layers as it sees them."""

    run: str
    versions: Mapping[str, str]
    layers: Sequence[Layer]


@dataclass(frozen=True)
class Examination:
    """Why a worker is unfit, or None; and how its libraries differ from the client's, which need not matter."""

    unfit: str | None
    differences: tuple[str, ...] = ()


def dask_setup(_worker: object) -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal: only the parent acts on it. dask calls this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def versions() -> dict[str, str]:
    """The versions in this process: streamstats, Python (without the patch), LIBRARIES."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"streamstats": __version__, "Python": python} | {library: _version(library) for library in LIBRARIES}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return MISSING


def examine(sight: Sight) -> Examination:
    """Whether this worker is fit for the client that sees `sight`."""
    ours, theirs = versions(), sight.versions
    for name in ("streamstats", "Python"):
        if ours[name] != theirs[name]:
            return Examination(
                f"runs {name} {ours[name]}, but the client runs {theirs[name]}; install the same version on both"
            )
    lacking = [name for name in LIBRARIES if ours[name] == MISSING != theirs[name]]
    if lacking:
        return Examination(f"lacks {', '.join(lacking)}; install streamstats {__version__} there, with all it needs")
    differences = tuple(
        f"{name} {ours[name]} (here: {theirs[name]})" for name in LIBRARIES if ours[name] != theirs[name]
    )
    return Examination(next(filter(None, map(seen_differently, sight.layers)), None), differences)


def call_on_worker(sight: Sight, number: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Report that `call` has begun, then run it. Raises `UnfitError` in an unfit process that joined later."""
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(sight.run, (number, worker.address))
    if sight.run not in _EXAMINED:
        wrong = examine(sight).unfit
        if wrong is not None:
            raise UnfitError(worker.address, wrong)
        if not worker.address.startswith(IN_PROCESS):  # whose settings are the client's, and so are those of zarr
            _prepare(worker.state.nthreads)
        _EXAMINED.add(sight.run)
    return call(*arguments)


def _prepare(threads: int) -> None:
    """Apply the settings of zarr and the allocator, which are not sent with a task, for the life of this process.

    dask makes its workers return free memory at once; then every call of Blosc waits for fresh pages and takes three
    times as long. With glibc's allocator, the process retains KEPT_BYTES instead, as it does without dask.
    """
    set_decoding(threads)
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES // 2)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
