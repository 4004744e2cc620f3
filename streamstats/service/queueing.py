"""Which job is next: fair between submitters, then by priority, then in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A job that waits: its number, which grows, who submitted it, and its priority (more is sooner)."""

    number: int
    submitter: str
    priority: int = 0


def next_job(waiting: Sequence[Waiting], running: Sequence[str], last_started: Mapping[str, float]) -> Waiting | None:
    """The job to start: of the submitter with the fewest of the `running` jobs (a submitter each), then of the one
    whose last job started longest ago; of these by priority, then by number.

    A priority orders the jobs of one submitter. It takes nothing from another.

    >>> next_job([Waiting(1, "ann"), Waiting(2, "ben"), Waiting(3, "ann", 5)], ["ann"], {"ann": 10.0}).number
    2
    """
    busy = Counter(running)
    return min(
        waiting,
        key=lambda job: (busy[job.submitter], last_started.get(job.submitter, 0.0), -job.priority, job.number),
        default=None,
    )
