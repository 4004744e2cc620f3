"""Reaching dask: processes of this machine, or a scheduler at an address, under dask's own configuration.

What a user has set for dask, in files or by DASK_ variables, applies as it does to any `LocalCluster`; only what a run
must rely on is set here. Whatever does not start is one line with the cause that dask hides behind its own error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, UsageError, counted, first_line
from . import fitness

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

CONNECT_SECONDS = 10.0
STARTS = 3
"""Attempts to start local processes, if one of them ends while it starts."""
PATIENCE = "120s"
"""Time for processes of this machine to connect to each other: other work may keep it busy while they start."""
SETTINGS = {
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.scheduler.allowed-failures": 100,
    "distributed.scheduler.idle-timeout": None,  # a run that waits for rows still needs its scheduler
}
STARTING = {"distributed.comm.timeouts.connect": PATIENCE}
CONFIGURATION = "correct it in the file, or in the DASK_ variable of the environment, that sets it"


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`. Raises `UsageError`, `ClusterError`."""
    check_dask()
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="streamstats")
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no dask scheduler responds at {address}: {cause_of(error)}; start it, or correct `cluster.scheduler` or "
            "the TLS settings of dask"
        ) from error
    except Exception as error:
        raise UsageError(
            f"`cluster.scheduler` is {address!r}: {cause_of(error)}; expected an address such as tcp://host:8786 or "
            "tls://host:8786, and a valid configuration of dask"
        ) from error
    with client:
        yield client


@contextmanager
def local_processes(count: int, threads: int) -> Iterator[tuple[Client, Callable[[], None]]]:
    """A client of `count` new processes on this machine, which listen only on 127.0.0.1, and a call that replaces lost
    ones.

    A nanny restarts each process that ends, but ends itself if its process is killed while it starts; hence the call.
    Raises `ClusterError` if the processes do not start in STARTS attempts, `UsageError` if dask's configuration does
    not allow it.
    """
    check_dask()
    import dask
    from distributed import Client

    with (
        dask.config.set(SETTINGS),
        _started(count, threads) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client, lambda: cluster.scale(count)


def check_dask() -> None:
    """Raise `UsageError` if dask cannot be imported: a malformed file of its configuration prevents that."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(f"dask cannot be imported: {first_line(error)}; install dask and distributed again") from error
    except Exception as error:
        raise UsageError(
            f"dask cannot be imported, because its configuration is wrong: {' '.join(str(error).split())}; "
            f"{CONFIGURATION}"
        ) from error


def cause_of(error: BaseException) -> str:
    """The first thing that went wrong, on one line: dask wraps it in errors that say only what failed to start."""
    seen = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None and inner not in seen:
        seen.append(inner)
    first = next((each for each in reversed(seen) if str(each)), error)
    kind = "" if isinstance(first, OSError | RuntimeError) else f"{type(first).__name__}: "
    return f"{kind}{first_line(first)}"


def _started(count: int, threads: int) -> LocalCluster:
    import dask
    from distributed import LocalCluster

    attempt = 1
    while True:
        try:
            with dask.config.set(STARTING):
                return LocalCluster(
                    n_workers=count,
                    threads_per_worker=threads,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=0,  # the plan limits memory
                    silence_logs=logging.CRITICAL,
                    **_preloads(),
                )
        except (RuntimeError, OSError, TimeoutError) as error:
            if attempt == STARTS:
                raise ClusterError(
                    f"{counted(count, 'worker process', 'worker processes')} did not start in {STARTS} attempts: "
                    f"{cause_of(error)}; free memory, set `cluster.workers` lower, or correct what dask's "
                    "configuration preloads"
                ) from error
            attempt += 1
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"worker processes cannot start under dask's configuration: {cause_of(error)}; {CONFIGURATION}"
            ) from error


def _preloads() -> Mapping[str, Any]:
    """What each worker loads: our module, then what dask's configuration names, each with its arguments."""
    import dask

    named, arguments = (dask.config.get(f"distributed.worker.{key}") or [] for key in ("preload", "preload-argv"))
    theirs = [named] if isinstance(named, str) else [*named]
    if isinstance(arguments, str) or not all(isinstance(each, list | tuple) for each in arguments):
        arguments = [[arguments] if isinstance(arguments, str) else [*arguments]] * len(theirs)  # for each of them
    arguments = [*arguments] or [[]] * len(theirs)
    if len(arguments) != len(theirs):
        raise UsageError(
            f"dask's configuration has {counted(len(arguments), 'list')} in distributed.worker.preload-argv for "
            f"{counted(len(theirs), 'module')} in distributed.worker.preload; expected one for each; {CONFIGURATION}"
        )
    return {"preload": [fitness.__name__, *theirs], "preload_argv": [[], *arguments]}
