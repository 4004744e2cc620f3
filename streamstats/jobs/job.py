"""A job from end to end: choose the layers, plan, reduce, and leave the results.

The command line, the service and Python call these functions; there is no other way to a result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..calibration.layer import Layer
from ..calibration.selection import LayerRule, Selected, select_layers
from ..config import DEFAULT_MEMORY, JobConfig, available_cores, parse_bytes
from ..coverage import Rows, common_rows, join_rows, without_rows
from ..errors import ChangedError, StreamstatsError, UsageError
from ..outputs import saved
from ..outputs.ledger import LayerStatistics
from ..outputs.results import MANIFEST, Gaps, check_no_store, check_paths, open_results, remove_leftovers, write_results
from ..storage.files import remove_if_empty
from .measuring import Measured, Policy, Unreadable
from .plan import Plan, make_plan
from .reduction import reduce_tasks
from .workers import Cluster, Workers, open_workers

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Progress:
    """What a finished task adds, in rows and decoded bytes; or a `message` for a person.

    `workers` is how many processes there are now, `repeats` how many tasks were done again so far; `saving` is how
    many seconds it took to save what was counted.
    """

    rows: int = 0
    bytes: int = 0
    workers: int = 1
    repeats: int = 0
    message: str = ""
    saving: float | None = None


OnProgress = Callable[[Progress], None]
Until = Callable[[Mapping[str, LayerStatistics]], bool]
"""Asked after each round whether what is counted is enough."""
FIRST_ROWS, GROWTH = 32, 1.5
"""Of the rounds after which it is asked: the rows of the first, and how many times as many the next has."""
MOST_REPLACED = 20
"""Times that counting goes on after a chunk was replaced while it was read."""
POLL_SECONDS = 1.0
"""Between two looks at a store that is followed."""


@dataclass(frozen=True)
class Prepared:
    """A reduction that is planned and not begun: the layers, what is counted of them so far, the tasks, and by whom."""

    selected: Selected
    ledger: Mapping[str, LayerStatistics]
    plan: Plan
    workers: str


@dataclass
class Outcome:
    """What a reduction found: the statistics of each layer, and which rows could not be read."""

    statistics: dict[str, LayerStatistics]
    unreadable: list[Unreadable] = field(default_factory=list)

    def gaps(self) -> dict[str, Gaps]:
        """The rows that are missing, by layer."""
        missing: dict[str, list[tuple[Rows, str]]] = {}
        for each in sorted(self.unreadable, key=lambda each: (each.layer, each.rows)):
            known = missing.setdefault(each.layer, [])
            if known and known[-1][0][1] == each.rows[0]:  # the first reason stands for all that follow it
                known[-1] = (known[-1][0][0], each.rows[1]), known[-1][1]
            else:
                known.append((each.rows, each.reason))
        return {layer: tuple(ranges) for layer, ranges in missing.items()}


def prepare(
    source: str | Path, workers: Workers, *, layers: Sequence[LayerRule] = (), memory: str | int = DEFAULT_MEMORY
) -> Prepared:
    """Choose the layers of `source` and plan their reduction; no data is read. Arguments and errors as `reduce`."""
    selected = select_layers(source, layers)
    ledger = {layer.name: LayerStatistics.empty(layer) for layer in selected.layers}
    return plan_of(selected, ledger, _missing(selected.layers, ledger), memory, workers)


def plan_of(
    selected: Selected,
    ledger: Mapping[str, LayerStatistics],
    wanted: Mapping[str, Sequence[Rows]],
    memory: str | int,
    workers: Workers,
) -> Prepared:
    """The reduction of the `wanted` rows on top of `ledger` by `workers`. Raises `UsageError`."""
    try:
        budget = parse_bytes(memory)
    except ValueError as error:
        raise UsageError(f"memory is {memory!r}; {error}") from error
    threads, processes = workers.threads_each, max(1, workers.count())
    plan = make_plan(selected.layers, wanted, memory=budget, threads=threads, processes=processes)
    workers.use(plan.threads)
    return Prepared(selected, ledger, plan, workers.description())


def _missing(
    layers: Sequence[Layer], ledger: Mapping[str, LayerStatistics], within: Rows | None = None
) -> dict[str, tuple[Rows, ...]]:
    """The rows of each layer that are still to be counted; with `within`, only of those."""
    missing = {layer.name: ledger[layer.name].source.missing(layer.rows) for layer in layers}
    return missing if within is None else {layer: common_rows(rows, [within]) for layer, rows in missing.items()}


def execute(
    prepared: Prepared,
    workers: Workers,
    *,
    nonfinite: Literal["error", "skip"] = "error",
    missing: Literal["error", "report", "fill"] = "error",
    on_progress: OnProgress | None = None,
    on_counted: Callable[[LayerStatistics], None] | None = None,
) -> Outcome:
    """Do the tasks of `prepared` by `workers` and count what they measure. Arguments and errors as `reduce`.

    `on_counted` is given the statistics of a layer each time that something was counted in.
    """
    if nonfinite not in ("error", "skip"):
        raise UsageError(f"nonfinite is {nonfinite!r}; expected 'error' or 'skip'")
    if missing not in ("error", "report", "fill"):
        raise UsageError(f"missing is {missing!r}; expected 'error', 'report' or 'fill'")
    described = {layer.name: layer for layer in prepared.selected.layers}
    outcome = Outcome(dict(prepared.ledger))

    def tell(message: str) -> None:
        if on_progress:
            on_progress(Progress(0, 0, workers.count(), workers.repeats, message))

    for task, results in reduce_tasks(prepared.plan, described, workers, Policy(nonfinite, missing), tell):
        for found in results:
            _take(outcome, described[found.layer], found, on_counted)
        if on_progress:
            on_progress(Progress(task.rows, task.bytes, workers.count(), workers.repeats))
    _check_complete(prepared, outcome)
    return outcome


def _take(
    outcome: Outcome, layer: Layer, found: Measured | Unreadable, on_counted: Callable[[LayerStatistics], None] | None
) -> None:
    if isinstance(found, Unreadable):
        outcome.unreadable.append(found)
        return
    before = outcome.statistics[found.layer]
    saved.check_unchanged(layer, before.source, found.first_file, found.files)
    counted = before.count(
        found.rows,
        found.sums,
        found.extrema,
        found.first_file,
        found.files,
        found.filled,
        found.spread,
        found.positions,
    )
    outcome.statistics[found.layer] = counted
    if on_counted:
        on_counted(counted)


def reduce(
    source: str | Path,
    *,
    layers: Sequence[LayerRule] = (),
    memory: str | int = DEFAULT_MEMORY,
    nonfinite: Literal["error", "skip"] = "error",
    missing: Literal["error", "fill"] = "error",
    threads: int | None = None,
    client: Client | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, LayerStatistics]:
    """The exact statistics of every layer of the calibration store at `source`, by name.

    `layers` chooses and describes layers (default: every array, as its attributes say); `memory` is the most the
    process may take; `nonfinite` "skip" leaves NaN and infinities out of sums and counts and counts them apart;
    `missing` "fill" counts the fill value for chunks that are not there or cannot be read; `threads` defaults to the
    cores; with a `distributed.Client`, its workers do the work, which must see the store, and `memory` is for each of
    them; `on_progress` is told of each finished task.

    Raises `UsageError` where the request cannot be met, `DataError` where the store cannot be read,
    `NonFiniteError` for NaN or infinities under "error", `ClusterError` for workers that do not fit or are gone.
    """
    selected = select_layers(source, layers)
    ledger = {layer.name: LayerStatistics.empty(layer) for layer in selected.layers}
    with open_workers(
        Cluster(threads=available_cores() if threads is None else threads), selected.layers, client
    ) as workers:
        prepared = plan_of(selected, ledger, _missing(selected.layers, ledger), memory, workers)
        return execute(prepared, workers, nonfinite=nonfinite, missing=missing, on_progress=on_progress).statistics


def _check_complete(prepared: Prepared, outcome: Outcome) -> None:
    planned: dict[str, list[Rows]] = {}
    for task in prepared.plan.tasks:
        for part in task.parts:
            planned.setdefault(part.layer, []).append((part.start, part.stop))
    for layer, rows in planned.items():
        lost = [each.rows for each in outcome.unreadable if each.layer == layer]
        missing = without_rows(join_rows(rows), [*outcome.statistics[layer].covered, *lost])
        if missing:
            raise StreamstatsError(f"layer {layer}: rows {missing} came back from no task; please report this")


# Jobs that leave results


@dataclass(frozen=True)
class Follow:
    """Until when a store is followed: every layer has `rows`, or nothing was added for `idle` seconds."""

    rows: int | None = None
    idle: float | None = None


@dataclass(frozen=True)
class Session:
    """A job whose output nobody else writes to: its layers, and what is counted of them."""

    config: JobConfig
    output: Path
    selected: Selected
    ledger: dict[str, LayerStatistics]
    restarted: bool
    workers: Workers

    def planned(self, wanted: Mapping[str, Sequence[Rows]], ledger: Mapping[str, LayerStatistics]) -> Prepared:
        """The reduction of the `wanted` rows on top of `ledger`."""
        return plan_of(self.selected, ledger, wanted, self.config.memory, self.workers)

    def write(self, statistics: Mapping[str, LayerStatistics], gaps: Mapping[str, Gaps]) -> None:
        """Leave states, correctors and manifest."""
        rows, keep = self.config.wanted_rows, not self.restarted
        write_results(self.output, self.config.source, statistics, gaps, rows=rows, keep_states=keep)


@contextmanager
def open_session(
    config: JobConfig, *, restart: bool = False, accept_changes: bool = False, client: Client | None = None
) -> Iterator[Session]:
    """The job that `config` describes, with what its output has so far; others are kept out of the output.

    Raises `UsageError` for a job that cannot be, `OutputError` where somebody else is at it, `DataError` for a state
    that is damaged or a store that is not the one it was counted from, `ClusterError` for workers that do not fit.
    """
    selected = select_layers(config.source, config.rules())
    output = Path(config.output)
    _check_apart(config.source, output)
    check_paths(output, [layer.name for layer in selected.layers])
    try:
        with saved.held(output, config.source, {layer.name: layer.rows for layer in selected.layers}):
            remove_leftovers(output)
            if restart:
                ledger = saved.restarted(output, selected.layers)
            else:
                _check_same_source(output, config.source, accept_changes=accept_changes)
                ledger = saved.load(output, selected.layers, accept_changes=accept_changes)
            with open_workers(config.cluster.chosen(), selected.layers, client) as workers:
                yield Session(config, output, selected, ledger, restart, workers)
    finally:
        remove_if_empty(output)


def run(
    config: JobConfig,
    *,
    restart: bool = False,
    accept_changes: bool = False,
    follow: Follow | None = None,
    until: Until | None = None,
    client: Client | None = None,
    on_plan: Callable[[Prepared], None] | None = None,
    on_progress: OnProgress | None = None,
    on_written: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Do the job that `config` describes and write `state/`, `correctors/` and `manifest.json` to its output.

    It goes on from what `state/` has; `restart` begins anew, without the rows to forget; `accept_changes` takes the
    store as it is now. `follow` counts rows as they are appended; `until` counts the first rows of all layers in rounds
    that grow, and ends with the one after which it is true. With a dask `client`, its workers do the work,
    whatever the configuration says. `on_plan` is told each plan before data is read, `on_written` what the results are
    each time that they are written. What was counted is saved every few seconds, and when the job ends, in whatever
    way. Raises as `reduce` and `open_session` do, and `OutputError`.
    """
    watch = _Watch(on_plan, on_progress, on_written)
    with open_session(config, restart=restart, accept_changes=accept_changes, client=client) as session:
        _check_wanted_rows(session, follow)
        if until is not None:
            return _run_until(session, until, watch)
        outcome = _run_while_it_grows(session, watch)
        if follow is not None:
            for selected in _grown(session, follow):
                counted = outcome.statistics
                ledger = {layer.name: saved.continued(layer, counted.get(layer.name)) for layer in selected.layers}
                session = replace(session, selected=selected, ledger=ledger, restarted=False)
                outcome = _run_while_it_grows(session, watch)
        return outcome


@dataclass(frozen=True)
class _Watch:
    """Who is told of what."""

    on_plan: Callable[[Prepared], None] | None
    on_progress: OnProgress | None
    on_written: Callable[[Outcome], None] | None


def _run_until(session: Session, until: Until, watch: _Watch) -> Outcome:
    """Rounds over the first rows: the same ones whether the run was stopped in between or not."""
    if session.config.rows is not None:
        raise UsageError("`rows` is given, but how many rows are counted is to be found out; leave it out")
    covered = max((rows[1] for each in session.ledger.values() for rows in each.covered), default=0)
    outcome = Outcome(session.ledger)
    for rows in _rounds(session.selected.layers):
        if rows < covered:
            continue
        config = session.config.model_copy(update={"rows": f"0:{rows}"})
        session = replace(session, config=config, ledger=outcome.statistics)
        outcome = _run_once(session, watch)
        session = replace(session, restarted=False)
        if until(outcome.statistics):
            break
    return outcome


def _rounds(layers: Sequence[Layer]) -> Iterator[int]:
    """The rows of each round, whole chunks of the layer with the largest samples; the last round has all."""
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


def _run_while_it_grows(session: Session, watch: _Watch) -> Outcome:
    """Count all, again from what is saved where somebody who records wrote the last chunk of a layer anew meanwhile."""
    for _ in range(MOST_REPLACED):
        try:
            return _run_once(session, watch)
        except ChangedError:
            if session.restarted or not all(layer.recorded for layer in session.selected.layers):
                raise
        selected = select_layers(session.config.source, session.config.rules())
        session = replace(session, selected=selected, ledger=saved.load(session.output, selected.layers))
    return _run_once(session, watch)


def _run_once(session: Session, watch: _Watch) -> Outcome:
    config = session.config
    wanted = _missing(session.selected.layers, session.ledger, config.wanted_rows)
    prepared = session.planned(wanted, session.ledger)
    if watch.on_plan:
        watch.on_plan(prepared)
    on_progress, workers = watch.on_progress, session.workers

    def on_saved(seconds: float) -> None:
        if on_progress:
            on_progress(Progress(workers=workers.count(), repeats=workers.repeats, saving=seconds))

    saver = saved.Saver(session.output, session.ledger.values() if session.restarted else (), on_saved)
    try:
        outcome = execute(
            prepared,
            session.workers,
            nonfinite=config.nonfinite,
            missing=config.missing,
            on_progress=on_progress,
            on_counted=saver.changed,
        )
        session.write(outcome.statistics, outcome.gaps())
    except BaseException:
        saver.save()
        raise
    if watch.on_written:
        watch.on_written(outcome)
    return outcome


def _check_wanted_rows(session: Session, follow: Follow | None) -> None:
    """Refuse rows that no layer has, and an output in which other rows are counted than those that are wanted."""
    rows = session.config.wanted_rows
    if rows is None:
        return
    most = max(layer.rows for layer in session.selected.layers)
    if rows[0] >= most and follow is None:
        raise UsageError(f"`rows` is {rows[0]}:{rows[1]}, but no layer has more than {most} rows")
    for layer in session.selected.layers:
        others = without_rows(session.ledger[layer.name].covered, [rows])
        if others:
            start, stop = others[0]
            raise UsageError(
                f"`rows` is {rows[0]}:{rows[1]}, but rows {start}:{stop} of layer {layer.name} are counted in "
                f"{session.output}; choose another output, or count again with --restart"
            )


def _grown(session: Session, follow: Follow) -> Iterator[Selected]:
    """The layers each time that there are more rows of them, until it is enough."""
    rows = {layer.name: layer.rows for layer in session.selected.layers}
    since = time.monotonic()
    while follow.rows is None or any(count < follow.rows for count in rows.values()):
        if follow.idle is not None and time.monotonic() - since >= follow.idle:
            return
        time.sleep(POLL_SECONDS)
        selected = select_layers(session.config.source, session.config.rules())
        found = {layer.name: layer.rows for layer in selected.layers}
        if found != rows:
            rows, since = found, time.monotonic()
            yield selected


def _check_same_source(output: Path, source: str, *, accept_changes: bool) -> None:
    """Raise `DataError` for a manifest that is damaged, `UsageError` where changes of another store are accepted."""
    if not (output / MANIFEST).exists():
        return
    before = open_results(output).source
    if accept_changes and before is not None and Path(before).resolve() != Path(source).resolve():
        raise UsageError(
            f"{output} was counted from {before}, but the source is {source}; --accept-changes is for the same store: "
            "count everything again with --restart, or choose another output"
        )


def _check_apart(source: str, output: Path) -> None:
    """Refuse an output that would put files into the calibration store."""
    store, folder = Path(source).resolve(), output.resolve()
    if store in (folder, *folder.parents):
        raise UsageError(f"output {output} lies in the calibration store {source}; choose a folder outside it")
    check_no_store(output)
