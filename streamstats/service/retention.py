"""Retention: removes what the configuration does not keep, from time to time or when an admin asks, or only tells.

Jobs that have not ended, stores that they read, and current result sets are never removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

from ..storage.files import folder_bytes
from . import published
from .audit import Audit
from .database import Database
from .errors import ConflictError, NotFoundError
from .job_table import JobTable
from .jobs import Jobs
from .messages import OWN, V1, PrunedView
from .retaining import Keep, Thing
from .settings import RetentionConfig
from .stores import Stores
from .uploads import Uploads

LOOK_SECONDS = 10.0
"""The longest time between two looks at whether it is time, so that what failed is soon tried again."""
BY_ITSELF = "(retention)"
"""In the audit log, where no token has such a name."""
Kind = Literal["jobs", "sets", "stores", "uploads", "events"]

log = logging.getLogger("streamstats.service")


@dataclass(frozen=True)
class Expired:
    """Something that is not kept: why, and what removes it."""

    kind: Kind
    thing: Thing
    why: str
    remove: Callable[[], None]

    def view(self) -> PrunedView:
        """As clients see it."""
        return PrunedView(kind=self.kind, name=self.thing.name, at=self.thing.at, bytes=self.thing.bytes, why=self.why)


class Retention:
    """What the service keeps of its jobs, stores, uploads and events, as `config` says."""

    def __init__(
        self,
        config: RetentionConfig,
        database: Database,
        table: JobTable,
        jobs: Jobs,
        stores: Stores,
        uploads: Uploads,
        audit: Audit,
    ) -> None:
        self._config, self._database, self._table = config, database, table
        self._jobs, self._stores, self._uploads, self._audit = jobs, stores, uploads, audit
        self._next = 0.0

    def apply(self) -> None:
        """Remove what the configuration does not keep, if it is time, and after a failure. Raises `OutputError`."""
        if time.monotonic() >= self._next:
            list(self.prune(BY_ITSELF))
            self._next = time.monotonic() + self._config.every

    def _note(self, who: str, removed: Expired) -> None:
        log.info("removed: %s %s", removed.kind, removed.thing.name)
        path = f"{V1}/{removed.kind}/{removed.thing.name}"
        self._audit.add({"who": who, "role": "admin", "method": "DELETE", "path": path, "status": 204})

    def prune(self, who: str, config: RetentionConfig | None = None, *, dry_run: bool = False) -> Iterator[PrunedView]:
        """Remove, for `who`, what `config`, by default the service's, does not keep; a dry run only tells what that is.

        Raises `OutputError`.
        """
        for expired in self._expired(config or self._config, time.time()):
            if not dry_run:
                try:
                    expired.remove()
                except (ConflictError, NotFoundError):  # it was used, or deleted, since it was listed
                    continue
                self._note(who, expired)
            yield expired.view()

    def _expired(self, config: RetentionConfig, now: float) -> Iterator[Expired]:
        jobs = [*self._jobs_of(config, now)]
        yield from jobs
        yield from self._sets(config.sets.keep(), now, {each.thing.name for each in jobs})
        yield from self._of("stores", config.stores.keep(), self._unread(), self._remove_store, now)
        yield from self._of("uploads", config.uploads.keep(), self._uploaded(), self._remove_upload, now)
        yield from self._events(config.events.keep(), now)

    def _of(
        self, kind: Kind, keep: Keep, things: Iterable[Thing], remove: Callable[[Thing], None], now: float
    ) -> Iterator[Expired]:
        if keep != Keep():
            for thing, why in keep.expired(list(things), now):
                yield Expired(kind, thing, why, partial(remove, thing))

    def _jobs_of(self, config: RetentionConfig, now: float) -> Iterator[Expired]:
        """The jobs that are not kept. Jobs without results never displace jobs with results: they are counted apart,
        and take only the bytes that the others leave.
        """
        keep = config.jobs.keep()
        if keep == Keep():
            return
        for with_results in (True, False):
            things = [*self._ended(config.keep_tags, with_results=with_results)]
            gone = [*self._of("jobs", keep, things, self._remove_job, now)]
            yield from gone
            if keep.bytes is not None:
                taken = sum(each.bytes for each in things) - sum(each.thing.bytes for each in gone)
                keep = replace(keep, bytes=keep.bytes - taken)

    def _ended(self, keep_tags: Iterable[str], *, with_results: bool) -> Iterator[Thing]:
        """The jobs that have ended with results, or without, except those with one of the `keep_tags`."""
        for job in self._table.ended():
            if job["has_results"] == with_results and not set(keep_tags) & set(job["tags"]):
                yield Thing(job["id"], job["ended"], folder_bytes(self._jobs.folder(job["id"])))

    def _sets(self, keep: Keep, now: float, gone: Collection[str]) -> Iterator[Expired]:
        """The sets of each job that has ended and is not `gone`; a job that runs removes its own.

        Those that were replaced lately, by the monotonic clock, are retained.
        """
        for job in self._table.ended() if keep != Keep() else ():
            if job["id"] in gone or self._jobs.since_published(job["id"]) <= published.RETAINED_SECONDS:
                continue
            folder = self._jobs.folder(job["id"])
            for each, why in published.superseded(folder, keep, now, measured=True):
                thing = replace(each, name=f"{job['id']}/{each.name}")
                yield Expired("sets", thing, why, partial(published.discard, folder, int(each.name)))

    def _unread(self) -> Iterator[Thing]:
        """The stores that no job reads that has not ended."""
        for name in self._stores.names():
            if not self._table.reading(OWN + name):
                yield Thing(name, self._stores.owner(name)[1], folder_bytes(self._stores.folder / name))

    def _remove_job(self, job: Thing) -> None:
        self._jobs.delete(job.name)

    def _remove_store(self, store: Thing) -> None:
        self._stores.delete(store.name, partial(self._check_unused, store))

    def _check_unused(self, store: Thing) -> None:
        """Raise `ConflictError` if the store was used since it was listed."""
        self._table.check_unread(store.name)
        if self._stores.owner(store.name)[1] != store.at:
            raise ConflictError(f"activations have arrived in the store {store.name}")

    def _remove_upload(self, upload: Thing) -> None:
        self._uploads.remove(upload.name, listed=upload.at)

    def _uploaded(self) -> Iterator[Thing]:
        for each in self._uploads.listed():
            yield Thing(each.id, each.uploaded, each.bytes)

    def _events(self, keep: Keep, now: float) -> Iterator[Expired]:
        """The messages in the logs of jobs, all that are not kept as one thing."""
        if keep == Keep():
            return
        newest = "number, at, length(text) AS size, row_number() OVER w AS place, sum(length(text)) OVER w AS total"
        row = self._database.one(
            "SELECT max(number) AS last, max(at) AS at, count(*) AS n, sum(size) AS bytes FROM "
            f"(SELECT {newest} FROM events WINDOW w AS (ORDER BY number DESC)) "
            "WHERE at < ? OR place > ? OR total > ?",
            (0.0 if keep.age is None else now - keep.age, _or_all(keep.number), _or_all(keep.bytes)),
        )
        if row is not None and row["n"]:
            last = row["last"]
            thing = Thing(f"{row['n']:,} messages, up to number {last}", row["at"], row["bytes"])
            why = " or ".join(limit for limit, most in asdict(keep).items() if most is not None)
            yield Expired("events", thing, why, partial(self._table.delete_events, last))


def _or_all(most: int | None) -> int:
    return 2**62 if most is None else most
