"""Which job runs next: fair among submitters, then by priority, then in order of submission."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sqlite3 import Row

from ..errors import counted


@dataclass(frozen=True)
class Waiting:
    """A queued job: its number, which grows with each submission, its submitter and its priority (higher is sooner)."""

    number: int
    submitter: str
    priority: int = 0


def next_job(waiting: Sequence[Waiting], running: Sequence[str], turns: Mapping[str, int]) -> Waiting | None:
    """The job to start, None if none waits. `running` names the submitter of each running job.

    `turns` counts all starts: it has the number of each submitter's latest one. The submitter with the fewest running
    jobs is next; among equals, the one whose latest job started earliest. Of that submitter's jobs, priority decides,
    then number: a priority takes nothing from other submitters.

    >>> next_job([Waiting(1, "ann"), Waiting(2, "ben"), Waiting(3, "ann", 5)], ["ann"], {"ann": 10}).number
    2
    """
    busy = Counter(running)
    return min(
        waiting,
        key=lambda job: (busy[job.submitter], turns.get(job.submitter, 0), -job.priority, job.number),
        default=None,
    )


def in_order(
    waiting: Sequence[Waiting], running: Sequence[str], turns: Mapping[str, int], places: int
) -> list[Waiting]:
    """All of `waiting` as `next_job` starts them in `places`, if jobs end in the order in which they started.

    >>> [job.number for job in in_order([Waiting(1, "ann"), Waiting(2, "ann"), Waiting(3, "ben")], ["ann"], {}, 1)]
    [1, 3, 2]
    """
    queues: dict[str, deque[Waiting]] = {}
    for job in sorted(waiting, key=lambda job: (-job.priority, job.number)):
        queues.setdefault(job.submitter, deque()).append(job)
    busy, latest, found = deque(running), dict(turns), list[Waiting]()
    turn = max(latest.values(), default=0)
    while queues:
        while len(busy) >= max(places, 1):
            busy.popleft()
        chosen = next_job([queue[0] for queue in queues.values()], busy, latest)
        assert chosen is not None
        found.append(queues[chosen.submitter].popleft())
        if not queues[chosen.submitter]:
            del queues[chosen.submitter]
        turn += 1
        latest[chosen.submitter] = turn
        busy.append(chosen.submitter)
    return found


def by_precedence(rows: list[Row]) -> list[list[Waiting]]:
    """The queued jobs, those that were interrupted before the others."""
    groups = [[row for row in rows if (row["started"] is None) == fresh] for fresh in (False, True)]
    return [[Waiting(row["number"], row["submitter"], row["priority"]) for row in group] for group in groups if group]


def places_in_queue(
    queued: Sequence[Row], running: Sequence[str], turns: Mapping[str, int], places: int, why: str
) -> dict[str, tuple[int, str]]:
    """(place, what it waits for) of each of the `queued` jobs, by id; `why` is what the first waits for."""
    rows = {row["number"]: row for row in queued}
    found: list[Waiting] = []
    for waiting in by_precedence([*rows.values()]):
        found += in_order(waiting, [*running, *(job.submitter for job in found)], turns, places)
    before = [f"; {counted(place, 'job')} will start before it" if place else "" for place in range(len(found))]
    return {rows[job.number]["id"]: (place + 1, why + before[place]) for place, job in enumerate(found)}
