"""Signals that wait.

Python runs a signal's handler between any two steps of the main thread, and what the handler raises there can leave a
lock of the standard library taken for ever, or end in a callback that ignores it. So the main thread does its work
with other threads inside `Deferred`, and lets the handlers run where it holds nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import FrameType, TracebackType
from typing import Self

Handler = Callable[[int, FrameType | None], object]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_THREAD = threading.local()


class Deferred:
    """Inside, the handlers of SIGNALS wait until `deliver`, or until the end; `wake` is called at once.

    A context manager. Signals without a handler in Python do what they always do; in other threads than the main one,
    which get no signals, nothing is changed.
    """

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        self._wake = wake
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.deliver()

    def deliver(self) -> None:
        """Run the handlers of the signals that came, which may raise."""
        while self._waiting:
            number = self._waiting.pop(0)
            self._handlers[number](number, None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._waiting.append(number)
        self._wake()


def stop_with(event: threading.Event) -> None:
    """The work of this thread is to end once `event` is set."""
    _THREAD.stop = event


def check_wanted() -> None:
    """End the work of this thread, by an error that nobody waits for, if it was told to stop."""
    stop: threading.Event | None = getattr(_THREAD, "stop", None)
    if stop is not None and stop.is_set():
        raise CancelledError
