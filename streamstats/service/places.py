"""Places: how many requests of one kind the service works on at once, and how many of them for one token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FullError


class Places:
    """`most` places, which requests take and give back. No token has more than its `share`, half of them.

    A coroutine that does not wait between `check` and `taken` gets the place that it was promised: all of it happens in
    the thread of the event loop.
    """

    def __init__(self, most: int) -> None:
        self.most, self.share = most, (most + 1) // 2
        self._taken: Counter[str] = Counter()

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self._taken.total()

    def check(self, refusal: str) -> None:
        """Raise `FullError` with the message `refusal` if no place is free."""
        if self.in_use >= self.most:
            raise FullError(refusal)

    def check_share(self, token: str, refusal: str) -> None:
        """Raise `FullError` with the message `refusal` if the token has its share of the places."""
        if self._taken[token] >= self.share:
            raise FullError(refusal)

    @contextmanager
    def taken(self, token: str = "") -> Iterator[None]:
        """Hold a place, for the token of that name, until the block ends, in whatever way."""
        self._taken[token] += 1
        try:
            yield
        finally:
            self._taken -= Counter({token: 1})  # which drops those that have none
