"""Forgetting: removing rows from what was counted, exactly and for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..calibration.layer import Layer
from ..coverage import Coverage, Rows
from ..errors import DataError, NonFiniteError, UsageError, listed
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.ledger import CountedSource, Measured, source_of
from ..outputs.manifest import read_manifest
from ..outputs.results import still_missing
from ..outputs.resuming import files_without, uncounted_tail
from ..progress import QUIET, Progress
from ..statistics.statistics import Statistics
from .job import Job
from .measuring import Policy
from .reduction import reduce_tasks
from .session import Session, open_session, planned


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten of a layer: `rows` had been counted; `others` is how many other rows were read again.

    `array` is the one that it reads; layers that read the same array forget together, and its rows are read once.
    """

    layer: str
    array: str
    rows: int
    others: int


def forget(job: Job, rows: Rows, *, match: str = "*", progress: Progress = QUIET) -> list[Forgotten]:
    """Remove `rows` from the layers of `job` whose names match the glob `match`, and never count them again.

    Layers that read the same array forget together, even if only one of their names matches. The rows are read once
    more and subtracted; those of a chunk with room for more are counted again without them. If a statistic cannot tell
    what is left, such as an extremum that one of them may hold, other rows are read again until it can. If one of the
    rows can no longer be read, or has changed since it was counted, all others are counted anew. Raises as `run` does.
    """
    with open_session(job, progress=progress) as session, _all_or_nothing():
        chosen = [layer for layer in session.layers if layer.matches(match)]
        _check_rows(session, chosen, rows, match)
        ledgers, forgotten = _forgotten(session, chosen, Coverage.of([rows]))
        manifest = read_manifest(session.output)
        gaps = {} if manifest is None else manifest.gaps()
        session.write(ledgers, {layer: still_missing(ledgers[layer], gaps.get(layer, ())) for layer in ledgers})
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


def _check_rows(session: Session, chosen: Sequence[Layer], rows: Rows, match: str) -> None:
    if not chosen:
        names = listed(name for layer in session.layers for name in layer.names)
        raise UsageError(f"no layer matches {match!r}; the job has {names}")
    for layer in chosen:
        if not 0 <= rows[0] < rows[1] <= layer.rows:
            raise UsageError(
                f"cannot forget rows {rows[0]}:{rows[1]}: layer {layer.name} has {layer.rows} rows; expected a range "
                f"within 0:{layer.rows}"
            )


def _forgotten(
    session: Session, chosen: Sequence[Layer], rows: Coverage
) -> tuple[dict[str, LayerStatistics], list[Forgotten]]:
    """The ledgers without `rows`, and what was forgotten of each chosen layer."""
    settled = {layer.name: uncounted_tail(layer, session.ledgers[layer.name]) for layer in chosen}
    taken = {name: ledger.source.covered & rows for name, ledger in settled.items()}
    parts = _counted(session, _empty(session), taken, unreadable="report")
    ledgers, again, forgotten = dict(session.ledgers), {}, []
    for layer in chosen:
        whole, part, before = settled[layer.name], parts[layer.name], session.ledgers[layer.name].source
        others, tail = whole.source.covered - rows, before.tail - rows
        as_counted = part.source.covered == taken[layer.name] and not taken[layer.name] & whole.source.accepted
        statistics, read = _rest(session, layer, whole, part.statistics, others) if as_counted else (None, 0)
        if statistics is not None:
            rest, read = replace(whole, statistics=statistics), read + len(tail)
            again[layer.name] = tail
        else:
            again[layer.name], read = others | tail, len(others | tail)
            rest = _begun_anew(layer, whole)
        ledgers[layer.name] = replace(rest, sources=(_excluding(layer, rest.source, rows),))
        forgotten += [Forgotten(name, layer.name, len(before.covered & rows), read) for name in layer.names]
    if any(again.values()):
        ledgers = _counted(session, ledgers, again, unreadable="error")
    return ledgers, forgotten


def _empty(session: Session) -> dict[str, LayerStatistics]:
    return {layer.name: LayerStatistics.empty(layer) for layer in session.layers}


def _begun_anew(layer: Layer, whole: LayerStatistics) -> LayerStatistics:
    source = replace(source_of(layer), fingerprint=whole.source.fingerprint, excluded=whole.source.excluded)
    return replace(LayerStatistics.empty(layer), sources=(source,))


def _counted(
    session: Session, ledgers: Mapping[str, LayerStatistics], wanted: Mapping[str, Coverage], *, unreadable: str
) -> dict[str, LayerStatistics]:
    """`ledgers` with the `wanted` rows counted, too."""
    return session.count(ledgers, wanted, _policy(session, unreadable)).statistics


def _policy(session: Session, unreadable: str) -> Policy:
    return Policy(session.job.nonfinite, "fill" if session.job.missing == "fill" else unreadable)


def _rest(
    session: Session, layer: Layer, counted: LayerStatistics, part: Statistics, others: Coverage
) -> tuple[Statistics | None, int]:
    """The statistics `counted` of `layer` less `part`, and how many of the `others` were read to find them.

    Others are read only until every statistic is known; the statistic of all others is always the answer. But rows that
    have changed since they were counted are not what was counted of them: None if only they could tell.
    """
    whole, accepted = counted.statistics, counted.source.accepted
    read, rest = 0, Statistics.empty(layer.kinds, layer.space)
    left = whole.without(part, rest)
    if left is not None:
        return left, read
    plan = planned(session.layers, {layer.name: others - accepted}, session.job.memory, session.workers)
    described = {each.name: each for each in session.layers}
    reduced = reduce_tasks(plan, described, session.workers, _policy(session, "error"), session.progress)
    for task, results in reduced:
        read += task.rows
        for found in results:
            if isinstance(found, Measured):
                rest = rest.merge(found.statistics)
        left = whole.without(part, rest)
        if left is not None:
            break
    reduced.close()
    if left is None and not others & accepted:
        left = rest
    return left, read


def _excluding(layer: Layer, source: CountedSource, rows: Coverage) -> CountedSource:
    left = source.covered - rows
    masks = [] if layer.mask is None else files_without(layer.mask, rows, left)
    return source.forget(rows, files_without(layer, rows, left), masks)
