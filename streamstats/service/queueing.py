"""Which job runs next: fair among submitters, then by priority, then in order of submission."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A queued job: its number, which grows with each submission, its submitter and its priority (higher is sooner)."""

    number: int
    submitter: str
    priority: int = 0


def next_job(waiting: Sequence[Waiting], running: Sequence[str], last_started: Mapping[str, float]) -> Waiting | None:
    """The job to start, None if none waits. `running` names the submitter of each running job.

    The submitter with the fewest running jobs is next; among equals, the one whose latest job started earliest. Of that
    submitter's jobs, priority decides, then number: a priority takes nothing from other submitters.

    >>> next_job([Waiting(1, "ann"), Waiting(2, "ben"), Waiting(3, "ann", 5)], ["ann"], {"ann": 10.0}).number
    2
    """
    busy = Counter(running)
    return min(
        waiting,
        key=lambda job: (busy[job.submitter], last_started.get(job.submitter, 0.0), -job.priority, job.number),
        default=None,
    )
