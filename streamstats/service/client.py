"""A client of the service: `Client(url, token)`. Small and typed; it has what the service's pages of OpenAPI describe.

A request that did not get through is sent again, with the same key where it adds something: it counts once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ..errors import DataError, OutputError, StreamstatsError, UsageError, first_line, require
from ..storage.files import write_bytes
from ..storage.tensors import tensors_bytes, tensors_of
from .messages import IngestView, JobPage, JobView, StoreView, UploadView

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8765"
V1 = "/api/v1"
SECONDS = 60.0
ATTEMPTS = 4
"""Of a request that does not get through, or for which there is no place."""
WAIT_SECONDS = 0.5
"""Before the second one, and twice as long before each further one."""
ENDED = ("done", "incomplete", "failed", "cancelled")
NUMBER = "streamstats-results"


class ServiceError(StreamstatsError):
    """The service cannot be reached, or failed."""


class RefusedError(UsageError):
    """The service refuses the request; `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A service at `url`, which is asked with `token`. Use it as a context manager, or `close` it.

    `certificate` is a PEM file to trust, for a service whose certificate nobody else vouches for.

    Methods raise `RefusedError` for what the service does not accept, with its reason, and `ServiceError` where it does
    not answer.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str = "", *, certificate: str | Path | None = None) -> None:
        library = require("httpx", "client")
        if not re.match(r"https?://[^/?#]", url):
            raise UsageError(f"the service is {url!r}; expected an address such as {DEFAULT_URL}")
        try:
            trusted = ssl.create_default_context(cafile=certificate)
        except OSError as error:
            raise UsageError(f"cannot read the certificate {certificate}: {error.strerror or error}") from error
        self._errors: type[Exception] = library.TransportError
        try:
            self._http: httpx.Client = library.Client(
                base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS, verify=trusted
            )
        except Exception as error:
            raise UsageError(f"the service is {url!r}, with which nothing can be begun: {first_line(error)}") from error
        self.url = url

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, request: Mapping[str, Any], *, key: str | None = None) -> JobView:
        """Submit a job: `{"kind": "run", "source": …}` and the keys of a configuration, or `{"kind": "onnx", …}`."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return JobView.model_validate(self._json("POST", "/jobs", json=dict(request), headers=headers))

    def jobs(self, *, state: str | None = None, limit: int = 100, before: int | None = None) -> JobPage:
        """The jobs, the newest first; those after them with `before`, the `next` of what came."""
        query = {"state": state, "limit": limit, "before": before}
        known = {name: value for name, value in query.items() if value is not None}
        return JobPage.model_validate(self._json("GET", "/jobs", params=known))

    def job(self, job: str) -> JobView:
        """A job, and how far it is."""
        return JobView.model_validate(self._json("GET", f"/jobs/{quote(job, safe='')}"))

    def cancel(self, job: str) -> JobView:
        """Stop a job; results that it has stay."""
        return JobView.model_validate(self._json("POST", f"/jobs/{quote(job, safe='')}/cancel"))

    def delete(self, job: str) -> None:
        """Remove a job that has ended, and its results."""
        self._asked("DELETE", f"/jobs/{quote(job, safe='')}")

    def events(self, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, content) of what happens to a job until it ends: `job`, `message`, `end`. Broken off, it goes on."""
        last, failures = "0", 0
        while True:
            try:
                headers = {"Last-Event-ID": last, "Accept": "text/event-stream"}
                path = f"{V1}/jobs/{quote(job, safe='')}/events"
                with self._http.stream("GET", path, headers=headers) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        raise _refusal(answer)
                    for kind, content, number in _events(answer.iter_lines()):
                        last, failures = number or last, 0
                        yield kind, content
                        if kind == "end":
                            return
            except self._errors as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise ServiceError(f"{self.url} does not answer: {first_line(error)}") from error
            time.sleep(WAIT_SECONDS * 2**failures)

    def wait(self, job: str) -> JobView:
        """The job when it has ended."""
        for _ in self.events(job):
            pass
        return self.job(job)

    # Results

    def layers(self, job: str) -> dict[str, Any]:
        """`layers`: what was counted of each; `results`: the number of the set that it is from."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/layers")

    def channels(self, job: str, layer: str) -> dict[str, Any]:
        """What was counted of a layer, with the lists `per_channel`."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/layers/{quote(layer)}")

    def fetch(self, job: str, folder: str | Path) -> int:
        """Write the files of the current results to `folder`; the number of the set, all of which is of one moment.

        Raises `UsageError` for a folder with something in it, `DataError` for a file that does not have its SHA-256,
        `OutputError`.
        """
        if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
            raise UsageError(f"{folder} exists and is no empty folder; name a new one")
        found = self._json("GET", f"/jobs/{quote(job, safe='')}/files")
        number = int(found["results"])
        for name, digest in found["files"].items():
            target = Path(folder, name)
            if not target.resolve().is_relative_to(Path(folder).resolve()):
                raise DataError(f"the service names a file {name!r}, which is outside {folder}; do not trust it")
            path = f"/jobs/{quote(job, safe='')}/files/{quote(name)}"
            content = self._asked("GET", path, params={"results": number}).content
            if hashlib.sha256(content).hexdigest() != digest:
                raise DataError(f"{name} of job {job} came with another SHA-256 than it has; fetch it again")
            write_bytes(target, content)
        return number

    def corrections(
        self,
        job: str,
        weights: Mapping[str, npt.NDArray[Any]],
        fake_quantized: Mapping[str, npt.NDArray[Any]],
        layouts: Sequence[str],
    ) -> dict[str, npt.NDArray[np.float64]]:
        """What to add to the bias of each layer, by its name: float64[outputs].

        `weights` and `fake_quantized` hold an array for each layer; `layouts` as in `streamstats correct`.
        """
        tensors = {f"{layer}.weight": array for layer, array in weights.items()}
        tensors |= {f"{layer}.fake_quantized": array for layer, array in fake_quantized.items()}
        path = f"/jobs/{quote(job, safe='')}/corrections"
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
    ) -> IngestView:
        """Append `samples` (samples on axis 0; or the bytes of such a file) to a layer of a store of the service.

        They are on the service's disk when this returns. The same `key`, by default a new one, is counted once.
        """
        content = samples if isinstance(samples, bytes) else _npy(samples)
        query: dict[str, Any] = {"channel_axis": channel_axis}
        if quantization is not None:
            query["quantization"] = json.dumps(quantization)
        path = f"/stores/{quote(store, safe='')}/layers/{quote(layer)}"
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return IngestView.model_validate(self._json("POST", path, params=query, headers=headers, content=content))

    def store(self, name: str) -> StoreView:
        """The rows of each layer of a store of the service."""
        return StoreView.model_validate(self._json("GET", f"/stores/{quote(name, safe='')}"))

    def upload(self, path: str | Path) -> UploadView:
        """Upload a model or samples, for a job of the kind `onnx`. Raises `UsageError` for a file that is not there."""
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                headers = {"Content-Length": str(size)}
                answer = self._checked(self._http.post(f"{V1}/uploads", content=file, headers=headers, timeout=None))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        except self._errors as error:
            raise ServiceError(f"{self.url} does not answer: {first_line(error)}") from error
        return UploadView.model_validate(answer.json())

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._asked(method, path, **options).json()
        return found

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                answer = self._http.request(method, V1 + path, **options)
            except self._errors as error:
                if last:
                    raise ServiceError(f"{self.url} does not answer: {first_line(error)}; is it running?") from error
            else:
                if answer.status_code != 503 or last:
                    return self._checked(answer)
            time.sleep(WAIT_SECONDS * 2**attempt)
        raise AssertionError("the last attempt answers or raises")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        raise _refusal(answer)


def _refusal(answer: httpx.Response) -> StreamstatsError:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    text = f"the service answers {answer.status_code}: {message}"
    return OutputError(text) if answer.status_code >= 500 else RefusedError(text, answer.status_code)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(kind, content, number) of each server-sent event."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", "")
            fields = {}


def _npy(array: npt.NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
