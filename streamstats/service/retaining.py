"""What is kept of things that pile up: the newest, by age, number and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """Something that was last used `at` a time (seconds since 1970) and takes so many `bytes`."""

    name: str
    at: float
    bytes: int


@dataclass(frozen=True)
class Keep:
    """Keep the newest `number` things, as many as take `bytes` together, and none older than `age` seconds.

    What is None does not restrict them.
    """

    age: float | None = None
    number: int | None = None
    bytes: int | None = None

    def expired(self, things: Sequence[Thing], now: float) -> Iterator[tuple[Thing, str]]:
        """The things that are not kept, newest first, each with the reason.

        >>> things = [Thing("a", 10, 5), Thing("b", 30, 5), Thing("c", 20, 5)]
        >>> [(each.name, why) for each, why in Keep(age=15, number=2).expired(things, now=40)]
        [('c', 'age'), ('a', 'age')]
        >>> [(each.name, why) for each, why in Keep(bytes=11).expired(things, now=40)]
        [('a', 'bytes')]
        """
        total = 0
        for place, thing in enumerate(sorted(things, key=lambda each: each.at, reverse=True), start=1):
            total += thing.bytes
            if self.age is not None and now - thing.at > self.age:
                yield thing, "age"
            elif self.number is not None and place > self.number:
                yield thing, "number"
            elif self.bytes is not None and total > self.bytes:
                yield thing, "bytes"
