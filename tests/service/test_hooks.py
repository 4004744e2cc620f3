"""Hooks: signed webhooks and commands at the end of a job, none of which a request can choose freely."""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from served import STORE, served, wait_until

from streamstats.errors import UsageError
from streamstats.service.client import RefusedError
from streamstats.service.database import Database
from streamstats.service.errors import DamagedError
from streamstats.service.faults import Faults
from streamstats.service.hooks import Command, DeliveryError, Hook, Webhook, secret_in, signature
from streamstats.service.job_table import JobTable, Submitted
from streamstats.service.notices import Notices
from streamstats.service.settings import HookConfig

REQUEST = {"kind": "run", "source": STORE}


class Receiver(ThreadingHTTPServer):
    """Answers with `statuses`, one after the other, and 200 then; remembers what it got."""

    def __init__(self, statuses: Sequence[int] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Received)
        self.statuses, self.got = list(statuses), list[tuple[dict[str, str], bytes]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?x=1"


class Received(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        raise AssertionError("a redirection was followed")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    with Receiver(statuses) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


def openssl(secret: bytes, signed: bytes) -> str:
    """The HMAC-SHA256, by another program."""
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{secret.hex()}", "-binary"]
    return base64.b64encode(subprocess.run(command, input=signed, capture_output=True, check=True).stdout).decode()


def test_signatures_are_those_of_standard_webhooks() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the example of its specification
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_hooks_are_told_of_the_jobs_that_they_are_for(tmp_path: Path) -> None:
    script = tmp_path / "told"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/$STREAMSTATS_NOTICE.json\nenv > {tmp_path}/environment\n")
    script.chmod(0o700)
    with receiving(500) as receiver:
        hooks = {
            "all": {"url": receiver.url, "every_job": True},
            "failures": {"url": receiver.url, "every_job": True, "states": ["failed"]},
            "asked": {"command": [str(script)]},
        }
        with served(tmp_path / "service", hooks=hooks) as service, service.client() as client:
            assert client._json("GET", "")["hooks"] == ["all", "asked", "failures"]
            with pytest.raises(RefusedError, match="1 to 64 ASCII letters"):
                client.submit({**REQUEST, "notify": [receiver.url]})
            with pytest.raises(RefusedError, match="`notify` names 'other'"):
                client.submit({**REQUEST, "notify": ["other"]})
            job = client.wait(client.submit({**REQUEST, "notify": ["asked", "asked"], "name": "n", "tags": ["t"]}).id)
            assert job.notify == ["asked"]
            wait_until(lambda: len(receiver.got) == 2)  # the first attempt failed
            wait_until(lambda: len(list(tmp_path.glob("*.json"))) == 1)
            secret_file = service.data / "hooks" / "all"
            assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
            secret = base64.b64decode(secret_file.read_text().strip().removeprefix("whsec_"))
            (headers, body), (again, same) = receiver.got
            wait_until(lambda: (tmp_path / "environment").exists() and "PATH" in (tmp_path / "environment").read_text())
    assert (headers["webhook-id"], body) == (again["webhook-id"], same)
    signed = f"{again['webhook-id']}.{again['webhook-timestamp']}.".encode() + body
    assert again["webhook-signature"] == f"v1,{openssl(secret, signed)}"
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["name"], told["data"]["tags"]) == (
        "job.done",
        job.id,
        "n",
        ["t"],
    )
    assert "request" not in told["data"]
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["data"]["id"] == job.id
    assert "STREAMSTATS_TOKEN" not in (tmp_path / "environment").read_text()


# Retrying


class Failing:
    """Fails a number of times."""

    def __init__(self, times: int) -> None:
        self.left, self.numbers = times, list[str]()

    def tell(self, number: str, _body: bytes) -> None:
        self.numbers.append(number)
        if self.left:
            self.left -= 1
            raise DeliveryError("not now")


def ended(database: Database, hooks: Sequence[str]) -> JobTable:
    """A table with the job `a`, which has just ended."""
    table = JobTable(database, told=lambda _state, _named: hooks)
    table.add("a", Submitted({"submitter": "ann", "kind": "run", "priority": 0, "source": "x"}, None))
    table.update("a", "done", logged=True, state="done", ended=1.0)
    return table


def waiting(database: Database) -> int:
    return len(database.query("SELECT 1 FROM notices"))


def test_a_notice_is_tried_again_and_given_up_with_the_reason(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    table = ended(database, ["works", "fails", "breaks"])
    works, fails = Failing(2), Failing(100)
    hooks: dict[str, Hook] = {"works": works, "fails": fails, "breaks": Failing(0)}
    notices = Notices(database, table, hooks, Faults(), pauses=(0.01, 0.01, 0.01))
    notices.start()
    wait_until(lambda: waiting(database) == 0)
    notices.stop()
    assert (len(works.numbers), len(set(works.numbers))) == (3, 1)
    assert len(fails.numbers) == 4
    assert [each["text"] for each in table.events("a")] == [
        "done",
        "the hook fails could not be told in 4 attempts: not now",
    ]


def test_a_notice_outlives_the_service_and_the_job(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    table = ended(database, ["later", "gone"])
    table.delete("a")
    later = Failing(0)
    notices = Notices(Database(tmp_path / "db"), table, {"later": later}, Faults())
    notices.start()
    wait_until(lambda: waiting(database) == 0)  # nothing is left for the hook that is not configured any more
    notices.stop()
    assert len(later.numbers) == 1


def test_what_keeps_notices_of_former_hooks_is_shown_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, faults = Database(tmp_path / "db"), Faults()
    notices = Notices(database, ended(database, ["gone"]), {}, faults)
    with monkeypatch.context() as damaged:
        damaged.setattr(database, "query", lambda _: raised(DamagedError("service.sqlite is damaged")))
        notices.start()
        wait_until(lambda: faults.listed() == ["notices of former hooks: service.sqlite is damaged"])
    wait_until(lambda: not faults.listed())
    notices.stop()
    assert waiting(database) == 0


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("status", [301, 404, 500])
def test_a_webhook_that_does_not_answer_with_success_is_an_error(status: int) -> None:
    with receiving(status) as receiver, pytest.raises(DeliveryError, match=str(status)):
        Webhook(receiver.url, b"x" * 32, 10).tell("1", b"{}")


def test_a_webhook_that_never_ends_its_answer_is_bounded_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                while not stop.wait(0.05):  # each byte in time, for ever
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(DeliveryError, match="no answer within"):
                Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"x" * 32, 0.5).tell("1", b"{}")
        finally:
            stop.set()
            thread.join()


def test_a_webhook_that_nobody_answers_is_an_error() -> None:
    with pytest.raises(DeliveryError, match="ConnectError"):
        Webhook("http://127.0.0.1:1/", b"x" * 32, 10).tell("1", b"{}")


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(DeliveryError, match="did not end within"):
        Command(("/bin/sh", "-c", script), 1.0).tell("1", b"{}")
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("words", "said"), [(("/bin/false",), "status 1"), (("/nonexistent",), "cannot start"), (("/bin/true",), "")]
)
def test_a_command_tells_by_its_status(words: tuple[str, ...], said: str) -> None:
    if not said:
        Command(words, 10.0).tell("1", b"x" * 2**20)  # which it does not read
        return
    with pytest.raises(DeliveryError, match=said):
        Command(words, 10.0).tell("1", b"{}")


# Configuring


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "http://a/", "command": [sys.executable]},
        {"url": "file:///etc/passwd"},
        {"url": "ftp://a/"},
        {"url": "http:///path"},
        {"url": "http://user:password@a/"},
        {"url": "http://a:99999/"},
        {"url": "http://a/\nx"},
    ],
)
def test_hooks_that_cannot_be_told_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"hooks\.chat"):
        HookConfig.model_validate(wrong).check("chat")


def test_a_command_that_cannot_be_started_is_refused_with_the_reason(tmp_path: Path) -> None:
    script = tmp_path / "archive"
    for program, said in (
        ("archive", "expected the full path"),
        (str(script), "no such program"),
        (str(tmp_path), "no such program"),
        (str(script), "chmod"),
    ):
        with pytest.raises(UsageError, match=rf"hooks\.chat\.command begins with {program}\b.*{said}"):
            HookConfig(command=[program]).check("chat")
        if program == str(tmp_path):
            script.touch(mode=0o600)


@pytest.mark.parametrize("wrong", [{"command": []}, {"states": ["ended"]}, {"seconds": 0}, {"url": 3}, {"secret": "x"}])
def test_wrong_keys_of_hooks_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HookConfig.model_validate({"url": "http://a/", **wrong})


def test_a_secret_that_others_can_read_or_guess_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert len(secret_in(path)) == 32 == len(secret_in(path))
    os.chmod(path, 0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        secret_in(path)
    os.chmod(path, 0o600)
    for text in ("", "whsec_", "secret", "whsec_c2hvcnQ=", "whsec_é"):
        path.write_text(text)
        with pytest.raises(UsageError, match="no secret of a webhook"):
            secret_in(path)
