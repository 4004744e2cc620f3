"""The client: what it trusts, and which error says what to do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import BaseModel
from served import STORE

import streamstats as ss
from streamstats.errors import FAILURE, DataError, OutputError, ServiceError, UsageError
from streamstats.service import client as clients
from streamstats.service.client import Client, RefusedError
from streamstats.service.retrying import Trial


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every request in the same way; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 507])
def test_a_service_that_fails_is_a_service_error(status: int) -> None:
    body = json.dumps({"detail": "the reason"}).encode()
    with answering(status, body) as url, Client(url, "x", patience=0) as client:
        for ask in (client.jobs, lambda: list(client.events("0" * 16))):
            with pytest.raises(ServiceError, match=f"{status}.*the reason") as caught:
                ask()
            assert not isinstance(caught.value, OutputError)  # which is about this machine's disk
            assert caught.value.exit_status == FAILURE


def test_a_success_that_is_not_ours_is_a_service_error() -> None:
    with answering(200, b"<h1>Welcome</h1>") as url, Client(url, "x") as client:
        for ask in (client.jobs, client.tokens, lambda: client.job("0" * 16)):
            with pytest.raises(ServiceError, match=f"{url}.* something other than JSON"):
                ask()


ASKED: dict[str, Callable[[Client], object]] = {
    "submit": lambda client: client.submit({}),
    "jobs": lambda client: client.jobs(),
    "job": lambda client: client.job("0" * 16),
    "layers": lambda client: client.layers("0" * 16),
    "fetch": lambda client: client.fetch("0" * 16, "new"),
    "ingest": lambda client: client.ingest("s", "l", b""),
    "batches": lambda client: client.batches("s", "l"),
    "tokens": lambda client: client.tokens(),
    "new token": lambda client: client.new_token("ann"),
    "rotate": lambda client: client.rotate_token("ann"),
    "prune": lambda client: client.prune(),
}


@pytest.mark.parametrize("body", [b'[{"id": 3}]', b'"yes"', b"null"], ids=["a list", "a text", "null"])
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_json_that_is_no_answer_of_this_version_is_a_service_error(
    ask: Callable[[Client], object], body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = "JSON that version .* does not know: .*the version of the client"
    with answering(200, body) as url, Client(url, "x") as client, pytest.raises(ServiceError, match=f"{url}.* {said}"):
        ask(client)


def test_an_event_that_is_no_object_is_a_service_error() -> None:
    body = b"data: [1]\n\n"
    with answering(200, body) as url, Client(url, "x") as client, pytest.raises(ServiceError, match="a JSON object"):
        next(client.events("0" * 16))


def test_what_is_neither_a_job_nor_its_id_is_refused() -> None:
    with Client("http://127.0.0.1:9", "x") as client:
        for job in (3, None, {"id": "0" * 16}):
            with pytest.raises(UsageError, match=r"^expected a job, or its id, but found "):
                client.wait(job)  # type: ignore[arg-type]


def test_only_a_file_is_uploaded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    with Client("http://127.0.0.1:9", "x") as client, pytest.raises(UsageError, match="pipe is not a file"):
        client.upload(tmp_path / "pipe")


def test_an_answer_that_is_not_ours_is_shown() -> None:
    with answering(404, b"<h1>Not here</h1>") as url, Client(url, "x") as client:
        with pytest.raises(RefusedError, match="<h1>Not here") as caught:
            client.jobs()
        assert caught.value.status == 404


def test_a_client_trusts_no_file_that_is_not_what_it_says(
    client: ss.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}))
    asked = Client._viewed

    def lying(self: Client, model: type[BaseModel], method: str, path: str) -> BaseModel:
        found = asked(self, model, method, path)
        return found.model_copy(update={"files": changed}) if path.endswith("/files") else found

    monkeypatch.setattr(Client, "_viewed", lying)
    changed = {"manifest.json": "0" * 64}
    with pytest.raises(DataError, match="does not match its SHA-256"):
        client.fetch(job, tmp_path / "a")
    changed = {"../outside": "0" * 64}
    with pytest.raises(DataError, match="outside"):
        client.fetch(job.id, tmp_path / "b")
    assert not (tmp_path / "outside").exists()


def test_a_client_fetches_the_files_that_it_is_asked_for(client: ss.Client, tmp_path: Path) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}))
    client.fetch(job, tmp_path / "one", files="state/*")
    client.fetch(job, tmp_path / "several", files=["manifest.json", "state/*"])
    assert [each.name for each in (tmp_path / "one").iterdir()] == ["state"]
    assert sorted(each.name for each in (tmp_path / "several").iterdir()) == ["manifest.json", "state"]


def test_a_client_says_what_is_wrong_with_its_address() -> None:
    with pytest.raises(UsageError, match="certificate"):
        Client("https://127.0.0.1:1", "x", certificate="nowhere")
    with Client("http://127.0.0.1:1", "x", patience=0) as client, pytest.raises(ServiceError, match="does not respond"):
        client.jobs()


# Repeating


class Script(BaseHTTPRequestHandler):
    """Answers the requests with `answers` in turn: a status with headers, or no answer at all."""

    answers: ClassVar[list[tuple[int, dict[str, str]] | None]]
    seen: ClassVar[list[tuple[str, str | None, bytes]]]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        type(self).seen.append((self.path, self.headers["Idempotency-Key"], content))
        found = self.answers.pop(0)
        if found is None:
            self.close_connection = True
            return
        status, headers = found
        body = json.dumps(BODIES.get(self.path, {})).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PATCH = do_DELETE = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


BODIES = {
    "/api/v1/stores/s/layers/l?channel_axis=-1": {
        "store": "s",
        "layer": "l",
        "start": 0,
        "stop": 2,
        "repeated": True,
    },
    "/api/v1/uploads": {"id": "0" * 64, "bytes": 7, "owners": ["ann"], "uploaded": 0.0},
}


@contextmanager
def scripted(*answers: tuple[int, dict[str, str]] | None) -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    """A server that gives these answers; its address, and what it is sent."""
    seen: list[tuple[str, str | None, bytes]] = []
    handler = type("Handler", (Script,), {"answers": [*answers], "seen": seen})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


class Sleeper:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    found = Sleeper()
    made = partial(Trial, monotonic=lambda: found.now, sleep=found.sleep)
    monkeypatch.setattr(clients, "Trial", made)
    return found


OUTAGE = [None, (502, {}), (503, {"Retry-After": "7"}), None, None, (504, {}), (429, {})]


def test_activations_are_sent_again_with_their_key_until_they_are_acknowledged(sleeper: Sleeper) -> None:
    said: list[str] = []
    with scripted(*OUTAGE, (201, {})) as (url, seen), Client(url, "x", say=said.append) as client:
        assert client.ingest("s", "l", np.ones((2, 3), np.float32)).repeated
    assert len(seen) == len(OUTAGE) + 1
    assert len(set(seen)) == 1
    assert seen[0][1]
    assert sleeper.slept == [0.5, 1.0, 7.0, 4.0, 8.0, 10.0, 10.0]
    assert len(said) == 1
    assert "trying again for 120 s" in said[0]


def test_an_upload_is_sent_again_from_its_beginning(sleeper: Sleeper, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    with scripted(*OUTAGE, (201, {})) as (url, seen), Client(url, "x") as client:
        assert client.upload(tmp_path / "x").bytes == 7
    assert sleeper.now > 7
    assert {content for _, _, content in seen} == {b"content"}
    assert len(seen) == len(OUTAGE) + 1


def test_a_client_gives_up_after_the_time_that_it_was_given(sleeper: Sleeper) -> None:
    with Client("http://127.0.0.1:1", "x", patience=60) as client:
        with pytest.raises(ServiceError, match="does not respond"):
            client.ingest("s", "l", np.ones((2, 3), np.float32))
        assert sleeper.now == 60
        with pytest.raises(ServiceError, match="does not respond"):
            client.jobs()
        assert sleeper.now == 65  # somebody waits for the answer


def test_a_client_does_not_wait_for_what_comes_after_its_time(sleeper: Sleeper) -> None:
    with (
        scripted((503, {"Retry-After": "3600"})) as (url, seen),
        Client(url, "x") as client,
        pytest.raises(ServiceError, match="503"),
    ):
        client.ingest("s", "l", np.ones((2, 3), np.float32))
    assert len(seen) == 1
    assert not sleeper.slept


@pytest.mark.usefixtures("sleeper")
@pytest.mark.parametrize("first", [None, (504, {})])
def test_what_the_first_request_deleted_is_deleted_though_its_answer_was_lost(
    first: tuple[int, dict[str, str]] | None,
) -> None:
    with scripted(first, (404, {}), (404, {}), (429, {}), (404, {})) as (url, seen), Client(url, "x") as client:
        client.delete_store("s")
        for _ in ("at once", "after a request that was not carried out"):
            with pytest.raises(RefusedError):
                client.delete_store("s")
    assert len(seen) == 5


def test_what_is_refused_is_not_sent_again(sleeper: Sleeper) -> None:
    for status, error in ((422, RefusedError), (507, ServiceError), (500, ServiceError)):
        with scripted((status, {})) as (url, seen), Client(url, "x") as client, pytest.raises(error):
            client.ingest("s", "l", np.ones((2, 3), np.float32))
        assert len(seen) == 1
    assert not sleeper.slept


UNKEYED = {
    "cancel": lambda client: client.cancel("0" * 16),
    "describe": lambda client: client.describe("0" * 16, name="x"),
    "new token": lambda client: client.new_token("ann"),
    "rotate": lambda client: client.rotate_token("ann"),
    "prune": lambda client: client.prune(),
}


@pytest.mark.parametrize("answer", [None, (502, {}), (503, {}), (504, {})], ids=str)
@pytest.mark.parametrize("ask", UNKEYED.values(), ids=UNKEYED)
def test_what_may_have_been_carried_out_is_not_sent_again_without_a_key(
    sleeper: Sleeper, ask: Callable[[Client], object], answer: tuple[int, dict[str, str]] | None
) -> None:
    with scripted(answer, (200, {})) as (url, seen), Client(url, "x") as client, pytest.raises(ServiceError) as caught:
        ask(client)
    assert len(seen) == 1
    assert not sleeper.slept
    assert answer is not None or "whether it carried out the request" in str(caught.value)


@pytest.mark.parametrize("ask", UNKEYED.values(), ids=UNKEYED)
def test_what_was_not_carried_out_is_sent_again(sleeper: Sleeper, ask: Callable[[Client], object]) -> None:
    with (
        scripted((503, {"Retry-After": "1"}), (429, {}), (422, {})) as (url, seen),
        Client(url, "x") as client,
        pytest.raises(RefusedError),
    ):
        ask(client)
    assert len(seen) == 3
    sleeper.now = 0
    with Client("http://127.0.0.1:1", "x") as client, pytest.raises(ServiceError, match="does not respond"):
        ask(client)
    assert sleeper.now == 5


def test_what_changes_nothing_more_is_sent_again_after_a_lost_answer(sleeper: Sleeper) -> None:
    for ask in (lambda client: client.tokens(), lambda client: client.revoke_token("ann")):
        with scripted(None, (502, {}), (422, {})) as (url, seen), Client(url, "x") as client:
            with pytest.raises(RefusedError):
                ask(client)
            assert len(seen) == 3
    assert sleeper.slept
