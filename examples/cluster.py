"""Worker processes and dask clusters: the same job on a LocalCluster, and on a scheduler that already runs.

`python cluster.py` starts a LocalCluster of two processes, and counts one store three times: by threads of this
process, by the cluster, and by the cluster's scheduler as if another program had started it. The three outputs have
the same bytes. `python cluster.py tcp://HOST:8786` uses your own scheduler; its workers must see the temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import streamstats as ss
from streamstats.jobs.workers import Cluster


def write_store(path: Path) -> None:
    """Activations of two layers, 256 samples each."""
    generator = np.random.default_rng(0)
    with ss.Recorder(path) as recorder:
        for _ in range(8):
            recorder.append("block1/conv", generator.normal(size=(32, 8, 8, 16)).astype(np.float32))
            recorder.append("fc", generator.normal(size=(32, 64)).astype(np.float32))


def files(output: Path) -> dict[Path, bytes]:
    """What a run left, except the manifest, which names the output."""
    return {path.relative_to(output): path.read_bytes() for path in output.rglob("*.safetensors")}


def count(client: Client, folder: Path) -> None:
    """Count by threads, by the client's workers, and by the address of its scheduler; compare."""
    job = ss.Job(str(folder / "calibration.zarr"), str(folder / "threads"), memory=2**30)
    ss.run(job)
    ss.run(replace(job, output=str(folder / "client")), client=client)
    address = client.scheduler.address  # in a configuration: `cluster: {scheduler: ADDRESS}`
    ss.run(replace(job, output=str(folder / "address"), cluster=Cluster(scheduler=address)))
    for name in ("client", "address"):
        same = files(folder / name) == files(folder / "threads")
        print(f"threads and {name}: {'the same bytes' if same else 'different bytes'}")


def main() -> None:
    """On the scheduler that was named, or on a LocalCluster. SLURMCluster and others take its place."""
    folder = Path(tempfile.mkdtemp(prefix="streamstats-"))
    write_store(folder / "calibration.zarr")
    if len(sys.argv) > 1:
        with Client(sys.argv[1]) as client:
            count(client, folder)
        return
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as own, Client(own) as client:
        count(client, folder)


if __name__ == "__main__":
    main()
