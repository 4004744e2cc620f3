"""Opening workers: the one place where it is chosen who does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..calibration.layer import Layer
from ..errors import UsageError
from .dask_workers import DaskWorkers
from .local_processes import connected, local_processes
from .workers import Cluster, ThreadWorkers, Workers

if TYPE_CHECKING:
    from distributed import Client

Tell = Callable[[str], None]


def _nobody(_: str) -> None:
    """Tell no one."""


@contextmanager
def open_workers(
    cluster: Cluster, layers: Sequence[Layer], client: Client | None = None, tell: Tell = _nobody
) -> Iterator[Workers]:
    """The workers of `client` if it is given, else those of `cluster`; calls still running at the end are cancelled.

    `tell` is told what is wrong with single workers. Raises `UsageError` for an invalid address or configuration of
    dask, `ClusterError` if no scheduler or no worker can be reached, and for a worker that runs another version, lacks
    memory, or does not see `layers` as this process does.
    """
    if client is not None:
        yield from _of_client(client, cluster, layers, tell)
    elif cluster.scheduler is not None:
        with connected(cluster.scheduler) as remote:
            yield from _of_client(remote, cluster, layers, tell)
    elif cluster.workers is not None:
        with local_processes(cluster.workers, cluster.threads) as (local, keep_up):
            yield from _of_client(local, cluster, layers, tell, keep_up)
    else:
        threads = ThreadWorkers(cluster)
        try:
            yield threads
        finally:
            threads.close()


def _of_client(
    client: Client, cluster: Cluster, layers: Sequence[Layer], tell: Tell, keep_up: Callable[[], None] = lambda: None
) -> Iterator[DaskWorkers]:
    if client.asynchronous:
        raise UsageError(
            "the client is asynchronous; expected a synchronous one: make it with `distributed.Client(...)` without "
            "`asynchronous=True`"
        )
    workers = DaskWorkers(client, cluster, layers, keep_up, tell)
    try:
        workers.start()
        yield workers
    finally:
        workers.close()
