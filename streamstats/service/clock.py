"""The clocks of the service. Durations and the order of turns never follow the wall clock, which may be set back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """`now` is the time that people read, seconds since 1970; `monotonic` measures durations, in seconds."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
