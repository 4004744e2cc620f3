"""Scale: a million small chunks, time for each byte as the data grows, and what a client of a large cluster bears.

The cluster is simulated: workers that answer at once, with results as large as real ones, so that what is measured is
the client alone: how many tasks a second it gives out, merges and keeps account of, and how many bytes travel.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from counting import Counting
from distributed import Client
from measuring import in_own_process, machine, peak_memory
from stores import working_folder
from tables import Table, show, show_json
from zarr.codecs import ZstdCodec

from streamstats.calibration.identity import file_range
from streamstats.calibration.layer import Layer
from streamstats.jobs import plan
from streamstats.jobs.opening import open_workers
from streamstats.jobs.plan import Task
from streamstats.jobs.workers import Cluster, Ended, ThreadWorkers
from streamstats.outputs.ledger import Measured
from streamstats.progress import Quiet
from streamstats.statistics.statistics import Statistics, StatisticsAccumulator

SMALL = (1, 16, 64)
"""1 KiB of int8."""
LARGE = (16, 64, 64, 256)
"""16 MiB of int8."""
LAYERS = 200
PETABYTE = 10**15
CHANNELS = 512
THREAD_RATE = 1e9
"""Decoded bytes a second of a thread, as `throughput.py` finds them."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? a hundredth of everything")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    options = parser.parse_args()
    part = 100 if options.quick else 1
    figures: dict[str, Any] = {}
    with working_folder(options.folder) as folder:
        print(f"writing {10**6 // part:,} chunks in {LAYERS} layers …", file=sys.stderr)
        in_own_process(_write, str(folder / "small.zarr"), LAYERS, 5000 // part, SMALL)
        print("planning and reducing them …", file=sys.stderr)
        figures["chunks"] = in_own_process(_plan_and_reduce, str(folder / "small.zarr"))
    with working_folder(options.folder) as folder:
        figures["sizes"] = []
        for size in (1, 10, 50):
            print(f"writing and reducing {size / part} GB …", file=sys.stderr)
            chunks = max(1, round(size * 1e9 / part / np.prod(LARGE)))
            in_own_process(_write, str(folder / f"{size}.zarr"), 1, chunks, LARGE)
            seconds, decoded = in_own_process(_reduce, str(folder / f"{size}.zarr"), str(folder / "1.zarr"))
            figures["sizes"].append({"gigabytes": decoded / 1e9, "seconds": seconds})
    print("giving small tasks to a real scheduler …", file=sys.stderr)
    with working_folder(options.folder) as folder:
        figures["scheduler"] = in_own_process(_through_dask, folder, 10_000 // part)
    figures["clusters"] = []
    for workers in (10, 100, 1000):
        print(f"simulating {workers} workers over 1 PB …", file=sys.stderr)
        figures["clusters"].append(in_own_process(_simulate, workers, PETABYTE // part))
    if options.json:
        show_json({"machine": machine(), **figures})
        return
    notes = ["needed: tasks a second where each thread decodes 1 GB/s; the client is one thread of Python."]
    show(
        [
            _chunks(figures["chunks"]),
            _sizes(figures["sizes"]),
            _scheduler(figures["scheduler"]),
            _clusters(figures["clusters"]),
        ],
        machine(),
        notes,
        markdown=options.markdown,
    )


def _chunks(found: dict[str, float]) -> Table:
    columns = ["store", "seconds to plan", "tasks", "peak MB after planning", "seconds to reduce", "peak MB"]
    row = [f"{found['chunks']:,.0f} chunks, {LAYERS} layers", f"{found['planning']:.1f}", f"{found['tasks']:.0f}"]
    row += [f"{found['planned_bytes'] / 1e6:.0f}", f"{found['reducing']:.0f}", f"{found['peak_bytes'] / 1e6:.0f}"]
    return Table("Many small chunks", columns, [row])


def _sizes(found: list[dict[str, float]]) -> Table:
    rows = [
        [f"{each['gigabytes']:.1f}", f"{each['seconds']:.2f}", f"{each['seconds'] / each['gigabytes']:.3f}"]
        for each in found
    ]
    return Table("Time for each byte", ["decoded GB", "seconds", "seconds a GB"], rows)


def _scheduler(found: dict[str, Any]) -> Table:
    columns = ["process", "ms of processor a task", "tasks/s at most", "MB after a tenth", "MB at the end"]
    rows = [
        [
            name,
            f"{each['cpu'] / found['tasks'] * 1e3:.2f}",
            f"{found['tasks'] / each['cpu']:.0f}",
            f"{each['early'] / 1e6:.0f}",
            f"{each['late'] / 1e6:.0f}",
        ]
        for name, each in found["processes"].items()
    ]
    return Table(f"{found['tasks']:,} tasks of {CHANNELS} channels through a dask scheduler", columns, rows)


def _clusters(found: list[dict[str, float]]) -> Table:
    columns = ["workers", "tasks", "tasks/s needed", "tasks/s of the client", "load", "kB out", "kB back", "peak MB"]
    rows = [
        [
            f"{each['workers']:,}",
            f"{each['tasks']:,}",
            f"{each['needed']:.0f}",
            f"{each['capacity']:.0f}",
            f"{each['needed'] / each['capacity']:.0%}",
            f"{each['out'] / 1e3:.1f}",
            f"{each['back'] / 1e3:.1f}",
            f"{each['peak_bytes'] / 1e6:.0f}",
        ]
        for each in found
    ]
    return Table(f"A client with 1 PB in {LAYERS} layers of {CHANNELS} channels", columns, rows)


def _write(path: str, layers: int, chunks: int, shape: tuple[int, ...]) -> None:
    """Layers of equal chunks, one of which is encoded and all others are copied from."""
    group = zarr.create_group(path)
    rows = chunks * shape[0]
    first = group.create_array(
        "layer000",
        shape=(rows, *shape[1:]),
        chunks=shape,
        dtype="int8",
        compressors=ZstdCodec(level=1),
        chunk_key_encoding={"name": "default", "separator": "."},  # one file a chunk, and no folders
    )
    first[: shape[0]] = np.resize(np.random.default_rng(4).integers(-128, 127, 4096, np.int8), shape)
    rest = ".0" * (len(shape) - 1)
    content = Path(path, f"layer000/c.0{rest}").read_bytes()
    document = Path(path, "layer000/zarr.json").read_bytes()
    for layer in range(layers):
        folder = Path(path, f"layer{layer:03}")
        folder.mkdir(exist_ok=True)
        for number in range(chunks):
            (folder / f"c.{number}{rest}").write_bytes(content)
        (folder / "zarr.json").write_bytes(document)


def _plan_and_reduce(store: str) -> dict[str, float]:
    with open_workers(Cluster(threads=4), []) as workers:
        begun = time.perf_counter()
        counting = Counting.of(store, workers)
        tasks = len(counting.plan().tasks)
        planning, planned = time.perf_counter() - begun, peak_memory()
        begun = time.perf_counter()
        found = counting.count()
        reducing = time.perf_counter() - begun
    return {
        "chunks": sum(each.rows for each in found.values()),
        "planning": planning,
        "tasks": tasks,
        "planned_bytes": planned,
        "reducing": reducing,
        "peak_bytes": peak_memory(),
    }


def _reduce(store: str, first: str) -> tuple[float, int]:
    """Seconds for `store`, and its bytes, in a process that has reduced another one `first`."""
    with open_workers(Cluster(threads=4), []) as workers:
        Counting.of(first, workers).count()
        counting = Counting.of(store, workers)
        begun = time.perf_counter()
        counting.count()
        return time.perf_counter() - begun, counting.plan().bytes


@contextmanager
def _dask(folder: Path, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a scheduler that is a process of its own and has `workers`, and that process."""
    file = folder / "scheduler.json"
    common = ["--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard"]
    commands = [["distributed.cli.dask_scheduler", "--port", "0", *common]]
    commands += [["distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *common]] * workers
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL))
            while not file.exists() and started[0].poll() is None:
                time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        with Client(address) as client:
            client.wait_for_workers(workers)
        yield address, psutil.Process(started[0].pid)
    finally:
        for process in started:
            process.terminate()
            process.wait()


def _through_dask(folder: Path, tasks: int) -> dict[str, Any]:
    """What `tasks` tasks cost a real scheduler and the client: processor time, and memory after a tenth and all."""
    plan.TASK_BYTES = plan.SMALLEST_TASK_BYTES = CHANNELS
    store = str(folder / "tasks.zarr")
    _write(store, 1, tasks, (1, CHANNELS))
    with _dask(folder, 3) as (address, scheduler), open_workers(Cluster(scheduler=address), []) as workers:
        processes = {"scheduler": scheduler, "client": psutil.Process()}
        counting = Counting.of(store, workers)
        before = {name: _processor_seconds(process) for name, process in processes.items()}
        memory: dict[str, list[int]] = {name: [] for name in processes}

        class Note(Quiet):
            def advance(self, rows: int, size: int = 0) -> None:  # noqa: ARG002
                for name, process in processes.items():
                    memory[name].append(process.memory_info().rss)

        counting.count(Note())
        found = {
            name: {
                "cpu": _processor_seconds(process) - before[name],
                "early": memory[name][len(memory[name]) // 10],
                "late": memory[name][-1],
            }
            for name, process in processes.items()
        }
    return {"tasks": len(memory["client"]), "processes": found}


def _processor_seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


class Simulated(ThreadWorkers):
    """Many workers that answer at once, each task with the same results."""

    def __init__(self, workers: int, statistics: Statistics) -> None:
        super().__init__(Cluster(threads=1))
        self.workers, self.statistics = workers, statistics
        self.out = self.back = 0

    def count(self) -> int:
        """As `Workers.count`."""
        return self.workers

    def threads(self) -> int:
        """As `Workers.threads`."""
        return self.workers

    def give(self, _call: Callable[..., Any], *arguments: Any, avoid: Collection[str] = ()) -> int:  # noqa: ARG002
        """As `Workers.give`: the answer is there already."""
        number = next(self._numbers)
        task: Task = arguments[0]
        layers: dict[str, Layer] = arguments[1]
        found = [self._measured(layers[part.layer], part.start, part.stop) for part in task.parts]
        if number % 100 == 0:
            self.out = len(pickle.dumps(arguments))
            self.back = len(pickle.dumps(found))
        self.events.put(Ended(number, (found, None)))
        return number

    def _measured(self, layer: Layer, start: int, stop: int) -> Measured:
        files = file_range(layer, start, stop)
        identified = np.ones((len(files), 2), np.int64)
        return Measured(layer.name, (start, stop), self.statistics, files.start, identified)


def _statistics(layer: Layer) -> Statistics:
    """Those of one sample of `layer`."""
    accumulator = StatisticsAccumulator(layer.kinds, layer.space)
    sample = np.random.default_rng(0).integers(-128, 127, (1, *layer.sample_shape), np.int8)
    accumulator.add(sample, tuple(slice(0, extent) for extent in sample.shape))
    return accumulator.found()


def _simulate(workers: int, size: int) -> dict[str, float]:
    """The client's part of reducing `size` bytes: giving out, merging, keeping account."""
    shape = (64, 64, 64, CHANNELS)  # a shard of 128 MiB of int8
    rows = size // LAYERS // (64 * 64 * CHANNELS)
    layers = tuple(
        Layer("s3://bucket/store", f"layer{number:03}", (rows, *shape[1:]), np.dtype("int8"), shape, shape, 3)
        for number in range(LAYERS)
    )
    simulated = Simulated(workers, _statistics(layers[0]))
    counting = Counting(layers, simulated, 64 * 2**30)
    planned = counting.plan()
    begun = time.perf_counter()
    counting.count()
    seconds = time.perf_counter() - begun
    simulated.close()
    tasks = len(planned.tasks)
    return {
        "workers": workers,
        "tasks": tasks,
        "needed": workers * THREAD_RATE / (planned.bytes / tasks),
        "capacity": tasks / seconds,
        "out": simulated.out,
        "back": simulated.back,
        "peak_bytes": peak_memory(),
    }


if __name__ == "__main__":
    main()
