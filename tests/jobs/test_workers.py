"""The same bits from threads, processes and clusters, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import zarr
from counting import count_all
from distributed import Client, LocalCluster, Nanny, SpecCluster, Status
from stores import build_store, samples
from told import Told

import streamstats as ss
from streamstats.calibration.layer import Layer
from streamstats.calibration.selection import select_layers
from streamstats.calibration.zarr_settings import FETCHES
from streamstats.config import ClusterConfig, JobConfig
from streamstats.errors import ClusterError, UsageError
from streamstats.jobs import dask_workers, fitness, local_processes, reduction, workers
from streamstats.jobs.job import Job
from streamstats.jobs.opening import open_workers
from streamstats.jobs.plan import Part, Plan, Task
from streamstats.jobs.reduction import MOST_TRIES, reduce_tasks
from streamstats.jobs.run import reduce, run
from streamstats.jobs.workers import Begun, Cluster, Ended, UnfitError
from streamstats.outputs.results import read_states
from streamstats.progress import Quiet, Stage


@pytest.fixture
def store(tmp_path: Path) -> Path:
    layers = {"a/conv": samples(60, 8, 16), "b": samples(60, 3, dtype="int8"), "c": samples(33, 4, 1000)}
    return build_store(tmp_path / "s.zarr", layers)


def config(store: Path, output: Path, **options: Any) -> Job:
    return JobConfig(source=str(store), output=str(output), **options).job()


def results(output: Path) -> dict[str, bytes]:
    found = [path for kind in ("state", "correctors") for path in (output / kind).rglob("*") if path.is_file()]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in found}


@contextmanager
def cluster(workers: int, **options: Any) -> Iterator[Client]:
    """A cluster of processes with its client."""
    host = "127.0.0.1" if options.get("processes", True) else None
    settings = {"threads_per_worker": 1, "host": host, "dashboard_address": "127.0.0.1:0"} | options
    with _started(workers, settings) as local, Client(local, set_as_default=False) as client:
        yield client


def _started(workers: int, settings: dict[str, Any]) -> LocalCluster:
    """A machine that is busy may let processes wait too long when they start; then they start again."""
    for _ in range(2):
        with contextlib.suppress(RuntimeError, TimeoutError):
            return LocalCluster(n_workers=workers, **settings)
    return LocalCluster(n_workers=workers, **settings)


# The same bits


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_threads_and_processes_leave_the_same_bytes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 4000)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 4000)
    run(config(store, tmp_path / "one", cluster=ClusterConfig(threads=1)))
    run(config(store, tmp_path / "threads", cluster=ClusterConfig(threads=number)))
    told = Told()
    processes = ClusterConfig(workers=number, threads=1)
    run(config(store, tmp_path / "processes", cluster=processes), progress=told)
    assert results(tmp_path / "one") == results(tmp_path / "threads") == results(tmp_path / "processes")
    assert len(results(tmp_path / "one")) == 6
    assert told.rows == 153
    assert told.worker_counts == {number}


def test_a_scheduler_at_an_address_and_a_client_of_python_leave_the_same_bytes(store: Path, tmp_path: Path) -> None:
    run(config(store, tmp_path / "threads"))
    with cluster(2) as client:
        address = client.scheduler.address
        run(config(store, tmp_path / "scheduler", cluster=ClusterConfig(scheduler=address)))
        run(config(store, tmp_path / "client"), client=client)
        assert ss.reduce(store, client=client) == ss.reduce(store)
    assert results(tmp_path / "threads") == results(tmp_path / "scheduler") == results(tmp_path / "client")


def test_the_command_line_says_who_does_the_work(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"source: {store}\noutput: {tmp_path / 'out'}\ncluster: {{workers: 2, threads: 1}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "streamstats", "run", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " on 2 workers with 2 threads in total" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_of_zarr_reach_the_workers_and_stay(store: Path) -> None:
    with cluster(1, threads_per_worker=2) as client:
        ss.reduce(store, client=client)
        settings = client.run(lambda: [zarr.config.get(key) for key in ("threading.max_workers", "async.concurrency")])
    assert [*settings.values()] == [[2, FETCHES]]


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """The process gets no time inside."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_a_scheduler_that_goes_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(dask_workers, "LOOK_SECONDS", 0.0)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--no-show"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "Scheduler at:" in line)
        try:
            with Client(address) as client:
                found = dask_workers.DaskWorkers(client, Cluster(), [], lambda: None, print)
                assert found.threads() == 0
                with (
                    stopped(psutil.Process(process.pid)),
                    pytest.raises(ClusterError, match="no longer responds"),
                ):
                    found.threads()
        finally:
            process.kill()


def test_a_worker_that_is_silent_from_the_beginning_gets_no_work(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 4.0)
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
    with cluster(2) as client:
        client.run(fitness.versions)  # both have loaded what they are examined by: loading it takes time
        silent = psutil.Process(next(iter(client.run(os.getpid).values())))
        with stopped(silent):
            run(config(store, tmp_path / "out"), client=client)
    run(config(store, tmp_path / "undisturbed"))
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


def test_a_client_that_is_refused_listens_no_more() -> None:
    with cluster(0) as client:
        with pytest.raises(ClusterError), open_workers(Cluster(worker_timeout=0.1), [], client):
            pytest.fail("there are no workers")
        listeners = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler._broker._topics)
        assert not any(topic.subscribers for name, topic in listeners.items() if name.startswith("streamstats"))


def test_what_travels_is_small(tmp_path: Path) -> None:
    channels = 4000
    store = build_store(tmp_path / "s.zarr", {"layer": samples(300, channels, dtype="int8")})
    out, back = [], []

    class Weighed(workers.ThreadWorkers):
        def give(self, call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:
            def weighed(*inner: Any) -> Any:
                found = call(*inner)
                out.append(len(pickle.dumps(inner)))
                back.append(len(pickle.dumps(found)))
                return found

            return super().give(weighed, *arguments, avoid=avoid)

    threads = Weighed(Cluster(threads=1))
    rule = ss.LayerRule("*", quantization=ss.Quantization(np.full(channels, 0.5)))
    count_all(select_layers(store, [rule]).layers, threads)
    threads.close()
    assert max(out) < 5000
    assert max(back) < 100 * channels


def test_nothing_listens_beyond_this_machine() -> None:
    with local_processes.local_processes(1, 1) as (client, _):
        assert client.nthreads()
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert listening == {"127.0.0.1"}


def test_an_interruption_of_the_whole_group_is_acted_on_once_and_quietly(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s.zarr", {"layer": samples(60, 8, 16)})
    path = tmp_path / "job.yaml"
    path.write_text(f"source: {store}\noutput: {tmp_path / 'out'}\ncluster: {{workers: 2, threads: 1}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamstats", "run", str(path), "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "out/manifest.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("streamstats: interrupted")


# Workers that do not fit


def test_a_worker_that_does_not_see_the_store_is_named_before_any_work(store: Path) -> None:
    layers = select_layers(store).layers
    elsewhere = [replace(layers[0], store=str(store.parent / "elsewhere"))]
    other = [replace(layers[0], fingerprint="of another store")]
    with cluster(1, processes=False) as client:
        (address,) = client.nthreads()
        with pytest.raises(ClusterError, match=rf"worker {address} cannot see layer a/conv of .*elsewhere"):
            open_workers(Cluster(), elsewhere, client).__enter__()
        with pytest.raises(ClusterError, match=rf"worker {address} sees a different layer a/conv at .*s\.zarr"):
            open_workers(Cluster(), other, client).__enter__()


def test_a_worker_of_another_version_is_named_before_any_work(store: Path, tmp_path: Path) -> None:
    preload = tmp_path / "older.py"
    preload.write_text("import streamstats.jobs.fitness\nstreamstats.jobs.fitness.__version__ = '0.0.9'\n")
    with (
        cluster(1, preload=[str(preload)]) as client,
        pytest.raises(ClusterError, match=rf"runs streamstats 0\.0\.9, but the client runs {ss.__version__}; install"),
    ):
        run(config(store, tmp_path / "out"), client=client)
    assert not (tmp_path / "out").exists()


def test_a_worker_without_streamstats_is_named_before_any_work(store: Path, tmp_path: Path) -> None:
    preload = tmp_path / "without.py"
    preload.write_text("import sys\nsys.modules['streamstats'] = None\n")
    with (
        cluster(1, preload=[str(preload)]) as client,
        pytest.raises(ClusterError, match=r"worker tcp://127\.0\.0\.1:\d+ cannot run streamstats"),
    ):
        run(config(store, tmp_path / "out"), client=client)


def test_a_worker_that_joins_later_and_does_not_fit_gets_no_work(store: Path, tmp_path: Path) -> None:
    preload = tmp_path / "older.py"
    preload.write_text("import streamstats.jobs.fitness\nstreamstats.jobs.fitness.__version__ = '0.0.9'\n")
    run(config(store, tmp_path / "threads"))
    told = Told()
    with cluster(1) as client:
        layers = select_layers(store).layers
        with open_workers(Cluster(), layers, client) as chosen:
            nanny = client.sync(_joined, client, preload)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
                patch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
                outcome = count_all(layers, chosen, told)
        client.sync(nanny.close)
    assert outcome.statistics["c"].sums == reduce(store)["c"].sums
    assert any("runs streamstats 0.0.9" in message for message in told.messages)


async def _joined(client: Client, preload: Path) -> Nanny:
    return await Nanny(client.scheduler.address, nthreads=1, preload=[str(preload)], host="127.0.0.1")


@pytest.mark.parametrize(
    ("address", "match"),
    [("nowhere", "expected an address such as tcp"), ("tcp://127.0.0.1:9", "no dask scheduler responds at")],
)
def test_an_address_without_a_scheduler_is_an_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, match: str
) -> None:
    monkeypatch.setattr(local_processes, "CONNECT_SECONDS", 1)
    with pytest.raises((ClusterError, UsageError), match=match):
        run(config(store, tmp_path / "out", cluster=ClusterConfig(scheduler=address)))
    assert not (tmp_path / "out").exists()


def test_a_cluster_without_workers_is_an_error_after_a_while() -> None:
    with cluster(0) as client, pytest.raises(ClusterError, match=r"has no workers after 1 s; start workers, or set"):
        open_workers(Cluster(worker_timeout=1), [], client).__enter__()


def test_workers_with_more_threads_than_the_memory_allows_are_refused(store: Path, tmp_path: Path) -> None:
    with (
        cluster(1, processes=False, threads_per_worker=64) as client,
        pytest.raises(UsageError, match=r"memory` suffices for \d+ threads? per process, but the workers have 64"),
    ):
        run(config(store, tmp_path / "out", memory="320MiB"), client=client)


# What happens to a task, with workers that do as they are told


class Scripted(workers.ThreadWorkers):
    """Workers whose events come from `script`, a function of the number of a call and the task."""

    can_repeat = True

    def __init__(self, script: Callable[[int, Task], list[Begun | Ended]], **limits: float) -> None:
        super().__init__(Cluster(threads=1, **limits))  # type: ignore[arg-type]
        self.script = script
        self.avoided: list[list[str]] = []
        self.shunned: list[str] = []
        self.taken_back: list[int] = []
        self.present = 1

    def threads(self) -> int:
        return self.present

    def give(self, _call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:
        number = next(self._numbers)
        self.avoided.append([*avoid])
        for event in self.script(number, arguments[0]):
            self.events.put(event)
        return number

    def take_back(self, number: int) -> None:
        self.taken_back.append(number)

    def shun(self, worker: str) -> None:
        self.shunned.append(worker)

    def absence(self) -> str:
        return "nobody is there"


TASKS = tuple(Task((Part("layer", row, row + 1, (1,)),), 1) for row in range(4))
LAYER = {"layer": Layer("store", "layer", (4, 1), np.dtype("int8"), (1, 1), (1, 1), 1)}


def reduced(scripted: Scripted) -> tuple[list[int], list[str]]:
    """The rows of the tasks that came back, and the messages."""
    told = Told()
    plan = Plan(TASKS, 1, 4, 4, 1, 1)
    found = [task.parts[0].start for task, _ in reduce_tasks(plan, LAYER, scripted, progress=told)]
    return found, told.messages


def done(number: int) -> list[Begun | Ended]:
    return [Begun(number, "w"), Ended(number, ([], None))]


def test_a_task_that_ends_twice_comes_back_once() -> None:
    found, _ = reduced(Scripted(lambda number, _task: [*done(number), *done(number)]))
    assert sorted(found) == [0, 1, 2, 3]


def test_a_task_whose_worker_is_gone_is_given_out_again() -> None:
    scripted = Scripted(
        lambda number, _: [Ended(number, error=OSError("gone"), lost=True)] if number < 3 else done(number)
    )
    found, _ = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert len(scripted.avoided) == 7


def test_a_task_that_dask_does_again_is_told() -> None:
    found, messages = reduced(Scripted(lambda number, _: [Begun(number, "first"), *done(number)]))
    assert sorted(found) == [0, 1, 2, 3]
    assert messages[0] == "layer layer, rows 0:1, is repeated, because worker first is lost"


def test_a_task_that_never_comes_back_is_an_error_that_names_it() -> None:
    scripted = Scripted(lambda number, _: [Ended(number, error=OSError("out of memory"), lost=True)])
    with pytest.raises(ClusterError, match=rf"rows \d:\d, was submitted {MOST_TRIES} times.*out of memory; check"):
        reduced(scripted)


def test_a_task_that_hangs_is_given_to_another_worker_and_its_first_result_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "WAIT_SECONDS", 0.02)
    scripted = Scripted(lambda number, _: [Begun(number, "slow")] if number == 1 else done(number), task_timeout=0.1)
    found, messages = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert messages == [
        "layer layer, rows 1:2, has been on worker slow for more than 0.1 s; it is submitted to another worker, too"
    ]
    assert [avoided for avoided in scripted.avoided if avoided] == [["slow"]]
    assert scripted.taken_back == [1]


def test_nothing_coming_back_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "WAIT_SECONDS", 0.02)
    with pytest.raises(ClusterError, match=r"no worker returned a result for 0\.5 s; what was counted is saved"):
        reduced(Scripted(lambda _number, _task: [], task_timeout=0.1))


def test_a_thread_that_hangs_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "WAIT_SECONDS", 0.02)
    scripted = Scripted(lambda number, _: [Begun(number, "thread")] if number == 1 else done(number), task_timeout=0.1)
    scripted.can_repeat = False
    threading.Timer(0.8, lambda: scripted.events.put(Ended(1, ([], None)))).start()
    found, messages = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert messages == [
        "layer layer, rows 1:2, has been on worker thread for more than 0.1 s; check that the file system responds"
    ]


def test_an_unfit_worker_gets_no_more_work_and_its_task_goes_to_another() -> None:
    scripted = Scripted(
        lambda number, _: (
            [Ended(number, error=UnfitError("late", "runs another version"))] if number == 0 else done(number)
        )
    )
    found, messages = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert scripted.shunned == ["late"]
    assert messages == ["worker late runs another version; it gets no more tasks"]


def test_while_only_unfit_workers_are_there_tasks_wait_and_it_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "WAIT_SECONDS", 0.02)

    def unfit_at_first(number: int, _task: Task) -> list[Begun | Ended]:
        if number < 3:  # what fits into the window
            scripted.present = 0
            return [Ended(number, error=UnfitError("late", "runs another version"))]
        return done(number)

    scripted = Scripted(unfit_at_first)
    threading.Timer(0.2, lambda: setattr(scripted, "present", 1)).start()
    found, messages = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert messages.count("worker late runs another version; it gets no more tasks") == 1
    assert len(scripted.avoided) == 7


def test_workers_may_leave_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "WAIT_SECONDS", 0.02)
    held: list[int] = []

    def hold(number: int, _task: Task) -> list[Begun | Ended]:
        held.append(number)
        return []

    def back() -> None:
        scripted.present = 1
        scripted.script = lambda number, _: done(number)
        for number in held:
            scripted.events.put(Ended(number, ([], None)))

    scripted = Scripted(hold, worker_timeout=20)
    scripted.present = 0
    threading.Timer(0.3, back).start()
    found, messages = reduced(scripted)
    assert sorted(found) == [0, 1, 2, 3]
    assert messages == ["nobody is there; waiting 20 s for one"]
    scripted = Scripted(lambda _number, _task: [], worker_timeout=0.1)
    scripted.present = 0
    with pytest.raises(ClusterError, match=r"no worker ran for 0\.1 s: nobody is there; what was counted"):
        reduced(scripted)


def test_an_error_in_our_code_is_not_tried_again() -> None:
    with pytest.raises(ZeroDivisionError):
        reduced(Scripted(lambda number, _: [Ended(number, error=ZeroDivisionError())]))


# Real workers, killed


SLOW = """
import time
from streamstats.jobs import measuring
def slowly(*arguments, whole=measuring.measure_part, **options):
    time.sleep(0.1)
    return whole(*arguments, **options)
if measuring.measure_part.__name__ != "slowly":  # nanny and worker both load this
    measuring.measure_part = slowly
"""


DYING = """
import os, pathlib, signal
count = pathlib.Path({count!r})
left = int(count.read_text())
if left:
    count.write_text(str(left - 1))
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""A preload that ends its process while it starts, so many times."""


class Killer(Quiet):
    """Kills the workers of this process at random moments, one or all of them, from the plan of a run to its end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.killed = 0
        self._thread = threading.Thread(target=self._kill)

    def begin(self, stage: Stage) -> None:  # noqa: ARG002
        self._thread.start()  # workers that are killed while they start are another test's

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _kill(self) -> None:
        while not self._stop.wait(self._random.uniform(2.0, 6.0)):
            found = [process for process in psutil.Process().children(recursive=True) if _is_worker(process)]
            for process in found if self._random.random() < 0.3 else found[:1]:
                self.killed += 1
                with contextlib.suppress(psutil.Error):
                    process.kill()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline()) and time.time() - process.create_time() > 1
    except psutil.Error:
        return False


def run_while_workers_are_killed(store: Path, folder: Path, seed: int) -> int:
    preload = folder / "slow.py"
    preload.write_text(SLOW)
    output = folder / f"killed{seed}"
    two = ClusterConfig(workers=2, threads=1, worker_timeout=60)
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"distributed.worker.preload": [str(preload)]}):
        patch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
        patch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
        with Killer(seed) as killer:
            run(config(store, output, cluster=two), progress=killer)
    run(config(store, folder / "undisturbed"), restart=True)
    assert results(output) == results(folder / "undisturbed")
    return killer.killed


def test_workers_that_are_killed_leave_the_same_bytes(store: Path, tmp_path: Path) -> None:
    assert sum(run_while_workers_are_killed(store, tmp_path, seed) for seed in range(2)) > 0


@pytest.mark.parametrize("deaths", [1, 10])
def test_processes_that_end_while_they_start_are_started_again(store: Path, tmp_path: Path, deaths: int) -> None:
    preload, count = tmp_path / "dying.py", tmp_path / "deaths"
    count.write_text(str(deaths))
    preload.write_text(DYING.format(count=str(count)))
    with dask.config.set({"distributed.worker.preload": [str(preload)]}):
        one = config(store, tmp_path / "out", cluster=ClusterConfig(workers=1, threads=1))
        if deaths == 1:
            run(one)
            assert int(count.read_text()) == 0
        else:
            with pytest.raises(ClusterError, match="did not start in 3 attempts"):
                run(one)


def test_a_worker_that_hangs_is_left_behind(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
    preload = tmp_path / "slow.py"
    preload.write_text(SLOW)
    told = Told()
    with cluster(2, preload=[str(preload)]) as client:
        hung = psutil.Process(next(iter(client.run(os.getpid).values())))
        threading.Timer(2, hung.suspend).start()
        impatient = config(store, tmp_path / "out", cluster=ClusterConfig(task_timeout=3))
        run(impatient, client=client, progress=told)
        hung.resume()
    run(config(store, tmp_path / "undisturbed"))
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")
    assert any("more than 3 s; it is submitted to another worker, too" in message for message in told.messages)
    assert told.repeats >= 1


def test_workers_that_all_leave_end_the_run_after_a_while_and_nothing_is_lost(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 2000)
    preload = tmp_path / "slow.py"
    preload.write_text(SLOW)
    impatient = config(store, tmp_path / "out", cluster=ClusterConfig(worker_timeout=3))
    with cluster(1, preload=[str(preload)]) as client:
        local = client.cluster
        threading.Timer(2, lambda: local.scale(0)).start()
        with pytest.raises(ClusterError, match=r"no worker ran for 3 s: there are no workers; what was"):
            run(impatient, client=client)
    kept = sum(each.rows for each in read_states(tmp_path / "out", ["a/conv", "b", "c"]).values())
    assert 0 < kept < 153
    told = Told()
    run(config(store, tmp_path / "out"), progress=told)
    assert told.rows == 153 - kept
    run(config(store, tmp_path / "undisturbed"))
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(50))
def test_workers_killed_in_fifty_runs(store: Path, tmp_path: Path, seed: int) -> None:
    run_while_workers_are_killed(store, tmp_path, seed)


@pytest.mark.soak
def test_scheduler_and_client_take_no_more_memory_the_more_tasks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_store(tmp_path / "many.zarr", {"layer": samples(6000, 64)}, chunks=(1, 64))
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 1)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 1)
    memory: list[int] = []
    with cluster(2) as client:  # whose scheduler is in this process, too
        run(
            config(store, tmp_path / "out"),
            client=client,
            progress=Told(on_advance=lambda _: memory.append(psutil.Process().memory_info().rss)),
        )
    assert len(memory) == 6000
    assert memory[-1] - memory[1000] < 20e6


def test_what_dask_does_at_exit_fits_a_cluster_whose_start_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = {*SpecCluster._instances}
    with monkeypatch.context() as patch:
        patch.setattr(SpecCluster, "sync", interrupted)
        with pytest.raises(KeyboardInterrupt) as held, local_processes.local_processes(1, 1):
            pass
    (cluster,) = {*SpecCluster._instances} - before
    assert not cluster.shutdown_on_close
    del held  # it kept the cluster
    cluster._loop_runner.stop()
    cluster.status = Status.closed  # nothing was started
