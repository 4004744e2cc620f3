"""Whether two sources were counted from one store, which may have grown in between.

A file that is as it was proves one store. Arrays of our recorder have UUIDs, which tell one from two, whatever became
of their files and wherever they were moved. Of others, a file that was full when both counted it is never written
again, so other content proves two. A file that had room for more proves neither: what is left is the location, at which
two stores may have followed each other, or two sites may each have their own.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain, product, takewhile
from pathlib import Path
from typing import TypeVar

from ..calibration.encoding.content import UNSAMPLED
from ..calibration.sources.choose import is_url
from ..calibration.sources.identities import copied, differing, has_identity
from .ledger import CountedSource, Ledger, in_both
from .manifest import Manifest

L = TypeVar("L", bound=Ledger)

ANYWHERE = ""
"""Of a path, the end that any path has."""


def located(ledger: L, manifest: Manifest | None) -> L:
    """`ledger` with the locations of its sources, as far as `manifest`, that of its output, tells."""
    named = sources_named(manifest)
    sources = (replace(source, stores=_locations(source.address.store, named)) for source in ledger.sources)
    return replace(ledger, sources=tuple(sources))


def sources_named(manifest: Manifest | None) -> tuple[str, ...]:
    """The stores that `manifest` names; without one, as after a first run that was killed, they may lie anywhere."""
    return (ANYWHERE,) if manifest is None else manifest.sources


def _locations(store: str, named: tuple[str, ...]) -> frozenset[str]:
    """Where `store` may lie; if it is not said, where any of those that are `named` may."""
    return frozenset(chain.from_iterable(map(_places, [store] if store else named)))


def _places(store: str) -> tuple[str, ...]:
    """A URL or an absolute path. Nobody knows any more in which folder a relative path began: what follows its last
    `..` is the end of one, unless it is a link, which is followed from this folder.
    """
    if is_url(store):
        return (store,)
    if os.path.isabs(store):
        return (os.path.realpath(store),)
    known = takewhile(lambda part: part != os.pardir, reversed(Path(store).parts))
    return "/".join([*known][::-1]), os.path.realpath(store)


def from_one(left: CountedSource, right: CountedSource) -> bool | None:
    """Whether both were counted from one array; None if nothing proves it, and nothing proves the contrary."""
    if left.fingerprint != right.fingerprint or were_made_apart(left.uuid, right.uuid):
        return False
    mine, theirs = in_both(left.files, right.files)
    if not len(mine):
        return True  # what a meter has measured is known by its name, which stands for the layout
    known = has_identity(mine) & has_identity(theirs)
    sampled = known & (mine[:, 2] != UNSAMPLED) & (theirs[:, 2] != UNSAMPLED)
    changed = differing(mine, theirs) | sampled & (mine[:, 2] != theirs[:, 2])  # archives may give all files one time
    if (known & ~changed).any():
        return True
    full = min(full_files(left), full_files(right))
    rewritten = (sampled & ~copied(mine, theirs))[:full].any()
    if left.uuid and right.uuid:
        return None if rewritten else True  # a copy that somebody wrote into has the UUID, too
    if rewritten:
        return False
    return None if _may_lie_together(left, right) or not known.any() else False


def were_made_apart(left: str, right: str) -> bool:
    """Whether the UUIDs of two arrays prove that they are not one, nor copies of one."""
    return bool(left and right) and left != right


def _may_lie_together(left: CountedSource, right: CountedSource) -> bool:
    """Whether both may be of one array at one location, which merging may have forgotten the part of."""
    mine, theirs = left.address.part, right.address.part
    if mine and theirs and mine != theirs:
        return False
    return any(_may_be_one(one, other) for one, other in product(left.stores, right.stores))


def _may_be_one(one: str, other: str) -> bool:
    """Whether both may be one location: they are equal, or one of them is the end of a path, and the other has it."""
    if all(is_url(each) or os.path.isabs(each) for each in (one, other)):
        return one == other
    return not (one and other) or f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def full_files(source: CountedSource) -> int:
    """How many files had no room for more when they were counted; 0 if that is unknown."""
    if not (source.file_rows and source.covered):
        return 0
    beside = len(source.files) // -(-source.covered.stop // source.file_rows)
    return source.settled_rows // source.file_rows * beside


def same_stores(left: Ledger, right: Ledger) -> bool:
    """Whether both were counted from the same stores, as far as their files and locations tell."""

    def all_in(some: Ledger, others: Ledger) -> bool:
        return all(any(from_one(each, other) is not False for other in others.sources) for each in some.sources)

    return all_in(left, right) and all_in(right, left)
