"""What workers are: threads of this process, processes of this machine, or the workers of any dask cluster.

All share one interface. A submitted call gets a number, and its events arrive on one queue: a worker has begun it, and
it has returned or raised. A call whose worker hangs can be submitted again, under a new number; events of the old
number may then be ignored. Here are the interface and the threads; `dask_workers` are the others.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ..calibration.zarr_settings import decoding
from ..errors import ClusterError, counted
from ..interrupts import Deferred, stop_with


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

    def budget(self, memory: int, least: int) -> int:
        """The memory that a process may use of `memory`, if a plan for its threads needs at least `least`.

        It is less where a process has less. Raises `UnfitError` for one that has less than `least`.
        """

    def absence(self) -> str:
        """Why `threads` is 0, as shown to the user."""

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

    def budget(self, memory: int, least: int) -> int:  # noqa: ARG002
        """As `Workers.budget`."""
        return memory

    def absence(self) -> str:
        """As `Workers.absence`."""
        return "there are no threads"

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
