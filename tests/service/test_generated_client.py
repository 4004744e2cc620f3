"""A client that openapi-python-client generates from the description does what the pages tell, with typed results."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import chain, model_of, values
from served import STORE, Served, npy, wait_until

import streamstats as ss
from streamstats.storage.tensors import tensors_bytes, tensors_of

pytestmark = pytest.mark.soak
NAME = "generated_client"
ENDED = ("done", "incomplete", "failed", "cancelled")


class Generated:
    """The package: `ask("jobs.job_submit", …)` calls a function of it, `model("JobView")` is a class of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def ask(self, function: str, *values: Any, expected: str | type = "", **options: Any) -> Any:
        """What the function returns, which is an `expected`: the name of a model, or a type."""
        module = importlib.import_module(f"{NAME}.api.{function}")
        found = module.sync(*values, client=self._client, **options)
        assert isinstance(found, self.model(expected) if isinstance(expected, str) else expected), (function, found)
        return found

    def model(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{NAME}.models"), name)

    def file(self, content: bytes) -> Any:
        return importlib.import_module(f"{NAME}.types").File(BytesIO(content))

    def ended(self, job: str) -> Any:
        wait_until(lambda: self.ask("jobs.job_inspect", job, expected="JobView").state in ENDED)
        return self.ask("jobs.job_inspect", job, expected="JobView")


@pytest.fixture(scope="module")
def generated(service: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    pytest.importorskip("openapi_python_client", reason="the generator is not installed: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("generated")
    options = ["--url", f"{service.url}/api/v1/openapi.json", "--meta", "none", "--output-path", str(folder / NAME)]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # where it finds ruff
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    sys.path.insert(0, str(folder))
    try:
        with asking(service.url, service.token) as client:
            yield client
    finally:
        sys.path.remove(str(folder))


@contextmanager
def asking(url: str, token: str) -> Iterator[Generated]:
    package = importlib.import_module(NAME)
    with package.AuthenticatedClient(url, token, raise_on_unexpected_status=True, timeout=60) as client:
        yield Generated(client)


def test_it_submits_a_job_and_fetches_the_results(service: Served, generated: Generated, client: ss.Client) -> None:
    request = generated.model("RunRequest").from_dict({"kind": "run", "source": STORE, "submitter": "ann"})
    job = generated.ask("jobs.job_submit", body=request, expected="SubmittedView")
    found = generated.ended(job.id)
    assert (found.state, found.rows, found.submitter) == ("done", 64, "ann")
    assert [each.id for each in generated.ask("jobs.job_jobs", submitter="ann", expected="JobPage").jobs] == [job.id]

    layers = generated.ask("results.result_layers", job.id, expected="LayersView")
    assert layers.results == 1
    assert layers.layers["fc"].rows == 32
    assert layers.layers["fc"].statistics == ["mean", "extrema"]
    channels = generated.ask("results.result_channels", job.id, "block1/conv", expected="ChannelsView")
    np.testing.assert_array_equal(channels.per_channel["mean"], ss.reduce(service.roots / STORE)["block1/conv"].mean)
    manifest = generated.ask("results.result_manifest", job.id, expected="ManifestView")
    files = generated.ask("results.result_list_files", job.id, expected="FilesView").files
    for name in files.additional_keys:
        content = _bytes(generated.ask("results.result_file", job.id, name, expected=_file(generated)))
        assert hashlib.sha256(content).hexdigest() == files[name]
    assert manifest.layers["fc"].corrector.sha256 == files[manifest.layers["fc"].corrector.file]
    assert _bytes(generated.ask("results.result_archive", job.id, expected=_file(generated)))[:2] == b"PK"
    assert generated.ask("results.result_report", job.id, expected=str).startswith("<!DOCTYPE html>")
    assert "event: end" in generated.ask("jobs.job_events", job.id, expected=str)
    assert generated.ask("results.result_link", job.id, path="report", expected="LinkView").path

    weight = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    body = tensors_bytes({"fc.weight": weight, "fc.fake_quantized": np.round(weight, 1)}, {})
    terms = generated.ask(
        "results.result_corrections", job.id, body=generated.file(body), layout=["OI"], expected=_file(generated)
    )
    expected = client.corrections(job.id, {"fc": weight}, {"fc": np.round(weight, 1)}, ["OI"])
    np.testing.assert_array_equal(tensors_of(_bytes(terms))["fc"], expected["fc"])


def test_it_sends_activations_and_a_job_follows_them(generated: Generated) -> None:
    block = generated.file(npy(np.ones((8, 3), np.float32)))
    first = generated.ask("stores.store_ingest", "typed", "a/b", body=block, idempotency_key="k", expected="IngestView")
    again = generated.file(npy(np.ones((8, 3), np.float32)))
    second = generated.ask(
        "stores.store_ingest", "typed", "a/b", body=again, idempotency_key="k", expected="IngestView"
    )
    assert (first.start, first.stop, first.repeated, second.repeated) == (0, 8, False, True)
    assert "typed" in generated.ask("stores.store_stores", expected=list)
    store = generated.ask("stores.store_store", "typed", expected="StoreView")
    assert store.layers["a/b"] == 8
    request = {"kind": "run", "source": store.source, "follow": {"rows": 8}}
    body = generated.model("RunRequest").from_dict(request)
    job = generated.ask("jobs.job_submit", body=body, expected="SubmittedView")
    assert generated.ended(job.id).rows == 8
    generated.ask("stores.store_delete_store", "typed", expected=type(None))
    problem = generated.ask("stores.store_store", "typed", expected="Problem")
    assert problem.status == 404


def test_it_corrects_a_model(generated: Generated) -> None:
    x = values(8, 3, 8, 8, seed=11)
    nodes, constants = chain()
    model = model_of(nodes, constants, x).SerializeToString()
    ids = {
        name: generated.ask("uploads.upload_upload", body=generated.file(content), expected="UploadView").id
        for name, content in (("model", model), ("samples", npy(x)))
    }
    body = generated.model("OnnxRequest").from_dict({"kind": "onnx", "bits": 5, **ids})
    job = generated.ask("jobs.job_submit", body=body, expected="SubmittedView")
    found = generated.ended(job.id)
    assert found.state == "done", found.message
    assert _bytes(generated.ask("results.result_file", job.id, "corrected.onnx", expected=_file(generated)))
    generated.ask("jobs.job_delete", job.id, expected=type(None))
    for each in ids.values():
        generated.ask("uploads.upload_delete_upload", each, expected=type(None))


def test_it_knows_errors_and_the_service_itself(service: Served, generated: Generated) -> None:
    about = generated.ask("operations.operation_about", expected="ServiceView")
    assert about.version == ss.__version__
    assert STORE in about.sources
    assert about.limits.running_jobs == 2
    assert "histogram" in [each.name for each in generated.ask("operations.operation_statistics", expected=list)]
    assert generated.ask("operations.operation_alive", expected="AliveView").status == "ok"
    assert generated.ask("operations.operation_ready", expected="ReadyView").status == "ready"
    assert "streamstats_jobs" in generated.ask("operations.operation_metrics", expected=str)
    refused = generated.model("RunRequest").from_dict({"kind": "run", "source": "../outside"})
    assert generated.ask("jobs.job_submit", body=refused, expected="Problem").status == 422
    problem = generated.ask("jobs.job_cancel", "0" * 16, expected="Problem")
    assert (problem.status, problem.title, bool(problem.request)) == (404, "Not Found", True)
    with asking(service.url, "wrong") as stranger:
        assert stranger.ask("jobs.job_jobs", expected="Problem").status == 401


def _file(generated: Generated) -> type:
    return type(generated.file(b""))


def _bytes(found: Any) -> bytes:
    content: bytes = found.payload.read()
    return content
