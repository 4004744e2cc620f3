"""What is done with results beside making them: take rows out, merge outputs, tell what is counted, check the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from ..calibration.identity import file_key, file_range, rows_of_file
from ..calibration.layer import Layer
from ..calibration.selection import select_layers
from ..config import JobConfig
from ..coverage import Rows, common_rows, row_count, without_rows
from ..errors import DataError, MismatchError, NonFiniteError, UsageError
from ..outputs.ledger import LayerStatistics, Source, merge
from ..outputs.results import (
    STATE,
    Gaps,
    check_no_store,
    check_paths,
    explained,
    read_manifest,
    read_states,
    still_missing,
    told_gaps,
    write_results,
)
from ..outputs.saved import LOCK, check_same_job, compared, held
from ..statistics.extrema import ChannelExtrema
from ..storage.files import read_json
from ..storage.locks import is_locked
from ..storage.names import layer_of
from .job import OnProgress, Prepared, Session, execute, open_session, plan_of
from .measuring import Measured, Policy
from .reduction import reduce_tasks
from .workers import open_workers

OnPlan = Callable[[Prepared], None]

# forget


@dataclass(frozen=True)
class Forgotten:
    """What was taken out of a layer: `rows` that had been counted; `others` were read again for it."""

    layer: str
    rows: int
    others: int


def forget(
    config: JobConfig,
    rows: Rows,
    *,
    match: str = "*",
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> list[Forgotten]:
    """Take `rows` out of the layers of the job whose names fit the glob `match`, and never count them again.

    They are read once more and subtracted. Where one of them is an extremum of a channel, others are read until one
    reaches as far; where one cannot be read any more, all others are counted anew. Raises as `job.run` does.
    """
    with open_session(config) as session, _all_or_nothing():
        chosen = [layer for layer in session.selected.layers if fnmatchcase(layer.name, match)]
        _check_rows(session, chosen, rows, match)
        taken = {layer.name: common_rows(session.ledger[layer.name].covered, [rows]) for layer in chosen}
        empty = {layer.name: LayerStatistics.empty(layer) for layer in session.selected.layers}
        missing = config.missing if config.missing == "fill" else "report"
        parts = _measured(session, empty, taken, missing, on_plan, on_progress)
        ledger, again = dict(session.ledger), {}
        forgotten = []
        for layer in chosen:
            whole, part = session.ledger[layer.name], parts[layer.name]
            others = without_rows(whole.covered, [rows])
            read = 0
            if part.covered == taken[layer.name]:
                extrema, read = _extrema_of_the_rest(session, whole, part, others)
                rest = whole.without(part, extrema)
            else:
                again[layer.name], read = others, row_count(others)
                source = Source(whole.source.fingerprint, layer.rows, excluded=whole.source.excluded)
                rest = replace(empty[layer.name], sources=(source,))
            ledger[layer.name] = replace(rest, sources=(_excluding(layer, rest.source, rows),))
            forgotten.append(Forgotten(layer.name, row_count(taken[layer.name]), read))
        if again:
            unread: Literal["fill", "error"] = "fill" if config.missing == "fill" else "error"
            ledger = _measured(session, ledger, again, unread, on_plan, on_progress)
        told = told_gaps(session.output)
        gaps = {layer: still_missing(ledger[layer], told.get(layer, ())) for layer in ledger}
        session.write(ledger, gaps)
        return forgotten


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Rows that cannot be read, where they are needed, are an error that says so."""
    try:
        yield
    except NonFiniteError:
        raise
    except DataError as error:
        what = str(error).partition("; ")[0]
        raise DataError(
            f"{what}; it stays counted, and is needed to find minimum and maximum again: repair it, or forget its "
            "rows, too; nothing was taken out"
        ) from error


def _check_rows(session: Session, chosen: Sequence[Layer], rows: Rows, match: str) -> None:
    if not chosen:
        names = ", ".join(layer.name for layer in session.selected.layers)
        raise UsageError(f"no layer matches {match!r}; the job has {names}")
    for layer in chosen:
        if not 0 <= rows[0] < rows[1] <= layer.rows:
            raise UsageError(
                f"rows {rows[0]}:{rows[1]} are to be forgotten, but layer {layer.name} has {layer.rows} rows"
            )


def _measured(
    session: Session,
    ledger: Mapping[str, LayerStatistics],
    wanted: Mapping[str, Sequence[Rows]],
    missing: Literal["error", "report", "fill"],
    on_plan: OnPlan | None,
    on_progress: OnProgress | None,
) -> dict[str, LayerStatistics]:
    """`ledger` with the `wanted` rows counted in."""
    prepared = session.planned(wanted, ledger)
    if on_plan:
        on_plan(prepared)
    nonfinite = session.config.nonfinite
    outcome = execute(prepared, session.workers, nonfinite=nonfinite, missing=missing, on_progress=on_progress)
    return outcome.statistics


def _extrema_of_the_rest(
    session: Session, whole: LayerStatistics, part: LayerStatistics, others: Sequence[Rows]
) -> tuple[ChannelExtrema, int]:
    """The extrema of `whole` less `part`, and how many of the `others` had to be read to find them."""
    read, rest = 0, ChannelExtrema.empty(whole.channels, whole.extrema.dtype)
    if not part.rows or whole.extrema.is_settled(part.extrema, rest):
        return whole.extrema, 0
    described = {layer.name: layer for layer in session.selected.layers}
    plan = session.planned({whole.layer: others}, session.ledger).plan
    policy = Policy(session.config.nonfinite, "fill" if session.config.missing == "fill" else "error")
    reduced = reduce_tasks(plan, described, session.workers, policy)
    for task, results in reduced:
        read += task.rows
        for found in results:
            if isinstance(found, Measured):
                rest = rest.merge(found.extrema)
        if whole.extrema.is_settled(part.extrema, rest):
            break
    reduced.close()
    return whole.extrema.without(part.extrema, rest), read


def _excluding(layer: Layer, source: Source, rows: Rows) -> Source:
    left = without_rows(source.covered, [rows])
    touched = file_range(layer, *rows)
    uncounted = [number for number in touched if not common_rows(left, [rows_of_file(layer, number)])]
    return source.forget(rows, uncounted)


# merge


def merge_outputs(outputs: Sequence[Path], output: Path) -> dict[str, LayerStatistics]:
    """Write the statistics over the rows of all `outputs` to `output`, another folder.

    Layers that only some of them have are kept as they are. Raises `UsageError` for an output without states,
    `MismatchError` where they do not fit together or the same row is in two of them, `DataError`, `OutputError`.
    """
    if output.resolve() in {each.resolve() for each in outputs}:
        raise UsageError(f"{output} is one of the outputs to merge; choose another folder")
    merged: dict[str, LayerStatistics] = {}
    for each in outputs:
        states = _states(each)
        if not states:
            raise UsageError(f"{each} has no states; expected the output folder of `streamstats run`")
        for layer, statistics in states.items():
            try:
                merged[layer] = merge(merged[layer], statistics) if layer in merged else statistics
            except MismatchError as error:
                raise MismatchError(f"{each}: {error}") from error
    check_paths(output, merged)
    check_no_store(output)
    if isinstance(read_manifest(output).get("source"), str):
        raise UsageError(f"{output} holds the results of a run; choose another folder for the merged ones")
    told: dict[str, list[tuple[Rows, str]]] = {}
    for each in outputs:
        for layer, gaps in told_gaps(each).items():
            told.setdefault(layer, []).extend(gaps)
    gaps_left = {layer: still_missing(merged[layer], tuple(sorted(told.get(layer, ())))) for layer in merged}
    with held(output, "merge", {layer: statistics.rows for layer, statistics in merged.items()}):
        sources = sorted({source for each in outputs for source in _sources_of(each)})
        write_results(output, sources, merged, gaps_left)
    return merged


def _sources_of(output: Path) -> list[str]:
    source = read_manifest(output).get("source", [])
    return [source] if isinstance(source, str) else [str(each) for each in source]


def _states(output: Path) -> dict[str, LayerStatistics]:
    """What is counted in `output`: of the layers of its manifest, or of all that there are while there is none."""
    files = sorted((output / STATE).rglob("*.safetensors"))
    layers = read_manifest(output).get("layers") or [layer_of(output / STATE, path) for path in files]
    return read_states(output, layers)


# status


@dataclass(frozen=True)
class LayerStatus:
    """How far a layer is: `counted` of `rows`; `missing` ranges, and why they are missing."""

    layer: str
    rows: int
    counted: int
    missing: tuple[tuple[Rows, str], ...]
    excluded: tuple[Rows, ...]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "rows": self.rows,
            "counted": self.counted,
            "missing": [{"rows": list(rows), "reason": reason} for rows, reason in self.missing],
            "excluded": [list(rows) for rows in self.excluded],
        }


@dataclass(frozen=True)
class Status:
    """How far the job of an output is; `running` says whether somebody is at it now."""

    layers: tuple[LayerStatus, ...]
    running: bool

    @property
    def complete(self) -> bool:
        """Whether every row is counted or excluded."""
        return not any(layer.missing for layer in self.layers)


def status(output: Path) -> Status:
    """What is counted in `output`. Raises `UsageError` for a folder that is no output, `DataError` for damage."""
    planned: dict[str, int] = {}
    if (output / LOCK).exists():
        try:
            planned = {str(layer): int(rows) for layer, rows in read_json(output / LOCK)["layers"].items()}
        except (DataError, KeyError, TypeError, ValueError, AttributeError):
            planned = {}  # a run that was stopped before it had written it
    manifest = read_manifest(output)
    entries, told = manifest.get("layers", {}), told_gaps(output)
    limit = manifest.get("rows")
    states = _states(output)
    if not (states or planned or manifest):
        raise UsageError(f"{output} has no states; expected the output folder of `streamstats run`")
    for name, entry in entries.items():
        planned.setdefault(name, int(entry["rows"]) if name not in states else 0)
    wanted = (0, sys.maxsize) if limit is None else (int(limit[0]), int(limit[1]))
    names = sorted({*planned, *states})
    layers = tuple(
        _layer_status(name, states.get(name), planned.get(name), told.get(name, ()), wanted) for name in names
    )
    return Status(layers, is_locked(output / LOCK))


def _layer_status(
    layer: str, state: LayerStatistics | None, planned: int | None, told: Gaps, limit: Rows
) -> LayerStatus:
    if state is None:
        rows = planned or 0
        return LayerStatus(layer, rows, 0, explained([(0, rows)], ()), ())
    rows = max(sum(source.rows for source in state.sources), planned or 0)
    missing: list[tuple[Rows, str]] = []
    for source in state.sources:
        wanted = max(source.rows, planned or 0) if len(state.sources) == 1 else source.rows
        missing += explained(common_rows(source.missing(wanted), [limit]), told)
    return LayerStatus(layer, rows, state.rows, tuple(sorted(missing)), state.excluded)


# verify


@dataclass(frozen=True)
class Problem:
    """Something wrong with `rows` of a layer."""

    layer: str
    rows: Rows
    problem: str


def verify(config: JobConfig, *, on_plan: OnPlan | None = None, on_progress: OnProgress | None = None) -> list[Problem]:
    """Read everything that the job of `config` counts, once, and tell what is wrong with it; nothing is written.

    Chunks must be there, decode to their size and have the checksums that are stored with them. What was counted must
    be as it was: the same files, and the same exact sums. Raises `UsageError`, `DataError` for a damaged state.
    """
    selected = select_layers(config.source, config.rules())
    layers = {layer.name: layer for layer in selected.layers}
    states = read_states(Path(config.output), layers)
    for name, state in states.items():
        check_same_job(layers[name], state)
    empty = {name: LayerStatistics.empty(layer) for name, layer in layers.items()}
    counted = {name: common_rows(state.source.covered, [(0, layers[name].rows)]) for name, state in states.items()}
    others = {}
    for name, layer in layers.items():
        wanted_rows = common_rows([config.wanted_rows or (0, layer.rows)], [(0, layer.rows)])
        others[name] = without_rows(wanted_rows, [*counted.get(name, ()), *_excluded(states.get(name))])
    found, unreadable = dict(empty), []
    with open_workers(config.cluster.chosen(), selected.layers) as workers:
        for wanted in (counted, others):
            prepared = plan_of(selected, empty, wanted, config.memory, workers)
            if on_plan:
                on_plan(prepared)
            outcome = execute(prepared, workers, nonfinite="skip", missing="report", on_progress=on_progress)
            unreadable += outcome.unreadable
            if wanted is counted:
                found = outcome.statistics
    allowed = config.missing == "fill"  # a store that leaves out chunks of fill values
    wrong = [each for each in unreadable if not (allowed and each.lost)]
    problems = [Problem(each.layer, each.rows, each.reason) for each in wrong]
    for name, state in states.items():
        problems += _differences(layers[name], state, found[name])
    for name, entry in read_manifest(Path(config.output)).get("layers", {}).items():
        if name not in {*layers, *selected.left_out}:
            problems.append(Problem(name, (0, int(entry["rows"])), "was counted, and is not in the store any more"))
    return sorted(problems, key=lambda each: (each.layer, each.rows))


def _excluded(state: LayerStatistics | None) -> Sequence[Rows]:
    return () if state is None else state.source.excluded


def _differences(layer: Layer, state: LayerStatistics, found: LayerStatistics) -> Iterator[Problem]:
    """What is not as it was when `state` was counted, where `found` is what is there now."""
    if state.source.fingerprint != layer.fingerprint:
        yield Problem(layer.name, (0, layer.rows), "dtype, chunks or codecs are not those that were counted")
        return
    same_rows = state.covered == found.covered
    same_sums = (state.sums, state.extrema) == (found.sums, found.extrema)
    but = ", but gives the same sums: `run --accept-changes` keeps them" if same_rows and same_sums else ""
    changed = compared(layer, state.source)[1]
    for said, those in groupby(changed, key=itemgetter(1)):
        numbers = [number for number, _ in those]
        first, stop = rows_of_file(layer, numbers[0])[0], rows_of_file(layer, numbers[-1])[1]
        more = f" and {len(numbers) - 1:,} more" if len(numbers) > 1 else ""
        where = f"chunk {file_key(layer, numbers[0])}{more}"
        yield Problem(layer.name, (first, min(stop, state.source.rows)), f"{where} {said} since it was counted{but}")
    for start, stop in state.covered:
        if stop > layer.rows:
            yield Problem(layer.name, (max(start, layer.rows), stop), "was counted, and is not there any more")
    if same_rows and not same_sums:
        yield Problem(
            layer.name, (state.covered[0][0], state.covered[-1][1]), "does not give the sums that were counted"
        )
