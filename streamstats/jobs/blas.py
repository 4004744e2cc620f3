"""One thread of BLAS for each task: tasks run beside each other, so more would only get in each other's way.

What the caller had set applies again when no task is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np


class _Alone:
    """How many tasks need BLAS now, and what restores the number of its threads after the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0
        self._limits = ExitStack()

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """BLAS has one thread while the `with` block runs."""
        from threadpoolctl import threadpool_limits

        with self._lock:
            if not self._tasks:
                self._limits.enter_context(threadpool_limits(1, user_api="blas"))
            self._tasks += 1
        try:
            yield
        finally:
            with self._lock:
                self._tasks -= 1
                if not self._tasks:
                    self._limits.close()


one_thread = _Alone().one_thread

TRIED_SIZE = 512


def multiplications_per_second() -> float:
    """How many multiplications of float64 matrices one thread makes: the better of two short trials."""
    values = np.ones((TRIED_SIZE, TRIED_SIZE))
    others, seconds = values.copy(), []
    with one_thread():
        for _ in range(2):
            started = time.perf_counter()
            values @ others
            seconds.append(time.perf_counter() - started)
    return TRIED_SIZE**3 / min(seconds)
