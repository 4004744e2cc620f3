"""The service without HTTP: what clients may do, put together from the database, jobs, stores, uploads and results."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config import available_cores
from ..errors import OutputError, UsageError, counted
from ..models.linear import LayerCorrection
from ..models.tensors import tensor_terms, terms_bytes
from ..outputs import documents
from ..outputs.results import MANIFEST, Results, open_results, read_manifest
from ..storage.files import make_folders, remove, temporaries
from ..storage.locks import locked
from . import published
from .access import TOKEN, Token
from .bodies import Body
from .database import Database
from .errors import ConflictError, GoneError, NotFoundError
from .jobs import Jobs
from .messages import MOST_RULES, OWN, JobView, OnnxRequest, RunRequest
from .metrics import Metrics
from .runner import INPUTS, REPORT
from .settings import ServiceConfig
from .stores import Stores
from .uploads import Uploads

LOCK = "service.lock"
CACHED = 64
"""Documents of results that are kept in memory."""
LONGEST_RULE = 4096


class Service:
    """What `config` describes; its folder belongs to one process at a time. `start` it, and `stop` it in the end.

    When `stopping` is set, nothing new is taken.

    Raises `UsageError` for a configuration that cannot be, `OutputError` where another service has the folder,
    `DataError` for a database that is damaged or of a newer version.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        limits = config.limits
        self.data = config.data.resolve()
        make_folders([self.data, self.data / "jobs", self.data / "incoming"])
        self._held = ExitStack()
        who = {"host": socket.gethostname(), "process": os.getpid(), "since": datetime.now(UTC).isoformat()}
        self._held.enter_context(locked(self.data / LOCK, who, keep=lambda: False))
        self.incoming = self.data / "incoming"
        for path in temporaries(self.incoming):
            remove(path)
        self.token = Token(self.data / TOKEN)
        self.sources = config.sources()
        self.metrics = Metrics()
        self.database = Database(self.data / "service.sqlite")
        self.uploads = Uploads(self.data / "uploads", limits.uploads)
        self.stores = Stores(
            self.database,
            self.data / "stores",
            self.metrics,
            stores=limits.stores,
            layers=limits.layers,
        )
        self.jobs = Jobs(
            self.database,
            self.data / "jobs",
            self._completed,
            self.metrics,
            public=self.public,
            running=limits.running_jobs,
            following=limits.following_jobs,
            waiting=limits.waiting_jobs,
        )
        self.stopping = asyncio.Event()
        self._documents: OrderedDict[tuple[str, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin with what is there to do."""
        self.jobs.start()

    def stop(self) -> None:
        """Finish what was accepted of activations, have jobs save and end, and let go of the folder."""
        self.stores.close()
        self.jobs.stop()
        self._held.close()

    def problems(self) -> list[str]:
        """Why it is not ready for work, if it is not."""
        self.database.query("SELECT 1")
        free, least = shutil.disk_usage(self.data).free, self.config.limits.free
        return [] if free >= least else [f"the disk has {free:,} bytes left, and is to keep {least:,}"]

    def check_room(self) -> None:
        """Raise `OutputError` where the disk is to take nothing more."""
        for problem in self.problems():
            raise OutputError(f"{problem}; make room on the service's machine")

    # Jobs

    def submit(self, request: RunRequest | OnnxRequest, key: str | None) -> JobView:
        """Queue a job. Raises `UsageError`, `NotFoundError`, `ConflictError`, `FullError`."""
        self.check_room()
        if "memory" in request.model_fields_set and request.memory > self.config.memory:
            raise UsageError(
                f"memory is {request.memory:,} bytes; this service gives a job at most {self.config.memory:,}"
            )
        document = json.loads(request.model_dump_json())
        if "memory" not in request.model_fields_set:
            document["memory"] = self.config.memory
        if isinstance(request, OnnxRequest):
            _check_onnx(request)
            return self.jobs.submit(
                document, key=key, prepare=lambda folder: self.uploads.put(document, folder / INPUTS)
            )
        if len(request.layers) > MOST_RULES or any(len(each.match) > LONGEST_RULE for each in request.layers):
            raise UsageError(f"`layers` has {counted(len(request.layers), 'entry')}; expected at most {MOST_RULES}")
        request.rules()
        return self.jobs.submit(document, key=key, prepare=lambda _: self._check_source(request.source))

    def _check_source(self, source: str) -> None:
        self._resolved(source)

    def _resolved(self, source: str) -> str:
        """Where a source is. Raises `UsageError` for one that may not be read."""
        if not source.startswith(OWN):
            return self.sources.resolved(source)
        name = source.removeprefix(OWN)
        try:
            return str(self.stores.path(name))
        except NotFoundError as error:
            raise UsageError(str(error)) from error

    def _completed(self, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the process of a job is to do: the client's request, on the service's workers."""
        cluster = self.config.cluster
        if cluster.scheduler is None and cluster.threads is None and cluster.workers == "local":
            cluster = cluster.model_copy(
                update={"threads": max(1, available_cores() // self.config.limits.running_jobs)}
            )
        completed = {**request, "cluster": cluster.model_dump()}
        if request["kind"] == "run":
            completed["source"] = self._resolved(request["source"])
        else:
            completed["inputs"] = {path.stem: path.name for path in (folder / INPUTS).iterdir()}
        return completed

    def public(self, text: str) -> str:
        """`text` without the folders of this machine."""
        for folder in (self.data / "stores", self.data, *(root.resolve() for root in self.config.roots)):
            text = text.replace(f"{folder}/", "")
        return text

    def delete_store(self, name: str) -> None:
        """Take a store away. Raises `NotFoundError`, `ConflictError` while a job reads it."""
        self.stores.path(name)
        reading = self.jobs.reading(OWN + name)
        if reading:
            raise ConflictError(f"job {reading[0]} reads the store {name}; cancel it first")
        self.stores.delete(name)

    # Results

    def results(self, job: str, number: int | None = None) -> tuple[int, Path]:
        """The number and the folder of a job's results, the current ones or those of `number`.

        Raises `NotFoundError` where there are none, `GoneError` where they were replaced.
        """
        self.jobs.get(job)
        folder = self.jobs.folder(job)
        current = published.current(folder)
        if current is None:
            raise NotFoundError(f"job {job} has no results")
        wanted = current if number is None else number
        found = published.folder_of(folder, wanted) if wanted <= current else None  # a newer one is being made
        if found is None:
            raise GoneError(f"the results {wanted} of job {job} were replaced; the current ones are {current}")
        return wanted, found

    def layers(self, job: str, number: int | None) -> tuple[int, dict[str, Any]]:
        """What was counted of each layer, with its coverage and what is missing."""
        found, folder = self.results(job, number)
        return found, self._cached((job, found, ""), lambda: _layers_document(folder))

    def channels(self, job: str, layer: str, number: int | None) -> tuple[int, dict[str, Any]]:
        """The statistics of each channel of a layer. Raises `NotFoundError`."""
        found, folder = self.results(job, number)
        statistics = _of_layer(open_results(folder), layer).statistics
        return found, self._cached((job, found, layer), lambda: documents.channels_document(statistics(layer)))

    def report(self, job: str, number: int | None) -> tuple[int, str]:
        """The page of HTML about a job's results."""
        from ..report import page as pages

        found, folder = self.results(job, number)
        written = (folder / REPORT).with_suffix(".html")
        if written.exists():
            return found, written.read_text(encoding="utf-8")

        def made() -> str:
            return pages.page({**pages.document(folder), "output": f"job {job}"})

        return found, self._cached((job, found, "\nreport"), made)

    def files(self, job: str, number: int | None) -> tuple[int, Path, dict[str, str]]:
        """The files of a job's results: their names and the SHA-256 of each."""
        found, folder = self.results(job, number)
        return found, folder, self._cached((job, found, "\nfiles"), lambda: _digests(folder))

    def corrections(self, job: str, body: Body, layouts: list[str]) -> tuple[bytes, list[LayerCorrection]]:
        """(safetensors with what to add to each bias, the outcomes) for the weights in `body`."""
        _, folder = self.results(job)
        body.tensors()  # so that what is wrong with them is said of the body
        try:
            terms, outcomes = tensor_terms(body.path, body.path, folder, layouts=layouts)
        except UsageError as error:
            raise UsageError(str(error).replace(str(body.path), "the body").replace("--layout", "layout")) from error
        return terms_bytes(terms), outcomes

    def _cached(self, key: tuple[str, int, str], make: Callable[[], Any]) -> Any:
        """Results never change, so what was made of them once is good for ever."""
        with self._lock:
            if key in self._documents:
                self._documents.move_to_end(key)
                return self._documents[key]
        made = make()
        with self._lock:
            self._documents[key] = made
            while len(self._documents) > CACHED:
                self._documents.popitem(last=False)
        return made


def _check_onnx(request: OnnxRequest) -> None:
    if (request.quantized is None) == (request.bits is None):
        raise UsageError("give either a quantised model or `bits` to quantise the weights here, and not both")
    if request.quantized is not None and (request.per_channel or request.symmetric):
        raise UsageError("`per_channel` and `symmetric` go with `bits`; leave them out")
    if request.quantized == request.model:
        raise UsageError("the quantised model is the float model; upload the quantised one")
    if request.held_out is None and (request.labels is not None or request.do_no_harm):
        raise UsageError("`labels` and `do_no_harm` go with `held_out`; give samples that were not recorded")
    if request.held_out == request.samples:
        raise UsageError("the samples held out are those that are recorded; give others to judge by")


def _of_layer(results: Results, layer: str) -> Results:
    if layer not in results.states:
        raise NotFoundError(f"the results have no layer {layer[:200]!r}")
    return results


def _layers_document(folder: Path) -> dict[str, Any]:
    results, entries = open_results(folder), read_manifest(folder)["layers"]
    found = documents.layers_document({layer: results.statistics(layer) for layer in results.layers})
    return {
        layer: {
            **document,
            "missing": entries[layer]["missing"],
            "corrector": entries[layer]["corrector"]["file"],
            "reason": entries[layer]["corrector"].get("reason", ""),
        }
        for layer, document in found.items()
    }


def _digests(folder: Path) -> dict[str, str]:
    from ..storage.files import file_digest

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert MANIFEST in names
    return {name: file_digest(folder / name) for name in names}
