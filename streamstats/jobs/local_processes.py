"""Reaching dask: processes of this machine, or a scheduler at an address, under dask's own configuration.

What a user has set for dask, in files or by DASK_ variables, applies as it does to any `LocalCluster`; only what a run
must rely on is set here. Whatever does not start is one line with the cause that dask hides behind its own error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, StreamstatsError, UsageError, counted, first_line
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
FILES, FILES_EACH = 30, 10
"""Open files of this process and for each worker process: 21 and 9 (distributed 2026.8), and some to spare."""
ENDED = "Nanny failed to start worker process"
"""What dask says if a process ends without an exception."""
STARTING = {"distributed.comm.timeouts.connect": PATIENCE}
CONFIGURATION = "correct it in the file, or in the DASK_ variable of the environment, that sets it"


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`. Raises `UsageError`, `ClusterError`."""
    check_dask(("client",))
    from distributed import Client

    if address.startswith("tls:"):
        _check_certificate(address)
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
    _check_file_limit(count)
    check_dask(("scheduler", "worker", "client"))
    import dask
    from distributed import Client

    routes = [*dask.config.get("distributed.scheduler.http.routes")]  # dask appends to them
    settings = SETTINGS | {"distributed.scheduler.http.routes": routes}
    with _left_as_they_were(), dask.config.set(settings), ExitStack() as open_ones:
        with _configured():
            cluster = open_ones.enter_context(_started(count, threads))
            client = open_ones.enter_context(Client(cluster, set_as_default=False))
        yield client, lambda: cluster.scale(count)


@contextmanager
def _left_as_they_were() -> Iterator[None]:
    """What dask changes in this process for its children, and for its logs, is undone at the end."""
    import dask

    names = {*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED", "__DASK_PARENT_PID"}
    variables = {name: os.environ.get(name) for name in names}
    loggers = [logging.getLogger(f"distributed.{part}") for part in ("scheduler", "nanny", "worker")]
    handlers = [[*logger.handlers] for logger in loggers]
    try:
        yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for logger, before in zip(loggers, handlers, strict=True):
            for handler in {*logger.handlers} - {*before}:
                logger.removeHandler(handler)


@contextmanager
def _configured() -> Iterator[None]:
    """What dask raises inside, other than our own errors, comes from its configuration."""
    try:
        yield
    except StreamstatsError:
        raise
    except Exception as error:
        raise UsageError(
            f"worker processes cannot start under dask's configuration: {cause_of(error)}; {CONFIGURATION}"
        ) from error


def _check_file_limit(count: int) -> None:
    """Raise `UsageError` if this process may not open the files for so many others: dask would wait without end."""
    with suppress(ImportError):  # Windows has no such limit
        import resource

        limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES + FILES_EACH * count
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise UsageError(
                f"this process may open {limit:,} files, but {counted(count, 'worker process', 'worker processes')} "
                f"need about {needed:,}; raise the limit (ulimit -n), or set `cluster.workers` lower"
            )


def check_dask(roles: Sequence[str]) -> None:
    """Raise `UsageError` if dask cannot be imported, which a malformed file of its configuration prevents, and for a
    file that its TLS settings name for `roles` and that does not exist.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(f"dask cannot be imported: {first_line(error)}; install dask and distributed again") from error
    except Exception as error:
        raise UsageError(
            f"dask cannot be imported, because its configuration is wrong: {' '.join(str(error).split())}; "
            f"{CONFIGURATION}"
        ) from error
    tls = "distributed.comm.tls"
    for key in (f"{tls}.ca-file", *(f"{tls}.{role}.{kind}" for role in roles for kind in ("cert", "key"))):
        _check_file(key)


def _check_file(key: str) -> None:
    import dask

    path = dask.config.get(key, None)
    if isinstance(path, str) and "\n" not in path and not Path(path).is_file():  # it may be the certificate itself
        raise UsageError(f"dask's configuration names {path!r} in {key}, which is no file; {CONFIGURATION}")


def _check_certificate(address: str) -> None:
    """Raise `UsageError` if dask has no certificate for a client: a `Client` without one takes long to fail."""
    import dask
    from distributed.security import Security

    loader = dask.config.get("distributed.client.security-loader", None)
    if loader is None and Security().get_connection_args("client")["ssl_context"] is None:
        raise UsageError(
            f"`cluster.scheduler` is {address}, but dask's configuration has no certificate for a client; set "
            "distributed.comm.tls.ca-file, .client.cert and .client.key"
        )


def cause_of(error: BaseException) -> str:
    """The first thing that went wrong, on one line: dask wraps it in errors that say only what failed to start."""
    seen = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None and inner not in seen:
        seen.append(inner)
    first, said = seen[-1], first_line(seen[-1])
    if said.startswith(ENDED):
        return "a process ended; what it said is above"
    plain = isinstance(first, OSError | RuntimeError) or said == type(first).__name__
    return said if plain else f"{type(first).__name__}: {said}"


def _started(count: int, threads: int) -> LocalCluster:
    import dask
    from distributed import LocalCluster

    attempt = 1
    while True:
        try:
            with dask.config.set(STARTING), _abandoned_if_interrupted():
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
                    f"{cause_of(error)}; free memory, set `cluster.workers` lower, or correct dask's configuration"
                ) from error
            attempt += 1


@contextmanager
def _abandoned_if_interrupted() -> Iterator[None]:
    """If the start of a cluster is interrupted, dask need not close it at exit: that fails while processes start, and
    they end with this one anyway.
    """
    from distributed import SpecCluster

    before = {*SpecCluster._instances}
    try:
        yield
    except KeyboardInterrupt:
        for cluster in {*SpecCluster._instances} - before:
            cluster.shutdown_on_close = False
        raise


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
