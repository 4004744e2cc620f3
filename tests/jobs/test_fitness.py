"""Workers that cannot do the work are named with the cause, before any work or as soon as it shows."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.deploy.local import LocalCluster as Local
from stores import build_store, samples
from told import Told

import streamstats as ss
from streamstats.config import JobConfig
from streamstats.errors import ClusterError, UsageError
from streamstats.jobs import dask_workers, fitness, local_processes
from streamstats.jobs.fitness import Sight, examine, versions
from streamstats.jobs.opening import open_workers
from streamstats.jobs.run import run
from streamstats.jobs.workers import Cluster


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return build_store(tmp_path / "s.zarr", {"layer": samples(60, 8)})


@contextmanager
def in_this_process(workers: int = 1, **options: Any) -> Iterator[Client]:
    """A cluster whose workers are threads of this process."""
    settings = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "processes": False} | options
    with LocalCluster(n_workers=workers, **settings) as local, Client(local, set_as_default=False) as client:
        yield client


def pause(client: Client, worker: int) -> None:
    """Have dask pause a worker, as it does if the process uses most of its memory limit."""
    assert isinstance(client.cluster, Local)
    client.cluster.workers[worker].memory_manager.memory_pause_fraction = 1e-9
    until = time.monotonic() + 30
    while len(client.sync(client.scheduler.ncores_running)) == len(client.sync(client.scheduler.ncores)):  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_memory_limit_below_the_plan_is_named_before_any_work(store: Path) -> None:
    with (
        in_this_process(memory_limit="130MiB") as client,
        pytest.raises(
            ClusterError, match=r"has a memory limit of 130 MiB, .* at 104 MiB, but the plan needs at least 300"
        ),
    ):
        ss.reduce(store, client=client)


def test_a_memory_limit_of_the_workers_below_that_of_the_job_is_the_one_that_counts(store: Path) -> None:
    with in_this_process(memory_limit="4GiB") as client, open_workers(Cluster(), [], client) as workers:
        (limit,) = (each["memory_limit"] for each in client.scheduler_info()["workers"].values())
        assert workers.budget(2**40, 2**20) == int(0.8 * limit)
        assert workers.budget(2**20, 2**19) == 2**20
        assert ss.reduce(store, client=client, memory="3TiB") == ss.reduce(store)


def test_a_cluster_whose_workers_are_all_paused_is_named_at_once_and_waited_for(store: Path, tmp_path: Path) -> None:
    told = Told()
    job = JobConfig(source=str(store), output=str(tmp_path / "out"), cluster={"worker_timeout": 1}).job()  # type: ignore[arg-type]
    with in_this_process() as client:
        pause(client, 0)
        with pytest.raises(
            ClusterError, match=r"no workers after 1 s that run: dask has paused inproc://\S+, which used"
        ):
            run(job, client=client, progress=told)
    assert sum("dask has paused worker" in message for message in told.messages) == 1


def test_a_worker_that_is_paused_meanwhile_gives_its_tasks_to_others(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamstats.jobs.plan.SMALLEST_TASK_BYTES", 64)
    monkeypatch.setattr("streamstats.jobs.plan.TASK_BYTES", 64)
    monkeypatch.setattr(dask_workers, "LOOK_SECONDS", 0.05)
    told = Told(on_advance=lambda rows: pause(client, 1) if rows == 2 else None)
    with in_this_process(2) as client:
        assert ss.reduce(store, client=client, progress=told) == ss.reduce(store)
    assert any("; it gets no tasks until dask resumes it" in message for message in told.messages)


def test_workers_that_end_while_they_are_examined_are_named_as_such(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_workers, "MOST_DEATHS", 1)
    preload = tmp_path / "dying.py"
    preload.write_text(
        "import os, streamstats.jobs.fitness as fitness\nfitness.examine = lambda *_: os._exit(1)\n"
        "fitness.examine.__module__, fitness.examine.__qualname__ = fitness.__name__, 'examine'\n"
    )
    with (
        in_this_process(processes=True, preload=[str(preload)], memory_limit="2GiB") as client,
        pytest.raises(
            ClusterError, match=r"1 worker of .* ended while being examined, the last tcp://.*limits: 2048 MiB"
        ),
    ):
        ss.reduce(store, client=client)


@pytest.mark.parametrize(
    ("theirs", "unfit"),
    [
        ({"streamstats": "9"}, rf"runs streamstats {ss.__version__}, but the client runs 9; install the same"),
        ({"Python": "2.7"}, r"runs Python 3\.\d+, but the client runs 2\.7"),
    ],
)
def test_another_version_of_streamstats_or_python_is_unfit(theirs: Mapping[str, str], unfit: str) -> None:
    assert re.match(unfit, examine(Sight("run", {**versions(), **theirs}, ())).unfit or "")


def test_a_library_that_is_missing_is_unfit_and_another_version_is_told(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sight = Sight("run", {**versions(), "numba": "0.0.1"}, ())
    assert examine(sight) == fitness.Examination(None, (f"numba {versions()['numba']} (here: 0.0.1)",))
    told = Told()
    with monkeypatch.context() as patch, in_this_process() as client:
        patch.setattr(dask_workers, "versions", lambda: {**versions(), "numba": "0.0.1"})
        ss.reduce(store, client=client, progress=told)
    assert any("other versions of libraries: numba" in message for message in told.messages)
    monkeypatch.setattr(fitness, "version", _none)
    assert re.match("lacks dask, distributed, .*zarr; install streamstats", examine(sight).unfit or "")


def _none(library: str) -> str:
    raise PackageNotFoundError(library)


# dask's own configuration


ASKED = """
import click, json, os, pathlib
@click.command()
@click.option("--to")
def dask_setup(worker, to):
    pathlib.Path(to).write_text("loaded")
"""


def test_what_dask_is_configured_to_preload_is_loaded_and_an_idle_scheduler_stays(tmp_path: Path) -> None:
    (tmp_path / "asked.py").write_text(ASKED)
    settings = {
        "distributed.worker.preload": str(tmp_path / "asked.py"),
        "distributed.worker.preload-argv": ["--to", str(tmp_path / "answer")],
        "distributed.scheduler.idle-timeout": "100ms",
    }
    with dask.config.set(settings), open_workers(Cluster(workers=1), []) as workers:
        time.sleep(0.5)  # several times the timeout of the scheduler
        assert workers.threads() == 1
    assert (tmp_path / "answer").read_text() == "loaded"


@pytest.mark.parametrize(
    ("named", "arguments", "passed"),
    [
        ([], [], [[]]),
        ("a.py", [], [[], []]),
        ("a.py", ["-x"], [[], ["-x"]]),
        (["a.py", "b"], ["-x"], [[], ["-x"], ["-x"]]),
        (["a.py", "b"], [["-x"], []], [[], ["-x"], []]),
        ("a.py", None, [[], []]),
    ],
)
def test_arguments_of_preloads_go_to_the_modules_they_are_for(named: Any, arguments: Any, passed: list[Any]) -> None:
    keys = ("distributed.worker.preload", "distributed.worker.preload-argv")
    with dask.config.set(dict(zip(keys, (named, arguments), strict=True))):
        found = local_processes._preloads()
    assert found["preload"][1:] == ([named] if isinstance(named, str) else named)
    assert found["preload_argv"] == passed


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"distributed.worker.preload-argv": [["a"], ["b"]]},
            r"2 lists in distributed\.worker\.preload-argv for 0 modules",
        ),
        ({"distributed.comm.tls.ca-file": "/nowhere.pem"}, r"names '/nowhere\.pem' in distributed\.comm\.tls\.ca-file"),
    ],
)
def test_a_setting_of_dask_that_cannot_be_used_is_a_usage_error(settings: dict[str, Any], match: str) -> None:
    with dask.config.set(settings), pytest.raises(UsageError, match=match), open_workers(Cluster(workers=1), []):
        pytest.fail("it started")


def test_a_tls_address_without_a_certificate_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"has no certificate for a client; set distributed\.comm\.tls"):
        open_workers(Cluster(scheduler="tls://127.0.0.1:9"), []).__enter__()


def test_a_malformed_file_of_dasks_configuration_is_one_line_that_names_it(store: Path, tmp_path: Path) -> None:
    (tmp_path / "dask.yaml").write_text("distributed: [")
    (tmp_path / "job.yaml").write_text(f"source: {store}\noutput: {tmp_path / 'out'}\ncluster: {{workers: 1}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "streamstats", "run", str(tmp_path / "job.yaml")],
        env={**os.environ, "DASK_CONFIG": str(tmp_path / "dask.yaml")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"'{tmp_path / 'dask.yaml'}' is malformed" in done.stderr


def test_more_processes_than_open_files_allow_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 32))
    with pytest.raises(UsageError, match=r"may open 32 files, but 8 worker processes need about 110"):
        open_workers(Cluster(workers=8), []).__enter__()


def test_the_cause_of_a_failure_is_what_was_raised_first() -> None:
    wrapped = RuntimeError("Nanny failed to start.")
    wrapped.__cause__ = KeyError()
    assert local_processes.cause_of(wrapped) == "KeyError"
    assert local_processes.cause_of(OSError("full")) == "full"
    assert local_processes.cause_of(ImportError("no module")) == "ImportError: no module"
