"""What is done with results beside making them: take rows out, merge outputs, tell what is counted, check the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import artifacts
from .calibration.identity import file_key, file_range, rows_of_file
from .calibration.layer import Layer
from .config import JobConfig
from .errors import DataError, MismatchError, UsageError
from .job import OnProgress, Outcome, Prepared, Session, execute, open_session, prepare
from .ledger import LayerStatistics, Rows, Source, common_rows, merge, without_rows
from .reduction import Measured, Policy, open_executor, reduce_tasks
from .results import MANIFEST, STATE, check_paths, read_states, write_results
from .saved import LOCK, compared, held
from .statistics.extrema import ChannelExtrema

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
    with open_session(config) as session:
        chosen = [layer for layer in session.selected.layers if fnmatchcase(layer.name, match)]
        _check_rows(session, chosen, rows, match)
        taken = {layer.name: common_rows(session.ledger[layer.name].covered, [rows]) for layer in chosen}
        empty = {layer.name: LayerStatistics.empty(layer) for layer in session.selected.layers}
        parts = _measured(session, empty, taken, "report", on_plan, on_progress)
        ledger, again = dict(session.ledger), {}
        forgotten = []
        for layer in chosen:
            whole, part = session.ledger[layer.name], parts[layer.name]
            others = without_rows(whole.covered, [rows])
            read = 0
            if part.covered == taken[layer.name]:
                extrema, read = _extrema_of_the_rest(session, whole, part, others)
                rest = replace(whole, sums=whole.sums.without(part.sums), extrema=extrema)
            else:
                again[layer.name], read = others, _number(others)
                source = Source(whole.source.fingerprint, layer.rows, excluded=whole.source.excluded)
                rest = replace(empty[layer.name], sources=(source,))
            ledger[layer.name] = replace(rest, sources=(_excluding(layer, rest.source, rows),))
            forgotten.append(Forgotten(layer.name, _number(taken[layer.name]), read))
        if again:
            ledger = _measured(session, ledger, again, "error", on_plan, on_progress)
        session.write(Outcome(ledger))
        return forgotten


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
    missing: Any,
    on_plan: OnPlan | None,
    on_progress: OnProgress | None,
) -> dict[str, LayerStatistics]:
    """`ledger` with the `wanted` rows counted in."""
    prepared = session.planned(wanted, ledger)
    if on_plan:
        on_plan(prepared)
    nonfinite = session.config.nonfinite
    return execute(prepared, nonfinite=nonfinite, missing=missing, on_progress=on_progress).statistics


def _extrema_of_the_rest(
    session: Session, whole: LayerStatistics, part: LayerStatistics, others: Sequence[Rows]
) -> tuple[ChannelExtrema, int]:
    """The extrema of `whole` less `part`, and how many of the `others` had to be read to find them."""
    read, rest = 0, ChannelExtrema.empty(whole.channels, whole.extrema.dtype)
    described = {layer.name: layer for layer in session.selected.layers}
    plan = session.planned({whole.layer: others}, session.ledger).plan
    if not part.rows or whole.extrema.is_settled(part.extrema, rest):
        return whole.extrema, 0
    with open_executor(plan.threads, None) as executor:
        policy = Policy(session.config.nonfinite, "error")
        for task, results in reduce_tasks(plan, described, executor, policy):
            read += task.rows
            for found in results:
                if isinstance(found, Measured):
                    rest = rest.merge(found.extrema)
            if whole.extrema.is_settled(part.extrema, rest):
                break
    return whole.extrema.without(part.extrema, rest), read


def _excluding(layer: Layer, source: Source, rows: Rows) -> Source:
    left = without_rows(source.covered, [rows])
    touched = file_range(layer, *rows)
    uncounted = [number for number in touched if not common_rows(left, [rows_of_file(layer, number)])]
    return source.forget(rows, uncounted)


def _number(ranges: Sequence[Rows]) -> int:
    return sum(stop - start for start, stop in ranges)


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
        for layer, statistics in _states(each).items():
            try:
                merged[layer] = merge(merged[layer], statistics) if layer in merged else statistics
            except MismatchError as error:
                raise MismatchError(f"{each}: {error}") from error
    check_paths(output, merged)
    artifacts.check_writable(output)
    with held(output, "merge", {layer: statistics.rows for layer, statistics in merged.items()}):
        write_results(output, sorted({_source_of(each) for each in outputs}), merged)
    return merged


def _source_of(output: Path) -> str:
    return str(_manifest(output).get("source", ""))


def _manifest(output: Path) -> dict[str, Any]:
    return artifacts.read_json(output / MANIFEST) if (output / MANIFEST).exists() else {}


def _states(output: Path) -> dict[str, LayerStatistics]:
    layers = [artifacts.layer_of(output / STATE, path) for path in sorted((output / STATE).rglob("*.safetensors"))]
    if not layers:
        raise UsageError(f"{output} has no states; expected the output folder of `streamstats run`")
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
            planned = {str(layer): int(rows) for layer, rows in artifacts.read_json(output / LOCK)["layers"].items()}
        except (DataError, KeyError, TypeError, ValueError, AttributeError):
            planned = {}  # a run that was stopped before it had written it
    reasons = _manifest(output).get("layers", {})
    states = _states(output) if planned == {} or (output / STATE).is_dir() else {}
    names = sorted({*planned, *states})
    layers = tuple(_layer_status(name, states.get(name), planned.get(name), reasons.get(name, {})) for name in names)
    return Status(layers, artifacts.is_locked(output / LOCK))


def _layer_status(
    layer: str, state: LayerStatistics | None, planned: int | None, entry: Mapping[str, Any]
) -> LayerStatus:
    if state is None:
        rows = planned or 0
        return LayerStatus(layer, rows, 0, (((0, rows), "not counted yet"),) if rows else (), ())
    rows = max(sum(source.rows for source in state.sources), planned or 0)
    told = [((each["rows"][0], each["rows"][1]), str(each["reason"])) for each in entry.get("missing", ())]
    missing: list[tuple[Rows, str]] = []
    for source in state.sources:
        wanted = max(source.rows, planned or 0) if len(state.sources) == 1 else source.rows
        for gap in source.missing(wanted):
            explained = [(common_rows([gap], [rows])[0], why) for rows, why in told if common_rows([gap], [rows])]
            rest = without_rows([gap], [rows for rows, _ in explained])
            missing += [*explained, *((rows, "not counted yet") for rows in rest)]
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
    prepared = prepare(config.source, layers=config.rules(), memory=config.memory, threads=config.cluster.threads)
    if on_plan:
        on_plan(prepared)
    outcome = execute(prepared, nonfinite="skip", missing="report", on_progress=on_progress)
    problems = [Problem(each.layer, each.rows, each.reason) for each in outcome.unreadable]
    layers = {layer.name: layer for layer in prepared.selected.layers}
    for name, state in read_states(Path(config.output), layers).items():
        problems += _differences(layers[name], state, outcome.statistics[name])
    return sorted(problems, key=lambda each: (each.layer, each.rows))


def _differences(layer: Layer, state: LayerStatistics, found: LayerStatistics) -> Iterator[Problem]:
    """What is not as it was when `state` was counted, where `found` is what is there now."""
    if len(state.sources) != 1:
        return
    if state.source.fingerprint != layer.fingerprint:
        yield Problem(layer.name, (0, layer.rows), "dtype, chunks or codecs are not those that were counted")
        return
    for number, said in compared(layer, state.source)[1]:
        first, stop = rows_of_file(layer, number)
        where = f"chunk {file_key(layer, number)}"
        yield Problem(layer.name, (first, min(stop, state.source.rows)), f"{where} {said} since it was counted")
    for start, stop in state.covered:
        if stop > layer.rows:
            yield Problem(layer.name, (max(start, layer.rows), stop), "was counted, and is not there any more")
    same_rows = state.covered == found.covered
    if same_rows and (state.sums != found.sums or state.extrema != found.extrema):
        yield Problem(
            layer.name, (state.covered[0][0], state.covered[-1][1]), "does not give the sums that were counted"
        )
