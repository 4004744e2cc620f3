"""Joining: what the tasks of a layer that is measured in several cuts have found, once all of them have ended.

Each of these tasks reads the same rows and measures another part of a statistic. Rows are counted only when every part
of theirs has arrived, so each is counted zero or one time, whatever is lost or repeated before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from ..calibration.layer import Layer
from ..coverage import Rows
from ..errors import ChangedError
from ..outputs.ledger import Measured
from ..statistics.statistics import joined
from .measuring import Found, Unreadable
from .plan import Part, Task

Results = list[Found]


class Finished(NamedTuple):
    """What is finished with a task: `rows`, which no other task still has to measure, and `found` in them.

    `bytes` are those that the task has read.
    """

    rows: int
    bytes: int
    found: Results


def join_cuts(reduced: Iterable[tuple[Task, Results]], layers: Mapping[str, Layer]) -> Iterator[Finished]:
    """What is finished with each task that is `reduced`: of several cuts of the same rows, these with the last cut.

    Raises `ChangedError` if files have changed from one cut to the next.
    """
    waiting: dict[tuple[Part, ...], dict[int, Results]] = {}
    for task, found in reduced:
        if task.cuts == 1:
            yield Finished(task.rows, task.bytes, found)
            continue
        cuts = waiting.setdefault(task.parts, {})
        cuts[task.cut] = found
        if len(cuts) < task.cuts:
            yield Finished(0, task.bytes, [])
        else:
            in_order = [cuts[number] for number in range(task.cuts)]
            del waiting[task.parts]
            rows = replace(task, cut=0).rows
            yield Finished(rows, task.bytes, [*_joined(in_order, layers[task.parts[0].layer])])


def _joined(cuts: list[Results], layer: Layer) -> Iterator[Found]:
    """What was measured of the rows that every cut could read, and all that one of them could not read."""
    unreadable = {each.rows: each for found in cuts for each in found if isinstance(each, Unreadable)}
    yield from unreadable.values()
    measured = [{each.rows: each for each in found if isinstance(each, Measured)} for found in cuts]
    for rows, first in measured[0].items():
        same = [each[rows] for each in measured if rows in each]
        if len(same) == len(cuts) and rows not in unreadable:
            yield _of_rows(first, same, layer)
        elif rows not in unreadable:
            yield Unreadable(layer.name, rows, "it could be read only at times; run again", lost=False)


def _of_rows(first: Measured, cuts: list[Measured], layer: Layer) -> Measured:
    for each in cuts:
        if _files(each) != _files(first):
            raise ChangedError(
                f"layer {layer.name}, rows {_named(first.rows)}: its files were written while they were being read; "
                "let the writer finish, and run again"
            )
    statistics = joined(layer.kinds, first.statistics, [each.cuts for each in cuts])
    return replace(first, statistics=statistics, cuts={})


def _files(measured: Measured) -> tuple[object, ...]:
    return measured.files.tobytes(), measured.mask_files.tobytes(), measured.filled


def _named(rows: Rows) -> str:
    return f"{rows[0]}:{rows[1]}"
