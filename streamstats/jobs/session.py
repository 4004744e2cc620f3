"""A session: a job that holds the lock on its output, with what is counted so far and the workers that count more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..address import local_path
from ..calibration.layer import Layer, arrays_of
from ..calibration.selection import Selected
from ..coverage import Coverage, Rows
from ..errors import StreamstatsError, UsageError
from ..outputs.changes import check_unchanged
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import CountedSource, count
from ..outputs.manifest import GapsOf, joined
from ..outputs.results import check_no_store, check_paths, remove_leftovers, write_results
from ..outputs.resuming import Noticed, load, restarted
from ..outputs.saving import Saver, held
from ..outputs.several import stores_before
from ..outputs.shortfalls import Shortfall, shortfalls
from ..progress import QUIET, Progress
from ..storage.files import remove_if_empty
from .job import Job, checked_job, wanted_rows
from .joining import join_cuts
from .measuring import Found, Policy, Unreadable
from .opening import open_workers
from .plan import Plan, least_memory, make_plan
from .reduction import reduce_tasks
from .telling import (
    Ledgers,
    Tell,
    tell_changed,
    tell_copies,
    tell_left_out,
    tell_masked,
    tell_plan,
    tell_selected,
    tell_twins,
)
from .workers import Workers

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Outcome:
    """What a reduction yields: the statistics of each layer, and the rows that could not be read.

    `shortfalls` are the layers that counted less than the `min_rows` of the job, by name. `unreadable_arrays` are
    arrays of the store that nobody can read, with the reasons.
    """

    statistics: dict[str, LayerStatistics]
    unreadable: list[Unreadable] = field(default_factory=list)
    shortfalls: Mapping[str, Shortfall] = field(default_factory=dict)
    unreadable_arrays: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every array and row could be read, and every layer has the rows that the job asks for."""
        return not (self.unreadable or self.shortfalls or self.unreadable_arrays)

    def gaps(self, layers: Sequence[Layer]) -> dict[str, GapsOf]:
        """The rows of `layers` that could not be read, by the name under which they are counted."""
        missing: dict[str, list[tuple[Rows, str]]] = {}
        for each in self.unreadable:
            missing.setdefault(each.layer, []).append((each.rows, each.reason))
        return {
            name: {array.address: joined(missing[array.name]) for array in arrays if array.name in missing}
            for name, arrays in arrays_of(layers).items()
        }


@dataclass(frozen=True)
class Session:
    """A job that holds the lock on its output: its layers, and what is counted of them. `tell` begins a stage."""

    job: Job
    selected: Selected
    ledgers: dict[str, LayerStatistics]
    restarted: bool
    workers: Workers
    progress: Progress = QUIET
    tell: Tell = tell_plan

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.job.output)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The arrays of the layers of the job, in order."""
        return self.selected.layers

    @property
    def min_rows(self) -> dict[str, int]:
        """The rows that the job asks for, by layer."""
        return {layer.counted_as: layer.min_rows for layer in self.layers}

    def so_far(self) -> Outcome:
        """The outcome if nothing more is counted."""
        return self._with_shortfalls(Outcome(self.ledgers))

    def resumed(self, selected: Selected, ledgers: dict[str, LayerStatistics]) -> Session:
        """The session as it goes on with the layers that are `selected` now, of which `ledgers` are counted."""
        return replace(self, selected=settled(selected, ledgers), ledgers=ledgers)

    def count(self, ledgers: Ledgers, wanted: Mapping[str, Coverage], policy: Policy) -> Outcome:
        """`ledgers` with the `wanted` rows counted, too; it saves nothing."""
        return reduce_layers(self.layers, ledgers, wanted, self.job.memory_bytes, self.workers, policy, self.progress)

    def count_and_save(self, wanted: Mapping[str, Coverage]) -> Outcome:
        """Count the `wanted` rows on top of what is counted so far; save every few seconds, write at the end."""
        saver = Saver(self.output, self.ledgers.values(), self.progress, together=self.restarted)
        policy = Policy.of(self.job.nonfinite, self.job.missing)
        try:
            outcome = reduce_layers(
                self.layers,
                self.ledgers,
                wanted,
                self.job.memory_bytes,
                self.workers,
                policy,
                self.progress,
                saver,
                self.tell,
            )
            tell_twins(outcome.statistics, self.progress)
            tell_masked(outcome.statistics, self.progress)
            self.write(outcome.statistics, outcome.gaps(self.layers))
        except UsageError:
            saver.save()
            raise
        except BaseException:
            if self.restarted or not any(ledger.rows for ledger in self.ledgers.values()):
                saver.save()  # nothing that was counted before is lost, and a run that counted nothing leaves nothing
            else:
                saver.save_all()
            raise
        return self._with_shortfalls(outcome)

    def _with_shortfalls(self, outcome: Outcome) -> Outcome:
        short = shortfalls(outcome.statistics, self.min_rows)
        return replace(outcome, shortfalls=short, unreadable_arrays=self.selected.unreadable)

    def write(self, statistics: Ledgers, gaps: Mapping[str, GapsOf]) -> None:
        """Write states, correctors and manifest."""
        write_results(
            self.output,
            self.job.sources,
            statistics,
            gaps,
            rows=self.job.rows,
            min_rows=self.min_rows,
            unreadable=self.selected.unreadable,
            coordinates=self.selected.coordinates,
            keep_states=not self.restarted,
        )


@contextmanager
def open_session(
    job: Job,
    *,
    restart: bool = False,
    accept_changes: bool = False,
    client: Client | None = None,
    progress: Progress = QUIET,
) -> Iterator[Session]:
    """`job`, with what its output holds so far; other processes are locked out of the output.

    Raises `UsageError` for an impossible job, `OutputError` if another process holds the output, `DataError` for a
    damaged state or a store that has changed since it was counted, `ClusterError` for unfit workers.
    """
    output = local_path(checked_job(job).output)
    selected = job.selected()
    for source in job.sources:
        _check_apart(source, output)
    arrays = arrays_of(selected.layers)
    check_paths(output, arrays)
    tell_selected(selected, progress)
    try:
        rows = {name: sum(array.rows for array in each) for name, each in arrays.items()}
        with held(output, ", ".join(job.sources), rows, {name: each[0].names for name, each in arrays.items()}):
            remove_leftovers(output)
            if restart:
                ledgers = restarted(output, selected.layers)
            else:
                ledgers = _loaded(job, selected.layers, progress, accept_changes=accept_changes)
            with open_workers(job.cluster, selected.layers, client, progress.say) as workers:
                yield Session(job, settled(selected, ledgers), ledgers, restart, workers, progress)
    finally:
        remove_if_empty(output)


def _loaded(
    job: Job, layers: Sequence[Layer], progress: Progress, *, accept_changes: bool
) -> dict[str, LayerStatistics]:
    """The statistics to resume from; tells what is taken for a copy, and what now means something else."""
    output, noticed = Path(job.output), Noticed()
    moved = _has_moved(output, job)
    ledgers = load(output, layers, accept_changes=accept_changes, moved=moved, noticed=noticed)
    tell_copies(noticed.copies, progress)
    tell_changed(noticed.redescribed, progress)
    if job.nonfinite == "error":
        tell_left_out(ledgers, progress)
    return ledgers


def settled(selected: Selected, ledgers: Ledgers) -> Selected:
    """`selected` with the rows that are settled in `ledgers`: fewer, where a file is still to be written."""
    known = {layer.name: source_of(layer, ledgers).settled_rows for layer in selected.layers}
    layers = tuple(replace(layer, unwritten_from=known[layer.name]) for layer in selected.layers)
    return replace(selected, layers=layers)


def reduce_layers(
    layers: Sequence[Layer],
    ledgers: Ledgers,
    wanted: Mapping[str, Coverage],
    memory: int,
    workers: Workers,
    policy: Policy,
    progress: Progress = QUIET,
    saver: Saver | None = None,
    tell: Tell = tell_plan,
) -> Outcome:
    """Plan the `wanted` rows of `layers`, have `workers` measure them, and count them into `ledgers`.

    `saver` receives each ledger that has changed; `tell` begins the stage. Raises `UsageError` if `memory` does not
    suffice, and what `reduce_tasks` raises.
    """
    plan = planned(layers, wanted, memory, workers)
    tell(plan, layers, ledgers, memory, workers, progress)
    described = {layer.name: layer for layer in layers}
    outcome = Outcome(dict(ledgers))
    for finished in join_cuts(reduce_tasks(plan, described, workers, policy, progress), described):
        for found in finished.results:
            _take(outcome, described[found.layer], found, saver)
        progress.workers(workers.count(), workers.repeats)
        progress.advance(finished.rows, finished.bytes)
    _check_complete(plan, outcome, described)
    return outcome


def planned(layers: Sequence[Layer], wanted: Mapping[str, Coverage], memory: int, workers: Workers) -> Plan:
    """The plan for the `wanted` rows of `layers`.

    Raises `UsageError` if `memory` does not suffice, `UnfitError` for a worker whose own limit does not.
    """
    threads, processes = workers.threads_each, max(1, workers.count())
    memory = workers.budget(memory, least_memory(layers, threads))
    plan = make_plan(layers, wanted, memory=memory, threads=threads, processes=processes)
    workers.use(plan.threads)
    return plan


def missing_rows(layers: Sequence[Layer], ledgers: Ledgers, job: Job | None = None) -> dict[str, Coverage]:
    """The rows of each layer that remain to count; if `job` is given, only those that it wants."""
    missing = {layer.name: source_of(layer, ledgers).missing(layer.rows) for layer in layers}
    if job is None:
        return missing
    return {layer.name: missing[layer.name] & wanted_rows(job, layer.rows) for layer in layers}


def source_of(layer: Layer, ledgers: Ledgers) -> CountedSource:
    """What is counted of the array `layer`."""
    return ledgers[layer.counted_as].at(layer.address)


def _take(outcome: Outcome, layer: Layer, found: Found, saver: Saver | None) -> None:
    if isinstance(found, Unreadable):
        outcome.unreadable.append(found)
        return
    before = outcome.statistics[layer.counted_as]
    check_unchanged(layer, before.at(layer.address), found)
    outcome.statistics[layer.counted_as] = count(before, found, layer.address)
    if saver:
        saver.changed(outcome.statistics[layer.counted_as])


def _check_complete(plan: Plan, outcome: Outcome, layers: Mapping[str, Layer]) -> None:
    """Raise `StreamstatsError` unless every row of the plan is counted or known to be unreadable."""
    expected: dict[str, list[Rows]] = {}
    for task in plan.tasks:
        for part in task.parts:
            expected.setdefault(part.layer, []).append((part.start, part.stop))
    for layer, rows in expected.items():
        lost = Coverage.of(each.rows for each in outcome.unreadable if each.layer == layer)
        missing = Coverage.of(rows) - (source_of(layers[layer], outcome.statistics).covered | lost)
        if missing:
            raise StreamstatsError(f"layer {layer}: no task returned rows {missing}; please report this as a bug")


def _has_moved(output: Path, job: Job) -> bool:
    """Whether some of what `output` holds was counted from another place. Raises `DataError` for a damaged manifest."""
    here = {Path(each).resolve() for each in job.sources}
    return not here.issuperset(Path(each).resolve() for each in stores_before(output))


def _check_apart(source: str, output: Path) -> None:
    """Refuse an output that would put files into the calibration store."""
    store, folder = Path(source).resolve(), output.resolve()
    if store in (folder, *folder.parents):
        raise UsageError(f"output {output} lies in the calibration store {source}; choose a folder outside the store")
    check_no_store(output)
