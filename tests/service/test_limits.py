"""Jobs have limits, which the operating system enforces where it can, and end in time; each says why."""

from __future__ import annotations

import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from served import STORE, Served, small_store, wait_until

import streamstats as ss
from streamstats.errors import UsageError
from streamstats.progress import QUIET
from streamstats.service import jobs, processes
from streamstats.service.clock import Clock
from streamstats.service.database import Database
from streamstats.service.job_table import JobTable, Submitted
from streamstats.service.memory import check_archive
from streamstats.service.messages import RunRequest
from streamstats.service.queueing import Waiting, next_job
from streamstats.service.runner import wait_for_layers
from streamstats.service.service import Service
from streamstats.service.settings import Limits, ServiceConfig
from streamstats.service.tokens import Caller

ADMIN = Caller("admin", "admin")
MEMORY = 512 * 2**20
ENDLESS = 2**50
RUN = RunRequest.model_validate({"kind": "run", "source": STORE})
FOLLOWING = RunRequest.model_validate({"kind": "run", "source": STORE, "follow": {}})


def model(path: Path, nodes: list[Any], *constants: Any) -> Path:
    """x[samples, 1] → y, by `nodes`; their last output, h[…, 8], is multiplied by a weight."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 2], [0.5] * 16)
    last = helper.make_node("MatMul", ["h", "w"], ["y"], "layer")
    graph = helper.make_graph(
        [*nodes, last],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["samples", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, *constants],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def greedy(path: Path) -> Path:
    """Takes 8 GiB for each sample."""
    shape = helper.make_tensor("s", TensorProto.INT64, [3], [1, 2**28, 8])
    return model(path, [helper.make_node("Expand", ["x", "s"], ["h"])], shape)


def endless(path: Path) -> Path:
    """Computes for years."""
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("in", "out")]
    trip = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    before, after = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c", "d"))
    steps = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["in"], ["out"])]
    body = helper.make_graph(steps, "body", [trip, before, numbers[0]], [after, numbers[1]])
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [], [ENDLESS]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("s", TensorProto.INT64, [2], [1, 8]),
    ]
    nodes = [
        helper.make_node("Expand", ["x", "s"], ["e"]),
        helper.make_node("Loop", ["most", "yes", "e"], ["h"], body=body),
    ]
    return model(path, nodes, *constants)


def submitted(client: ss.Client, path: Path, samples: Path, **more: Any) -> str:
    inputs = {"model": client.upload(path).id, "samples": client.upload(samples).id}
    return client.submit({"kind": "onnx", "bits": 8, **inputs, **more}).id


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    np.save(tmp_path / "samples.npy", np.ones((4, 1), np.float32))
    return tmp_path / "samples.npy"


def test_a_model_that_takes_more_memory_than_its_job_may_ends_with_the_reason(
    client: ss.Client, tmp_path: Path, samples: Path
) -> None:
    found = client.wait(submitted(client, greedy(tmp_path / "m.onnx"), samples, memory=MEMORY))
    assert found.state == "failed"
    assert f"needs more than its memory limit of {MEMORY:,} bytes" in found.message
    assert found.attempts == 1


def test_arrays_that_exceed_the_memory_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**24, 1)})
        for _ in range(2**6):
            file.write(bytes(2**20))
    with pytest.raises(
        UsageError, match="arrays of 67,108,992 bytes, which are read whole; memory is 67,108,864 bytes"
    ):
        check_archive(path, 2**26)
    check_archive(path, 2**27)


def test_a_job_whose_model_never_ends_is_cancelled_with_all_its_processes(
    service: Served, client: ss.Client, tmp_path: Path, samples: Path
) -> None:
    name = submitted(client, endless(tmp_path / "m.onnx"), samples)
    wait_until(lambda: "running the model" in client.job(name).message)
    runner = next(each for each in psutil.Process(service.process.pid).children() if name in " ".join(each.cmdline()))
    found = [runner, *runner.children(recursive=True)]
    assert client.cancel(name).state == "cancelling"
    assert client.wait(name).state == "cancelled"
    assert not psutil.wait_procs(found, 60)[1]
    assert processes.CANCEL_SECONDS + jobs.TURN_SECONDS < 2


def test_all_messages_of_a_job_are_streamed_however_many(service: Served, client: ss.Client) -> None:
    job = client.wait(client.submit({"kind": "run", "source": STORE}).id).id
    before = messages(client, job)
    with closing(Database(service.data / "service.sqlite")) as database, database.writing() as connection:
        rows = [(job, 0.0, str(number)) for number in range(2500)]
        connection.executemany("INSERT INTO events (job, at, text) VALUES (?, ?, ?)", rows)
    assert messages(client, job) == [*before, *map(str, range(2500))]


def messages(client: ss.Client, job: str) -> list[str]:
    return [content["text"] for kind, content in client.events(job) if kind == "message"]


# Without HTTP


class Hands:
    """Clocks that only move when somebody moves them."""

    def __init__(self) -> None:
        self.wall, self.passed = 1e9, 0.0
        self.clock = Clock(lambda: self.wall, lambda: self.passed)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def opened(folder: Path, hands: Hands, **limits: Any) -> Service:
    small_store(folder / "roots" / STORE)
    config = ServiceConfig(data=folder / "data", roots=[folder / "roots"], limits=Limits(**limits))
    service = Service(config, hands.clock)
    service.start()
    return service


def never_ends(patch: pytest.MonkeyPatch) -> None:
    """The process of a job waits for its input, until it is asked to stop."""
    patch.setattr(processes.sys, "executable", "/bin/sh")
    patch.setattr(processes, "ARGUMENTS", ("-c", "cat"))


def running(service: Service, request: RunRequest) -> str:
    """The id of a job that runs."""
    job = service.submit(request, None, ADMIN).id
    wait_until(lambda: service.table.get(job).state == "running")
    return job


def ended(service: Service, name: str) -> str:
    wait_until(lambda: service.table.get(name).ended is not None)
    return service.table.get(name).message


def test_a_job_that_runs_for_too_long_ends_with_the_reason_and_one_that_follows_does_not(
    tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends(monkeypatch)
    service = opened(tmp_path, hands, job_seconds=100)
    follower, job = (running(service, request) for request in (FOLLOWING, RUN))
    hands.wall -= 3600
    hands.passed += 99
    assert service.jobs.get(job).seconds == 99
    hands.passed += 2
    assert "it ran for more than 100 s" in ended(service, job)
    assert service.table.get(job).state == "failed"
    assert service.table.get(job).seconds == 101
    assert service.table.get(follower).state == "running"
    hands.passed += 60
    service.stop()
    assert service.table.get(follower).state == "queued"


def test_a_queued_job_says_its_place_and_what_it_waits_for(
    tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends(monkeypatch)
    service = opened(tmp_path, hands, following_jobs=1)

    ann, ben = (FOLLOWING.model_copy(update={"submitter": who}) for who in ("ann", "ben"))
    first = running(service, ann)
    assert service.jobs.get(first).place is None
    names = [service.submit(request, None, ADMIN).id for request in (ann, ann, ben)]
    assert [service.jobs.get(name).place for name in names] == [2, 3, 1]
    said = "it waits for another job that follows a store to end: this service runs 1 at a time (`following_jobs`)"
    assert service.jobs.get(names[2]).waits_for == said
    assert service.jobs.get(names[1]).waits_for == f"{said}; 2 jobs will start before it"
    service.jobs.cancel(names[0])
    assert service.jobs.get(names[1]).place == 2
    monkeypatch.setattr(service, "config", ServiceConfig(data=tmp_path / "data", roots=[], limits=Limits(free=2**62)))
    assert "the disk has" in service.jobs.get(names[1]).waits_for
    service.jobs.cancel(first)
    wait_until(lambda: service.table.get(first).state == "cancelled")
    assert service.table.get(names[2]).state == "queued"  # nothing starts on a full disk
    service.stop()


def test_a_job_that_writes_too_much_ends_with_the_reason(
    tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends(monkeypatch)
    service = opened(tmp_path, hands, job_disk=10)
    job = running(service, FOLLOWING)
    hands.passed += 10
    assert "a job of this service may write 10 (`job_disk`); it had no results yet" in ended(service, job)
    service.stop()


def test_a_clock_that_is_set_back_changes_no_turn(tmp_path: Path, hands: Hands) -> None:
    table = JobTable(Database(tmp_path / "db"), hands.clock)
    for number, who in enumerate(("ann", "ben")):
        request = {"submitter": who, "kind": "run", "priority": 0}
        assert table.add(str(number), Submitted(request, None))
        table.begin(str(number), 1, None)
        hands.wall -= 3600
    assert table.get("0").started > table.get("1").started  # type: ignore[operator]
    found = next_job([Waiting(3, "ben"), Waiting(4, "ann")], [], table.turns())
    assert found is not None
    assert found.submitter == "ann"


def test_following_ends_with_the_reason_if_there_is_no_store_or_none_of_its_layers_comes(
    tmp_path: Path, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamstats.service import runner

    class Seconds:
        @staticmethod
        def sleep(_: float) -> None:
            hands.passed += 7
            hands.wall -= 3600

    monkeypatch.setattr(runner, "time", Seconds)
    (tmp_path / "folder").mkdir()
    for name, said in (("nowhere", "does not exist"), ("folder", "not a zarr group")):
        with pytest.raises(UsageError, match=said):
            wait_for_layers(str(tmp_path / name), None, QUIET, hands.clock)
    assert hands.passed == 0
    ss.Recorder(tmp_path / "empty").close()
    with pytest.raises(UsageError, match=r"no activations arrived in 20 s: .*empty"):
        wait_for_layers(str(tmp_path / "empty"), 20.0, QUIET, hands.clock)
    assert hands.passed == 21
