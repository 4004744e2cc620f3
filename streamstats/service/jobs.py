"""Jobs of the service: submitted, run in processes of their own, cancelled, resumed after a restart.

A job's results are in its folder, where `run` saves what it has counted. A job whose process or service was killed is
queued again and resumes from there.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from .. import errors
from ..errors import OutputError, StreamstatsError
from ..storage.files import make_folders, remove_folder, write_json
from .errors import BusyError, ConflictError, DamagedError, FullError
from .faults import RETRY_SECONDS, Faults
from .job_table import CANCELLED, CANCELLING, DONE, FAILED, INCOMPLETE, QUEUED, RUNNING, JobTable, Submitted
from .memory import no_memory
from .messages import OWN, JobSummary, JobView, SubmittedView
from .metrics import Metrics
from .processes import CANCEL_SECONDS, STOP_SECONDS, JobProcess, ProcessLimits
from .queueing import by_precedence, next_job, places_in_queue
from .reports import Reports
from .runner import REQUEST
from .settings import ENDED

STATE_OF = {errors.DONE: DONE, errors.INCOMPLETE: INCOMPLETE}
"""The states that follow from an exit status; any other means that the job failed or was stopped."""
QUIET_SECONDS = 2.0
"""A job that follows is interrupted, to forget withdrawn batches, once none has been withdrawn for this long."""
PATIENCE_SECONDS = 30.0
"""After this long, it is interrupted even if more are withdrawn."""
MOST_ATTEMPTS = 5
"""How often a job is started whose process ends without reporting an end."""
STOPPED = "the service was stopped; the job resumes from what was saved"
TURN_SECONDS = 0.25
"""The time between two looks at processes that are ending."""
UNLIMITED = ProcessLimits()
NOT_THE_JOB = (OutputError, BusyError, DamagedError)
"""Failures of the disk or the database: no job ends for them."""
Shown = TypeVar("Shown", bound=JobSummary)

log = logging.getLogger("streamstats.service")


class Jobs:
    """The jobs in `folder`. `start` resumes those that were running; `stop` interrupts them so that they can resume.

    `complete` turns the folder and the request of a job into what its process does, just before it starts, and the
    identity of the store that it reads, if that is one of the service. It is told whether the job only forgets rows; it
    raises `StreamstatsError` for a request that can no longer be met. `public` removes from messages what clients must
    not see. At most `running` jobs run at the same time, and in addition at most `following` jobs that follow a store;
    `waiting` more may be queued. No job starts while `hindrance` says why none can. `owes` says whether the results of
    a job count batches that were withdrawn; a job that ends with such results is queued to forget them. What fails is
    noted in `faults`, and tried again.
    """

    def __init__(
        self,
        table: JobTable,
        folder: Path,
        complete: Callable[[Path, Mapping[str, Any], bool], tuple[dict[str, Any], str | None]],
        metrics: Metrics,
        faults: Faults,
        *,
        public: Callable[[str], str] = lambda text: text,
        hindrance: Callable[[], str] = lambda: "",
        owes: Callable[[JobView], bool] = lambda _: False,
        limits: ProcessLimits = UNLIMITED,
        running: int = 1,
        following: int = 4,
        waiting: int = 1000,
    ) -> None:
        self._table, self._folder, self._complete, self._metrics = table, folder, complete, metrics
        self._faults, self._hindrance, self._limits, self._clock = faults, hindrance, limits, table.clock
        self._reports = Reports(table, metrics, public)
        self._public, self._owes = self._reports.shown, owes
        self._places = {False: running, True: following}
        self._most_waiting = waiting
        self._lock = threading.Condition()
        self._processes: dict[str, JobProcess] = {}
        self._resumed = self._stopping = False
        self._outdated: dict[str, tuple[float, float]] = {}
        self._forget_again: set[str] = set()
        self._order: dict[str, tuple[int, str]] | None = None
        self._listeners: set[Callable[[str], None]] = set()
        self._thread = threading.Thread(target=self._supervise, name="jobs", daemon=True)

    # What clients ask for

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        key: str | None = None,
        about: Mapping[str, Any] = MappingProxyType({}),
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> SubmittedView:
        """Queue a job; a repeated `key` of the same submitter returns the job that it returned before.

        `about` has its name, tags and note. `prepare` checks a new job and puts what it needs into its folder.
        Raises `ConflictError`, `FullError`, and what `prepare` raises.
        """
        submitted = Submitted(request, key, about)
        known = self._table.known(submitted)
        if known is not None:
            return _submitted(known, repeated=True)
        self._check_capacity(submitted)
        name = secrets.token_hex(8)
        try:
            prepare(self.folder(name))
            with self._lock:  # others may have been submitted meanwhile
                self._check_capacity(submitted)
                is_new = self._table.add(name, submitted)
        except BaseException:
            remove_folder(self.folder(name))
            raise
        if not is_new:  # the same key came at the same moment
            remove_folder(self.folder(name))
            known = self._table.known(submitted)
            assert known is not None
            return _submitted(known, repeated=True)
        log.info("submitted", extra={"job": name, "submitter": submitted.submitter, "kind": request["kind"]})
        self._changed(name, reordered=True)
        return _submitted(self.get(name), repeated=False)

    def get(self, name: str) -> JobView:
        """The job, as it is at the moment. Raises `NotFoundError`."""
        return self.shown(self._table.get(name))

    def shown(self, job: Shown) -> Shown:
        """`job` with its place in the queue, if it is queued, or how long it has run so far."""
        running = self._processes.get(job.id)
        if job.state == QUEUED:
            ends = "it waits for its last process to end" if running is not None else "it is about to start"
            place, why = self._queue().get(job.id, (None, ends))
            return job.model_copy(update={"place": place, "waits_for": self._hindrance() or why})
        return job if running is None else job.model_copy(update={"seconds": running.seconds})

    def _queue(self) -> dict[str, tuple[int, str]]:
        """(place, what it waits for) of each queued job, by id."""
        with self._lock:
            if self._order is None:
                self._order = {}
                for follows in self._places:
                    self._order |= self._queue_of(follows=follows)
            return self._order

    def _queue_of(self, *, follows: bool) -> dict[str, tuple[int, str]]:
        running, turns, places = self._running(follows=follows), self._table.turns(), self._places[follows]
        what, limit = (" that follows a store", "following_jobs") if follows else ("", "running_jobs")
        why = f"it waits for another job{what} to end: this service runs {places:,} at a time (`{limit}`)"
        return places_in_queue(self._table.queued(follows=follows), running, turns, places, why)

    def _check_capacity(self, submitted: Submitted) -> None:
        if not self._resumed:
            raise FullError("the service is starting; submit the job again later")
        if submitted.follows and not self._places[True]:
            raise ConflictError("this service does not run jobs that follow a store; leave `follow` out")
        waiting = self._table.waiting()
        if waiting >= self._most_waiting:
            raise FullError(f"the queue is full ({errors.counted(waiting, 'job')}); submit the job again later")

    def folder(self, name: str) -> Path:
        """The folder with a job's files."""
        return self._folder / name

    def cancel(self, name: str) -> JobView:
        """Cancel a job; its results so far are retained.

        Raises `NotFoundError`, and `ConflictError` for a job that has ended.
        """
        with self._lock:
            found = self._table.get(name)
            if found.state in ENDED:
                raise ConflictError(f"job {name} is already {found.state}")
            running = self._processes.get(name)
            if running is None or found.state == QUEUED:  # whose last process is still ending
                self._finish(name, CANCELLED, "cancelled before it started")
            else:
                self._table.update(name, "is being cancelled", state=CANCELLING)
                running.terminate(CANCEL_SECONDS)
        log.info("cancelled", extra={"job": name})
        self._changed(name, reordered=True)
        return self.get(name)

    def forget(self, name: str) -> JobView:
        """Queue a job that has ended, to subtract withdrawn batches. Raises `NotFoundError`, `ConflictError`."""
        with self._lock:
            found = self._table.get(name)
            if found.state == RUNNING and self._table.forgets(name) is not None:  # what was withdrawn when it began
                self._forget_again.add(name)
                return self.shown(found)
            if found.state not in ENDED:
                raise ConflictError(f"job {name} is {found.state}; it forgets withdrawn batches by itself")
            if found.results is None or not (found.source or "").startswith(OWN):
                raise ConflictError(f"job {name} has counted no store of the service; there is nothing to forget")
            self._queue_to_forget(name, found.state, found.message)
        self._changed(name, reordered=True)
        return self.get(name)

    def _queue_to_forget(self, name: str, state: str, ended_as: str, **values: Any) -> None:
        text = "waits to forget batches that were withdrawn"
        values |= {"forgets": state, "ended_as": ended_as}
        self._table.update(name, text, state=QUEUED, ended=None, attempts=0, **values)

    def outdate(self, source: str, counted: Callable[[], list[str]]) -> list[str]:
        """Have the jobs on `source` forget what was withdrawn: those that follow it soon, others when they have ended.

        What is returned is what `counted` gives, the jobs that do not do so by themselves: none of them ends meanwhile.
        """
        now = self._clock.monotonic()
        with self._lock:
            for name in self._table.reading(source):
                running = self._processes.get(name)
                if running is not None and running.follows and self._table.forgets(name) is None:
                    self._outdated[name] = (self._outdated.get(name, (now, now))[0], now)
            self._lock.notify_all()
            return counted()

    def _interrupt_outdated(self) -> None:
        """Have jobs save, stop and start again, once they have published something, so that each attempt achieves it.

        They wait until no more is withdrawn for a while: each start takes seconds.
        """
        now = self._clock.monotonic()
        for name, (first, last) in self._outdated.items():
            running, is_due = self._processes[name], now - last >= QUIET_SECONDS or now - first >= PATIENCE_SECONDS
            if is_due and running.has_published and not running.is_ending:
                running.terminate(STOP_SECONDS)

    def describe(self, name: str, about: Mapping[str, Any]) -> JobView:
        """Change what `about` has of the name, the tags and the note of a job. Raises `NotFoundError`."""
        self._table.get(name)
        self._table.describe(name, about)
        self._changed(name)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Delete a job and its files. Raises `NotFoundError`, and `ConflictError` for a job that has not ended."""
        with self._lock:
            found = self._table.get(name)
            if found.state not in ENDED or name in self._processes:
                raise ConflictError(f"job {name} is {found.state}; cancel it first, or wait until it has ended")
            self._table.delete(name)
            remove_folder(self.folder(name))
        log.info("deleted", extra={"job": name})
        self._changed(name)

    def since_published(self, name: str) -> float:
        """How many seconds ago, at least, a job published its latest results."""
        return self._reports.since_published(name)

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener`, from any thread, with the id of each job that changes; the result ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # Starting and stopping

    def start(self) -> None:
        """Queue the jobs that an earlier service left running, and begin to run jobs; what fails is tried again."""
        with self._faults.noted("the queue of jobs"):
            self._resume()
        self._thread.start()

    def _resume(self) -> None:
        """Until this succeeds, no job is submitted: its folder would be taken for one that was left behind."""
        known = self._table.states()
        for folder in self._folder.iterdir():
            if folder.name not in known:  # its submission, or its deletion, was interrupted
                remove_folder(folder)
        for name, state in known.items():
            if state == CANCELLING:
                self._finish(name, CANCELLED, "cancelled")
            elif state == RUNNING:
                self._requeue(name)
        self._resumed = True

    def stop(self) -> None:
        """Ask every process to save and stop, and wait for it; the jobs are queued again."""
        with self._lock:
            self._stopping = True
            for running in self._processes.values():
                running.terminate()
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(2 * STOP_SECONDS)

    def _supervise(self) -> None:
        """Start jobs while there are places, and end processes that exceed a limit, until the service stops."""
        while not (self._stopping and not self._processes):
            with self._faults.noted("the queue of jobs"):
                self._take_turn()
            with self._lock:
                changing = self._outdated or any(running.is_ending for running in self._processes.values())
                self._lock.wait(TURN_SECONDS if changing else RETRY_SECONDS)

    def _take_turn(self) -> None:
        if not self._resumed:
            self._resume()
        for running in [*self._processes.values()]:
            running.watch()
        with self._lock:
            self._interrupt_outdated()
            while not self._stopping and not self._hindrance() and (chosen := self._chosen()) is not None:
                self._start(chosen)

    def _chosen(self) -> JobView | None:
        """The job to start now, if there is one. Jobs that follow a store have places of their own."""
        return next(filter(None, (self._chosen_of(follows=follows) for follows in self._places)), None)

    def _chosen_of(self, *, follows: bool) -> JobView | None:
        running = self._running(follows=follows)
        if len(running) >= self._places[follows]:
            return None
        rows = self._table.queued(follows=follows)
        rows = [row for row in rows if row["id"] not in self._processes]  # whose last process is still ending
        first = next(iter(by_precedence(rows)), [])
        found = next_job(first, running, self._table.turns())
        return None if found is None else self._table.get({row["number"]: row["id"] for row in rows}[found.number])

    def _running(self, *, follows: bool) -> list[str]:
        """The submitters of the running jobs that do, or do not, follow a store; the oldest first."""
        return [each.submitter for each in self._processes.values() if each.follows == follows]

    def _start(self, job: JobView) -> None:
        folder = self.folder(job.id)
        try:
            make_folders([folder])
            forgets = self._table.forgets(job.id) is not None
            document, store_identity = self._complete(folder, job.request, forgets)
            write_json(folder / REQUEST, document)
        except NOT_THE_JOB:
            raise
        except StreamstatsError as error:
            self._finish(job.id, FAILED, str(error), error.exit_status)
            self._changed(job.id, reordered=True)
            return
        attempt = job.attempts + 1
        self._table.begin(job.id, attempt, store_identity)
        try:
            limits = ProcessLimits(self._limits.seconds + job.seconds) if forgets else self._limits
            running = JobProcess(job, folder, limits, self._clock)
        except OSError as error:  # no processes, memory or files are left
            self._table.update(job.id, f"cannot start a process: {error}", state=QUEUED, attempts=job.attempts)
            raise
        self._processes[job.id] = running
        threading.Thread(target=self._follow, args=(job.id, running), daemon=True).start()
        log.info("started", extra={"job": job.id, "pid": running.pid, "attempt": attempt})
        self._changed(job.id, reordered=True)

    # Following their processes, and how they end

    def _follow(self, name: str, running: JobProcess) -> None:
        """Read what a job's process reports until it ends, and record how it ended."""
        try:
            for line in running.lines():
                self._recorded(partial(self._hear, name, running, line))
            status = running.wait()
            if running.errors:
                log.warning("stderr of the job: %s", "".join(running.errors), extra={"job": name})
            while not self._recorded(partial(self._end, name, running, status)) and not self._stopping:
                time.sleep(RETRY_SECONDS)  # until the database can be written
        finally:
            with self._lock:
                del self._processes[name]
                self._outdated.pop(name, None)
                self._lock.notify_all()
            self._changed(name, reordered=True)

    def _recorded(self, write: Callable[[], None]) -> bool:
        """Whether `write` succeeded; a full disk, or a database that fails, does not end a job."""
        with self._faults.noted("recording what jobs report"):
            write()
            return True
        return False

    def _hear(self, name: str, running: JobProcess, line: str) -> None:
        if self._reports.hear(name, running, line):
            self._changed(name)

    def _end(self, name: str, running: JobProcess, status: int) -> None:
        ended = running.ended
        with self._lock:  # a job that ends cannot be cancelled at the same moment
            job, interrupted = self._table.get(name), name in self._outdated and running.is_ending
            self._table.update(name, seconds=running.seconds)
            retained = "its results so far are retained" if job.results is not None else "it had no results yet"
            if ended.get("status") in STATE_OF:
                self._finish(name, STATE_OF[ended["status"]], ended["text"])
            elif job.state == CANCELLING:
                self._finish(name, CANCELLED, f"cancelled; {retained}")
            elif running.exceeded:
                self._finish(name, FAILED, f"{running.exceeded}; {retained}")
            elif self._stopping:
                self._requeue(name)
            elif interrupted:
                self._requeue(name, "a batch was withdrawn; the job resumes without it")
            elif ended:
                self._finish(name, FAILED, ended["text"], ended["status"])
            elif running.is_out_of_memory:
                self._finish(name, FAILED, f"{no_memory(job.request['memory'])}; {retained}")
            else:
                self._retry(job, status, " ".join(list(running.errors)[-1:]).strip())
            if name in self._forget_again and (found := self._table.get(name)).state in ENDED:
                self._queue_to_forget(name, found.state, found.message)
            self._forget_again.discard(name)
        log.info("ended", extra={"job": name, "status": status, "state": self._table.get(name).state})

    def _finish(self, name: str, state: str, text: str, status: int | None = None) -> None:
        """End a job; one that was only to forget rows is in the state that it was in before, whatever became of it."""
        before, ended_as = self._table.before(name)
        text = self._public(text)
        if before is None and self._owes(self._table.get(name)):
            self._table.say(name, text)
            self._queue_to_forget(name, state, text, exit_status=status)
        elif before is None:
            self._table.end(name, state, text, exit_status=status)
        else:
            text = text if state == DONE else f"nothing was forgotten: {text}"
            text = text if before == DONE else f"{ended_as}; {text.removeprefix('done; ')}"
            self._table.end(name, before, text, forgets=None)

    def _requeue(self, name: str, text: str = STOPPED) -> None:
        """Queue a job that the service interrupted; the attempt does not count."""
        attempts = self._table.get(name).attempts - 1
        self._table.update(name, text, logged=True, state=QUEUED, attempts=attempts)

    def _retry(self, job: JobView, status: int, last: str) -> None:
        """Queue a job again whose process ended without reporting an end, unless it has had all its attempts."""
        self._metrics.task_failures.inc()
        why = f"its process ended with status {status}{f': {last}' if last else ''}"
        if job.attempts >= MOST_ATTEMPTS:
            self._finish(job.id, FAILED, f"{why}; the service tried {job.attempts} times")
            return
        self._table.update(job.id, self._public(f"{why}; the service retries"), logged=True, state=QUEUED)

    def _changed(self, name: str, *, reordered: bool = False) -> None:
        """Tell who listens that the job has changed; if `reordered`, the queue has, too."""
        with self._lock:
            if reordered:
                self._order = None
            self._lock.notify_all()
        for listener in list(self._listeners):
            listener(name)


def _submitted(job: JobView, *, repeated: bool) -> SubmittedView:
    return SubmittedView(**job.model_dump(), repeated=repeated)
