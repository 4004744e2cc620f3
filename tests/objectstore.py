"""An S3 server on this machine, and a proxy in front of it that fails as real ones do."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

FAULTS = ("500", "503", "reset", "truncated", "slow")
SLOW_SECONDS = 0.5


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of an S3 server that starts empty."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(port)
        yield port
    finally:
        process.kill()
        process.wait()


def new_bucket(port: int, name: str) -> None:
    """Make the bucket `name` in the server at `port`."""
    urlopen(Request(f"http://127.0.0.1:{port}/{name}", method="PUT"), timeout=60).close()


def _wait_until_it_listens(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the S3 server did not start")


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the server at `port`; a `share` of those that read chunks meet a fault, all a `latency`."""

    daemon_threads = True

    def __init__(self, port: int, *, share: float = 0.0, latency: float = 0.0, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.share = share
        self.latency = latency
        self.random = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str | None] = []
        """What each GET of a chunk asked for."""
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _hand_on(self) -> None:
        self.server.requests.append((self.command, self.path))
        if self.command == "GET" and "/c/" in self.path:
            self.server.ranges.append(self.headers.get("Range"))
        time.sleep(self.server.latency)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = HTTPConnection("127.0.0.1", self.server.target)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        fault = self._fault()
        if fault in ("500", "503"):
            self._answer(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault == "truncated":
            self._answer(answer.status, dict(answer.getheaders()), content, cut=len(content) // 2)
        else:
            time.sleep(SLOW_SECONDS if fault == "slow" else 0)
            self._answer(answer.status, dict(answer.getheaders()), content)
        upstream.close()

    def _fault(self) -> str | None:
        if self.server.random.random() >= self.server.share:
            return None
        fault = self.server.random.choice(FAULTS)
        self.server.met[fault] += 1
        return fault

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _hand_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Silence."""
