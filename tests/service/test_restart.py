"""Killed at any moment: every accepted job ends with the bytes of an undisturbed run, every acknowledged request counts
once.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from served import Served, npy, small_store, wait_until

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.jobs.run import run

ROWS, CHANNELS, WRITERS = 8, 6, 4
LAYERS = ("a", "b/c")
Array = np.ndarray[Any, Any]


def block(key: str) -> Array:
    seed = np.frombuffer(key.encode(), np.uint8)
    return np.random.default_rng(seed).normal(size=(ROWS, 4, CHANNELS)).astype(np.float32)


def slow_store(path: Path) -> Path:
    """Thousands of small files."""
    values = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    with ss.Recorder(path, chunk_bytes=128) as recorder:
        recorder.append("many", values)
    return path


class Writer(threading.Thread):
    """Sends activations until it is stopped or nobody answers; `acknowledged` are the keys that were answered."""

    def __init__(self, service: Served, number: int, unsure: list[str], count: int) -> None:
        super().__init__()
        self.service, self.number, self.unsure, self.count = service, number, unsure, count
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        """What was not acknowledged is sent first, with the same key."""
        keys = [*self.unsure, *(f"{self.number}-{self.count + index}" for index in range(10_000))]
        with self.service.http() as http:
            for key in keys:
                self.unsure[:] = [key]
                layer = LAYERS[sum(key.encode()) % 2]
                try:
                    answer = http.post(
                        f"/api/v1/stores/s/layers/{layer}", content=npy(block(key)), headers={"Idempotency-Key": key}
                    )
                except httpx.TransportError:
                    return
                if answer.status_code == 503:  # it is being stopped
                    return
                assert answer.status_code in (200, 201), answer.text
                found = answer.json()
                self.acknowledged[key] = (found["start"], found["stop"])
                self.unsure.clear()
                if self.stopped.is_set():
                    return


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_any_moment_nothing_is_lost_and_nothing_counts_twice(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    service = Served(tmp_path / "service", limits={"running_jobs": 2})
    slow_store(service.roots / "slow.zarr")
    jobs: list[str] = []
    sent: dict[str, tuple[int, int]] = {}
    unsure: list[list[str]] = [[] for _ in range(WRITERS)]
    follower = ""
    for kill in range(kills + 1):
        service.start()
        writers = [Writer(service, number, unsure[number], 1000 * kill) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        with service.client() as client:
            jobs.append(client.submit({"kind": "run", "source": "slow.zarr", "submitter": str(kill % 3)}).id)
            if not follower:
                wait_until(lambda: any(writer.acknowledged for writer in writers))  # noqa: B023
                follower = client.submit({"kind": "run", "source": "store:s", "follow": {"idle": 3.0}}).id
        if kill < kills:
            threading.Event().wait(moments.uniform(0.0, 3.0))
            service.kill()
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.join()
            sent |= writer.acknowledged
    try:
        check(service, tmp_path, [*jobs, follower], sent)
    finally:
        assert service.stop() == 0


def check(service: Served, folder: Path, jobs: list[str], sent: dict[str, tuple[int, int]]) -> None:
    """All jobs are done with the bytes of undisturbed runs, over the rows that were acknowledged."""
    run(JobConfig(source=str(service.roots / "slow.zarr"), output=str(folder / "undisturbed")).job())
    with service.client() as client:
        for number, name in enumerate(jobs):
            found = client.wait(name)
            assert found.state == "done", found
            client.fetch(name, folder / str(number))
        rows = client.store("s").layers
    expected = (folder / "undisturbed/correctors/many.safetensors").read_bytes()
    for number in range(len(jobs) - 1):
        assert (folder / f"{number}/correctors/many.safetensors").read_bytes() == expected
    for layer in LAYERS:
        mine = sorted((where, key) for key, where in sent.items() if LAYERS[sum(key.encode()) % 2] == layer)
        starts = [where[0] for where, _ in mine]
        assert starts == list(range(0, rows[layer], ROWS)), (
            "each acknowledged request has rows of its own, and no others"
        )
        stats = ss.BiasCorrector.load(folder / f"{len(jobs) - 1}/correctors" / f"{layer}.safetensors")
        assert isinstance(stats, ss.MeanBiasCorrector)
        np.testing.assert_array_equal(stats.input_mean, ss.prepare_input_mean([block(key) for _, key in mine]))


def test_sigterm_drains(tmp_path: Path) -> None:
    service = Served(tmp_path / "service")
    slow_store(service.roots / "slow.zarr")
    small_store(service.roots / "small.zarr")
    service.start()
    with service.client() as client:
        running = client.submit({"kind": "run", "source": "slow.zarr"}).id
        follower = client.submit({"kind": "run", "source": "small.zarr", "follow": {}}).id
        wait_until(lambda: client.job(follower).results is not None)
        writer = Writer(service, 0, [], 0)
        writer.start()
        wait_until(lambda: len(writer.acknowledged) > 3)
        heard: list[str] = []

        def listen() -> None:
            with service.http() as http, http.stream("GET", f"/api/v1/jobs/{follower}/events") as answer:
                heard.extend(answer.iter_lines())

        listener = threading.Thread(target=listen)
        listener.start()
        wait_until(lambda: bool(heard))
        service.process.send_signal(signal.SIGTERM)
        assert service.stop() == 0
    listener.join(10)
    assert not listener.is_alive()
    writer.join()
    assert not [line for line in service.said if '"error"' in line]
    assert not list((service.data / "jobs").glob("*/out/run.lock"))
    sure = [key for key in writer.acknowledged if key not in writer.unsure]
    service.start()
    with service.client() as client:
        assert sum(client.store("s").layers.values()) >= ROWS * len(sure)
        assert client.job(follower).state in ("queued", "running")
        assert client.wait(running).state == "done"
        client.cancel(follower)
    assert service.stop() == 0


def test_a_job_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    service = Served(tmp_path / "service")
    small_store(service.roots / "small.zarr")
    service.start()
    with service.client() as client:
        name = client.submit({"kind": "run", "source": "small.zarr", "follow": {"idle": 2.0}}).id
        wait_until(lambda: client.job(name).results is not None)
        for process in runners(service.process.pid):
            os.kill(process, signal.SIGKILL)
        found = client.wait(name)
        assert found.state == "done"
        assert found.attempts == 2
        assert client.layers(name)["layers"]["fc"]["rows"] == 32
    assert service.stop() == 0


def test_a_job_whose_process_always_dies_ends_with_the_reason(tmp_path: Path) -> None:
    service = Served(tmp_path / "service")
    small_store(service.roots / "small.zarr")
    service.start()
    with service.client() as client:
        name = client.submit({"kind": "run", "source": "small.zarr", "follow": {}}).id
        for attempt in range(1, 6):
            wait_until(lambda: client.job(name).attempts == attempt and bool(runners(service.process.pid)))  # noqa: B023
            for process in runners(service.process.pid):
                os.kill(process, signal.SIGKILL)
        found = client.wait(name)
    assert found.state == "failed"
    assert "status -9" in found.message
    assert "5 times" in found.message
    assert service.stop() == 0


def runners(service: int) -> list[int]:
    """The processes of jobs."""
    return [each.pid for each in psutil.Process(service).children() if "streamstats.service.runner" in each.cmdline()]
