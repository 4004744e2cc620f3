"""The reduction: workers measure the tasks of a plan; results are yielded as they arrive, one per task.

A worker opens the array from a small description, reads it block by block, and returns kilobytes of statistics. Only a
window of tasks is in flight at a time, so neither memory nor a scheduler fills up. A task whose worker is lost or hangs
is submitted again; its first result to arrive counts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..calibration.layer import Layer
from ..errors import ClusterError, first_line
from ..interrupts import Deferred
from ..progress import QUIET, Progress
from .measuring import STRICT, Found, Policy, Reduced, measure_task
from .plan import TASKS_IN_FLIGHT, Plan, Task
from .workers import Begun, Event, UnfitError, Workers, next_event

WAIT_SECONDS = 0.5
MOST_TRIES = 5
"""How often a task whose workers are lost or hang is submitted at most."""
STARTS_AGAIN = "what was counted is saved: start workers, and run again"


def reduce_tasks(
    plan: Plan,
    layers: Mapping[str, Layer],
    workers: Workers,
    policy: Policy = STRICT,
    progress: Progress = QUIET,
) -> Generator[tuple[Task, list[Found]], None, None]:
    """Have `workers` measure every task of `plan`; yields (task, results) in order of completion, each task once.

    A window of tasks is submitted at a time. A task whose worker is lost or exceeds the time limit is submitted again,
    and `progress` gets a message. Raises `DataError` for a block that cannot be read and `NonFiniteError` for NaN or
    infinities, unless `policy` allows them, and `ClusterError` if no workers are left. On an error, and when the caller
    stops iterating, tasks that have not begun are cancelled.
    """
    window = _Window(plan.tasks, layers, workers, policy, progress.say)
    with Deferred(wake=lambda: workers.events.put(None)) as signals:
        try:
            while window.fill():
                event = next_event(workers.events, WAIT_SECONDS)
                signals.deliver()
                for task, (found, error) in window.take(event):
                    yield task, found
                    if error is not None:
                        raise error
        finally:
            window.close()


@dataclass
class _Given:
    """A submitted task: how many times it was submitted, when a worker began it, and which worker."""

    task: Task
    tries: int
    begun: float | None = None
    worker: str = ""


class _Window:
    """The tasks in flight, by number; each submission of a task has its own number."""

    def __init__(
        self,
        tasks: Sequence[Task],
        layers: Mapping[str, Layer],
        workers: Workers,
        policy: Policy,
        tell: Callable[[str], None],
    ) -> None:
        self._waiting = iter(tasks)
        self._layers, self._policy, self._workers, self._tell = layers, policy, workers, tell
        self._limits = workers.cluster
        self._given: dict[int, _Given] = {}
        self._hung: dict[str, float] = {}  # worker → when it gets tasks again
        self._shunned: set[str] = set()
        self._held: list[_Given] = []  # returned by unfit workers, waiting for fit ones
        self._unmanned_since: float | None = None
        self._crowd = workers.crowd
        self._suspects: set[str] = set()  # workers that have hung before
        self._last_result = self._last_news = time.monotonic()

    def fill(self) -> bool:
        """Submit tasks while the window has room; False if none are in flight or left to submit."""
        room = TASKS_IN_FLIGHT * max(1, self._workers.threads()) - len(self._given) - len(self._held)
        for task in itertools.islice(self._waiting, max(0, room)):
            self._give(_Given(task, tries=1))
        return bool(self._given or self._held)

    def _give(self, given: _Given) -> None:
        described = {part.layer: replace(self._layers[part.layer], quantization=None) for part in given.task.parts}
        number = self._workers.give(measure_task, given.task, described, self._policy, avoid=self._hung.keys())
        self._given[number] = given

    def take(self, event: Event | None) -> Iterator[tuple[Task, Reduced]]:
        """Act on `event`; yields the result of a task if it is the first one of this task."""
        self._look_after()
        if event is None or event.number not in self._given:
            return
        self._last_news = time.monotonic()
        given = self._given[event.number]
        if isinstance(event, Begun):
            if given.begun is not None and event.worker != given.worker:
                self._workers.repeats += 1
                self._tell(f"{_named(given.task)} is repeated, because worker {given.worker} is lost")
            given.begun, given.worker = time.monotonic(), event.worker
            return
        del self._given[event.number]
        if event.error is None:
            for twin in [number for number, other in self._given.items() if other.task is given.task]:
                del self._given[twin]
                self._workers.take_back(twin)
            self._last_result = time.monotonic()
            yield given.task, event.result
        elif isinstance(event.error, UnfitError):
            self._shun(event.error)
            self._held.append(given)
        elif not event.lost:
            raise event.error
        elif not any(other.task is given.task for other in self._given.values()):
            self._submit_again(given, first_line(event.error))

    def _shun(self, error: UnfitError) -> None:
        if error.worker not in self._shunned:
            self._shunned.add(error.worker)
            self._workers.shun(error.worker)
            self._tell(f"{error}; it gets no more tasks")

    def _look_after(self) -> None:
        """Submit tasks that take too long to another worker, too. Raises `ClusterError` if there are no workers."""
        now = time.monotonic()
        if self._workers.threads():
            self._unmanned_since = None
            for given in self._held:
                self._give(_Given(given.task, given.tries))
            self._held.clear()
        elif self._unmanned_since is None:
            self._unmanned_since = now
            self._tell(f"{self._workers.absence()}; waiting {self._limits.worker_timeout:g} s for one")
        elif now - self._unmanned_since > self._limits.worker_timeout:
            seconds = f"{self._limits.worker_timeout:g} s"
            raise ClusterError(f"no worker ran for {seconds}: {self._workers.absence()}; {STARTS_AGAIN}")
        self._hung = {worker: until for worker, until in self._hung.items() if until > now}
        limit = self._limits.task_timeout
        if self._workers.crowd != self._crowd:
            self._crowd = self._workers.crowd
            self._give_elsewhere()
        if now - self._last_news > limit and self._suspects - self._hung.keys():
            self._last_news = now  # tasks may be waiting on a worker that has hung before
            self._hung = dict.fromkeys(self._suspects, now + 2 * limit)
            self._give_elsewhere()
        for given in [*self._given.values()]:
            if given.begun is None or now - given.begun < limit:
                continue
            given.begun = math.inf  # report it only once
            said = f"{_named(given.task)} has been on worker {given.worker} for more than {limit:g} s"
            if not self._workers.can_repeat:
                self._tell(f"{said}; check that the file system responds")
                continue
            self._tell(f"{said}; it is submitted to another worker, too")
            self._hung[given.worker] = now + limit
            self._suspects.add(given.worker)
            self._give_elsewhere()
            self._submit_again(given, f"it took more than {limit:g} s")
        if self._workers.can_repeat and now - self._last_result > MOST_TRIES * limit:
            raise ClusterError(f"no worker returned a result for {MOST_TRIES * limit:g} s; {STARTS_AGAIN}")

    def _submit_again(self, given: _Given, why: str) -> None:
        if given.tries >= MOST_TRIES:
            raise ClusterError(
                f"{_named(given.task)} was submitted {given.tries} times without a result: {why}; check in the "
                "workers' logs that they have the planned memory and that the store responds"
            )
        self._workers.repeats += 1
        self._give(_Given(given.task, given.tries + 1))

    def _give_elsewhere(self) -> None:
        """Submit tasks that have not begun to other workers: they may be waiting behind one that hangs."""
        for number in [number for number, given in self._given.items() if given.begun is None]:
            self._workers.take_back(number)
            self._give(self._given.pop(number))

    def close(self) -> None:
        """Cancel all tasks in flight."""
        for number in self._given:
            self._workers.take_back(number)


def _named(task: Task) -> str:
    first = task.parts[0]
    more = f" and {len(task.parts) - 1} more" if len(task.parts) > 1 else ""
    return f"layer {first.layer}, rows {first.start}:{first.stop}{more},"
