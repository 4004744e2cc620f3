"""Merging ledgers: what was counted in either of two, each row of a store once.

The law: merged parts of one store are, to the bit, what one run over all their rows would have counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TypeVar

import numpy as np

from ..calibration.addresses import ONLY
from ..calibration.encoding.content import UNSAMPLED
from ..calibration.sources.identities import FILE_COLUMNS, UNCOUNTED_FILE, Files, copied, differing, is_counted
from ..coverage import EMPTY, Coverage
from ..errors import MismatchError, contrasted, counted
from ..statistics.statistics import Statistics
from .ledger import CountedSource, Ledger, for_kernel, in_both, models_of, weights_of, without_tail
from .stores import from_one, full_files

L = TypeVar("L", bound=Ledger)


class CountedTwiceError(MismatchError):
    """Rows of one store are counted on both sides."""


def merge(left: L, right: L) -> L:
    """The ledger over the rows of both. Raises `MismatchError`, naming both sides, if they do not fit together.

    A row of one store that both have counted is refused. Where nothing proves whether two sources are of one store, as
    `stores` tells, those with rows in common are taken for two: `copies.in_doubt` finds them first.
    """
    _check_alike(left, right)
    sources = list(left.sources)
    for added in right.sources:
        alike = [place for place, known in enumerate(sources) if _is_joined(known, added)]
        same = min(alike, key=lambda place: sources[place].address != added.address, default=None)
        if same is None:
            sources.append(added)
        else:
            sources[same] = _union(left.layer, sources[same], added)
    readers = left.read_by.union(right.read_by)
    joined = replace(
        left,
        sources=tuple(sorted(sources, key=_order)),
        statistics=left.statistics.merge(right.statistics),
        settled=_settled(left, right, sources),
        readers=None if readers.is_only(left.layer) else readers,
        tensor=left.tensor if left.tensor == right.tensor else "",
        rows_are=left.rows_are or right.rows_are,
        models=models_of((), (*left.models, *right.models)),
        weights=weights_of((), (*left.weights, *right.weights)),
        order=max((each for each in (left.order, right.order) if each is not None), default=None),
    )
    return for_kernel(joined if joined.settled is not None else without_tail(joined), readers.kernel)


def _is_joined(left: CountedSource, right: CountedSource) -> bool:
    """Whether both become one source: if they are of one store, or may be, and nothing speaks against joining them."""
    one = from_one(left, right)
    if one is not None:
        return one
    grown = left.recorded and right.recorded
    return not left.covered & right.covered and (grown or not differing(*in_both(left.files, right.files)).any())


def _settled(left: Ledger, right: Ledger, sources: Sequence[CountedSource]) -> Statistics | None:
    """What is settled if `left` and `right` are merged to `sources`: several cannot be counted further, so they have
    no tail."""
    if len(sources) > 1 or not sources[0].tail:
        return None
    mine, theirs = (_before(each, sources[0].settled_rows) for each in (left, right))
    return mine.merge(theirs)


def _before(ledger: Ledger, settled_rows: int) -> Statistics:
    """The statistics of `ledger` without its tail, or with it if some of its rows are now settled."""
    if ledger.settled is None or not _is_tail(ledger.source.tail, settled_rows):
        return ledger.statistics
    return ledger.settled


def _is_tail(tail: Coverage, settled_rows: int) -> bool:
    return not tail & Coverage.first(settled_rows)


def _order(source: CountedSource) -> tuple[object, ...]:
    return source.fingerprint, source.rows, source.covered.ranges, source.files.tobytes(), source.address


def _check_alike(left: Ledger, right: Ledger) -> None:
    mine, theirs = (
        {
            "layer": each.layer,
            "dtype": str(each.space.dtype),
            "channels": each.channels,
            "channel axis": each.channel_axis,
            "quantisation": each.quantization.to_metadata() if each.quantization else None,
            "statistics": [*each.statistics],
            "kernel": each.kernel if each.statistics.uses_kernel else None,
            "sample shape": each.space.sample if each.statistics.uses_kernel else None,
            "mask": "one" if each.space.masked else "none",
            "missing values": each.missing_values,
        }
        for each in (left, right)
    )
    differing = [key for key in mine if mine[key] != theirs[key]]
    if differing:
        both = {key: contrasted(mine[key], theirs[key]) for key in differing}
        said = "; ".join(f"{key} {words} and {others}" for key, (words, others) in both.items())
        raise MismatchError(
            f"layer {left.layer} cannot be merged: {said}; expected the same in both; merge outputs of jobs that "
            "describe the layer alike"
        )


def _union(layer: str, left: CountedSource, right: CountedSource) -> CountedSource:
    twice = left.covered & right.covered
    if twice:
        raise CountedTwiceError(
            f"layer {layer}: rows {twice} are counted in both; expected each row once; merge outputs of different "
            f'stores, of meters of different names, or of different rows, as with `rows: "{twice.stop}:"` in one'
        )
    if left.mask != right.mask:
        raise MismatchError(
            f"layer {layer}: rows of one store were counted with the masks {left.mask} and {right.mask}; expected the "
            "same mask; count one of them again"
        )
    if not (left.recorded and right.recorded):
        _check_unchanged(layer, left.files, right.files)
        _check_unchanged(layer, left.mask_files, right.mask_files)
    covered = left.covered | right.covered
    excluded = (left.excluded | right.excluded) - covered
    filled, accepted = left.filled | right.filled, left.accepted | right.accepted
    older, newer = sorted((left, right), key=lambda each: each.rows)
    files, mask_files = _both(older.files, newer.files), _both(older.mask_files, newer.mask_files)
    _mark_filled(files, older, newer)
    settled_rows = max(left.settled_rows, right.settled_rows)
    tails = [each.tail for each in (left, right) if _is_tail(each.tail, settled_rows)]
    return CountedSource(
        fingerprint=left.fingerprint,
        rows=max(left.rows, right.rows),
        covered=covered,
        excluded=excluded,
        filled=filled,
        accepted=accepted,
        files=files,
        mask=left.mask,
        mask_files=mask_files,
        tail=reduce(or_, tails, EMPTY),
        settled_rows=settled_rows,
        recorded=left.recorded and right.recorded,
        address=left.address if left.address == right.address else ONLY,
        file_rows=left.file_rows or right.file_rows,
        uuid=left.uuid or right.uuid,
        stores=left.stores & right.stores or left.stores | right.stores,
    )


def _check_unchanged(layer: str, left: Files, right: Files) -> None:
    """Raise `MismatchError` if a file of one store changed between the runs that counted it."""
    mine, theirs = in_both(left, right)
    changed = int((differing(mine, theirs) & ~copied(mine, theirs)).sum())
    if changed:
        raise MismatchError(
            f"layer {layer}: {counted(changed, 'chunk')} of the store changed between the runs that counted the two "
            "outputs; expected the same chunks; run again in each of them, then merge"
        )


def _mark_filled(files: Files, older: CountedSource, newer: CountedSource) -> None:
    """Drop from `files`, those of both, the contents of which had room for more when `older` counted them, but would be
    taken for full now, as they are for `newer`, which has not counted them: they would prove two stores of one.
    """
    filled = files[full_files(older) : full_files(newer)]
    counted_since = is_counted(newer.files)[full_files(older) : full_files(newer)]
    filled[: len(counted_since)][~counted_since, 2] = UNSAMPLED
    filled[len(counted_since) :, 2] = UNSAMPLED


def _both(left: Files, right: Files) -> Files:
    """The identities of the files that either side has counted; where both have, those of `right`, the later one."""
    files = np.full((max(len(left), len(right)), FILE_COLUMNS), UNCOUNTED_FILE, np.int64)
    files[: len(left)] = left
    those = np.flatnonzero(is_counted(right))
    files[those] = right[those]
    return files
