"""Server-sent events of a job: what is said of it, and how far it is, each time that this changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from .errors import NotFoundError
from .jobs import ENDED
from .service import Service

TICK_SECONDS, SILENCE_SECONDS = 0.5, 15.0
"""Between two events, at least; and at most, so that everybody between knows that the stream lives."""


async def job_events(service: Service, job: str, after: int) -> AsyncIterator[str]:
    """Events of a job as text, until it has ended."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(name: str) -> None:
        if name == job:
            loop.call_soon_threadsafe(changed.set)

    unlisten = service.jobs.listen(wake)
    last = ""
    try:
        while True:
            changed.clear()
            try:
                view = await asyncio.to_thread(service.jobs.get, job)
                said = await asyncio.to_thread(service.jobs.events, job, after)
            except NotFoundError:  # deleted
                yield _event("end", '{"state": "deleted"}')
                return
            for each in said:
                after = each["number"]
                yield _event("message", json.dumps(each), after)
            text = view.model_dump_json()
            if text != last:
                last = text
                yield _event("job", text)
            if view.state in ENDED:
                yield _event("end", text)
                return
            await _woken(changed, service.stopping)
            if service.stopping.is_set():
                return
            if not changed.is_set():
                yield ": nothing new\n\n"
            await asyncio.sleep(TICK_SECONDS)
    finally:
        unlisten()


async def _woken(changed: asyncio.Event, stopping: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(each.wait()) for each in (changed, stopping)]
    try:
        await asyncio.wait(waiting, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _event(kind: str, text: str, number: int | None = None) -> str:
    return f"{f'id: {number}' + chr(10) if number is not None else ''}event: {kind}\ndata: {text}\n\n"
