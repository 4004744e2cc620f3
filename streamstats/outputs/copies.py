"""Copies: whether two outputs were counted from one store, or a copy of it, so that merging would count rows twice.

A single array may be the same in two stores, such as a tensor that does not depend on the samples. So stores are
compared as a whole: they are copies if most of the chunks that both outputs have counted have the same size and
content, or if all layers have the same rows and the same statistics, to the bit. Where all full chunks of a layer are
the same, those that had room for more do not count: a copy may have grown.

Where a store may have grown, `stores` tells one from two for each layer; what one layer proves holds for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

from ..calibration.addresses import Address
from ..calibration.encoding.content import UNSAMPLED
from ..calibration.sources.identities import copied, has_identity
from ..coverage import Coverage
from .ledger import CountedSource, Ledger, in_both
from .stores import from_one, full_files

Ledgers = Mapping[str, Ledger]
MOST_PAIRS = 1000
"""Pairs of arrays that are compared; only those whose first chunks are the same are."""

DOUBT = "nothing proves whether the outputs are of one store that has grown in between, or of two with the same name"


@dataclass(frozen=True)
class Twice:
    """The `rows` of a layer that are counted in both of two outputs, and how that is known."""

    layer: str
    rows: Coverage
    how: str


@dataclass(frozen=True)
class _Shared:
    """The rows that two sources have counted, and how many of the chunks that both have counted are the same."""

    layer: str
    rows: Coverage
    same: int
    chunks: int


def counted_twice(left: Ledgers, right: Ledgers) -> Twice | None:
    """The first rows that both have counted, if one was counted from a copy of the store of the other; else None."""
    shared = [each for name in sorted({*left} & {*right}) for each in _most_alike(left[name], right[name])]
    same, chunks = sum(each.same for each in shared), sum(each.chunks for each in shared)
    if 2 * same > chunks:
        first = next(each for each in shared if each.same)
        return Twice(first.layer, first.rows, f"{same:,} of {chunks:,} chunks have the same size and content")
    return _same_statistics(left, right)


def in_doubt(left: Ledgers, right: Ledgers) -> Twice | None:
    """The first rows that both have counted if nothing proves whether they are of one store; None if there are none.

    The sources are `located`.
    """
    both = [(left[name], right[name]) for name in sorted({*left} & {*right})]
    for mine, theirs in both:
        for one, other in product(mine.sources, theirs.sources):
            rows = one.covered & other.covered
            if rows and from_one(one, other) is None and not _are_apart(both, one.address, other.address):
                return Twice(mine.layer, rows, DOUBT)
    return None


def _are_apart(layers: Sequence[tuple[Ledger, Ledger]], mine: Address, theirs: Address) -> bool:
    """Whether some layer proves that the arrays at the addresses `mine` and `theirs` lie in other stores, and none the
    contrary. Of merged outputs, several stores have one address: a layer must be in all of them to tell.
    """
    found = [(_at(left, mine), _at(right, theirs)) for left, right in layers]
    most = tuple(max(len(each[side]) for each in found) for side in (0, 1))
    told = [(len(ones), len(others)) == most and _verdicts(ones, others) == {False} for ones, others in found]
    return any(told) and not any(True in _verdicts(*each) for each in found)


def _at(ledger: Ledger, address: Address) -> list[CountedSource]:
    return [source for source in ledger.sources if source.address == address]


def _verdicts(left: Sequence[CountedSource], right: Sequence[CountedSource]) -> set[bool | None]:
    """What files tell of each pair. A layer that is stored in another way tells nothing: it may have been replaced."""
    pairs = product(left, right)
    return {from_one(one, other) if one.fingerprint == other.fingerprint else None for one, other in pairs}


def copies_among(ledgers: Ledgers) -> Iterator[tuple[Address, Address, int, int]]:
    """(one, another, the same, all) for two arrays of each layer most of whose chunks are the same, as in a copy.

    The same chunks, and all that both have counted, are those of all layers.
    """
    alike = dict.fromkeys(pair for ledger in ledgers.values() for pair in _with_one_beginning(ledger))
    for first, second in islice(alike, MOST_PAIRS):
        every = [{source.address: source for source in ledger.sources} for ledger in ledgers.values()]
        both = [(each[first], each[second]) for each in every if first in each and second in each]
        shared = [_shared("", *pair) for pair in both if pair[0].fingerprint == pair[1].fingerprint]
        same, chunks = sum(each.same for each in shared), sum(each.chunks for each in shared)
        if 2 * same > chunks:
            yield first, second, same, chunks


def _with_one_beginning(ledger: Ledger) -> Iterator[tuple[Address, Address]]:
    """Pairs of arrays of a layer whose first chunks have the same size and content."""
    groups: dict[tuple[object, ...], list[Address]] = {}
    for source in ledger.sources:
        if len(source.files) and source.files[0, 2] != UNSAMPLED:
            key = source.fingerprint, int(source.files[0, 0]), int(source.files[0, 2])
            groups.setdefault(key, []).append(source.address)
    for group in groups.values():
        yield from combinations(group, 2)


def _most_alike(left: Ledger, right: Ledger) -> Iterator[_Shared]:
    """What the two sources with most chunks in common share, if there are any with rows in common."""
    found = [
        _shared(left.layer, mine, theirs)
        for mine, theirs in product(left.sources, right.sources)
        if mine.fingerprint == theirs.fingerprint and mine.covered & theirs.covered
    ]
    if found:
        yield max(found, key=lambda each: each.same)


def _shared(layer: str, left: CountedSource, right: CountedSource) -> _Shared:
    mine, theirs = in_both(left.files, right.files)
    sampled = has_identity(mine) & has_identity(theirs) & (mine[:, 2] != UNSAMPLED) & (theirs[:, 2] != UNSAMPLED)
    same = copied(mine, theirs) & sampled
    full = min(full_files(left), full_files(right))
    if sampled[:full].any() and same[:full].sum() == sampled[:full].sum():
        sampled = same  # one of them has grown since: what had room for more is another chunk now
    return _Shared(layer, left.covered & right.covered, int(same.sum()), int(sampled.sum()))


def _same_statistics(left: Ledgers, right: Ledgers) -> Twice | None:
    """All rows of the first layer, if all layers that both have counted have the same rows and equal statistics."""
    layers = sorted(name for name in {*left} & {*right} if left[name].rows and right[name].rows)
    if not layers or not all(_is_same(left[name], right[name]) for name in layers):
        return None
    rows = left[layers[0]].sources[0].covered
    return Twice(layers[0], rows, "rows and statistics are the same")


def _is_same(left: Ledger, right: Ledger) -> bool:
    mine, theirs = (sorted(source.covered.ranges for source in each.sources) for each in (left, right))
    return mine == theirs and [*left.statistics] == [*right.statistics] and left.statistics == right.statistics
