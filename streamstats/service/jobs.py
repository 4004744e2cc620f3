"""Jobs of the service: submitted, run in processes of their own, cancelled, resumed after a restart.

A job's results are in its folder, where `run` saves what it has counted. A job whose process or service was killed is
queued again and resumes from there.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import errors
from ..errors import OutputError, StreamstatsError
from ..storage.files import make_folders, remove_folder, write_json
from .errors import ConflictError, FullError
from .job_table import (
    CANCELLED,
    CANCELLING,
    DONE,
    ENDED,
    FAILED,
    INCOMPLETE,
    QUEUED,
    RUNNING,
    JobTable,
    Submitted,
)
from .messages import JobView
from .metrics import Metrics
from .processes import STOP_SECONDS, JobProcess, parsed
from .queueing import Waiting, next_job
from .runner import REQUEST

STATE_OF = {errors.DONE: DONE, errors.INCOMPLETE: INCOMPLETE}
"""The states that follow from an exit status; any other means that the job failed or was stopped."""
MOST_ATTEMPTS = 5
"""How often a job is started whose process ends without reporting an end."""
STOPPED = "the service was stopped; the job resumes from what was saved"
LONGEST_MESSAGE = 2000
RETRY_SECONDS = 1.0

log = logging.getLogger("streamstats.service")


class Jobs:
    """The jobs in `folder`. `start` resumes those that were running; `stop` interrupts them so that they can resume.

    `complete` turns the folder and the request of a job into what its process does, just before it starts, and is told
    whether that is only to forget rows; it raises `StreamstatsError` for a request that can no longer be met. `public`
    removes from messages what clients must not see. At most `running` jobs run at the same time, and in addition at
    most `following` jobs that follow a store; `waiting` more may be queued.
    """

    def __init__(
        self,
        table: JobTable,
        folder: Path,
        complete: Callable[[Path, Mapping[str, Any], bool], dict[str, Any]],
        metrics: Metrics,
        *,
        public: Callable[[str], str] = lambda text: text,
        running: int = 1,
        following: int = 4,
        waiting: int = 1000,
    ) -> None:
        self._table, self._folder, self._complete, self._metrics = table, folder, complete, metrics
        self._public = public
        self._places = {False: running, True: following}
        self._most_waiting = waiting
        self._lock = threading.Condition()
        self._processes: dict[str, JobProcess] = {}
        self._stopping = False
        self._interrupted: set[str] = set()
        self._listeners: set[Callable[[str], None]] = set()
        self._thread = threading.Thread(target=self._supervise, name="jobs", daemon=True)
        self._hearing: dict[str, Callable[[str, JobProcess, Any], None]] = {
            "plan": self._hear_plan,
            "progress": self._hear_progress,
            "stage": self._hear_stage,
            "saving": self._hear_saving,
            "results": self._hear_results,
            "message": self._hear_message,
            "end": self._hear_end,
        }

    # What clients ask for

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        key: str | None = None,
        about: Mapping[str, Any] = MappingProxyType({}),
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> JobView:
        """Queue a job; a repeated `key` of the same submitter returns the job that it returned before.

        `about` has its name, tags and note. `prepare` checks a new job and puts what it needs into its folder.
        Raises `ConflictError`, `FullError`, and what `prepare` raises.
        """
        submitted = Submitted(request, key, about)
        known = self._table.known(submitted)
        if known is not None:
            return known
        self._check_capacity(submitted)
        name = secrets.token_hex(8)
        prepare(self.folder(name))
        if not self._table.add(name, submitted):  # the same key came at the same moment
            remove_folder(self.folder(name))
            known = self._table.known(submitted)
            assert known is not None
            return known
        log.info("submitted", extra={"job": name, "submitter": submitted.submitter, "kind": request["kind"]})
        self._changed(name)
        return self._table.get(name)

    def _check_capacity(self, submitted: Submitted) -> None:
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
            if running is None:
                self._table.update(name, "cancelled before it started", state=CANCELLED, ended=time.time())
            else:
                self._table.update(name, "is being cancelled", state=CANCELLING)
                running.terminate()
        log.info("cancelled", extra={"job": name})
        self._changed(name)
        return self._table.get(name)

    def forget(self, name: str) -> JobView:
        """Queue a job that has ended, to subtract the batches that were withdrawn; then it is in the same state again.

        Raises `NotFoundError`, `ConflictError`.
        """
        with self._lock:
            found = self._table.get(name)
            if found.state not in ENDED or name in self._processes:
                raise ConflictError(f"job {name} is {found.state}; it forgets withdrawn batches by itself")
            if found.results is None or found.kind != "run":
                raise ConflictError(f"job {name} has counted no store; there is nothing to forget")
            self._queue_to_forget(name, found.state)
        self._changed(name)
        return self._table.get(name)

    def _queue_to_forget(self, name: str, state: str) -> None:
        text = "waits to forget batches that were withdrawn"
        self._table.update(name, text, state=QUEUED, forgets=state, ended=None, attempts=0)

    def interrupt(self, name: str) -> None:
        """Have a job that runs save, stop and start again, with what `complete` gives it then."""
        with self._lock:
            if name in self._processes:
                self._interrupted.add(name)
                self._processes[name].terminate()

    def describe(self, name: str, about: Mapping[str, Any]) -> JobView:
        """Change what `about` has of the name, the tags and the note of a job. Raises `NotFoundError`."""
        self._table.get(name)
        self._table.describe(name, about)
        self._changed(name)
        return self._table.get(name)

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

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener`, from any thread, with the id of each job that changes; the result ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    # Starting and stopping

    def start(self) -> None:
        """Queue the jobs that an earlier service left running, and begin to run jobs."""
        known = self._table.states()
        for folder in self._folder.iterdir():
            if folder.name not in known:  # its submission, or its deletion, was interrupted
                remove_folder(folder)
        for name, state in known.items():
            if state == CANCELLING:
                self._table.update(name, "cancelled", state=CANCELLED, ended=time.time())
            elif state == RUNNING:
                self._requeue(name)
        self._thread.start()

    def stop(self) -> None:
        """Ask every process to save and stop, and wait for it; the jobs are queued again."""
        with self._lock:
            self._stopping = True
            for running in self._processes.values():
                running.terminate()
            self._lock.notify_all()
        self._thread.join(2 * STOP_SECONDS)

    def _supervise(self) -> None:
        """Start jobs while there are places, and kill processes that are overdue, until the service stops."""
        while True:
            with self._lock:
                if self._stopping and not self._processes:
                    return
                self._start_waiting()
                for running in self._processes.values():
                    running.kill_if_overdue()
                self._lock.wait(RETRY_SECONDS)

    def _start_waiting(self) -> None:
        try:
            while not self._stopping and (chosen := self._chosen()) is not None:
                self._start(chosen)
        except (StreamstatsError, OSError):  # no room for the database, or no processes left
            log.exception("a job could not be started; the service retries")

    def _chosen(self) -> JobView | None:
        """The job to start now, if there is one. Jobs that follow a store have places of their own."""
        return next(filter(None, (self._chosen_of(follows=follows) for follows in self._places)), None)

    def _chosen_of(self, *, follows: bool) -> JobView | None:
        running = [each.submitter for each in self._processes.values() if each.follows == follows]
        if len(running) >= self._places[follows]:
            return None
        rows = self._table.queued(follows=follows)
        rows = [row for row in rows if row["id"] not in self._processes]  # whose last process is still ending
        rows = [row for row in rows if row["started"] is not None] or rows  # jobs that were interrupted resume first
        waiting = [Waiting(row["number"], row["submitter"], row["priority"]) for row in rows]
        found = next_job(waiting, running, self._table.last_started())
        return None if found is None else self._table.get({row["number"]: row["id"] for row in rows}[found.number])

    def _start(self, job: JobView) -> None:
        folder = self.folder(job.id)
        try:
            make_folders([folder])
            forgets = self._table.forgets(job.id) is not None
            write_json(folder / REQUEST, self._complete(folder, job.request, forgets))
        except StreamstatsError as error:
            self._finish(job.id, FAILED, str(error))
            self._changed(job.id)
            return
        attempt = job.attempts + 1
        self._table.update(job.id, "starts", state=RUNNING, started=time.time(), attempts=attempt, speed=0.0, stage="")
        try:
            running = JobProcess(job, folder)
        except OSError as error:  # no processes, memory or files are left
            self._table.update(job.id, f"cannot start a process: {error}", state=QUEUED, attempts=job.attempts)
            raise
        self._processes[job.id] = running
        threading.Thread(target=self._follow, args=(job.id, running), daemon=True).start()
        log.info("started", extra={"job": job.id, "pid": running.pid, "attempt": attempt})
        self._changed(job.id)

    # Following their processes

    def _follow(self, name: str, running: JobProcess) -> None:
        """Read what a job's process reports until it ends, and record how it ended."""
        try:
            for line in running.lines():
                self._recorded(name, partial(self._hear, name, running, line))
            status = running.wait()
            if running.errors:
                log.warning("stderr of the job: %s", "".join(running.errors), extra={"job": name})
            while not self._recorded(name, partial(self._end, name, running, status)) and not self._stopping:
                time.sleep(RETRY_SECONDS)  # until the disk has room
        finally:
            with self._lock:
                del self._processes[name]
                self._lock.notify_all()
            self._changed(name)

    def _recorded(self, name: str, write: Callable[[], None]) -> bool:
        """Whether `write` succeeded; a full disk does not end a job."""
        try:
            write()
        except OutputError:
            log.exception("the database cannot record what a job reports", extra={"job": name})
            return False
        return True

    def _hear(self, name: str, running: JobProcess, line: str) -> None:
        kind, content = parsed(line) or ("", None)
        if kind not in self._hearing:
            log.warning("stdout of the job: %s", line, extra={"job": name})
            return
        self._hearing[kind](name, running, content)
        self._changed(name)

    def _hear_plan(self, name: str, running: JobProcess, plan: dict[str, Any]) -> None:
        running.rows, running.bytes = plan["before"], 0
        self._table.update(name, "", rows=plan["before"], total_rows=plan["rows"], bytes=0, total_bytes=plan["bytes"])

    def _hear_progress(self, name: str, running: JobProcess, found: dict[str, Any]) -> None:
        self._metrics.rows.inc(max(0, found["rows"] - running.rows))
        self._metrics.bytes.inc(max(0, found["bytes"] - running.bytes))
        self._metrics.task_failures.inc(found["repeats"])
        running.rows, running.bytes = max(found["rows"], running.rows), max(found["bytes"], running.bytes)
        self._table.update(name, rows=found["rows"], bytes=found["bytes"], speed=found["speed"])

    def _hear_stage(self, name: str, _running: JobProcess, stage: dict[str, Any]) -> None:
        self._table.update(name, stage=json.dumps(stage))

    def _hear_saving(self, _name: str, _running: JobProcess, seconds: float) -> None:
        self._metrics.save_seconds.observe(seconds)

    def _hear_results(self, name: str, _running: JobProcess, number: int) -> None:
        self._table.update(name, results=number)

    def _hear_message(self, name: str, _running: JobProcess, message: str) -> None:
        text = self._shown(message)
        log.info(text, extra={"job": name})
        self._table.update(name, text, logged=True)

    def _hear_end(self, _name: str, running: JobProcess, ended: dict[str, Any]) -> None:
        running.ended = ended

    # How jobs end

    def _end(self, name: str, running: JobProcess, status: int) -> None:
        ended = running.ended
        with self._lock:  # a job that ends cannot be cancelled at the same moment
            job, interrupted = self._table.get(name), name in self._interrupted
            self._interrupted.discard(name)
            if ended.get("status") in STATE_OF:
                self._finish(name, self._table.forgets(name) or STATE_OF[ended["status"]], ended["text"])
                if interrupted:  # too late to stop it
                    self._queue_to_forget(name, self._table.get(name).state)
            elif job.state == CANCELLING:
                retained = "its results so far are retained" if job.results is not None else "it had no results yet"
                self._table.update(name, f"cancelled; {retained}", state=CANCELLED, ended=time.time())
            elif self._stopping:
                self._requeue(name)
            elif interrupted:
                self._requeue(name, "a batch was withdrawn; the job resumes without it")
            elif ended:
                self._finish(name, FAILED, ended["text"])
            else:
                self._retry(job, status, " ".join(list(running.errors)[-1:]).strip())
        log.info("ended", extra={"job": name, "status": status, "state": self._table.get(name).state})

    def _finish(self, name: str, state: str, text: str) -> None:
        self._table.update(name, self._shown(text), logged=True, state=state, ended=time.time(), forgets=None)

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
        self._table.update(job.id, self._shown(f"{why}; the service retries"), logged=True, state=QUEUED)

    def _shown(self, text: str) -> str:
        """The part of `text` that clients may see."""
        return self._public(text)[:LONGEST_MESSAGE]

    def _changed(self, name: str) -> None:
        with self._lock:
            self._lock.notify_all()
        for listener in list(self._listeners):
            listener(name)
