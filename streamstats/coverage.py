"""Coverage: a set of rows, held as sorted, disjoint ranges. It says which rows are counted, excluded or missing.

It behaves as a set of row numbers: `|`, `&`, `-` and `len` do what they do for sets, and equal sets are equal values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from .errors import MismatchError

Rows = tuple[int, int]
"""A range of rows: the first, and the one after the last."""
OpenRows = tuple[int, int | None]
"""A range of rows; one without a stop (None) ends with the array."""


def in_slice(rows: OpenRows) -> str:
    """`rows` as configurations have them.

    >>> in_slice((4, 6)), in_slice((4, None))
    ('4:6', '4:')
    """
    start, stop = rows
    return f"{start}:" if stop is None else f"{start}:{stop}"


def before(end: int, rows: OpenRows | None) -> Coverage:
    """Those of `rows`, or of all, that come before the row `end`.

    >>> str(before(9, (4, 6))), str(before(9, (4, None))), str(before(9, None)), str(before(3, (4, None)))
    ('4:6', '4:9', '0:9', '')
    """
    start, stop = rows or (0, None)
    return Coverage.first(end) & Coverage.of([(start, max(start, end) if stop is None else stop)])


@dataclass(frozen=True)
class Coverage:
    """Rows as `ranges`, ((start, stop), …): sorted, none of them empty, adjacent ones joined.

    >>> counted = Coverage.of([(4, 6), (0, 2), (5, 9)])
    >>> counted.ranges, len(counted), str(counted)
    (((0, 2), (4, 9)), 7, '0:2, 4:9')
    >>> counted | Coverage.of([(2, 4)])
    Coverage(ranges=((0, 9),))
    >>> str(counted & Coverage.of([(1, 5)])), str(counted - Coverage.of([(1, 5)]))
    ('1:2, 4:5', '0:1, 5:9')
    """

    ranges: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Rows]) -> Self:
        """The rows in any of `ranges`, which may overlap and come in any order.

        Raises `MismatchError` unless 0 ≤ start ≤ stop in each.
        """
        joined: list[Rows] = []
        for start, stop in sorted(ranges):
            if not 0 <= start <= stop:
                raise MismatchError(f"rows {start}:{stop} are not a range; expected 0 ≤ start ≤ stop")
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            elif start < stop:
                joined.append((start, stop))
        return cls(tuple(joined))

    @classmethod
    def first(cls, rows: int) -> Self:
        """The first `rows` rows."""
        return cls.of([(0, rows)])

    def __or__(self, other: Self) -> Self:
        """The rows in either."""
        return self.of([*self.ranges, *other.ranges])

    def __and__(self, other: Self) -> Self:
        """The rows in both."""
        common: list[Rows] = []
        here = there = 0
        while here < len(self.ranges) and there < len(other.ranges):
            mine, theirs = self.ranges[here], other.ranges[there]
            start, stop = max(mine[0], theirs[0]), min(mine[1], theirs[1])
            if start < stop:
                common.append((start, stop))
            if mine[1] < theirs[1]:
                here += 1
            else:
                there += 1
        return type(self)(tuple(common))

    def __sub__(self, other: Self) -> Self:
        """The rows in this set that are not in `other`."""
        return self & other._gaps(self.stop)

    def _gaps(self, stop: int) -> Self:
        """Those of the first `stop` rows that are not in this set."""
        gaps: list[Rows] = []
        reached = 0
        for start, end in (*self.ranges, (stop, stop)):
            if reached < start:
                gaps.append((reached, start))
            reached = max(reached, end)
        return type(self)(tuple(gaps))

    @property
    def stop(self) -> int:
        """The row after the last; 0 for the empty set."""
        return self.ranges[-1][1] if self.ranges else 0

    def __len__(self) -> int:
        """The number of rows."""
        return sum(stop - start for start, stop in self.ranges)

    def __str__(self) -> str:
        return ", ".join(f"{start}:{stop}" for start, stop in self.ranges)

    def document(self) -> list[list[int]]:
        """The ranges as JSON-ready lists."""
        return [list(rows) for rows in self.ranges]


EMPTY = Coverage()
