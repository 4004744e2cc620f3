"""A service as people start it: `streamstats serve` in a process of its own, on a free port, with stores to read."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import yaml
from stores import build_store

import streamstats as ss

START_SECONDS = 60
STORE = "small.zarr"


class Served:
    """A service with its data in `folder`; `start` it again after an end."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.data, self.roots = folder, folder / "data", folder / "roots"
        self.roots.mkdir(parents=True, exist_ok=True)
        document = {"data": str(self.data), "roots": [str(self.roots)], "port": 0, **settings}
        self.config = folder / "service.yaml"
        self.config.write_text(yaml.safe_dump(document))
        self.said: list[str] = []
        self.shell = ""  # commands for the shell that starts it

    def start(self) -> Served:
        """Wait until it answers."""
        command = [sys.executable, "-m", "streamstats", "serve", str(self.config)]
        if self.shell:
            command = ["sh", "-c", f'{self.shell}; exec "$@"', "sh", *command]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"serving (https?)://\S+:(\d+); the token", line)
            if found:
                self.url = f"{found[1]}://127.0.0.1:{found[2]}"
                break
        else:
            raise AssertionError(f"the service did not start: {''.join(self.said)}")
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()
        return self

    def _read(self, lines: IO[str]) -> None:
        with lines:
            self.said.extend(lines)

    @property
    def token(self) -> str:
        return (self.data / "token").read_text().strip()

    def client(self) -> ss.Client:
        return ss.Client(self.url, self.token)

    def http(self, **options: Any) -> httpx.Client:
        """For what the client does not do."""
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def kill(self) -> None:
        """As the kernel does it when there is no memory left."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def stop(self) -> int:
        """As systemd does it; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(90)
        self._reader.join()
        return status


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Served]:
    """A service with the store STORE below its root."""
    service = Served(folder, **settings)
    small_store(service.roots / STORE)
    service.start()
    try:
        yield service
    finally:
        service.stop()
        errors = [line for line in service.said if '"level": "error"' in line]
        assert not errors, errors


def small_store(path: Path) -> Path:
    """Two layers, one of them of codes."""
    generator = np.random.default_rng(7)
    layers = {
        "block1/conv": generator.normal(size=(32, 5, 5, 6)).astype(np.float32),
        "fc": generator.integers(-128, 128, (32, 10)).astype(np.int8),
    }
    quantization = {"step": 0.5, "zero_point": 3}
    return build_store(path, layers, attributes={"fc": {"quantization": quantization}})


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes of a `.npy` file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Until it is `true`; an error after so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.05)
