"""Which job is next: fair between submitters, then by priority, then in order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streamstats.service.queueing import Waiting, next_job

WAITING = st.lists(
    st.builds(Waiting, st.integers(1, 10**6), st.sampled_from("abc"), st.integers(-5, 5)),
    max_size=20,
    unique_by=lambda job: job.number,
)


def test_nobody_waits_behind_the_many_jobs_of_another() -> None:
    waiting = [Waiting(number, "many") for number in range(1, 51)] + [Waiting(51, "one")]
    begun: list[str] = []
    started: dict[str, int] = {}
    for at in range(4):
        job = next_job(waiting, [], started)
        assert job is not None
        waiting.remove(job)
        begun.append(job.submitter)
        started[job.submitter] = at + 1
    assert begun == ["many", "one", "many", "many"]


def test_a_priority_counts_among_the_jobs_of_one_submitter_only() -> None:
    waiting = [Waiting(1, "ann"), Waiting(2, "ann", 100), Waiting(3, "ben", -100)]
    first = next_job(waiting, [], {})
    assert first is not None
    assert first.number == 2
    second = next_job([each for each in waiting if each != first], ["ann"], {"ann": 1})
    assert second is not None
    assert second.submitter == "ben"


@given(WAITING, st.lists(st.sampled_from("abc"), max_size=5))
def test_the_job_is_of_somebody_with_the_fewest_running(waiting: list[Waiting], running: list[str]) -> None:
    found = next_job(waiting, running, {})
    if not waiting:
        assert found is None
        return
    assert found is not None
    busy = Counter(running)
    assert busy[found.submitter] == min(busy[each.submitter] for each in waiting)
    mine = [each for each in waiting if each.submitter == found.submitter]
    assert found.priority == max(each.priority for each in mine)
    assert found.number == min(each.number for each in mine if each.priority == found.priority)
