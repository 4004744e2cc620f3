"""The client: what it trusts, and which error says what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from served import STORE

import streamstats as ss
from streamstats.errors import FAILURE, DataError, OutputError, ServiceError, UsageError
from streamstats.service import client as clients
from streamstats.service.client import Client, RefusedError


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every request in the same way; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [500, 502, 503, 507])
def test_a_service_that_fails_is_a_service_error(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WAIT_SECONDS", 0)
    body = json.dumps({"detail": "the reason"}).encode()
    with answering(status, body) as url, Client(url, "x") as client:
        for ask in (client.jobs, lambda: list(client.events("0" * 16))):
            with pytest.raises(ServiceError, match=f"{status}.*the reason") as caught:
                ask()
            assert not isinstance(caught.value, OutputError)  # which is about this machine's disk
            assert caught.value.exit_status == FAILURE


def test_an_answer_that_is_not_ours_is_shown() -> None:
    with answering(404, b"<h1>Not here</h1>") as url, Client(url, "x") as client:
        with pytest.raises(RefusedError, match="<h1>Not here") as caught:
            client.jobs()
        assert caught.value.status == 404


def test_a_client_trusts_no_file_that_is_not_what_it_says(
    client: ss.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id)
    asked = Client._json

    def lying(self: Client, method: str, path: str, **options: object) -> dict[str, object]:
        found = asked(self, method, path, **options)  # type: ignore[arg-type]
        if path.endswith("/files"):
            found["files"] = changed
        return found

    monkeypatch.setattr(Client, "_json", lying)
    changed = {"manifest.json": "0" * 64}
    with pytest.raises(DataError, match="does not match its SHA-256"):
        client.fetch(job.id, tmp_path / "a")
    changed = {"../outside": "0" * 64}
    with pytest.raises(DataError, match="outside"):
        client.fetch(job.id, tmp_path / "b")
    assert not (tmp_path / "outside").exists()


def test_a_client_says_what_is_wrong_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WAIT_SECONDS", 0)
    with pytest.raises(UsageError, match="certificate"):
        Client("https://127.0.0.1:1", "x", certificate="nowhere")
    with Client("http://127.0.0.1:1", "x") as client, pytest.raises(ServiceError, match="does not respond"):
        client.jobs()
