"""Server-sent events of a job: its messages, and its state and progress each time that they change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from .errors import NotFoundError
from .service import Service
from .settings import ENDED

TICK_SECONDS = 0.5
"""The shortest time between two reports."""
SILENCE_SECONDS = 15.0
"""The longest silence: after that, a comment shows clients and proxies that the stream is alive."""


async def job_events(service: Service, job: str, after: int) -> AsyncIterator[str]:
    """The events of a job, its messages from those numbered above `after`, until the job ends or the service stops."""
    last = ""
    with _changes(service, job) as changed:
        while True:
            changed.clear()
            try:
                view = await asyncio.to_thread(service.jobs.get, job)
            except NotFoundError:  # deleted
                yield _event("end", '{"state": "deleted"}')
                return
            text = view.model_dump_json()
            if text != last:
                last = text
                yield _event("job", text)
            while messages := await asyncio.to_thread(service.table.events, job, after):
                for message in messages:
                    after = message["number"]
                    yield _event("message", json.dumps(message), after)
            if view.state in ENDED:
                yield _event("end", text)
                return
            await _woken(changed, service.stopping)
            if service.stopping.is_set():
                return
            if not changed.is_set():
                yield ": nothing new\n\n"
            await asyncio.sleep(TICK_SECONDS)


@contextmanager
def _changes(service: Service, job: str) -> Iterator[asyncio.Event]:
    """An event that is set, in this loop, whenever the job changes."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(name: str) -> None:
        if name == job:
            loop.call_soon_threadsafe(changed.set)

    end = service.jobs.listen(wake)
    try:
        yield changed
    finally:
        end()


async def _woken(changed: asyncio.Event, stopping: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(each.wait()) for each in (changed, stopping)]
    try:
        await asyncio.wait(waiting, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _event(kind: str, text: str, number: int | None = None) -> str:
    identity = "" if number is None else f"id: {number}\n"
    return f"{identity}event: {kind}\ndata: {text}\n\n"
