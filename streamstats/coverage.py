"""Ranges of rows, (start, stop), and sets of rows as ranges in order and apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import MismatchError

Rows = tuple[int, int]


def add_rows(covered: Sequence[Rows], rows: Rows) -> tuple[Rows, ...]:
    """`covered` with `rows` added, neighbours joined. Raises `MismatchError` where they overlap or are no range.

    >>> add_rows(((0, 4), (8, 9)), (4, 8))
    ((0, 9),)
    """
    if not 0 <= rows[0] <= rows[1]:
        raise MismatchError(f"rows {rows[0]}:{rows[1]} are not a range; expected 0 ≤ start ≤ stop")
    if rows[0] == rows[1]:
        return tuple(covered)
    merged: list[Rows] = []
    for start, stop in sorted([*covered, rows]):
        if merged and start < merged[-1][1]:
            raise MismatchError(f"rows {start}:{min(stop, merged[-1][1])} are counted already; expected each row once")
        if merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def missing_rows(covered: Iterable[Rows], rows: int) -> tuple[Rows, ...]:
    """The ranges of 0…`rows` that `covered` (in order, apart) leaves out.

    >>> missing_rows(((2, 4),), 6)
    ((0, 2), (4, 6))
    """
    gaps: list[Rows] = []
    reached = 0
    for start, stop in (*covered, (rows, rows)):
        if reached < start:
            gaps.append((reached, start))
        reached = max(reached, stop)
    return tuple(gaps)


def join_rows(ranges: Iterable[Rows]) -> tuple[Rows, ...]:
    """The union of `ranges`, which may overlap, in order and apart.

    >>> join_rows([(4, 6), (0, 2), (5, 9), (2, 3)])
    ((0, 3), (4, 9))
    """
    joined: list[Rows] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        elif start < stop:
            joined.append((start, stop))
    return tuple(joined)


def common_rows(left: Iterable[Rows], right: Iterable[Rows]) -> tuple[Rows, ...]:
    """The rows that are in both.

    >>> common_rows([(0, 4), (6, 9)], [(2, 7)])
    ((2, 4), (6, 7))
    """
    mine, theirs = join_rows(left), join_rows(right)
    common: list[Rows] = []
    here = there = 0
    while here < len(mine) and there < len(theirs):
        start, stop = max(mine[here][0], theirs[there][0]), min(mine[here][1], theirs[there][1])
        if start < stop:
            common.append((start, stop))
        if mine[here][1] < theirs[there][1]:
            here += 1
        else:
            there += 1
    return tuple(common)


def without_rows(ranges: Sequence[Rows], taken: Iterable[Rows]) -> tuple[Rows, ...]:
    """`ranges` less what is `taken`.

    >>> without_rows([(0, 9)], [(2, 4)])
    ((0, 2), (4, 9))
    """
    last = max((stop for _, stop in ranges), default=0)
    return common_rows(ranges, missing_rows(join_rows(taken), last))


def row_count(ranges: Iterable[Rows]) -> int:
    """How many rows there are in `ranges`.

    >>> row_count([(0, 2), (4, 9)])
    7
    """
    return sum(stop - start for start, stop in ranges)


def shown(ranges: Iterable[Rows]) -> str:
    """For a message.

    >>> shown([(0, 2), (4, 9)])
    '0:2, 4:9'
    """
    return ", ".join(f"{start}:{stop}" for start, stop in ranges)
