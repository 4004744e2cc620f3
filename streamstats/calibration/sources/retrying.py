"""Requests to an object store that are retried, after growing pauses, while the store or the network fails."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from threading import Event
from typing import TypeVar

from ...errors import StoreError, first_line
from ...interrupts import check_wanted

T = TypeVar("T")
TOO_MANY_FILES = "Too many open files"
"""How the system calls EMFILE, in the messages of every library: waiting does not help."""
TRIES = 6
FIRST_PAUSE = 0.1
"""Seconds; each pause is twice as long as the one before, and shorter by up to a half, so that readers spread."""


def retried(request: Callable[[], T], unwanted: Event | None = None) -> T:
    """What `request` returns, retried while the store fails and until nobody wants it. Raises `StoreError`."""
    pauses = _pauses()
    while True:
        try:
            return request()
        except Exception as error:
            pause = _pause_after(error, pauses)
        check_wanted()
        if unwanted is None:
            time.sleep(pause)
        elif unwanted.wait(pause):
            raise CancelledError


async def retried_async(request: Callable[[], Awaitable[T]]) -> T:
    """As `retried`, for a request that is awaited."""
    pauses = _pauses()
    while True:
        try:
            return await request()
        except Exception as error:
            pause = _pause_after(error, pauses)
        await asyncio.sleep(pause)


def without_secrets(error: BaseException) -> str:
    """The first line of `error`; URLs in it lose what precedes `@` and follows `?`: names, keys, signatures."""
    return re.sub(r"\?[^\s\"')]*", "?…", re.sub(r"://[^\s@]*@", "://…@", first_line(error)))


def _pauses() -> Iterator[float]:
    return (FIRST_PAUSE * 2**number * random.uniform(0.5, 1) for number in range(TRIES - 1))


def _pause_after(error: Exception, pauses: Iterator[float]) -> float:
    """How many seconds to wait before the next try. Raises `StoreError` where no other try can help."""
    import obstore.exceptions as refused

    if not isinstance(error, (refused.BaseError, OSError)):
        raise error
    if isinstance(error, (refused.PermissionDeniedError, refused.UnauthenticatedError)):
        raise StoreError(
            f"the object store refuses the request: {without_secrets(error)}; check the credentials"
        ) from error
    if TOO_MANY_FILES in str(error):
        raise StoreError(f"{TOO_MANY_FILES}: {without_secrets(error)}; raise the limit (ulimit -n)") from error
    pause = next(pauses, None)
    if pause is None:
        raise StoreError(
            f"the object store failed {TRIES} times: {without_secrets(error)}; what was counted is saved: run again "
            "when the store responds"
        ) from error
    return pause
