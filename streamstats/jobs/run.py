"""Counting: `reduce` for statistics in memory; `run` for a job that writes results: once, in rounds, or while it
follows a growing store.

The command line, the service and Python callers all use these functions; there is no other path to a result.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..calibration.layer import Layer, arrays_of
from ..calibration.selection import LayerRule, also_counting, select_layers
from ..coverage import Coverage, in_slice
from ..errors import ChangedError, DataError, UsageError, WayOut, listed
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import by_layer
from ..outputs.resuming import continued, load
from ..progress import QUIET, Progress
from .cores import available_cores
from .following import Watch
from .job import DEFAULT_MEMORY, Job, check_one_of, parse_memory, wanted_rows
from .measuring import Policy
from .opening import open_workers
from .session import Outcome, Session, missing_rows, open_session, reduce_layers, source_of
from .telling import tell_growth, unused_masks
from .workers import Cluster

if TYPE_CHECKING:
    from distributed import Client

Until = Callable[[Mapping[str, LayerStatistics]], bool]
"""Called after each round with what is counted, by layer; true if that is enough."""
OnWritten = Callable[[Outcome], None]
FIRST_ROWS, GROWTH = 32, 1.5
"""The rows of the first round after which `until` is called, and the factor from one round to the next."""
MOST_REPLACED = 20
"""Times that counting resumes after a chunk was replaced while it was being read."""
POLL_SECONDS = 1.0
"""Time between two polls of a store that is followed."""


@dataclass(frozen=True)
class Follow:
    """When to stop following a store: once every layer has `rows`, or no rows were appended for `idle` seconds.

    >>> outcome = ss.run(ss.Job("calibration.zarr", "followed"), follow=ss.Follow(rows=4))
    >>> outcome.statistics["fc"].rows
    4
    """

    rows: int | None = None
    idle: float | None = None


def reduce(
    source: str | Path | Sequence[str | Path],
    *,
    layers: str | LayerRule | Sequence[str | LayerRule] = (),
    statistics: Sequence[str] = (),
    memory: str | int = DEFAULT_MEMORY,
    nonfinite: Literal["error", "skip"] = "error",
    missing: Literal["error", "fill"] = "error",
    threads: int | None = None,
    client: Client | None = None,
    progress: Progress = QUIET,
) -> dict[str, LayerStatistics]:
    """The exact statistics of every layer of the calibration store at `source`, or of several stores, by name.

    `layers` chooses and describes layers: a glob for their names, a rule, or several of these (default: every array, as
    its attributes describe it). `statistics`, named as in a configuration ("squares"), are counted in addition to sums
    and extrema. `memory`, in bytes or as in "2GiB", limits the process.
    `nonfinite="skip"` excludes NaN and infinities from sums and counts, and counts them separately; `missing="fill"`
    counts the fill value for missing chunks, not for damaged ones. `threads` defaults to one for each core that the
    process may keep busy. If `client`, a `distributed.Client`, is given, its workers do the work: they must see the
    store, and `memory` limits each of them. `progress` receives a report for each finished task.
    A warning names arrays that look like masks of layers that have none.

    Raises `UsageError` if the request cannot be met, `DataError` if the store cannot be read, `NonFiniteError` for NaN
    or infinities under "error", `ClusterError` for workers that are unfit or lost.

    >>> found = ss.reduce("calibration.zarr", layers="fc", statistics=["squares"])
    >>> found["fc"].mean, found["fc"].rms.round(2)
    (array([4., 6.]), array([4.58, 7.07]))
    """
    check_one_of("nonfinite", nonfinite, ("error", "skip"))
    check_one_of("missing", missing, ("error", "fill"))
    cluster = Cluster(threads=available_cores() if threads is None else threads)
    budget = parse_memory(memory)
    selected = select_layers(source, also_counting(layers, statistics) if statistics else layers)
    where = source if isinstance(source, str | Path) else listed(map(str, source))
    for name, reason in selected.unreadable.items():
        raise DataError(f"{where}: array {name} cannot be read: {reason}; repair it, or choose others by `layers`")
    chosen = selected.layers
    for message in unused_masks(selected):
        warnings.warn(message, stacklevel=2)
    ledgers = {name: LayerStatistics.empty(*arrays) for name, arrays in arrays_of(chosen).items()}
    with open_workers(cluster, chosen, client, progress.say) as workers:
        wanted = missing_rows(chosen, ledgers)
        outcome = reduce_layers(chosen, ledgers, wanted, budget, workers, Policy.of(nonfinite, missing), progress)
        return by_layer(outcome.statistics)


def run(
    job: Job,
    *,
    restart: bool = False,
    accept_changes: bool = False,
    follow: Follow | None = None,
    until: Until | None = None,
    client: Client | None = None,
    progress: Progress = QUIET,
    on_written: OnWritten = lambda _: None,
) -> Outcome:
    """Run `job` and write `state/`, `correctors/` and `manifest.json` to its output.

    The run resumes from `state/`. `restart` counts everything again, except excluded rows; `accept_changes` accepts the
    store as it is now. `follow` counts rows as they are appended. `until` makes the run count the first rows of all
    layers, in growing rounds, and end after the first round for which it is true. If a dask `client` is given, its
    workers do the work, whatever the job says. `on_written` receives the outcome each time results are written. What
    was counted is saved every few seconds and at the end, also after an error or an interruption.

    Raises as `reduce` does, and `DataError` for a damaged state or a store that has changed since it was counted,
    `OutputError` if results cannot be written or another process holds the output.

    >>> outcome = ss.run(ss.Job("calibration.zarr", "results"))
    >>> outcome.complete, outcome.statistics["fc"].mean
    (True, array([4., 6.]))
    """
    options = {"restart": restart, "accept_changes": accept_changes}
    with open_session(job, **options, client=client, progress=progress) as session:
        _check_wanted_rows(session, follow)
        if until is not None:
            return _run_until(session, until, on_written)
        if follow is not None:
            return _run_while_followed(session, follow, on_written)
        return _run_while_it_grows(session, on_written)


def _run_once(session: Session, on_written: OnWritten, ready: Mapping[str, Coverage] | None = None) -> Outcome:
    wanted = missing_rows(session.layers, session.ledgers, session.job) if ready is None else ready
    outcome = session.count_and_save(wanted)
    on_written(outcome)
    return outcome


def _run_while_it_grows(session: Session, on_written: OnWritten) -> Outcome:
    """Count all rows; if the last chunk of a layer is rewritten meanwhile, resume from what is saved."""
    for _ in range(MOST_REPLACED):
        try:
            return _run_once(session, on_written)
        except ChangedError:
            if session.restarted:
                raise
        session = _reloaded(session)
    return _run_once(session, on_written)


def _run_while_followed(session: Session, follow: Follow, on_written: OnWritten) -> Outcome:
    """Count rows once they are settled, until `follow` says to stop; then also those that were waited for."""
    outcome, watch, since = session.so_far(), Watch(), time.monotonic()
    rows: dict[str, int] = {}
    while True:
        waiting = missing_rows(session.layers, session.ledgers, session.job)
        watch = watch.polled(session.layers, waiting)
        if _are_new(watch.ready, outcome) or (_rows_of(session) != rows and _may_be_written(session)):
            rows, since = _rows_of(session), time.monotonic()
            session, outcome = _run_ready(session, watch.ready, outcome, on_written)
            session = replace(session, tell=tell_growth)
        elif not watch.quiet:
            since = time.monotonic()
        if follow.rows is not None and watch.fewest_rows(session.layers, waiting) >= follow.rows:
            return outcome
        if follow.idle is not None and time.monotonic() - since >= follow.idle:
            return outcome if watch.ready == waiting else _run_while_it_grows(session, on_written)
        time.sleep(POLL_SECONDS)
        session = _polled(session)


def _are_new(ready: Mapping[str, Coverage], outcome: Outcome) -> bool:
    """Whether there are `ready` rows besides those that could not be read."""
    return any(
        rows - Coverage.of(each.rows for each in outcome.unreadable if each.layer == layer)
        for layer, rows in ready.items()
    )


def _may_be_written(session: Session) -> bool:
    """Whether results can be written although no rows are ready: not before any are, if they are waited for."""
    return all(layer.commits for layer in session.layers) or any(ledger.rows for ledger in session.ledgers.values())


def _run_ready(
    session: Session, ready: Mapping[str, Coverage], outcome: Outcome, on_written: OnWritten
) -> tuple[Session, Outcome]:
    """Count the `ready` rows; if a chunk is rewritten meanwhile, `outcome`, and the session with what is saved.

    If all layers commit their rows, there is nothing to wait for: counting resumes at once.
    """
    commits = all(layer.commits for layer in session.layers)
    try:
        outcome = _run_while_it_grows(session, on_written) if commits else _run_once(session, on_written, ready)
    except ChangedError:
        if session.restarted:
            raise
        return _reloaded(session), outcome
    return replace(session, ledgers=outcome.statistics, restarted=False), outcome


def _reloaded(session: Session) -> Session:
    """`session` with the layers as they are now, and what is saved."""
    selected = session.job.selected()
    return session.resumed(selected, load(session.output, selected.layers))


def _polled(session: Session) -> Session:
    """`session` with the layers as they are now."""
    selected = session.job.selected()
    arrays = arrays_of(selected.layers)
    ledgers = {name: continued(each, session.ledgers.get(name)) for name, each in arrays.items()}
    return session.resumed(selected, ledgers)


def _rows_of(session: Session) -> dict[str, int]:
    return {layer.name: layer.rows for layer in session.layers}


def _run_until(session: Session, until: Until, on_written: OnWritten) -> Outcome:
    """Count in rounds over the first rows: the same rounds whether or not the run was interrupted."""
    if session.job.rows is not None:
        raise UsageError("`rows` is set, but this run determines how many rows are enough; leave out `rows`")
    counted = (source for each in session.ledgers.values() for source in each.sources)
    covered = max((source.covered.stop for source in counted), default=0)
    outcome = session.so_far()
    for rows in _rounds(session.layers):
        if rows < covered:
            continue
        job = replace(session.job, rows=(0, rows))
        outcome = _run_once(replace(session, job=job, ledgers=outcome.statistics), on_written)
        session = replace(session, restarted=False)
        if until(by_layer(outcome.statistics)):
            break
    return outcome


def _rounds(layers: Sequence[Layer]) -> Iterator[int]:
    """The row count of each round, in whole chunks of the layer with the largest samples; the last round has all."""
    most, largest = max(layer.rows for layer in layers), max(layers, key=lambda layer: math.prod(layer.sample_shape))
    together = largest.chunks[0]
    rows = _whole(FIRST_ROWS, together)
    while rows < most:
        yield rows
        rows = _whole(math.ceil(rows * GROWTH), together)
    if most:
        yield most


def _whole(rows: int, together: int) -> int:
    return -(-rows // together) * together


def _check_wanted_rows(session: Session, follow: Follow | None) -> None:
    """Refuse rows that no layer has, and an output in which rows outside the job's are counted."""
    rows = session.job.rows
    if rows is None:
        return
    most = max(layer.rows for layer in session.layers)
    if rows[0] >= most and follow is None:
        raise UsageError(f"`rows` is {in_slice(rows)}, but no layer has more than {most} rows; correct `rows`")
    for layer in session.layers:
        covered = source_of(layer, session.ledgers).covered
        others = covered - wanted_rows(session.job, covered.stop)
        if others:
            start, stop = others.ranges[0]
            raise UsageError(
                f"`rows` is {in_slice(rows)}, but rows {start}:{stop} of layer {layer.name} are counted in "
                f"{session.output}",
                WayOut.ELSEWHERE,
                WayOut.RESTART,
            )
