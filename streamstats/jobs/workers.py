"""Workers: threads of this process, processes of this machine, or the workers of any dask cluster.

All share one interface. A submitted call gets a number, and its events arrive on one queue: a worker has begun it, and
it has returned or raised. A call whose worker hangs can be submitted again, under a new number; events of the old
number may then be ignored.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from .. import __version__
from ..calibration.describing import seen_differently
from ..calibration.layer import Layer
from ..calibration.zarr_settings import decoding, set_decoding
from ..errors import ClusterError, UsageError, counted, first_line
from ..interrupts import Deferred, stop_with

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

LOOK_SECONDS = 2.0
"""Time between two counts of the workers."""
CONNECT_SECONDS = 10.0
STARTS = 3
"""Attempts to start local processes, if one of them ends while it starts."""
ANSWER_SECONDS = 15.0
"""Time for the scheduler, or a worker under examination, to respond."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3): how much free memory the process retains, and from which size an allocation is mapped separately."""
KEPT_BYTES = 2**26
_EXAMINED: set[str] = set()
"""The runs for which this process has proved fit."""


@dataclass(frozen=True)
class Cluster:
    """Which workers do the work: `workers` processes of this machine, those of the dask `scheduler` at an address, or
    else this process; each with `threads` threads.

    A call that takes more than `task_timeout` seconds is also submitted to another worker. If there is no worker for
    `worker_timeout` seconds, the run fails.
    """

    workers: int | None = None
    scheduler: str | None = None
    threads: int = 1
    task_timeout: float = 600.0
    worker_timeout: float = 300.0


def available_cores() -> int:
    """The number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Begun:
    """`worker` has begun the call with this number."""

    number: int
    worker: str


@dataclass(frozen=True)
class Ended:
    """The call with this number returned `result` or raised `error`; `lost` if the error is the loss of a worker."""

    number: int
    result: Any = None
    error: BaseException | None = None
    lost: bool = False


Event = Begun | Ended


class UnfitError(ClusterError):
    """A worker that cannot do this work."""

    def __init__(self, worker: str, why: str) -> None:
        super().__init__(worker, why)
        self.worker, self.why = worker, why

    def __str__(self) -> str:
        return f"worker {self.worker} {self.why}"


class Workers(Protocol):
    """Takes calls and runs them.

    `events` reports what happens to the calls; a None in it only wakes the reader. Each process has `threads_each`
    threads. `can_repeat`: a call that hangs blocks no other call, and can be submitted to another worker.
    `repeats` counts repeated calls, for display. `crowd` changes when workers have joined or left, so that calls
    restricted to some of them should be submitted again.
    """

    cluster: Cluster
    events: SimpleQueue[Event | None]
    threads_each: int
    can_repeat: bool
    repeats: int
    crowd: int

    def count(self) -> int:
        """The number of processes now."""

    def threads(self) -> int:
        """The number of calls that can run at once now, over all processes; 0 while there is no worker."""

    def use(self, threads: int) -> None:
        """Use `threads` threads per process. Raises `UsageError` if these workers cannot change theirs."""

    def give(self, call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:
        """Submit `call`, to a worker outside `avoid` if there is one; returns its number."""

    def take_back(self, number: int) -> None:
        """Cancel the call with this number, if it has not ended; its result is no longer needed."""

    def shun(self, worker: str) -> None:
        """Submit no more calls to `worker`, which is unfit."""

    def description(self) -> str:
        """The workers as shown to the user, such as `4 threads`."""


def next_event(events: SimpleQueue[Event | None], seconds: float) -> Event | None:
    """The next event; None if there is none within `seconds`, or if a None in the queue wakes the reader.

    A signal that arrives just before the wait does not end it, so `seconds` must be shorter than a user's patience.
    """
    try:
        return events.get(timeout=seconds)
    except Empty:
        return None


@contextmanager
def open_workers(cluster: Cluster, layers: Sequence[Layer], client: Client | None = None) -> Iterator[Workers]:
    """The workers of `client` if it is given, else those of `cluster`; calls still running at the end are cancelled.

    Raises `UsageError` for an invalid address, `ClusterError` if no scheduler or no worker can be reached, and for a
    worker that runs another version or does not see `layers` as this process does.
    """
    if client is not None:
        yield from _of_client(client, cluster, layers)
    elif cluster.scheduler is not None:
        with _connected(cluster.scheduler) as connected:
            yield from _of_client(connected, cluster, layers)
    elif cluster.workers is not None:
        with _processes(cluster.workers, cluster.threads) as (local, keep_up):
            yield from _of_client(local, cluster, layers, keep_up)
    else:
        threads = ThreadWorkers(cluster)
        try:
            yield threads
        finally:
            threads.close()


# Threads of this process


class ThreadWorkers:
    """Threads of this process."""

    can_repeat = False

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self.threads_each = cluster.threads
        self.repeats = self.crowd = 0
        self._in_use = 0
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._running = ExitStack()

    def count(self) -> int:
        """As `Workers.count`."""
        return 1

    def threads(self) -> int:
        """As `Workers.threads`."""
        return self.threads_each

    def use(self, threads: int) -> None:
        """As `Workers.use`; if the number stays the same, so do the threads and their buffers."""
        if threads == self._in_use:
            return
        self._running.close()
        self.threads_each = self._in_use = threads
        self._running.enter_context(decoding(threads))
        self._executor = ThreadPoolExecutor(threads, "streamstats", initializer=stop_with, initargs=(self._stop,))
        self._running.callback(self._executor.shutdown, cancel_futures=True)

    def give(self, call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:  # noqa: ARG002
        """As `Workers.give`."""
        number = next(self._numbers)
        self._executor.submit(self._do, number, call, arguments)
        return number

    def take_back(self, number: int) -> None:
        """As `Workers.take_back`."""

    def shun(self, worker: str) -> None:
        """As `Workers.shun`: threads are never unfit."""

    def description(self) -> str:
        """As `Workers.description`."""
        return counted(self.threads_each, "thread")

    def close(self) -> None:
        """Stop the threads once each has finished its current block."""
        with Deferred():
            self._stop.set()
            self._running.close()

    def _do(self, number: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.events.put(Begun(number, threading.current_thread().name))
        try:
            ended = Ended(number, call(*arguments))
        except BaseException as error:
            ended = Ended(number, error=error)
        self.events.put(ended)


# Processes, here or elsewhere, by dask


class DaskWorkers:
    """The workers of a `distributed.Client`; each must see the first of `layers` as this process does.

    `keep_up` is called every LOOK_SECONDS; it may replace lost workers.
    """

    can_repeat = True

    def __init__(self, client: Client, cluster: Cluster, layers: Sequence[Layer], keep_up: Callable[[], None]) -> None:
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self.threads_each = 1
        self.repeats = 0
        self.cluster = cluster
        self._client = client
        self._keep_up = keep_up
        self._run = f"streamstats-{uuid4().hex}"
        self._sight = layers[:1]
        self._numbers = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self._unfit: set[str] = set()
        self._restricted = False
        self.crowd = 0
        self._threads: dict[str, int] = {}
        self._looked = -LOOK_SECONDS

    def start(self) -> None:
        """Wait for workers and examine them. Raises `ClusterError` if there are none, or if one is unfit."""
        self._client.subscribe_topic(self._run, self._begun)
        self._wait_for_one()
        self._examine()

    def _wait_for_one(self) -> None:
        until = time.monotonic() + self.cluster.worker_timeout
        while not self.threads():
            if time.monotonic() > until:
                raise ClusterError(
                    f"{_address(self._client)} has no workers after {self.cluster.worker_timeout:g} s; start workers, "
                    "or set `cluster.worker_timeout` higher to wait longer"
                )
            time.sleep(LOOK_SECONDS / 4)
            self._looked = -LOOK_SECONDS
        self.threads_each = max(self._threads.values())

    def threads(self) -> int:
        """As `Workers.threads`. Raises `ClusterError` if the scheduler does not respond."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            before = self._threads.keys()
            self._threads = _asked(self._client, self._client.scheduler.ncores)  # type: ignore[union-attr]
            self.crowd += self._restricted and self._threads.keys() != before
            self._keep_up()
        return sum(threads for worker, threads in self._threads.items() if worker not in self._unfit)

    def count(self) -> int:
        """As `Workers.count`."""
        return len(self._threads)

    def use(self, threads: int) -> None:
        """As `Workers.use`."""
        if threads < self.threads_each:
            raise UsageError(
                f"`memory` suffices for {counted(threads, 'thread')} per process, but the workers have "
                f"{self.threads_each}; set `memory` higher, or start workers with fewer threads"
            )

    def _examine(self) -> None:
        for worker, found in sorted(self._examined().items()):
            if isinstance(found, TimeoutError):
                self._unfit.add(worker)
            elif isinstance(found, Exception):
                raise UnfitError(worker, f"cannot run streamstats ({first_line(found)}); install {__version__} there")
            elif found is not None:
                raise UnfitError(worker, found)
        if self._unfit and not self.threads():
            raise ClusterError(
                f"no worker of {_address(self._client)} responds after {ANSWER_SECONDS:g} s; check the workers' logs"
            )

    def _examined(self) -> dict[str, Any]:
        """What `examine` returns or raises on each worker; `TimeoutError` for a worker that does not respond."""

        async def ask(worker: str) -> Any:
            run = self._client._run(examine, __version__, self._sight, workers=[worker], on_error="return")
            try:
                return (await asyncio.wait_for(run, ANSWER_SECONDS))[worker]
            except (TimeoutError, KeyError) as error:  # the worker hangs, or has just left
                return TimeoutError(str(error))

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*map(ask, workers))

        workers = [*self._threads]
        return dict(zip(workers, self._client.sync(ask_all), strict=True))

    def give(self, call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:
        """As `Workers.give`."""
        number = next(self._numbers)
        others = [worker for worker in self._threads if worker not in {*self._unfit, *avoid}]
        restricted = bool((self._unfit or avoid) and others)
        future = self._client.submit(
            _do,
            (self._run, __version__, self._sight),
            number,
            call,
            arguments,
            key=f"{self._run}-{number}",
            pure=False,
            retries=0,
            workers=others if restricted else None,
        )
        self._restricted = restricted
        self._futures[number] = future
        self._client.loop.add_callback(self._fetch, number, future)  # type: ignore[union-attr]  # it is connected
        return number

    def take_back(self, number: int) -> None:
        """As `Workers.take_back`."""
        future = self._futures.pop(number, None)
        if future is not None:
            future.cancel()

    def shun(self, worker: str) -> None:
        """As `Workers.shun`."""
        self._unfit.add(worker)

    def description(self) -> str:
        """As `Workers.description`."""
        count, threads = len(self._threads), sum(self._threads.values())
        dashboard = _dashboard(self._client)
        at = f"; dashboard: {dashboard}" if dashboard else ""
        return f"{counted(count, 'worker')} with {counted(threads, 'thread')} in total{at}"

    def close(self) -> None:
        """Cancel all calls that have not ended."""
        with Deferred():
            for number in [*self._futures]:
                self.take_back(number)
            self._client.unsubscribe_topic(self._run)

    async def _fetch(self, number: int, future: Future[Any]) -> None:
        try:
            ended = Ended(number, await self._client.gather(future, asynchronous=True))
        except asyncio.CancelledError:
            ended = Ended(number, error=CancelledError(), lost=True)
        except Exception as error:
            ended = Ended(number, error=error, lost=_is_loss(error))
        self._futures.pop(number, None)  # so that dask releases the result
        self.events.put(ended)

    def _begun(self, event: tuple[float, Any]) -> None:
        number, worker = event[1]
        self.events.put(Begun(number, worker))


def _of_client(
    client: Client, cluster: Cluster, layers: Sequence[Layer], keep_up: Callable[[], None] = lambda: None
) -> Iterator[DaskWorkers]:
    if client.asynchronous:
        raise UsageError(
            "the client is asynchronous; expected a synchronous one: make it with `distributed.Client(...)` without "
            "`asynchronous=True`"
        )
    workers = DaskWorkers(client, cluster, layers, keep_up)
    try:
        workers.start()
        yield workers
    finally:
        workers.close()


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`. Raises `UsageError`, `ClusterError`."""
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="streamstats")
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"`cluster.scheduler` is {address!r}: {first_line(error)}; expected an address such as tcp://host:8786 or "
            "tls://host:8786"
        ) from error
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no dask scheduler responds at {address}: {first_line(error)}; start it, or correct `cluster.scheduler`"
        ) from error
    with client:
        yield client


@contextmanager
def _processes(count: int, threads: int) -> Iterator[tuple[Client, Callable[[], None]]]:
    """A client of `count` new processes on this machine, which listen only on 127.0.0.1, and a call that replaces lost
    ones.

    A nanny restarts each process that ends, but ends itself if its process is killed while it starts; hence the call.
    Raises `ClusterError` if the processes do not start in STARTS attempts.
    """
    import dask
    from distributed import Client

    settings = {"distributed.worker.multiprocessing-method": "spawn", "distributed.scheduler.allowed-failures": 100}
    with (
        dask.config.set(settings),
        _started_cluster(count, threads) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client, lambda: cluster.scale(count)


def _started_cluster(count: int, threads: int) -> LocalCluster:
    import dask
    from distributed import LocalCluster

    attempt = 1
    while True:
        try:
            return LocalCluster(
                n_workers=count,
                threads_per_worker=threads,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,  # the plan limits memory
                preload=[__name__, *dask.config.get("distributed.worker.preload")],
                silence_logs=logging.CRITICAL,
            )
        except (RuntimeError, OSError, TimeoutError) as error:
            if attempt == STARTS:
                raise ClusterError(
                    f"{counted(count, 'worker process', 'worker processes')} did not start in {STARTS} attempts: "
                    f"{first_line(error)}; free memory, or set `cluster.workers` lower"
                ) from error
            attempt += 1


def _asked(client: Client, question: Callable[..., Any]) -> Any:
    """The scheduler's answer to `question`. Raises `ClusterError` if it does not respond."""
    try:
        return client.sync(question, callback_timeout=ANSWER_SECONDS)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"the scheduler at {_address(client)} no longer responds: {first_line(error)}; what was counted is saved: "
            "start a scheduler and run again"
        ) from error


def _address(client: Client) -> str:
    return str(client.scheduler.address) if client.scheduler else "the scheduler"


def _dashboard(client: Client) -> str:
    """The address of dask's dashboard, or "" without bokeh, which it needs."""
    return client.dashboard_link if find_spec("bokeh") else ""


def _is_loss(error: Exception) -> bool:
    """Whether `error` means that workers or the scheduler are lost, and says nothing about the call itself."""
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker, NoValidWorkerError

    gone = (FutureCancelledError, KilledWorker, NoValidWorkerError, CommClosedError, ConnectionError)
    return isinstance(error, gone)


# What runs on a dask worker


def dask_setup(_worker: object) -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal: only the parent acts on it. dask calls this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def examine(version: str, layers: Sequence[Layer]) -> str | None:
    """Why this worker is unfit for a client of `version` that reads `layers`; None if it is fit."""
    if version != __version__:
        return f"runs streamstats {__version__}, but the client runs {version}; install the same version on both"
    return next(filter(None, map(seen_differently, layers)), None)


def _do(
    sight: tuple[str, str, Sequence[Layer]], number: int, call: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Report that `call` has begun, then run it. Raises `UnfitError` in an unfit process that joined later."""
    from distributed import get_worker

    run, version, layers = sight
    worker = get_worker()
    worker.log_event(run, (number, worker.address))
    if run not in _EXAMINED:
        wrong = examine(version, layers)
        if wrong is not None:
            raise UnfitError(worker.address, wrong)
        _prepare(worker.state.nthreads)
        _EXAMINED.add(run)
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
