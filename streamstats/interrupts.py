"""Deferred signals.

Python may run a signal's handler between any two bytecodes of the main thread. An exception that the handler raises
there can leave a lock of the standard library held for ever, or vanish in a callback that ignores it. So the main
thread works with other threads inside `Deferred`, and lets the handlers run only where it holds no lock.
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
    """A context manager that defers the handlers of SIGNALS until `deliver` or the exit; `wake` is called at once.

    Signals without a Python handler keep their usual effect. In threads other than the main one, which receive no
    signals, it changes nothing.
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
        """Run the handlers of the signals that have arrived; they may raise."""
        while self._waiting:
            number = self._waiting.pop(0)
            self._handlers[number](number, None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._waiting.append(number)
        self._wake()


def stop_with(event: threading.Event) -> None:
    """Make `check_wanted` end the work of this thread once `event` is set."""
    _THREAD.stop = event


def check_wanted() -> None:
    """Raise `CancelledError`, for which no caller waits, if the event that stops this thread is set."""
    stop: threading.Event | None = getattr(_THREAD, "stop", None)
    if stop is not None and stop.is_set():
        raise CancelledError
