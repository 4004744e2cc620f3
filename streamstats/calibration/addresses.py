"""Addresses: which of the arrays of a layer one is. A layer may have an array in each of several stores, and in a store
one for each part: what one of several writers has recorded.

A part is a group of the store, `.parts/PART`, which holds the arrays of its writer as a store would. What an address
says does not change when arrays are added beside it, so what was counted of one stays its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from ..errors import UsageError

PARTS = ".parts"
"""The group of a store that holds its parts."""
LONGEST = 100
"""Characters of the name of a part."""


@dataclass(frozen=True, order=True)
class Address:
    """The array in `store`, empty if the job has only one, and in `part`, empty if it is in none.

    >>> str(Address("b.zarr", "rank3")), str(Address())
    ('b.zarr, part rank3', '')
    """

    store: str = ""
    part: str = ""

    def __str__(self) -> str:
        return ", ".join([*([self.store] if self.store else []), *([f"part {self.part}"] if self.part else [])])

    def naming(self, layer: str) -> str:
        """`layer` and, unless it has one array, which of them is meant."""
        return f"{layer} ({self})" if str(self) else layer

    def document(self) -> dict[str, str]:
        """JSON-ready: what it says; nothing of a layer that has one array."""
        return {key: said for key, said in (("source", self.store), ("part", self.part)) if said}

    @classmethod
    def from_document(cls, document: object) -> Self:
        """What `document` made. Raises `TypeError` for anything else."""
        if not isinstance(document, dict):
            raise TypeError(f"found {document!r}, expected an object")
        store, part = document.get("source", ""), document.get("part", "")
        if not isinstance(store, str) or not isinstance(part, str):
            raise TypeError(f"found {store!r} and {part!r}, expected the names of a source and a part")
        return cls(store, part)


ONLY = Address()
"""The address of the array of a layer that has one."""


def check_part(part: str) -> str:
    """Return `part` if it can name one; raise `UsageError` otherwise."""
    usable = isinstance(part, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part)
    if not usable or len(part) > LONGEST or part.startswith("__"):
        raise UsageError(
            f"part {part!r} is not usable: expected 1 to {LONGEST} letters, digits, `-`, `_` and `.`, not beginning "
            "with `.` or `__`, as in rank3"
        )
    return part


def part_path(part: str) -> str:
    """The group of `part` in its store."""
    return f"{PARTS}/{part}"


def placed(path: str) -> tuple[str, str]:
    """(the part that `path` lies in, or ""; its path there): the inverse of joining `part_path` and a name.

    >>> placed(".parts/rank3/block1/conv"), placed("block1/conv")
    (('rank3', 'block1/conv'), ('', 'block1/conv'))
    """
    top, _, below = path.partition("/")
    part, _, name = below.partition("/")
    return (part, name) if top == PARTS and part and name else ("", path)
