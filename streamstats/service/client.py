"""A client of the service: `Client(url, token)`, a typed method for each path that programs need.

A request that gets no answer, or for which the service has no capacity, is repeated: what adds something for two
minutes, with the same key, so that it counts once; others for a few seconds. One that changes something and has no key
is repeated only if the service cannot have carried it out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ..address import SERVICE_URL
from ..errors import DataError, ServiceError, UsageError, first_line, require
from ..storage.files import write_bytes
from ..storage.tensors import tensors_bytes, tensors_of
from .messages import (
    KEY,
    V1,
    AuditPage,
    BatchView,
    IngestView,
    JobPage,
    JobSummary,
    JobView,
    PrunedView,
    SecretView,
    StoreView,
    SubmittedView,
    TokenView,
    UploadView,
    WithdrawnView,
)
from .result_messages import FilesView
from .retrying import PATIENCE_SECONDS, QUICK_SECONDS, UNAVAILABLE, Trial, may_answer_later, retry_after
from .tokens import Role
from .transfer import Model, RefusedError, checked, events_of, failure_of, file_of, inside, list_of, object_of, view_of

__all__ = ["Client", "RefusedError"]

if TYPE_CHECKING:
    import httpx

JobOrId = str | JobSummary
"""A job as `submit`, `job` and `jobs` give it, or its id."""
SECONDS = 60.0
UPLOAD_SECONDS = 600.0
"""How long the service may take to store an upload that has arrived."""
UNTRUSTED = (
    "the client does not trust its certificate: set SSL_CERT_FILE to a PEM file with it, or, in Python, `certificate`"
)
IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")
"""Methods of requests that change nothing more if they are carried out twice."""


class Client:
    """The service at `url`, which accepts `token`. Use the client as a context manager, or `close` it.

    White space around the two is ignored. `certificate` is a PEM file to trust, for a service whose certificate no
    known authority has signed. Activations, uploads and submissions that get no answer are sent again, each with its
    key, for `patience` seconds, and so is the request for events; `say` is told when that begins.

    A `job` is what `submit` and `jobs` give, or its id.

    Every method raises `RefusedError` with the service's reason if the service refuses the request, and `ServiceError`
    if the service fails, has no capacity or does not respond. Raises `UsageError` for an invalid address or token and
    for a certificate that cannot be read, `MissingDependencyError` without httpx.

    >>> with ss.Client("http://127.0.0.1:8765", "TOKEN") as client:
    ...     client.url
    'http://127.0.0.1:8765'

    With a service at that address, in the same block:

    >>> job = client.submit({"source": "calibration.zarr"})  # doctest: +SKIP
    >>> client.wait(job).state, client.fetch(job, "out")  # doctest: +SKIP
    ('done', 1)
    """

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"

    def __init__(
        self,
        url: str = SERVICE_URL,
        token: str = "",
        *,
        certificate: str | Path | None = None,
        patience: float = PATIENCE_SECONDS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        library = require("httpx", "client")
        url, token = _address(url), _secret(token)
        try:
            trusted = ssl.create_default_context(cafile=certificate)
        except OSError as error:
            raise UsageError(f"cannot read the certificate {certificate}: {error.strerror or error}") from error
        self._errors: type[Exception] = library.TransportError
        self._unsent = (library.ConnectError, library.ConnectTimeout, library.PoolTimeout)
        try:
            self._http: httpx.Client = library.Client(
                base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS, verify=trusted
            )
        except Exception as error:
            raise UsageError(f"the service is {url!r}, which is not a valid address: {first_line(error)}") from error
        self.url, self._patience, self._say = url, patience, say

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, request: Mapping[str, Any], *, key: str | None = None) -> SubmittedView:
        """Submit a job: `{"source": …}` and the other keys of a configuration, or `{"kind": "onnx", …}`.

        Requests with the same `key` (default: a new one) are one job; the answer says whether it is `repeated`, and is
        what the other methods take as `job`.
        """
        headers = {"Idempotency-Key": _key(key)}
        return self._viewed(SubmittedView, "POST", "/jobs", adds=True, json={"kind": "run", **request}, headers=headers)

    def jobs(
        self,
        *,
        state: str | Sequence[str] = (),
        submitter: str | None = None,
        source: str | None = None,
        tag: str | Sequence[str] = (),
        text: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> JobPage:
        """A page of jobs, newest first: those in one of the states, with all tags, of the submitter, that read the
        source, and in which the text occurs.

        `before`, the `next` of one page, asks for the page after it.
        """
        query: dict[str, Any] = {"submitter": submitter, "source": source, "text": text, "limit": limit}
        query |= {"state": state, "tag": tag, "before": before}
        return self._viewed(JobPage, "GET", "/jobs", params=_given(query))

    def describe(
        self, job: JobOrId, *, name: str | None = None, tags: Sequence[str] | None = None, note: str | None = None
    ) -> JobView:
        """Change the name, the tags or the note of a job; what is None stays as it is."""
        about = {"name": name, "tags": None if tags is None else list(tags), "note": note}
        return self._viewed(JobView, "PATCH", _path(job), json=_given(about))

    def job(self, job: JobOrId) -> JobView:
        """The state and progress of a job."""
        return self._viewed(JobView, "GET", _path(job))

    def cancel(self, job: JobOrId) -> JobView:
        """Cancel a job; its results so far are retained."""
        return self._viewed(JobView, "POST", f"{_path(job)}/cancel")

    def forget(self, job: JobOrId) -> JobView:
        """Subtract the batches that were withdrawn from the results of a job that has ended."""
        return self._viewed(JobView, "POST", f"{_path(job)}/forget")

    def delete(self, job: JobOrId) -> None:
        """Delete a job that has ended, and its results."""
        self._delete(_path(job))

    def events(self, job: JobOrId) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, content) of each event until the job ends: `job`, `message`, `end`. A lost connection is resumed."""
        last, trial = "0", self._trial(adds=True)
        while True:
            failure: Exception = ServiceError(
                f"{self.url} ends the stream of events of job {_id(job)} without an event"
            )
            after, has_come = None, False
            try:
                for kind, content, number in self._streamed(job, last):
                    trial.renew()
                    has_come = True
                    last = number or last
                    yield kind, content
                    if kind == "end":
                        return
                if has_come:  # the token was revoked, the service stops, or a proxy limits the time: see which
                    trial.pause()
                    continue
            except self._errors as error:
                failure = self._silent(error)
            except _UnavailableError as error:
                failure, after = error.failure, error.after
            if not trial.again(first_line(failure), after):
                raise failure

    def _streamed(self, job: JobOrId, after: str) -> Iterator[tuple[str, dict[str, Any], str]]:
        """(kind, content, number) of the events after the one numbered `after`, from one connection."""
        path = f"{V1}{_path(job)}/events"
        headers = {"Last-Event-ID": after, "Accept": "text/event-stream"}
        with self._http.stream("GET", path, headers=headers) as answer:
            if not answer.is_success:
                answer.read()
                if answer.status_code in UNAVAILABLE:
                    raise _UnavailableError(answer)
                raise failure_of(answer)
            yield from events_of(answer.iter_lines())

    def wait(self, job: JobOrId) -> JobView:
        """The job when it has ended."""
        for _ in self.events(job):
            pass
        return self.job(job)

    # Results

    def layers(self, job: JobOrId) -> dict[str, Any]:
        """`layers`: the statistics of each layer; `results`: the number of the result set that holds them."""
        return self._json("GET", f"{_path(job)}/layers")

    def channels(self, job: JobOrId, layer: str) -> dict[str, Any]:
        """The statistics of a layer, with the lists `per_channel`."""
        return self._json("GET", f"{_path(job)}/layers/{quote(layer)}")

    def fetch(self, job: JobOrId, folder: str | Path, *, files: str | Sequence[str] = "*") -> int:
        """Write the files of the current result set to `folder` and return the number of the set.

        `files` is a glob for the names of the files to write, or several: `("manifest.json", "state/*")`.
        Raises `UsageError` if the folder holds anything, `DataError` if a file differs from its SHA-256, `OutputError`.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{folder} exists and is not an empty folder; name a new one")
        found = self._viewed(FilesView, "GET", f"{_path(job)}/files")
        globs = [files] if isinstance(files, str) else files
        for name, digest in found.files.items():
            path = inside(target, name)
            if any(fnmatchcase(name, glob) for glob in globs):
                write_bytes(path, self._file(job, found.results, name, digest))
        return found.results

    def _file(self, job: JobOrId, number: int, name: str, digest: str) -> bytes:
        path = f"{_path(job)}/files/{quote(name)}"
        content = self._asked("GET", path, params={"results": number}).content
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{name} of job {_id(job)} does not match its SHA-256; fetch the job again")
        return content

    def corrections(
        self,
        job: JobOrId,
        weights: Mapping[str, npt.NDArray[Any]],
        fake_quantized: Mapping[str, npt.NDArray[Any]],
        layouts: Sequence[str],
    ) -> dict[str, npt.NDArray[np.float64]]:
        """The term to add to the bias of each layer, float64[outputs] by the layer's name.

        `weights` and `fake_quantized` hold one array for each layer; `layouts` as in `streamstats correct`.
        """
        tensors = {f"{layer}.weight": array for layer, array in weights.items()}
        tensors |= {f"{layer}.fake_quantized": array for layer, array in fake_quantized.items()}
        path = f"{_path(job)}/corrections"
        answer = self._asked("POST", path, params={"layout": list(layouts)}, content=tensors_bytes(tensors, {}))
        return tensors_of(answer.content)

    # Stores and uploads

    def ingest(
        self,
        store: str,
        layer: str,
        samples: npt.NDArray[Any] | bytes,
        *,
        key: str | None = None,
        channel_axis: int = -1,
        quantization: Mapping[str, Any] | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> IngestView:
        """Append `samples` (samples on axis 0, or the bytes of a file that holds them) to a layer of a service's store.

        The samples are on the service's disk when this returns. Requests with the same `key` (default: a new one)
        count once. `quantization` and `geometry`, the layer's kernel, have the keys that they have in a configuration;
        jobs that count `taps` need the geometry.
        """
        content = samples if isinstance(samples, bytes) else file_of(np.asarray(samples))
        query: dict[str, Any] = {"channel_axis": channel_axis}
        if quantization is not None:
            query["quantization"] = json.dumps(quantization)
        if geometry is not None:
            query["geometry"] = json.dumps(geometry)
        path = f"/stores/{quote(store, safe='')}/layers/{quote(layer)}"
        headers = {"Idempotency-Key": _key(key)}
        return self._viewed(IngestView, "POST", path, adds=True, params=query, headers=headers, content=content)

    def stores(self) -> list[str]:
        """The names of the stores that the service owns."""
        return list_of(str, self._asked("GET", "/stores"))

    def store(self, name: str) -> StoreView:
        """The owner of a store of the service, and the rows of each of its layers."""
        return self._viewed(StoreView, "GET", f"/stores/{quote(name, safe='')}")

    def batches(self, store: str, layer: str, *, start: int = 0, limit: int = 100) -> list[BatchView]:
        """What each request appended to a layer, from row `start` on; the next page starts at the last `stop`."""
        query = {"layer": layer, "start": start, "limit": limit}
        return list_of(BatchView, self._asked("GET", f"/stores/{quote(store, safe='')}/batches", params=query))

    def withdraw(self, store: str, layer: str, key: str) -> WithdrawnView:
        """Withdraw what was appended with `key`: running and later jobs do not count it, ended ones after `forget`."""
        path = f"/stores/{quote(store, safe='')}/batches"
        return self._viewed(WithdrawnView, "DELETE", path, params={"layer": layer, "key": key})

    def delete_store(self, name: str) -> None:
        """Delete a store that the service owns."""
        self._delete(f"/stores/{quote(name, safe='')}")

    def delete_layer(self, store: str, layer: str) -> None:
        """Delete a layer of a store that the service owns."""
        self._delete(f"/stores/{quote(store, safe='')}/layers/{quote(layer)}")

    def upload(self, path: str | Path) -> UploadView:
        """Upload a model or samples for a job of the kind `onnx`. Raises `UsageError` if the file cannot be read."""
        try:
            if not S_ISREG(os.stat(path).st_mode):
                raise UsageError(f"{path} is not a file; name a file with a model or samples")
            with open(path, "rb") as file:
                answer, _ = self._answered(lambda: self._upload(file), adds=True, twice=True)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        return view_of(UploadView, checked(answer))

    # For admins

    def tokens(self) -> list[TokenView]:
        """The tokens, without their secrets."""
        return list_of(TokenView, self._asked("GET", "/tokens"))

    def new_token(self, name: str, role: Role = "submit") -> str:
        """Make a token; its secret, which cannot be asked for again."""
        return self._viewed(SecretView, "POST", "/tokens", json={"name": name, "role": role}).token

    def rotate_token(self, name: str, *, overlap: float = 0.0) -> str:
        """Give a token a new secret, and return it; the old one is valid for `overlap` seconds more."""
        path = f"/tokens/{quote(name, safe='')}/rotate"
        return self._viewed(SecretView, "POST", path, params={"overlap": overlap}).token

    def revoke_token(self, name: str) -> None:
        """End a token at once."""
        self._delete(f"/tokens/{quote(name, safe='')}")

    def audit(self, *, who: str | None = None, limit: int = 100, before: int | None = None) -> AuditPage:
        """A page of the audit log, newest first. `before`, the `next` of one page, asks for the page after it."""
        query = {"who": who, "limit": limit, "before": before}
        return self._viewed(AuditPage, "GET", "/audit", params=_given(query))

    def prune(self, config: Mapping[str, Any] | None = None, *, dry_run: bool = False) -> list[PrunedView]:
        """Remove what `config`, as `retention` in a service's configuration, does not keep; by default, the service's.

        A dry run only tells what that is.
        """
        body = None if config is None else dict(config)
        return list_of(PrunedView, self._asked("POST", "/prune", params={"dry_run": dry_run}, timeout=None, json=body))

    def _upload(self, file: IO[bytes]) -> httpx.Response:
        """Send the file, from its beginning: what it is called follows from its content, so it is stored once."""
        file.seek(0)
        headers = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
        times = (SECONDS, UPLOAD_SECONDS, SECONDS, SECONDS)  # to connect, read, write, and for a connection
        return self._http.post(f"{V1}/uploads", content=file, headers=headers, timeout=times)

    def _json(self, method: str, path: str) -> dict[str, Any]:
        return object_of(self._asked(method, path))

    def _viewed(self, model: type[Model], method: str, path: str, *, adds: bool = False, **options: Any) -> Model:
        return view_of(model, self._asked(method, path, adds=adds, **options))

    def _asked(self, method: str, path: str, *, adds: bool = False, **options: Any) -> httpx.Response:
        """The answer; a request that `adds` something, with a key, is repeated for long."""
        twice = adds or method in IDEMPOTENT
        answer, _ = self._answered(lambda: self._http.request(method, V1 + path, **options), adds=adds, twice=twice)
        return checked(answer)

    def _delete(self, path: str) -> None:
        """Delete what `path` names; once an answer was lost, a 404 says that the first request has deleted it."""
        answer, lost = self._answered(lambda: self._http.delete(V1 + path), adds=False, twice=True)
        if not (lost and answer.status_code == 404):
            checked(answer)

    def _answered(self, send: Callable[[], httpx.Response], *, adds: bool, twice: bool) -> tuple[httpx.Response, bool]:
        """What `send` returns, which is called until the service answers or the time is over; and whether an answer
        was lost: an earlier request may have been carried out.

        A request that must not be carried out `twice` is sent again only if it was not carried out.
        """
        trial, lost = self._trial(adds=adds), False
        while True:
            try:
                answer = send()
            except self._errors as error:
                failure = self._silent(error)
                if not twice and not isinstance(error, self._unsent):
                    raise ServiceError(f"{failure}, and whether it carried out the request") from error
                if not trial.again(first_line(failure)):
                    raise failure from error
                lost = lost or not isinstance(error, self._unsent)
                continue
            after = retry_after(answer.headers.get("retry-after"))
            again = may_answer_later(answer.status_code, after, twice=twice)
            if not again or not trial.again(first_line(failure_of(answer)), after):
                return answer, lost
            lost = lost or not may_answer_later(answer.status_code, after, twice=False)

    def _trial(self, *, adds: bool) -> Trial:
        return Trial(self._patience, self._say) if adds else Trial(min(self._patience, QUICK_SECONDS))

    def _silent(self, error: Exception) -> ServiceError:
        said = first_line(error)
        remedy = UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in said else "check that the service is running"
        return ServiceError(f"{self.url} does not respond: {said}; {remedy}")


class _UnavailableError(Exception):
    """A stream is not available at the moment."""

    def __init__(self, answer: httpx.Response) -> None:
        self.failure, self.after = failure_of(answer), retry_after(answer.headers.get("retry-after"))


def _address(url: str) -> str:
    """The address of a service in `url`, which may name its API. Raises `UsageError`, whose message has no secret."""
    found = re.fullmatch(rf"(https?://[^/?#@\s]+(/[^?#@\s]*?)??)({V1})?/*", url.strip())
    if found is None:
        shown = re.sub("(?s)[?#].*", "…", re.sub("(?s).*@", "…@", url))
        raise UsageError(f"the service is {shown!r}; expected an address such as {SERVICE_URL}")
    return found[1]


def _secret(token: str) -> str:
    """The secret in `token`. Raises `UsageError`, whose message does not have it."""
    secret = token.strip()
    if not secret:
        raise UsageError("the token is empty; expected the token that you were given, as text")
    wrong = re.search("[^!-~]", secret)
    if wrong is not None:
        raise UsageError(
            f"character {wrong.start() + 1} of the token is {wrong[0]!a}, which no token has; expected ASCII "
            "characters without spaces: copy the token again, or read it from its file"
        )
    return secret


def _key(key: str | None) -> str:
    """`key`, or a new one. Raises `UsageError` for what cannot be one."""
    if key is not None and not KEY.fits(key):
        raise UsageError(f"the key is {key!a:.200}; expected {KEY.words}")
    return key or uuid.uuid4().hex


def _id(job: JobOrId) -> str:
    """The id of a job. Raises `UsageError` for what is neither a job nor an id."""
    found = getattr(job, "id", job)
    if not isinstance(found, str):
        raise UsageError(f"expected a job, or its id, but found {job!r:.80}")
    return found


def _path(job: JobOrId) -> str:
    return f"/jobs/{quote(_id(job), safe='')}"


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
