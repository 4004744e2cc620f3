"""Connections: whoever opens them keeps nobody out, and none waits for ever."""

from __future__ import annotations

import re
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from served import Served, npy, served

from streamstats.service import connections
from streamstats.service.connections import Accepted, Gate, Phase
from streamstats.service.settings import Connections

HALF_OPEN = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"


@pytest.fixture
def limits() -> Connections:
    return Connections(most=4, per_address=3, head_seconds=10, body_seconds=20, idle_seconds=30)


class Clock:
    """The time that the gate sees."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(connections, "time", clock)
    return clock


class Door:
    """A gate, and clients that come from several addresses of this machine."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.clients: list[socket.socket] = []

    def enter(self, address: str = "127.0.0.1") -> tuple[socket.socket, Accepted]:
        """(the client, the connection), for a client that comes in."""
        client = self.knock(address)
        self.gate.settimeout(10)
        accepted, _ = self.gate.accept()
        assert isinstance(accepted, Accepted)
        return client, accepted

    def knock(self, address: str = "127.0.0.1") -> socket.socket:
        client = socket.create_connection(self.gate.getsockname(), 10, source_address=(address, 0))
        self.clients.append(client)
        return client


@pytest.fixture
def door(limits: Connections, clock: Clock) -> Iterator[Door]:
    assert clock.now == 0
    with Gate(limits, socket.AF_INET) as gate:
        gate.bind(("127.0.0.1", 0))
        gate.listen()
        door = Door(gate)
        yield door
        for each in (*door.clients, *gate._inside.copy()):
            each.close()


def is_dropped(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_stranger_who_waited_longest_makes_room(door: Door, clock: Clock) -> None:
    first, second, third = (door.enter() for _ in range(3))
    first[1].known = True
    first[1].enter(Phase.IDLE)
    clock.now = 1
    fourth = door.enter()  # of three per address
    assert [is_dropped(client) for client, _ in (first, second, third, fourth)] == [False, True, False, False]
    assert second[1].dropped


def test_who_is_known_makes_room_when_there_are_no_strangers(door: Door) -> None:
    inside = [door.enter() for _ in range(3)]
    for _, each in inside:
        each.known = True
        each.enter(Phase.IDLE)
    door.enter()
    assert [is_dropped(client) for client, _ in inside] == [True, False, False]


def test_a_request_in_progress_is_never_dropped_to_make_room(door: Door) -> None:
    inside = [door.enter() for _ in range(3)]
    for phase, (_, each) in zip((Phase.BODY, Phase.WORK, Phase.ANSWER), inside, strict=True):
        each.enter(phase)
    refused = door.knock()
    door.gate.setblocking(False)
    with pytest.raises(BlockingIOError):
        door.gate.accept()
    assert is_dropped(refused)
    assert not any(is_dropped(client) for client, _ in inside)
    assert not is_dropped(door.enter("127.0.0.2")[0])  # another address has room


def test_there_are_never_more_than_the_most_of_all_addresses(door: Door) -> None:
    inside = [door.enter(f"127.0.0.{number}") for number in range(1, 5)]
    late = door.knock("127.0.0.5")
    door.gate.setblocking(False)
    for _ in range(3):  # it waits until the descriptor of the one that was dropped is free
        with pytest.raises(BlockingIOError):
            door.gate.accept()
    assert [is_dropped(client) for client, _ in inside] == [True, False, False, False]
    inside[0][1].close()
    assert isinstance(door.gate.accept()[0], Accepted)
    assert not is_dropped(late)


def test_a_place_is_given_back_once(door: Door) -> None:
    for _ in range(20):
        inside = [door.enter() for _ in range(4)]
        for _, each in inside:
            each.close()
            each.close()
    assert not door.gate._inside
    assert not door.gate._of_group
    assert door.gate._leaving == 0


def test_a_client_that_comes_again_from_the_same_port_counts_once(door: Door) -> None:
    client, first = door.enter()
    port = client.getsockname()[1]
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()  # with a reset, after which the port is free at once
    again = socket.create_connection(door.gate.getsockname(), 10, source_address=("127.0.0.1", port))
    door.clients.append(again)
    second, peer = door.gate.accept()
    first.close()
    assert door.gate.find(peer) is second
    assert (len(door.gate._inside), door.gate._of_group) == (1, {"127.0.0.1": 1})


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [(Phase.HEAD, 10), (Phase.BODY, 25), (Phase.REST, 25), (Phase.ANSWER, 25), (Phase.IDLE, 30), (Phase.WORK, None)],
)
def test_each_phase_has_its_time(door: Door, clock: Clock, phase: Phase, seconds: float | None) -> None:
    client, connection = door.enter()
    clock.now = 100
    connection.enter(phase)
    clock.now += seconds or 1e6
    door.gate.sweep()
    assert not is_dropped(client)
    clock.now += 0.1
    door.gate.sweep()
    assert is_dropped(client) == (seconds is not None)


def test_a_flood_makes_one_line_a_minute_of_log(
    door: Door, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.log, "propagate", True)
    for _ in range(50):
        door.enter()
        door.gate.sweep()
        for each in [*door.gate._inside]:
            if each.dropped:
                each.close()
    assert len(caplog.records) == 1
    clock.now += 61
    door.gate.sweep()
    assert [each.dropped for each in caplog.records] == [1, 49]  # type: ignore[attr-defined]


SETTINGS = {"most": 60, "per_address": 50, "head_seconds": 1.5, "body_seconds": 1.0, "idle_seconds": 1.5}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("connections"), connections=SETTINGS) as service:
        yield service


def opened(service: Served, said: bytes) -> socket.socket:
    host, port = service.url.rpartition("/")[2].split(":")
    client = socket.create_connection((host, int(port)), 10)
    client.settimeout(30)
    client.sendall(said)
    return client


def heard(client: socket.socket) -> bytes:
    """What the service says until it ends the connection."""
    with closing(client):
        said = b""
        try:
            while some := client.recv(2**16):
                said += some
        except ConnectionResetError:
            pass
        return said


def ingest(http: httpx.Client, key: int) -> int:
    content = npy(np.ones((4, 3), np.float32))
    return http.post("/api/v1/stores/s/layers/l", content=content, headers={"Idempotency-Key": str(key)}).status_code


def flood(service: Served, number: int) -> None:
    """Half-open connections beside a client at work, and others that come in."""
    lines = len(service.said)
    with service.http() as http, ExitStack() as stack:
        assert ingest(http, 0) == 201
        strangers = []
        for each in range(number):
            strangers.append(stack.enter_context(opened(service, HALF_OPEN)))
            if each % (number // 8) == 0:
                assert ingest(http, each + 1) == 201
                assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert {heard(each) for each in strangers} == {b""}
        assert ingest(http, number + 1) == 201
    assert len(service.said) - lines < 20


def test_half_open_connections_keep_nobody_out_and_end(small: Served) -> None:
    flood(small, 400)


@pytest.mark.soak
def test_thousands_of_half_open_connections_keep_nobody_out_and_end(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with served(tmp_path) as service:
        flood(service, 5000)


def test_a_body_that_stops_to_arrive_ends_the_connection(small: Served) -> None:
    head = b"POST /api/v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    stranger = opened(small, head + b"\r\nbegins")
    known = opened(small, head + f"Authorization: Bearer {small.token}\r\n\r\nbegins".encode())
    answer = heard(stranger)
    assert answer.startswith(b"HTTP/1.1 401 ")
    answer = heard(known)
    assert b"no part of the body arrived for 1 s" in answer


@pytest.mark.soak
def test_what_is_sent_after_a_refusal_is_not_waited_for_by_the_byte(small: Served) -> None:
    stranger = opened(small, b"POST /api/v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    answer = stranger.recv(2**16)
    assert answer.startswith(b"HTTP/1.1 401 ")
    sent = 0
    stranger.settimeout(0.05)
    with closing(stranger):
        try:
            while sent < 10_000:  # 500 s, if each byte were progress
                stranger.sendall(b"x")
                sent += 1
                try:
                    if stranger.recv(1) == b"":
                        break
                except TimeoutError:
                    pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < 1000


def test_an_idle_connection_ends(small: Served) -> None:
    said = heard(opened(small, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert said.startswith(b"HTTP/1.1 200 OK")


def test_the_files_that_are_shipped_agree_with_the_defaults() -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert yaml.safe_load((configs / "service.yaml").read_text())["connections"] == Connections().model_dump()
    unit = (configs / "service/streamstats.service").read_text()
    found = re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    assert found
    assert int(found[1]) >= Connections().most + connections.RESERVED


def start(folder: Path, most: int, descriptors: int) -> subprocess.CompletedProcess[str]:
    config = folder / "service.yaml"
    document: dict[str, Any] = {"data": str(folder / "data"), "port": 0, "connections": {"most": most}}
    config.write_text(yaml.safe_dump(document))
    return subprocess.run(
        [sys.executable, "-m", "streamstats", "serve", str(config)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_too_few_descriptors_are_an_error_at_the_start_with_a_remedy(tmp_path: Path) -> None:
    ended = start(tmp_path, 1000, 800)
    assert ended.returncode == 2
    assert "may have 800 files open, too few for `connections.most: 1000` and 512 others" in ended.stderr
    assert "LimitNOFILE=" in ended.stderr
    assert "set `connections.most` to 288 or less" in ended.stderr


def test_a_soft_limit_on_descriptors_is_raised(monkeypatch: pytest.MonkeyPatch, limits: Connections) -> None:
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    connections.check_descriptors(limits)
    assert asked == [(limits.most + connections.RESERVED, 4096)]


@pytest.mark.parametrize(("soft", "hard"), [(4096, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)])
def test_a_limit_that_suffices_stays(
    monkeypatch: pytest.MonkeyPatch, limits: Connections, soft: int, hard: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", None)
    connections.check_descriptors(limits)
