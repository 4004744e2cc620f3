"""Verifying: reads everything that was counted once more, and reports what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ..calibration.identity import file_key
from ..calibration.layer import Layer, arrays_of
from ..calibration.selection import Selected
from ..coverage import EMPTY, Coverage, Rows
from ..outputs.changes import compared, compared_mask, is_counted_again
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import CountedSource
from ..outputs.manifest import read_manifest
from ..outputs.results import read_states
from ..outputs.resuming import check_same_job, made_anew
from ..outputs.several import stores_before, with_arrays
from ..progress import QUIET, Progress
from .job import Job, checked_job, wanted_rows
from .measuring import Policy, Unreadable
from .opening import open_workers
from .session import Outcome, reduce_layers, source_of
from .telling import tell_selected


@dataclass(frozen=True)
class Problem:
    """A problem with `rows` of a layer, 0 to 0 if it is unknown how many an array has."""

    layer: str
    rows: Rows
    problem: str


def verify(job: Job, *, progress: Progress = QUIET) -> list[Problem]:
    """Read everything that `job` counts, once, and return the problems found; nothing is written.

    Chunks must exist, decode to their size and match their stored checksums. What was counted must be unchanged: the
    same files, and the same statistics to the bit. Raises `UsageError` for an impossible job, and `DataError` for a
    damaged state.

    >>> ss.verify(ss.Job("calibration.zarr", "out").counting("histogram", "spread"))
    []
    """
    selected = checked_job(job).selected()
    tell_selected(selected, progress)
    output, arrays = Path(job.output), arrays_of(selected.layers)
    before = stores_before(output)
    states = {name: with_arrays(state, arrays[name], before) for name, state in read_states(output, arrays).items()}
    for layer in selected.layers:
        if layer.counted_as in states:
            check_same_job(layer, states[layer.counted_as])
    found, unreadable = _read_again(job, selected, states, progress)
    allowed = job.missing == "fill"  # such a store omits chunks that hold only fill values
    problems = [Problem(each.layer, each.rows, each.reason) for each in unreadable if not (allowed and each.lost)]
    for name, state in states.items():
        problems += _differences(arrays[name], state, found[name])
    problems += _gone(job, selected)
    return sorted(problems, key=lambda each: (each.layer, each.rows))


def _read_again(
    job: Job, selected: Selected, states: Mapping[str, LayerStatistics], progress: Progress
) -> tuple[dict[str, LayerStatistics], list[Unreadable]]:
    """The statistics that the counted rows give now, and all rows wanted by the job that cannot be read."""
    layers = selected.layers
    empty = {name: LayerStatistics.empty(*arrays) for name, arrays in arrays_of(layers).items()}
    counted, others = {}, {}
    for layer in layers:
        source = source_of(layer, states) if layer.counted_as in states else None
        covered = source.covered if source else EMPTY
        counted[layer.name] = covered & Coverage.first(layer.rows)
        others[layer.name] = wanted_rows(job, layer.rows) - covered - (source.excluded if source else EMPTY)
    with_filled = {name for name, state in states.items() if any(source.filled for source in state.sources)}
    filled = [layer for layer in layers if layer.counted_as in with_filled]
    with open_workers(job.cluster, layers, tell=progress.say) as workers:

        def read(chosen: Sequence[Layer], wanted: Mapping[str, Coverage], policy: Policy) -> Outcome:
            return reduce_layers(chosen, empty, wanted, job.memory_bytes, workers, policy, progress)

        outcomes = [read(layers, counted, Policy("skip", "report"))]
        if any(others.values()):
            outcomes.append(read(layers, others, Policy("skip", "report")))
        found = outcomes[0].statistics
        if filled:  # fill values were counted for some of their chunks; compare like with like
            refilled = read(filled, counted, Policy("skip", "report", fill=True)).statistics
            found |= {name: refilled[name] for name in with_filled}
    return found, [each for outcome in outcomes for each in outcome.unreadable]


def _differences(arrays: Sequence[Layer], state: LayerStatistics, found: LayerStatistics) -> Iterator[Problem]:
    """What has changed since `state` was counted; `found` are the statistics that the same rows give now."""
    told = {array: made_anew(array, state.at(array.address)) for array in arrays}
    others = [array for array, what in told.items() if what is not None]
    for array in others:
        yield Problem(array.name, (0, array.rows), f"{told[array]} since it was counted")
    same_rows = not others and state.covered == found.covered
    differing = state.statistics.differing(found.statistics) if same_rows else []
    for layer in arrays:
        if layer in others:
            continue
        yield from _changed_files(layer, state.at(layer.address), harmless=same_rows and not differing)
        for start, stop in (state.at(layer.address).covered - Coverage.first(layer.rows)).ranges:
            yield Problem(layer.name, (start, stop), "rows were counted, but no longer exist")
    if differing:
        rows = min(each for each, _ in state.covered), max(each for _, each in state.covered)
        yield Problem(state.layer, rows, f"statistics differ from those that were counted: {', '.join(differing)}")


def _changed_files(layer: Layer, source: CountedSource, *, harmless: bool) -> Iterator[Problem]:
    """The files that have changed; those that the next run counts again or takes for copies, only if they differ."""
    but = ", but the statistics are the same: accept it with `run --accept-changes`" if harmless else ""
    for array, files in ((layer, compared(layer, source)[1]), (layer.mask, compared_mask(layer, source)[1])):
        if array is None:
            continue
        whose = "" if array is layer else f" of its mask {array.name}"
        told = [each for each in files if not (harmless and (each.is_copy or is_counted_again(each, source)))]
        for (said, again), group in groupby(told, key=lambda each: (each.what, is_counted_again(each, source))):
            those = [*group]
            more = f" (and {len(those) - 1:,} more)" if len(those) > 1 else ""
            what = f"chunk {file_key(array, those[0].number)}{more}{whose} {said} since it was counted"
            rows = those[0].rows[0], min(those[-1].rows[1], source.rows)
            yield Problem(layer.name, rows, f"{what}{': the next run counts it again' if again else but}")


def _gone(job: Job, selected: Selected) -> Iterator[Problem]:
    """Arrays that cannot be read, and layers that were counted, but no longer exist in the store."""
    manifest = read_manifest(Path(job.output))
    entries = manifest.arrays if manifest else {}
    known = {
        *(layer.counted_as for layer in selected.layers),
        *selected.left_out,
        *selected.unreadable,
        *selected.coordinates,
    }
    for name, reason in selected.unreadable.items():
        if name in entries:
            yield Problem(name, (0, entries[name].rows), f"the layer cannot be read any more: {reason}")
        else:
            yield Problem(name, (0, 0), f"the array cannot be read: {reason}")
    for name, entry in entries.items():
        if name not in known:
            yield Problem(name, (0, entry.rows), "the layer was counted, but is no longer in the store")
