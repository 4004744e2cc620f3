"""Workers of a dask cluster, on this machine or elsewhere.

Before any work, each worker is examined; later, the scheduler is asked every LOOK_SECONDS which workers there are, and
which of them run. A worker that dask has paused gets no tasks, and those that wait on it go to others.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .. import __version__
from ..calibration.layer import Layer
from ..calibration.zarr_settings import decoding
from ..errors import ClusterError, UsageError, counted, first_line, listed
from ..interrupts import Deferred
from .fitness import IN_PROCESS, Examination, Sight, call_on_worker, examine, versions
from .plan import BASE_BYTES
from .sizes import in_mib
from .workers import Begun, Cluster, Ended, Event, UnfitError

if TYPE_CHECKING:
    from distributed import Client, Future

LOOK_SECONDS = 2.0
"""Time between two counts of the workers."""
ANSWER_SECONDS = 15.0
"""Time for the scheduler, or a worker under examination, to respond."""
MOST_DEATHS = 3
"""Workers that may end while they are examined, if no other worker is fit."""
NOT_THERE = ("ModuleNotFoundError", "ImportError", "AttributeError")
"""How dask's errors begin, in words, if a worker lacks what it is to call."""


@dataclass(frozen=True)
class Standing:
    """A worker as the scheduler knows it: its status in dask's words, and its memory limit; 0 for none."""

    status: str
    memory_limit: int

    def usable(self) -> int:
        """The memory that the worker may use before dask pauses it; 0 for any."""
        import dask

        fraction = dask.config.get("distributed.worker.memory.pause")
        return int(self.memory_limit * (fraction or 1))


class DaskWorkers:
    """The workers of a `distributed.Client`; each must see the first of `layers` as this process does.

    `keep_up` is called every LOOK_SECONDS; it may replace lost workers. `tell` is told which workers get no tasks.
    """

    can_repeat = True

    def __init__(
        self,
        client: Client,
        cluster: Cluster,
        layers: Sequence[Layer],
        keep_up: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self.threads_each = 1
        self.repeats = 0
        self.cluster = cluster
        self._client = client
        self._keep_up, self._tell = keep_up, tell
        self._sight = Sight(f"streamstats-{uuid4().hex}", versions(), layers[:1])
        self._numbers = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self._unfit: set[str] = set()
        self._restricted = False
        self.crowd = 0
        self._threads: dict[str, int] = {}  # of the workers that run
        self._settings = ExitStack()
        self._idle: frozenset[str] = frozenset()  # workers that are there and do not run
        self._told: set[str] = set()
        self._limits: set[int] = set()  # of the memory of all workers so far
        self._looked = -LOOK_SECONDS

    def start(self) -> None:
        """Wait for workers and examine them. Raises `ClusterError` if there are none, or if one is unfit."""
        self._client.subscribe_topic(self._sight.run, self._begun)
        deaths = 0
        while True:
            self._wait_for_one()
            self.budget(BASE_BYTES, BASE_BYTES)  # a worker with less may end when it is examined
            lost = self._examine()
            self._look()
            if self.threads():
                break
            deaths += len(lost)
            if deaths >= MOST_DEATHS:
                raise self._lost_in_examination(deaths, lost)
        if any(worker.startswith(IN_PROCESS) for worker in self._threads):
            self._settings.enter_context(decoding(self.threads_each))

    def _wait_for_one(self) -> None:
        until = time.monotonic() + self.cluster.worker_timeout
        while not self.threads():
            if time.monotonic() > until:
                raise ClusterError(
                    f"{_address(self._client)} has no workers after {self.cluster.worker_timeout:g} s"
                    f"{f' that run: {self.absence()}' if self._idle else ''}; start workers, "
                    "or set `cluster.worker_timeout` higher to wait longer"
                )
            if self._idle:
                self.budget(BASE_BYTES, BASE_BYTES)
            time.sleep(LOOK_SECONDS / 4)
            self._looked = -LOOK_SECONDS
        self.threads_each = max(self._threads.values())

    def threads(self) -> int:
        """As `Workers.threads`. Raises `ClusterError` if the scheduler does not respond."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        return sum(threads for worker, threads in self._threads.items() if worker not in self._unfit)

    def _look(self) -> None:
        self._looked = time.monotonic()
        before = self._threads.keys()
        there = self._asked("ncores")
        self._threads = self._asked("ncores_running")
        self._idle = frozenset(there.keys() - self._threads.keys())
        self._unfit &= there.keys()  # another process may come to have the address
        stopped = before & self._idle  # what waits on them must go to others
        self.crowd += bool(stopped) or (self._restricted and self._threads.keys() != before)
        if self._idle - self._told:
            self._tell_paused()
        self._keep_up()

    def _tell_paused(self) -> None:
        for worker, standing in self._standings().items():
            if standing.status == "paused" and worker not in self._told:
                self._told.add(worker)
                self._tell(f"{_paused(worker, standing)}; it gets no tasks until dask resumes it")

    def _standings(self) -> dict[str, Standing]:
        """The workers as the scheduler knows them."""
        found = self._asked("identity")["workers"]
        self._limits |= {int(each["memory_limit"]) for each in found.values() if each["memory_limit"]}
        return {worker: Standing(str(each["status"]), int(each["memory_limit"] or 0)) for worker, each in found.items()}

    def _asked(self, question: str) -> Any:
        """The scheduler's answer to `question`. Raises `ClusterError` if it does not respond."""
        try:
            return self._client.sync(getattr(self._client.scheduler, question), callback_timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"the scheduler at {_address(self._client)} no longer responds: {first_line(error)}; what was counted "
                "is saved: start a scheduler and run again"
            ) from error

    def budget(self, memory: int, least: int) -> int:
        """As `Workers.budget`."""
        limited = {worker: each for worker, each in self._standings().items() if each.memory_limit}
        for worker, each in sorted(limited.items()):
            if each.usable() < least and worker not in self._unfit:
                raise UnfitError(
                    worker,
                    f"has a memory limit of {in_mib(each.memory_limit)}, and dask pauses it at "
                    f"{in_mib(each.usable())}, but the plan needs at least {in_mib(least)}; start it with a higher "
                    "--memory-limit",
                )
        return min([memory, *(each.usable() for worker, each in limited.items() if worker not in self._unfit)])

    def absence(self) -> str:
        """As `Workers.absence`."""
        paused = [worker for worker, each in self._standings().items() if each.status == "paused"]
        if not paused:
            return "there are no workers"
        return f"dask has paused {listed(sorted(paused))}, which used most of the memory limit"

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

    def _examine(self) -> list[str]:
        """The workers that ended meanwhile, and why. Raises `ClusterError` for an unfit one, or if none responds."""
        lost = []
        different: dict[tuple[str, ...], list[str]] = {}
        for worker, found in sorted(self._examined().items()):
            if isinstance(found, TimeoutError):
                self._unfit.add(worker)
            elif isinstance(found, OSError):  # among them those of closed connections
                self._unfit.add(worker)
                lost.append(f"{worker} ({first_line(found)})")
            elif isinstance(found, BaseException):
                raise UnfitError(worker, _why_it_fails(found))
            elif found.unfit is not None:
                raise UnfitError(worker, found.unfit)
            elif found.differences:
                different.setdefault(found.differences, []).append(worker)
        for differences, workers in different.items():
            self._tell(f"note: {listed(workers, 2)}: other versions of libraries: {', '.join(differences)}")
        if self._unfit and not lost and not self.threads():
            raise ClusterError(
                f"no worker of {_address(self._client)} responds after {ANSWER_SECONDS:g} s; check the workers' logs"
            )
        return lost

    def _lost_in_examination(self, deaths: int, lost: Sequence[str]) -> ClusterError:
        limits = sorted(self._limits)
        memory = f" (memory limits: {', '.join(map(in_mib, limits))})" if limits else ""
        return ClusterError(
            f"{counted(deaths, 'worker')} of {_address(self._client)} ended while being examined, the last {lost[-1]}, "
            f"and none is left{memory}; read their logs, and give them more memory if dask's nanny ended them"
        )

    def _examined(self) -> dict[str, Examination | BaseException]:
        """What `examine` returns or raises on each worker; `TimeoutError` for a worker that does not respond."""

        async def ask(worker: str) -> Examination | BaseException:
            run = self._client._run(examine, self._sight, workers=[worker], on_error="return")
            try:
                found: Examination | BaseException = (await asyncio.wait_for(run, ANSWER_SECONDS))[worker]
            except TimeoutError as error:
                return error
            except KeyError:
                return ConnectionError("it has left")
            return found

        async def ask_all() -> list[Examination | BaseException]:
            return await asyncio.gather(*map(ask, workers))

        workers = [*self._threads]
        return dict(zip(workers, self._client.sync(ask_all), strict=True))

    def give(self, call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:
        """As `Workers.give`."""
        number = next(self._numbers)
        others = [worker for worker in self._threads if worker not in {*self._unfit, *avoid}]
        restricted = bool((self._unfit or avoid) and others)
        future = self._client.submit(
            call_on_worker,
            self._sight,
            number,
            call,
            arguments,
            key=f"{self._sight.run}-{number}",
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
            self._client.unsubscribe_topic(self._sight.run)
            self._settings.close()

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


def _why_it_fails(error: BaseException) -> str:
    said = first_line(error)
    if isinstance(error, ImportError) or said.startswith(NOT_THERE):
        return f"cannot run streamstats ({said}); install {__version__} there, with all it needs"
    return f"fails when it is examined ({type(error).__name__}: {said}); read its log"


def _paused(worker: str, standing: Standing) -> str:
    limit = f", which is {in_mib(standing.memory_limit)}" if standing.memory_limit else ""
    return f"dask has paused worker {worker}, because it used most of its memory limit{limit}"
