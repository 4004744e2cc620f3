"""When a client sends a request again: one that got no answer, or for which the service has no capacity at the moment.

The law: a request is sent again for a bounded time, and never before the service said (`Retry-After`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

PATIENCE_SECONDS = 120.0
"""How long requests that add something, and streams, are repeated."""
QUICK_SECONDS = 5.0
"""How long other requests are repeated: somebody waits for the answer."""
FIRST_SECONDS, MOST_SECONDS = 0.5, 10.0
"""The first pause, and the longest; each is twice the one before."""
UNAVAILABLE = (429, 502, 503, 504)
"""Statuses of a service, or a proxy before it, that may answer later."""


@dataclass
class Trial:
    """The attempts of one request, within `seconds` of the first; `say` is told why the first one is repeated."""

    seconds: float
    say: Callable[[str], None] = lambda _: None
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _pause: float = field(default=FIRST_SECONDS, init=False)
    _until: float | None = field(default=None, init=False)

    def again(self, reason: str, after: float | None = None) -> bool:
        """Wait, at least `after` seconds; false, without a wait, if the time is over before that."""
        now = self.monotonic()
        if self._until is None:
            self._until = now + self.seconds
            self.say(f"{reason}; trying again for {self.seconds:.0f} s")
        left = self._until - now
        if left <= 0 or (after is not None and after > left):
            return False
        self.sleep(min(max(self._pause, after or 0.0), left))
        self._pause = min(2 * self._pause, MOST_SECONDS)
        return True

    def pause(self) -> None:
        """Wait before another attempt although none has failed."""
        self.sleep(FIRST_SECONDS)

    def renew(self) -> None:
        """An attempt has succeeded: the next failure begins anew."""
        self._pause, self._until = FIRST_SECONDS, None


def may_answer_later(status: int, after: float | None, *, twice: bool) -> bool:
    """Whether to send a request again that was answered with `status`, and with `after` seconds in `Retry-After`.

    502, 504, and 503 without a time can come from a proxy that has passed the request on: only a request that may be
    carried out `twice` is sent again then.

    >>> [may_answer_later(status, None, twice=False) for status in UNAVAILABLE], may_answer_later(503, 5.0, twice=False)
    ([True, False, False, False], True)
    """
    return status in UNAVAILABLE and (twice or status == 429 or (status == 503 and after is not None))


def retry_after(header: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """The seconds of the header `Retry-After`: a number, or a date. None if there is none, or it is neither.

    >>> retry_after("5"), retry_after(None), retry_after("soon")
    (5.0, None, None)
    >>> retry_after("Wed, 21 Oct 2015 07:28:00 GMT", lambda: datetime(2015, 10, 21, 7, 27, tzinfo=UTC))
    60.0
    """
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now()).total_seconds())
    except (ValueError, TypeError):
        return None
