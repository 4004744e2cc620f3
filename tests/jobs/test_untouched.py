"""A public function leaves the process of its caller as it was: settings, signals, warnings, logging, environment."""

from __future__ import annotations

import gc
import locale
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from stores import build_store, samples

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)


def process() -> dict[str, Any]:
    """What a library can change for everyone in its process."""
    loggers = {name: each for name, each in logging.root.manager.loggerDict.items() if isinstance(each, logging.Logger)}
    return {
        "zarr": zarr.config.to_dict() if hasattr(zarr.config, "to_dict") else repr(zarr.config.config),
        "dask": repr(dask.config.config),
        "numpy errors": np.geterr(),
        "numpy printing": np.get_printoptions(),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "root logger": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "loggers": {name: (each.level, list(each.handlers), each.disabled) for name, each in loggers.items()},
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": _umask(),
        "locale": locale.setlocale(locale.LC_ALL),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "recursion": sys.getrecursionlimit(),
        "collecting": (gc.isenabled(), gc.get_threshold()),
        "path": list(sys.path),
        "switching": sys.getswitchinterval(),
    }


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "s.zarr", {"layer": samples(12, 4, 3), "codes": samples(12, 4, dtype="int8")})


def job(store: Path, **options: Any) -> Any:
    return JobConfig(source=str(store), output=str(store.parent / "out"), **options).job()


def record(store: Path) -> None:
    with ss.Recorder(store.parent / "new.zarr") as recorder:
        recorder.append("layer", samples(4, 3))


def fail(store: Path) -> None:
    with pytest.raises(ss.StreamstatsError):
        ss.reduce(store / "nowhere")


CALLS: dict[str, Callable[[Path], object]] = {
    "reduce": ss.reduce,
    "reduce that fails": fail,
    "run": lambda store: run(job(store)),
    "run in processes": lambda store: run(job(store, cluster={"workers": 1, "threads": 1})),
    "verify": lambda store: (run(job(store)), verify(job(store))),
    "record": record,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_the_process_as_it_was(store: Path, name: str) -> None:
    with np.errstate(over="raise"), zarr.config.set({"async.concurrency": 3, "threading.max_workers": 2}):
        before = process()
        CALLS[name](store)
        after = process()
    added = after["loggers"].keys() - before["loggers"].keys()
    for logger in added:  # of modules that were not loaded before
        del after["loggers"][logger]
    assert after == before


def test_a_client_of_the_caller_is_left_as_it_was(store: Path) -> None:
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        before = process()
        ss.reduce(store, client=client)
        assert process() == before
        assert client.status == "running"
