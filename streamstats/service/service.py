"""The service without HTTP: what clients may do, built from the database, jobs, stores, uploads and results."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..calibration.recorder import stored_layer
from ..config import ClusterConfig, LayerConfig
from ..coverage import Coverage
from ..errors import OutputError, UsageError, counted, listed
from ..jobs.cores import available_cores
from ..outputs import documents
from ..outputs.manifest import MANIFEST, LayerEntry
from ..outputs.results import open_results
from ..storage.files import file_digest, make_folders, remove, temporaries
from ..storage.locks import locked
from . import hooks, published
from .access import Links
from .audit import Audit
from .clock import Clock
from .database import DATABASE, Database
from .errors import ConflictError, ForbiddenError, GoneError, NotFoundError
from .faults import Faults, Repeated
from .job_table import JobTable
from .jobs import Jobs
from .messages import (
    MOST_RULES,
    OWN,
    STORE_NAME,
    About,
    JobView,
    OnnxRequest,
    RunRequest,
    SubmittedView,
    UploadView,
    WithdrawnView,
)
from .metrics import Metrics
from .notices import Notices
from .processes import INPUTS, ProcessLimits
from .retention import LOOK_SECONDS, Retention
from .runner import REPORT
from .settings import ENDED, ServiceConfig
from .stores import Stores
from .tokens import TOKEN, Caller, TokenFile, Tokens
from .uploads import Uploads
from .withdrawing import counts

T = TypeVar("T")

LOCK = "service.lock"
OTHER_DATA = "stop that service, or choose another folder as `data`"
CACHED = 64
"""Documents about results that are kept in memory."""
LONGEST_GLOB = 4096
CHECK_SECONDS = 5.0
"""The time between two checks of the database."""


class Service:
    """The service that `config` describes; one process at a time uses its folder. `start` it, and finally `stop` it.

    While `stopping` is set, the service accepts nothing new.

    Raises `UsageError` for an impossible configuration, `OutputError` if another service uses the folder, `DataError`
    for a database that is damaged or of a newer version.
    """

    def __init__(self, config: ServiceConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.stopping = asyncio.Event()
        self.data = config.data.resolve()
        self.incoming = self.data / "incoming"
        self._held = ExitStack()
        self._take_folder()
        self.token_file = TokenFile(self.data / TOKEN)
        self.sources = config.sources()
        self.faults = Faults()
        self.database = Database(self.data / DATABASE)
        self.metrics = Metrics(self.database)
        self.tokens = Tokens(self.database, self.token_file, clock)
        self.links, self.audit = Links(), Audit(self.database)
        self.table = JobTable(self.database, clock, config.told)
        self.uploads = Uploads(self.database, self.data / "uploads", config.limits.uploads)
        self.stores = self._stores()
        self.jobs = self._jobs()
        self.retention = self._retention()
        self.notices = Notices(self.database, self.table, config.made_hooks(self.data / hooks.FOLDER), self.faults)
        self.jobs.listen(lambda _: self.notices.wake())
        self._watch = Repeated("the database", self.database.check, self.faults, CHECK_SECONDS)
        self._pruning = Repeated("retention", self.retention.apply, self.faults, LOOK_SECONDS)
        self._documents: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def _take_folder(self) -> None:
        """Make the folder, lock it, and remove what an earlier service was receiving when it ended."""
        make_folders([self.data, self.data / "jobs", self.incoming])
        who = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat()}
        self._held.enter_context(locked(self.data / LOCK, who, keep=lambda: False, remedy=OTHER_DATA, needs_room=False))
        for path in temporaries(self.incoming):
            remove(path)

    def _stores(self) -> Stores:
        limits = self.config.limits
        most = {"stores": limits.stores, "layers": limits.layers}
        return Stores(self.database, self.data / "stores", self.metrics, self.faults, **most)

    def _jobs(self) -> Jobs:
        limits = self.config.limits
        return Jobs(
            self.table,
            self.data / "jobs",
            self._completed,
            self.metrics,
            self.faults,
            public=self.public,
            hindrance=self._full_disk,
            owes=self._counts_withdrawn,
            limits=ProcessLimits(limits.job_seconds, limits.job_disk),
            running=limits.running_jobs,
            following=limits.following_jobs,
            waiting=limits.waiting_jobs,
        )

    def _retention(self) -> Retention:
        config, database = self.config.retention, self.database
        return Retention(config, database, self.table, self.jobs, self.stores, self.uploads, self.audit)

    def start(self) -> None:
        """Begin to accept activations, to run jobs, to remove what is not kept, and to tell hooks."""
        self._watch.start()
        self.stores.start()
        self.jobs.start()
        self._pruning.start()
        self.notices.start()

    def stop(self) -> None:
        """Write the activations that were accepted, interrupt the jobs, which save, and release the folder."""
        self._pruning.end()
        self.stores.close()
        self.jobs.stop()
        self.notices.stop()
        self._watch.end()
        self.metrics.totals.store()
        self._held.close()

    def problems(self) -> list[str]:
        """Why the service is not ready for work; empty if it is."""
        return [*filter(None, [self._full_disk()]), *map(self.public, self.faults.listed())]

    def _full_disk(self) -> str:
        free, least = shutil.disk_usage(self.data).free, self.config.limits.free
        return "" if free >= least else f"the disk has {free:,} bytes left; the service reserves {least:,}"

    def check_room(self, more: int = 0) -> None:
        """Raise `OutputError` if the disk is too full for anything new, or for `more` bytes."""
        if problem := self._full_disk():
            raise OutputError(f"{problem}; free space on the service's machine")
        if shutil.disk_usage(self.data).free - more < self.config.limits.free:
            raise OutputError(f"the disk has no room for {more:,} bytes more; free space on the service's machine")

    # Jobs

    def submit(self, request: RunRequest | OnnxRequest, key: str | None, caller: Caller) -> SubmittedView:
        """Queue a job. Raises `UsageError`, `ForbiddenError`, `NotFoundError`, `ConflictError`, `FullError`."""
        self.check_room()
        document, about = self._with_memory(request), {**request.stated(), "notify": self._hooks_named(request.notify)}
        document["submitter"] = submitter(request, caller)
        if isinstance(request, OnnxRequest):
            check_onnx(request)
            return self.jobs.submit(
                document, key=key, about=about, prepare=lambda job: self.uploads.put(document, job / INPUTS)
            )
        check_layers(request.layers)
        request.rules()
        with self._kept(request.source):
            return self.jobs.submit(
                document, key=key, about=about, prepare=lambda _: self._check_source(request.source)
            )

    def _kept(self, source: str) -> AbstractContextManager[None]:
        """A store of the service is not deleted between the check of a job and its place in the table."""
        return self.stores.held(source.removeprefix(OWN)) if source.startswith(OWN) else nullcontext()

    def _hooks_named(self, names: Sequence[str]) -> list[str]:
        """The hooks, each once. Raises `UsageError` for one that the service does not have."""
        known = self.config.hooks
        for name in names:
            if name not in known:
                have = f"it has {listed(sorted(known))}" if known else "it has none"
                raise UsageError(f"`notify` names {name!r}, which is no hook of the service; {have}")
        return list(dict.fromkeys(names))

    def _with_memory(self, request: RunRequest | OnnxRequest) -> dict[str, Any]:
        """`request` as JSON has it; one that names no memory gets that of the service. Raises `UsageError`."""
        document: dict[str, Any] = json.loads(request.model_dump_json(exclude={*About.model_fields, "notify"}))
        most = self.config.memory
        if "memory" not in request.model_fields_set:
            return {**document, "memory": most}
        if request.memory > most:
            raise UsageError(f"memory is {request.memory:,} bytes; this service gives a job at most {most:,}")
        return document

    def restore_uploads(self, job: str, caller: Caller) -> list[UploadView]:
        """Make the files that a job was submitted with uploads again. Raises `NotFoundError`, `TooLargeError`."""
        self.check_room()
        return self.uploads.restore(self.table.get(job).request, self.jobs.folder(job) / INPUTS, caller.name)

    def _check_source(self, source: str) -> None:
        self._resolved(source)

    def _resolved(self, source: str) -> str:
        """The path or URL of a source. Raises `UsageError` for a source that clients may not read."""
        if not source.startswith(OWN):
            return self.sources.resolved(source)
        name = source.removeprefix(OWN)
        if not STORE_NAME.fits(name):
            raise UsageError(f"the source is {source[:80]!r}; expected `{OWN}NAME`, with a NAME of {STORE_NAME.words}")
        try:
            return str(self.stores.path(name))
        except NotFoundError as error:
            raise UsageError(str(error)) from error

    def _completed(self, folder: Path, request: Mapping[str, Any], forgets: bool) -> tuple[dict[str, Any], str | None]:
        """What the process of a job does: the client's request, on the service's workers, without withdrawn batches.

        Beside it, the identity of the store of the service that it reads, None if it reads none.
        """
        completed = {**request, "cluster": self._cluster().model_dump(), "only_forget": forgets}
        completed["sets"] = asdict(self.config.retention.sets.keep())
        if request["kind"] == "onnx":
            return {**completed, "inputs": {path.stem: path.name for path in (folder / INPUTS).iterdir()}}, None
        source = request["source"]
        completed["source"] = self._resolved(source)
        if not source.startswith(OWN):
            return completed, None
        withdrawn = {layer: rows.ranges for layer, rows in self._withdrawn(folder.name, source).items()}
        return {**completed, "withdrawn": withdrawn}, self.stores.identity(source.removeprefix(OWN)) or None

    def _withdrawn(self, job: str, source: str) -> dict[str, Coverage]:
        """The rows of `source` that were withdrawn, by layer, of the layers that `job` may have counted."""
        store, number = source.removeprefix(OWN), self.table.number(job)
        after = self.stores.last_jobs(store)
        found = self.stores.batches.withdrawn(store)
        return {layer: rows for layer, rows in found.items() if number > after.get(layer, 0)}

    def _counts_withdrawn(self, job: JobView) -> bool:
        """Whether the results of `job` count batches that were withdrawn."""
        source = job.source or ""
        return source.startswith(OWN) and counts(self.jobs.folder(job.id), self._withdrawn(job.id, source))

    def _cluster(self) -> ClusterConfig:
        """The workers of a job; jobs that run at once share the cores unless the configuration says otherwise."""
        cluster, running = self.config.cluster, self.config.limits.running_jobs
        if cluster.scheduler is None and cluster.threads is None and cluster.workers == "local":
            return cluster.model_copy(update={"threads": max(1, available_cores() // running)})
        return cluster

    def public(self, text: str) -> str:
        """`text` without the folders of this machine."""
        for folder in (self.data / "stores", self.data, *(lies for _, lies in self.sources.places)):
            text = text.replace(f"{folder}/", "")
        return text

    def delete_store(self, name: str, caller: Caller) -> None:
        """Delete a store. Raises `NotFoundError`, `ForbiddenError`, and `ConflictError` while a job reads the store."""
        self._check_owner(name, caller)
        self.stores.delete(name, partial(self.table.check_unread, name))

    def delete_layer(self, name: str, layer: str, caller: Caller) -> None:
        """Delete a layer of a store. Raises as `delete_store` does."""
        self._check_owner(name, caller)
        self.stores.delete_layer(name, layer, partial(self.table.check_unread, name))

    def _check_owner(self, name: str, caller: Caller) -> None:
        self.stores.path(name)
        caller.check_owns(f"store {name}", self.stores.owner(name)[0])

    def withdraw(self, name: str, layer: str, key: str, caller: Caller) -> WithdrawnView:
        """Withdraw a batch: later jobs do not count it, and jobs that have not ended forget it.

        Raises `NotFoundError`, `ForbiddenError` unless the batch or the store is the caller's, and `ConflictError` for
        a batch that is still being written.
        """
        path, batch = self.stores.path(name), self.stores.batches.get(name, layer, key)
        if batch.sender != caller.name:
            caller.check_owns(f"store {name}", self.stores.owner(name)[0])
        stored = stored_layer(path, layer)
        if stored is None or stored.rows < batch.stop:
            raise ConflictError(f"the batch with the key {key} is still being written; withdraw it again later")
        self.stores.withdraw(name, batch)
        source, after = OWN + name, self.stores.last_jobs(name).get(layer, 0)
        ended = self.jobs.outdate(source, partial(self.table.counted, source, self.stores.identity(name), after))
        rows = {layer: Coverage.of([(batch.start, batch.stop)])}
        jobs = [job for job in ended if counts(self.jobs.folder(job), rows)]
        return WithdrawnView(batch=self.stores.batches.get(name, layer, key), jobs=jobs)

    def forget(self, job: str) -> JobView:
        """Queue a job that has ended, to subtract withdrawn batches. Raises `NotFoundError`, `ConflictError`."""
        store = (self.table.get(job).source or "").removeprefix(OWN)
        if self.table.store_identity(job) not in (None, self.stores.identity(store)):
            raise ConflictError(
                f"job {job} counted a store {store} that was deleted since, of which no batch can be withdrawn; "
                "delete the job if its results must not be used"
            )
        return self.jobs.forget(job)

    # Results

    def results(self, job: str, number: int | None = None) -> tuple[int, Path]:
        """The number and the folder of a job's result set: `number`, or the current one.

        Raises `NotFoundError` if the job has none, `GoneError` if the set was replaced.
        """
        view, folder = self.table.get(job), self.jobs.folder(job)
        current = published.current(folder)
        if current is None and view.state in ENDED:
            raise NotFoundError(f"job {job} ended as {view.state} and has no results: {view.message}")
        if current is None:
            raise NotFoundError(f"job {job} is {view.state}; it has no results yet")
        wanted = current if number is None else number
        if wanted > current:  # a newer one may be being written
            raise NotFoundError(f"job {job} has no result set {wanted} yet; the current one is {current}")
        found = published.folder_of(folder, wanted)
        if found is None:
            raise GoneError(f"result set {wanted} of job {job} was replaced; the current one is {current}")
        return wanted, found

    @contextmanager
    def reading(self, job: str, number: int | None = None) -> Iterator[tuple[int, Path]]:
        """`results`, for a block that reads them. Raises the same errors if they are deleted in the meantime."""
        found, folder = self.results(job, number)
        try:
            yield found, folder
        finally:
            self.results(job, found)

    def layers(self, job: str, number: int | None) -> tuple[int, dict[str, Any]]:
        """The statistics of each layer, with its coverage and its missing rows."""
        with self.reading(job, number) as (found, folder):
            return found, self.remembered((job, found, ""), lambda: _layers_document(folder))

    def channels(self, job: str, layer: str, number: int | None) -> tuple[int, dict[str, Any]]:
        """The statistics of each channel of a layer. Raises `NotFoundError`."""
        with self.reading(job, number) as (found, folder):
            results = open_results(folder)
            if layer not in results.manifest.layers:
                raise NotFoundError(f"the results have no layer {layer[:200]!r}")
            return found, self.remembered(
                (job, found, layer), lambda: documents.channels_document(results.statistics(layer))
            )

    def report(self, job: str, number: int | None) -> tuple[int, str]:
        """The HTML page about a job's results."""
        with self.reading(job, number) as (found, folder):
            written = (folder / REPORT).with_suffix(".html")
            if written.exists():
                return found, written.read_text(encoding="utf-8")
            return found, self.remembered((job, found, "\nreport"), lambda: _page(job, folder))

    def files(self, job: str, number: int | None) -> tuple[int, Path, dict[str, str]]:
        """The files of a job's result set: the SHA-256 of each, by name."""
        with self.reading(job, number) as (found, folder):
            return found, folder, self.remembered((job, found, "\nfiles"), lambda: _digests(folder))

    def remembered(self, key: tuple[str, int, str], make: Callable[[], T]) -> T:
        """What `make` returns, made once for a `key`: a job, its result set, which never changes, and what it is."""
        with self._lock:
            if key in self._documents:
                self._documents.move_to_end(key)
                return self._documents[key]  # type: ignore[no-any-return]
        made = make()
        with self._lock:
            self._documents[key] = made
            while len(self._documents) > CACHED:
                self._documents.popitem(last=False)
        return made


def submitter(request: RunRequest | OnnxRequest, caller: Caller) -> str:
    """Whose job the request makes. Raises `ForbiddenError` for somebody else's, unless `caller` is an admin."""
    named = request.submitter
    if named not in (None, caller.name) and not caller.is_admin:
        raise ForbiddenError(
            f"the submitter is {named}, but the token is {caller.name}'s; leave `submitter` out, or ask an admin"
        )
    return named or caller.name


def check_layers(layers: Sequence[LayerConfig]) -> None:
    """Raise `UsageError` for more rules, or longer globs, than can be matched in reasonable time."""
    if len(layers) > MOST_RULES:
        raise UsageError(f"`layers` has {counted(len(layers), 'entry', 'entries')}; expected at most {MOST_RULES:,}")
    for index, layer in enumerate(layers):
        if len(layer.match) > LONGEST_GLOB:
            length = counted(len(layer.match), "character")
            raise UsageError(f"`layers[{index}].match` has {length}; expected at most {LONGEST_GLOB:,}")


def check_onnx(request: OnnxRequest) -> None:
    """Raise `UsageError` for keys that contradict each other."""
    if (request.quantized is None) == (request.bits is None):
        raise UsageError("give either a quantised model or `bits` to quantise the weights here, not both")
    levels = request.per_channel or request.symmetric or request.weight_range != "minmax" or request.activation_bits
    if request.quantized is not None and levels:
        raise UsageError(
            "`per_channel`, `symmetric`, `weight_range` and `activation_bits` go with `bits`; leave them out"
        )
    if request.activation_range != "minmax" and not request.activation_bits:
        raise UsageError("`activation_range` goes with `activation_bits`; give both, or leave it out")
    if request.quantized == request.model:
        raise UsageError("the quantised model is the float model; upload the quantised one")
    if request.held_out is None and (request.labels is not None or request.do_no_harm):
        raise UsageError("`labels` and `do_no_harm` go with `held_out`; give samples that are not calibration samples")
    if request.held_out == request.samples:
        raise UsageError("the held-out samples are the calibration samples; give other samples to judge by")


def _page(job: str, folder: Path) -> str:
    from ..models.advice import IN_A_JOB
    from ..report import page as pages

    return pages.page({**pages.document(folder, advice=IN_A_JOB), "output": f"job {job}"})


def _layers_document(folder: Path) -> dict[str, Any]:
    return {name: _layer_document(entry) for name, entry in open_results(folder).manifest.layers.items()}


def _layer_document(entry: LayerEntry) -> dict[str, Any]:
    document = {name: value for name, value in entry.document().items() if name != "state"}
    corrector = entry.corrector
    file, reason = (None, corrector) if isinstance(corrector, str) else (corrector.file, "")
    return {**document, "corrector": file, "reason": reason}


def _digests(folder: Path) -> dict[str, str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert MANIFEST in names
    return {name: file_digest(folder / name) for name in names}
