"""Faults: what fails in the service at the moment, for the log and for `/readyz`, and threads that outlive them.

The law: whatever a thread of the service raises is logged, shown while it lasts, and tried again. None ends unnoticed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import first_line

RETRY_SECONDS = 1.0

log = logging.getLogger("streamstats.service")


class Faults:
    """What fails at the moment: for each part of the service, the error that it met last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, str] = {}

    def note(self, part: str, error: Exception) -> None:
        """`part` has failed; an error that repeats is logged once."""
        text = first_line(error)
        with self._lock:
            known = self._found.get(part) == text
            self._found[part] = text
        if not known:
            log.error("%s failed and is retried: %s", part, text, exc_info=error)

    def clear(self, part: str) -> None:
        """`part` works."""
        with self._lock:
            failed = self._found.pop(part, None) is not None
        if failed:
            log.info("%s works again", part)

    def listed(self) -> list[str]:
        """What fails, in a sentence each."""
        with self._lock:
            return [f"{part}: {text}" for part, text in sorted(self._found.items())]

    @contextmanager
    def noted(self, part: str) -> Iterator[None]:
        """Note what the block raises, and let it go; clear `part` if it raises nothing."""
        try:
            yield
        except Exception as error:
            self.note(part, error)
        else:
            self.clear(part)


class Repeated:
    """A thread that calls `work` every `seconds`, whatever it raises, until it is ended or, if `once`, succeeds."""

    def __init__(
        self,
        part: str,
        work: Callable[[], None],
        faults: Faults,
        seconds: float = RETRY_SECONDS,
        *,
        once: bool = False,
    ) -> None:
        self._part, self._work, self._faults, self._seconds, self._once = part, work, faults, seconds, once
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=part, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._thread.start()

    def end(self) -> None:
        """Call `work` no more, and wait for the call in progress."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _repeat(self) -> None:
        while not self._ended.is_set():
            with self._faults.noted(self._part):
                self._work()
                if self._once:
                    return
            self._ended.wait(self._seconds)
