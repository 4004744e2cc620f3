"""Signals wait until nothing can be left behind by what their handlers raise."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamstats.calibration.layer import Layer
from streamstats.interrupts import SIGNALS, Deferred
from streamstats.jobs.plan import TASKS_IN_FLIGHT, Part, Plan, Task
from streamstats.jobs.reduction import reduce_tasks
from streamstats.jobs.workers import Cluster, ThreadWorkers


@pytest.fixture(autouse=True)
def handled() -> Iterator[list[int]]:
    """The signals whose handler has run; it raises."""
    ran: list[int] = []

    def handler(number: int, _frame: object) -> None:
        ran.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    yield ran
    for number, earlier in before.items():
        signal.signal(number, earlier)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_and_wakes_at_once(handled: list[int], number: signal.Signals) -> None:
    woken = []
    before = signal.getsignal(number)
    signals = Deferred(wake=lambda: woken.append(True))
    signals.__enter__()
    signal.raise_signal(number)
    assert (woken, handled) == ([True], [])
    with pytest.raises(KeyboardInterrupt):
        signals.__exit__(None, None, None)
    assert handled == [number]
    assert signal.getsignal(number) is before


def test_a_signal_can_be_delivered_inside(handled: list[int]) -> None:
    with Deferred() as signals:
        signals.deliver()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signals.deliver()
    assert handled == [signal.SIGINT]


def test_one_inside_another_hands_on_what_came(handled: list[int]) -> None:
    with Deferred() as outer:
        with Deferred():
            signal.raise_signal(signal.SIGTERM)
        assert handled == []
        with pytest.raises(KeyboardInterrupt):
            outer.deliver()
    assert handled == [signal.SIGTERM]


def test_signals_without_a_handler_stay_as_they_are() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Deferred():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)


def test_other_threads_change_nothing() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def enter() -> None:
        with Deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]


class Interrupted(ThreadWorkers):
    """Workers to which a signal comes while a task is given out."""

    given = 0

    def give(self, *_: Any, **__: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        self.given += 1
        return self.given


def test_a_signal_in_the_midst_of_giving_out_tasks_does_not_cut_it_off_and_ends_the_reduction() -> None:
    workers = Interrupted(Cluster())
    tasks = tuple(Task((Part("layer", row, row + 1, (1,)),), 1) for row in range(9))
    plan = Plan(tasks, 1, 9, 9, 1, 1)
    layer = Layer("store", "layer", (9, 1), np.dtype("int8"), (1, 1), (1, 1), 1)
    with pytest.raises(KeyboardInterrupt):
        next(reduce_tasks(plan, {"layer": layer}, workers))
    assert workers.given == TASKS_IN_FLIGHT
