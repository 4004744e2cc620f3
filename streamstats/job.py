"""A job from end to end: choose the layers, plan, reduce, and leave the results.

The command line, the service and Python call these functions; there is no other way to a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import artifacts
from .calibration.layer import Layer
from .calibration.selection import LayerRule, Selected, select_layers
from .config import DEFAULT_MEMORY, JobConfig, available_cores, parse_bytes
from .errors import StreamstatsError, UsageError
from .ledger import LayerStatistics, missing_rows
from .plan import Plan, make_plan
from .reduction import Client, open_executor, reduce_tasks
from .results import check_paths, recorded_layers, write_results

OnProgress = Callable[[int, int], None]
"""Called with the rows and the decoded bytes that a finished task adds."""


@dataclass(frozen=True)
class Prepared:
    """A reduction that is planned and not begun: the layers, what is counted of them so far, and the tasks."""

    selected: Selected
    ledger: Mapping[str, LayerStatistics]
    plan: Plan


def prepare(
    source: str | Path,
    *,
    layers: Sequence[LayerRule] = (),
    memory: str | int = DEFAULT_MEMORY,
    threads: int | None = None,
) -> Prepared:
    """Choose the layers of `source` and plan their reduction; no data is read. Arguments and errors as `reduce`."""
    selected = select_layers(source, layers)
    ledger = {layer.name: LayerStatistics.empty(layer) for layer in selected.layers}
    missing = {layer.name: missing_rows(ledger[layer.name].covered, layer.rows) for layer in selected.layers}
    try:
        budget = parse_bytes(memory)
    except ValueError as error:
        raise UsageError(f"memory is {memory!r}; {error}") from error
    plan = make_plan(selected.layers, missing, memory=budget, threads=available_cores() if threads is None else threads)
    return Prepared(selected, ledger, plan)


def execute(
    prepared: Prepared,
    *,
    nonfinite: Literal["error", "skip"] = "error",
    client: Client | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, LayerStatistics]:
    """Do the tasks of `prepared` and count what they measure. Arguments and errors as `reduce`."""
    if nonfinite not in ("error", "skip"):
        raise UsageError(f"nonfinite is {nonfinite!r}; expected 'error' or 'skip'")
    described = {layer.name: layer for layer in prepared.selected.layers}
    ledger = dict(prepared.ledger)
    if prepared.plan.tasks:
        with open_executor(prepared.plan.threads, client) as executor:
            for task, results in reduce_tasks(prepared.plan, described, executor, nonfinite=nonfinite):
                for measured in results:
                    counted = ledger[measured.layer].count(measured.rows, measured.sums, measured.extrema)
                    ledger[measured.layer] = counted
                if on_progress:
                    on_progress(task.rows, task.bytes)
    _check_complete(prepared.selected.layers, ledger)
    return ledger


def reduce(
    source: str | Path,
    *,
    layers: Sequence[LayerRule] = (),
    memory: str | int = DEFAULT_MEMORY,
    nonfinite: Literal["error", "skip"] = "error",
    threads: int | None = None,
    client: Client | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, LayerStatistics]:
    """The exact statistics of every layer of the calibration store at `source`, by name.

    `layers` chooses and describes layers (default: every array, as its attributes say); `memory` is the most the
    process may take; `nonfinite` "skip" leaves NaN and infinities out of sums and counts and counts them apart;
    `threads` defaults to the cores; with a dask `client`, its workers do the work, which must see the store, and
    `threads` is how many there are; `on_progress` is told of each finished task.

    Raises `UsageError` where the request cannot be met, `DataError` where the store cannot be read,
    `NonFiniteError` for NaN or infinities under "error".
    """
    prepared = prepare(source, layers=layers, memory=memory, threads=threads)
    return execute(prepared, nonfinite=nonfinite, client=client, on_progress=on_progress)


def _check_complete(layers: Sequence[Layer], ledger: Mapping[str, LayerStatistics]) -> None:
    for layer in layers:
        missing = missing_rows(ledger[layer.name].covered, layer.rows)
        if missing:
            raise StreamstatsError(f"layer {layer.name}: rows {missing} came back from no task; please report this")


def run(
    config: JobConfig, *, on_plan: Callable[[Prepared], None] | None = None, on_progress: OnProgress | None = None
) -> dict[str, LayerStatistics]:
    """Do the job that `config` describes and write `state/`, `correctors/` and `manifest.json` to its output.

    `on_plan` is told the plan before any data is read. Files of an earlier run stay as they are until the reduction
    is done. Raises as `reduce` does, `UsageError` for an output that cannot be written, which is tried first, and
    `OutputError` for one that fails later.
    """
    prepared = prepare(config.source, layers=config.rules(), memory=config.memory, threads=config.cluster.threads)
    output = Path(config.output)
    _check_apart(config.source, output)
    check_paths(output, prepared.ledger)
    artifacts.check_writable(output)
    try:
        recorded_layers(output)  # a manifest that cannot be read is better known before the work than after it
        if on_plan:
            on_plan(prepared)
        statistics = execute(prepared, nonfinite=config.nonfinite, on_progress=on_progress)
        write_results(output, config.source, statistics)
    except BaseException:
        artifacts.remove_if_empty(output)
        raise
    return statistics


def _check_apart(source: str, output: Path) -> None:
    """Refuse an output that would put files into the calibration store."""
    store, folder = Path(source).resolve(), output.resolve()
    if store in (folder, *folder.parents):
        raise UsageError(f"output {output} lies in the calibration store {source}; choose a folder outside it")
