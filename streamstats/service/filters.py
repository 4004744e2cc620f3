"""Which jobs of a list are wanted, as conditions on the rows of the database. All that are given must hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SEARCHED = ("id", "name", "tags", "note", "submitter", "message", "json_extract(request, '$.source')")
"""What `text` is looked for in."""


@dataclass(frozen=True)
class Wanted:
    """Jobs in one of the `states`, of the `submitter`, that read one of the `sources`, with all `tags`, in which `text`
    occurs.

    What is None or empty does not restrict the jobs. `text` ignores the case of ASCII letters.
    """

    states: Sequence[str] = ()
    submitter: str | None = None
    sources: Sequence[str] = ()
    tags: Sequence[str] = ()
    text: str | None = None

    def where(self) -> tuple[str, list[Any]]:
        """(the condition, its parameters) of a statement that selects from the table `jobs`."""
        found = list(self._conditions())
        conditions = " AND ".join(["1", *(condition for condition, _ in found)])
        return conditions, [value for _, values in found for value in values]

    def _conditions(self) -> Iterator[tuple[str, Sequence[Any]]]:
        if self.states:
            yield f"state IN ({', '.join('?' * len(self.states))})", self.states
        if self.submitter is not None:
            yield "submitter = ?", [self.submitter]
        if self.sources:
            yield f"json_extract(request, '$.source') IN ({', '.join('?' * len(self.sources))})", self.sources
        for tag in self.tags:
            yield "EXISTS (SELECT 1 FROM json_each(jobs.tags) WHERE value = ?)", [tag]
        if self.text:
            places = " OR ".join(f"instr(lower({each}), lower(?))" for each in SEARCHED)
            yield f"({places})", [self.text] * len(SEARCHED)
