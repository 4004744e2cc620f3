"""Forgetting: removing rows from what was counted, exactly and for good."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..calibration.layer import Layer, arrays_of
from ..coverage import EMPTY, Coverage, OpenRows, Rows, in_slice
from ..errors import DataError, NonFiniteError, UsageError, listed, suggestion
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import CountedSource, Measured, no_files, with_source
from ..outputs.manifest import read_manifest
from ..outputs.results import read_states, saved_since, still_missing, write_results
from ..outputs.resuming import files_without, uncounted_tails
from ..progress import QUIET, Progress
from ..statistics.statistics import Statistics
from .job import Job, checked_rows, wanted_rows
from .joining import join_cuts
from .measuring import Policy
from .reduction import reduce_tasks
from .session import Session, open_session, planned, source_of


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten of a layer: `rows` had been counted; `others` is how many other rows were read again.

    `array` is the one that it reads; layers that read the same array forget together, and its rows are read once.
    `excluded` are the rows, counted or not, that this call excluded for good.
    """

    layer: str
    array: str
    rows: int
    others: int
    excluded: tuple[Rows, ...]

    def document(self) -> dict[str, Any]:
        """JSON-ready, without the name of the layer."""
        excluded = [list(rows) for rows in self.excluded]
        return {"array": self.array, "rows": self.rows, "others": self.others, "excluded": excluded}


def forget(
    job: Job,
    *rows: OpenRows,
    layers: str = "*",
    source: str | None = None,
    part: str | None = None,
    progress: Progress = QUIET,
) -> list[Forgotten]:
    """Remove `rows`, one or several (start, stop), from the layers of `job` whose names match the glob `layers`, and
    never count them again.

    (start, None) means all rows from `start` to the last that the job counts now. Each array numbers its own rows: of
    layers that have several, `source`, the store as the job names it, and `part` name one. Layers that read the same
    array forget together, even if only one of their names matches. The rows are read once more and subtracted; those of
    a chunk with room for more are counted again without them. If a statistic cannot tell what is left, such as an
    extremum that one of them may hold, other rows are read again until it can. If one of the rows can no longer be
    read, or has changed since it was counted, all others are counted anew. Raises as `run` does, and `UsageError` for
    layers that the job does not have, and rows that the store does not have or the job does not count.

    >>> job = ss.Job("calibration.zarr", "shorter")
    >>> outcome = ss.run(job)
    >>> ss.forget(job, (3, 4))
    [Forgotten(layer='fc', array='fc', rows=1, others=3, excluded=((3, 4),))]
    >>> ss.load("shorter")["fc"].mean
    array([3., 4.])
    """
    if not rows:
        raise UsageError("no rows to forget are given; expected one range or several")
    asked = [checked_rows(each) for each in rows]
    with open_session(job, progress=progress) as session, _all_or_nothing():
        matching = [layer for layer in session.layers if layer.matches(layers)]
        _check_matched(session, matching, layers)
        chosen = _arrays(matching, source, part)
        ledgers, forgotten = _forgotten(session, chosen, {layer.name: _rows(job, layer, asked) for layer in chosen})
        _write(session, ledgers, {layer.counted_as for layer in chosen})
        return forgotten


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Add to the error for rows that cannot be read why they are needed, and that nothing was forgotten."""
    try:
        yield
    except NonFiniteError:
        raise
    except DataError as error:
        what = str(error).partition("; ")[0]
        raise DataError(
            f"{what}; nothing was forgotten, because the statistics of the remaining rows cannot be found without it; "
            "repair it, or forget its rows, too"
        ) from error


def _write(session: Session, ledgers: Mapping[str, LayerStatistics], touched: Collection[str]) -> None:
    """Write the results of the layers that are `touched`. All others stay as the manifest has them, whatever has become
    of their arrays; those of which more was saved since are written as they were saved.
    """
    manifest = read_manifest(session.output)
    if manifest is None:
        session.write(ledgers, {})
        return
    others = {name: entry for name, entry in manifest.layers.items() if entry.array not in touched}
    written = read_states(session.output, saved_since(session.output, others.values()))
    written |= {name: ledgers[name] for name in touched}
    gaps = manifest.gaps()
    write_results(
        session.output,
        session.job.sources,
        written,
        {name: still_missing(ledger, gaps.get(name, {})) for name, ledger in written.items()},
        carried=others,
        rows=manifest.rows,
        min_rows=manifest.min_rows() | session.min_rows,
        unreadable=manifest.unreadable,
        coordinates=manifest.coordinates,
        keep_states=True,
    )


def _check_matched(session: Session, matching: Sequence[Layer], match: str) -> None:
    if not matching:
        names = dict.fromkeys(name for layer in session.layers for name in layer.names)
        raise UsageError(f"no layer matches {match!r}; the job has {listed(names)}{suggestion(match, names)}")


def _arrays(matching: Sequence[Layer], source: str | None, part: str | None) -> list[Layer]:
    """The array of each layer in `matching` that `source` and `part` name. Raises `UsageError` unless it is one."""
    chosen = [
        layer for layer in matching if source in (None, layer.address.store) and part in (None, layer.address.part)
    ]
    for name, arrays in arrays_of(chosen).items():
        if len(arrays) > 1:
            raise UsageError(
                f"layer {name} has several arrays, each of which numbers its own rows: "
                f"{listed(_where(array) for array in arrays)}; name one with --source or --part"
            )
    if not chosen:
        asked = [f"--{key} {value}" for key, value in (("source", source), ("part", part)) if value is not None]
        known = listed(dict.fromkeys(map(_where, matching)))
        raise UsageError(f"no array matches {' '.join(asked)}; the job has {known}")
    return chosen


def _where(array: Layer) -> str:
    return str(array.address) or f"{array.store}, outside its parts"


def _rows(job: Job, layer: Layer, asked: Sequence[OpenRows]) -> Coverage:
    """The rows of `layer` that are `asked` for. Raises `UsageError` for those that it lacks or `job` does not count."""
    counted = wanted_rows(job, layer.rows)
    found = EMPTY
    for each in asked:
        start, stop = each
        rows = Coverage.of([(start, max(start, counted.stop) if stop is None else stop)])
        if not rows or rows - counted:
            limit = "" if job.rows is None else f", and `rows` of the job is {in_slice(job.rows)}"
            raise UsageError(
                f"layer {layer.name}: rows {in_slice(each)} cannot be forgotten; it has {layer.rows} rows{limit}; "
                + (f"expected a range within {counted}" if counted else "no row is counted")
            )
        found |= rows
    return found


def _forgotten(
    session: Session, chosen: Sequence[Layer], asked: Mapping[str, Coverage]
) -> tuple[dict[str, LayerStatistics], list[Forgotten]]:
    """The ledgers without the rows `asked` for, by array, and what was forgotten of each chosen layer."""
    arrays = arrays_of(session.layers)
    settled = {name: uncounted_tails(each, session.ledgers[name]) for name, each in arrays.items()}
    taken = {layer.name: source_of(layer, settled).covered & asked[layer.name] for layer in chosen}
    parts = _counted(session, _empty(session), taken, unreadable="report")
    ledgers, forgotten = dict(session.ledgers), []
    again: dict[str, Coverage] = {}
    for layer in chosen:
        name, mine, rows = layer.counted_as, taken[layer.name], asked[layer.name]
        ledger, whole, part = session.ledgers[name], settled[name], parts[name]
        others = _without(layer, rows, {each.name: whole.at(each.address).covered for each in arrays[name]})
        tails = _without(layer, rows, {each.name: ledger.at(each.address).tail for each in arrays[name]})
        as_counted = part.at(layer.address).covered == mine and not mine & whole.at(layer.address).accepted
        statistics, read = _rest(session, layer, whole, part.statistics, others) if as_counted else (None, 0)
        if statistics is not None:
            rest, read = replace(whole, statistics=statistics), read + sum(map(len, tails.values()))
            again |= tails
        else:
            whole_again = {each: others[each] | tails[each] for each in others}
            rest, read = _begun_anew(layer, whole), sum(map(len, whole_again.values()))
            again |= whole_again
        ledgers[name] = with_source(rest, _excluding(layer, rest.at(layer.address), rows))
        gone = len(ledger.at(layer.address).covered & rows)
        forgotten += [Forgotten(reader, name, gone, read, rows.ranges) for reader in layer.names]
    if any(again.values()):
        ledgers = _counted(session, ledgers, again, unreadable="error")
    return ledgers, forgotten


def _empty(session: Session) -> dict[str, LayerStatistics]:
    return {name: LayerStatistics.empty(*arrays) for name, arrays in arrays_of(session.layers).items()}


def _without(layer: Layer, rows: Coverage, found: Mapping[str, Coverage]) -> dict[str, Coverage]:
    """The rows that were `found` of each array, those of `layer` without `rows`."""
    return {**found, layer.name: found[layer.name] - rows}


def _begun_anew(layer: Layer, whole: LayerStatistics) -> LayerStatistics:
    """`whole` before any row was counted, with all that its sources say besides."""
    no_rows: dict[str, Any] = dict.fromkeys(("covered", "filled", "accepted", "tail"), EMPTY)
    no_rows |= {"files": no_files(), "mask_files": no_files()}
    sources = (replace(each, **no_rows) for each in whole.sources)
    return replace(whole, statistics=Statistics.empty(layer.kinds, layer.space), sources=tuple(sources))


def _counted(
    session: Session, ledgers: Mapping[str, LayerStatistics], wanted: Mapping[str, Coverage], *, unreadable: str
) -> dict[str, LayerStatistics]:
    """`ledgers` with the `wanted` rows counted, too."""
    return session.count(ledgers, wanted, _policy(session, unreadable)).statistics


def _policy(session: Session, unreadable: str) -> Policy:
    return Policy(session.job.nonfinite, unreadable, fill=session.job.missing == "fill")


def _rest(
    session: Session, layer: Layer, counted: LayerStatistics, part: Statistics, others: Mapping[str, Coverage]
) -> tuple[Statistics | None, int]:
    """The statistics `counted` of `layer` less `part`, and how many of the `others` were read to find them.

    Others are read only until every statistic is known; the statistic of all others is always the answer. But rows that
    have changed since they were counted are not what was counted of them: None if only they could tell.
    """
    whole = counted.statistics
    arrays = arrays_of(session.layers)[layer.counted_as]
    accepted = {array.name: others[array.name] & counted.at(array.address).accepted for array in arrays}
    read, rest = 0, Statistics.empty(layer.kinds, layer.space)
    left = whole.without(part, rest)
    if left is not None:
        return left, read
    plan = planned(
        session.layers,
        {name: rows - accepted[name] for name, rows in others.items()},
        session.job.memory_bytes,
        session.workers,
    )
    described = {each.name: each for each in session.layers}
    reducing = reduce_tasks(plan, described, session.workers, _policy(session, "error"), session.progress)
    for finished in join_cuts(reducing, described):
        read += finished.rows
        for found in finished.results:
            if isinstance(found, Measured):
                rest = rest.merge(found.statistics)
        left = whole.without(part, rest)
        if left is not None:
            break
    reducing.close()
    if left is None and not any(accepted.values()):
        left = rest
    return left, read


def _excluding(layer: Layer, source: CountedSource, rows: Coverage) -> CountedSource:
    left = source.covered - rows
    masks = [] if layer.mask is None else files_without(layer.mask, rows, left)
    return source.forget(rows, files_without(layer, rows, left), masks)
