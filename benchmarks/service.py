"""The service under load: what pollers and event streams cost a job, ingest against the store alone, long lists.

Each comparison is taken in turn in one run. Clients are processes of their own, and share the machine with the service.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import machine
from stores import working_folder
from tables import Table, show, show_json

from streamstats import Client, Recorder
from streamstats.service.database import Database

POLLERS, STREAMS, POLL_SECONDS = 100, 20, 1.0
WRITERS, BODY_ROWS, SAMPLE = 16, 64, (14, 14, 20)
"""Bodies of 1 MB."""
JOBS = 10_000
SPAWN = get_context("spawn")
NOTES = (
    f"watched: {POLLERS} clients that ask for the job every {POLL_SECONDS:g} s and {STREAMS} that follow its events, "
    "in a process of their own on the same cores; seconds from its beginning to its end, medians, in turn.",
    f"ingest: {WRITERS} clients at once, each request acknowledged when its rows are on the disk (fsync); the store "
    "alone: one `Recorder` that appends the same blocks, without fsync.",
)


@dataclass(frozen=True)
class Service:
    """A service that runs."""

    port: int
    token: str

    def client(self) -> Client:
        """For what is not measured."""
        return Client(f"http://127.0.0.1:{self.port}", self.token)

    def request(self, path: str, extra: str = "") -> bytes:
        """A GET as bytes."""
        return (
            f"GET /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.token}\r\n{extra}\r\n"
        ).encode()


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    repeats = 1 if options.quick else options.repeats
    about = machine()
    with working_folder(options.folder) as folder:
        print("writing a store …", file=sys.stderr)
        (folder / "roots").mkdir()
        _write_store(folder / "roots" / "store.zarr", int((0.05 if options.quick else options.size) * 1e9))
        with serving(folder) as service:
            print("measuring jobs …", file=sys.stderr)
            seconds = _jobs(service, repeats)
            print("measuring ingest …", file=sys.stderr)
            rates = _ingest(service, folder, 2 if options.quick else options.bodies, repeats)
        print("measuring lists …", file=sys.stderr)
        _fill(folder / "data" / "service.sqlite")
        with serving(folder) as service:
            lists = {limit: _listed(service, limit) for limit in (100, 1000)}
    found = {"machine": about, "job_seconds": seconds, "ingest_bytes_per_second": rates, "list_seconds": lists}
    if options.json:
        show_json(found)
    else:
        show(_tables(seconds, rates, lists), about, NOTES, markdown=options.markdown)


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """A service with its data in `folder`."""
    config = folder / "service.yaml"
    config.write_text(f"data: {folder}/data\nroots: [{folder}/roots]\nport: 0\nlimits: {{free: 1MiB}}\n")
    command = [sys.executable, "-m", "streamstats", "serve", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"serving \S+:(\d+);", line) for line in process.stderr)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Service(int(found[1]), (folder / "data" / "token").read_text().strip())
    finally:
        process.terminate()
        process.wait()


def _write_store(path: Path, size: int) -> None:
    block = _block(0)
    with Recorder(path) as recorder:
        for index in range(max(1, size // block.nbytes)):
            recorder.append(f"layer{index % 8}", block)


def _block(seed: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).normal(size=(BODY_ROWS, *SAMPLE)).astype(np.float32)
    return np.maximum(values, 0)


# Jobs


def _jobs(service: Service, repeats: int) -> dict[str, list[float]]:
    """Seconds of a job, alone and watched, in turn; the first of each does not count."""
    seconds: dict[str, list[float]] = {"alone": [], "watched": []}
    with service.client() as client:
        for _ in range(repeats + 1):
            seconds["alone"].append(_job_seconds(client, None))
            seconds["watched"].append(_job_seconds(client, service))
    return {name: found[1:] for name, found in seconds.items()}


def _job_seconds(client: Client, watched: Service | None) -> float:
    job = client.submit({"kind": "run", "source": "store.zarr"})
    stop = SPAWN.Event()
    watchers = None
    if watched is not None:
        watchers = SPAWN.Process(target=_watch, args=(watched, job.id, stop))
        watchers.start()
    while client.job(job.id).ended is None:
        time.sleep(0.2)
    stop.set()
    if watchers is not None:
        watchers.join()
    done = client.job(job.id)
    assert done.state == "done", done
    assert done.started is not None
    assert done.ended is not None
    return done.ended - done.started


def _watch(service: Service, job: str, stop: Any) -> None:
    asyncio.run(_watch_all(service, job, stop))


async def _watch_all(service: Service, job: str, stop: Any) -> None:
    tasks = [asyncio.create_task(_poll(service, job, index / POLLERS)) for index in range(POLLERS)]
    tasks += [asyncio.create_task(_listen(service, job)) for _ in range(STREAMS)]
    while not stop.is_set():
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _poll(service: Service, job: str, delay: float) -> None:
    await asyncio.sleep(delay * POLL_SECONDS)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    while True:
        writer.write(service.request(f"/jobs/{job}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        await asyncio.sleep(POLL_SECONDS)


async def _listen(service: Service, job: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(service.request(f"/jobs/{job}/events"))
    while await reader.read(2**16):
        pass


# Ingest


def _ingest(service: Service, folder: Path, bodies: int, repeats: int) -> dict[str, list[float]]:
    """Bytes a second, the store alone and through the service, in turn."""
    rates: dict[str, list[float]] = {"store": [], "service": []}
    for number in range(repeats + 1):
        rates["store"].append(_store_rate(folder / f"alone{number}.zarr", bodies))
        rates["service"].append(_service_rate(service, f"s{number}", bodies))
    return {name: found[1:] for name, found in rates.items()}


def _store_rate(path: Path, bodies: int) -> float:
    blocks = [_block(seed) for seed in range(WRITERS)]
    start = time.perf_counter()
    with Recorder(path) as recorder:
        for _ in range(bodies):
            for block in blocks:
                recorder.append("layer", block)
    return bodies * sum(block.nbytes for block in blocks) / (time.perf_counter() - start)


def _service_rate(service: Service, store: str, bodies: int) -> float:
    ready, go = SPAWN.Barrier(2), SPAWN.Barrier(2)
    clients = SPAWN.Process(target=_send_all, args=(service, store, bodies, ready, go))
    clients.start()
    ready.wait()
    start = time.perf_counter()
    go.wait()
    clients.join()
    seconds = time.perf_counter() - start
    assert clients.exitcode == 0
    with service.client() as client:
        assert client.store(store).rows == bodies * WRITERS * BODY_ROWS
    return bodies * WRITERS * _block(0).nbytes / seconds


def _send_all(service: Service, store: str, bodies: int, ready: Any, go: Any) -> None:
    threads = [threading.Thread(target=_send, args=(service, store, number, bodies)) for number in range(WRITERS)]
    ready.wait()
    go.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _send(service: Service, store: str, number: int, bodies: int) -> None:
    content = io.BytesIO()
    np.save(content, _block(number))
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    for index in range(bodies):
        headers = {"Authorization": f"Bearer {service.token}", "Idempotency-Key": f"{number}-{index}"}
        connection.request("POST", f"/api/v1/stores/{store}/layers/layer", content.getvalue(), headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        answer.read()


# Lists


def _fill(path: Path) -> None:
    request = json.dumps({"kind": "run", "source": "store.zarr", "submitter": "many", "priority": 0, "follow": None})
    rows = [(f"{number:016x}", request, float(number), number, number + 1.0) for number in range(JOBS)]
    with Database(path).writing() as connection:
        connection.executemany(
            "INSERT INTO jobs (id, submitter, request, kind, state, submitted, follows, started, ended, rows, "
            "total_rows, message) VALUES (?, 'many', ?, 'run', 'done', ?, 0, ?, ?, 1000, 1000, 'done; 8 layers')",
            rows,
        )


def _listed(service: Service, limit: int) -> list[float]:
    """Seconds to get so many of the newest of the jobs, from a client's side."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    seconds = []
    for _ in range(21):
        start = time.perf_counter()
        headers = {"Authorization": f"Bearer {service.token}"}
        connection.request("GET", f"/api/v1/jobs?limit={limit}&state=done", headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        seconds.append(time.perf_counter() - start)
        assert len(json.loads(content)["jobs"]) == limit
    return seconds[1:]


def _tables(
    seconds: dict[str, list[float]], rates: dict[str, list[float]], lists: dict[int, list[float]]
) -> list[Table]:
    alone, watched = (median(seconds[name]) for name in ("alone", "watched"))
    store, service = (median(rates[name]) / 1e6 for name in ("store", "service"))
    jobs = [["alone", f"{alone:.2f}", ""], ["watched", f"{watched:.2f}", f"{watched / alone - 1:+.1%}"]]
    ingest = [["the store alone", f"{store:.0f}", ""], ["the service", f"{service:.0f}", f"{service / store:.2f}"]]
    listed = [[f"{limit} of {JOBS:,}", f"{median(found) * 1e3:.1f}"] for limit, found in lists.items()]
    return [
        Table("A job", ["", "seconds", "cost"], jobs),
        Table("Ingest", ["", "MB/s", "of the store's"], ingest),
        Table("Listing finished jobs", ["jobs", "ms"], listed),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, help="GB of the store that the job reduces")
    parser.add_argument("--bodies", type=int, default=60, help="1 MB bodies of each of the 16 clients")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="does it work?")
    parser.add_argument("--folder", type=Path, help="for temporary data")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
