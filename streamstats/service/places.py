"""Places: how many requests of one kind the service works on at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import FullError


class Places:
    """`most` places, which requests take and give back.

    A coroutine that does not wait between `check` and `taken` gets the place that it was promised: all of it happens in
    the thread of the event loop.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self._taken

    def check(self, refusal: str) -> None:
        """Raise `FullError` with the message `refusal` if no place is free."""
        if self._taken >= self.most:
            raise FullError(refusal)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place until the block ends, in whatever way."""
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
