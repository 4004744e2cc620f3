"""A job as a value: what to count, where to write the results, and who does the work. A configuration yields one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import index
from typing import Literal, Self, SupportsIndex, get_args

from ..calibration.selection import LayerRule, Selected, also_counting, rules_of, select_layers
from ..coverage import Coverage, OpenRows, before
from ..errors import UsageError
from .cores import available_cores
from .sizes import parse_bytes
from .workers import Cluster

DEFAULT_MEMORY = 2 * 2**30
"""Bytes."""
Nonfinite = Literal["error", "skip"]
Missing = Literal["error", "report", "fill"]


def this_process() -> Cluster:
    """Threads of this process, one for each core that it may keep busy."""
    return Cluster(threads=available_cores())


@dataclass(frozen=True)
class Job:
    """Count statistics of the layers of the calibration store `source`, and write them to the folder `output`.

    If `source` names several stores, the rows of a layer in them follow each other.
    `layers` chooses and describes layers: a glob for their names, a rule, or several of these (default: every array, as
    its attributes describe it). `memory`, in bytes or as in "2GiB", limits each process. `nonfinite` is the policy for
    NaN and infinities, `missing` that for chunks that are missing or damaged ("fill" is for missing ones alone). If
    `rows`, (start, stop), is given, only these are counted, of each array; (start, None) means all from `start` on.
    `cluster` says who does the work, by default a thread of this process for each core. Without `follow_links`, nothing
    is read behind links in the stores, or on the way to them. Raises `UsageError` for memory that is not a size, an
    unknown policy, rows that are no range, and layers that are neither globs nor rules.

    >>> job = ss.Job("calibration.zarr", "first-rows", rows=(0, 3)).counting("histogram")
    >>> ss.run(job).statistics["fc"].mean
    array([3., 4.])
    """

    source: str | tuple[str, ...]
    output: str
    layers: str | LayerRule | tuple[str | LayerRule, ...] = ()
    memory: str | int = DEFAULT_MEMORY
    nonfinite: Nonfinite = "error"
    missing: Missing = "error"
    rows: tuple[int, int | None] | None = None
    cluster: Cluster = field(default_factory=this_process)
    follow_links: bool = True

    def __post_init__(self) -> None:
        parse_memory(self.memory)
        check_one_of("nonfinite", self.nonfinite, get_args(Nonfinite))
        check_one_of("missing", self.missing, get_args(Missing))
        rules_of(self.layers)
        if self.rows is not None:
            object.__setattr__(self, "rows", checked_rows(self.rows))

    @property
    def sources(self) -> tuple[str, ...]:
        """The stores, in order."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @property
    def memory_bytes(self) -> int:
        """The limit for each process in bytes."""
        return parse_memory(self.memory)

    def selected(self) -> Selected:
        """The layers of its stores, as they are now. Raises as `select_layers`."""
        return select_layers(self.source, self.layers, follow_links=self.follow_links)

    def counting(self, *statistics: str) -> Self:
        """The same job, which also counts `statistics` for all layers."""
        return replace(self, layers=also_counting(self.layers, statistics))


def parse_memory(memory: str | int) -> int:
    """The bytes that the limit `memory` stands for. Raises `UsageError`."""
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise UsageError(f"memory is {memory!r}; {error}") from error


def wanted_rows(job: Job, rows: int) -> Coverage:
    """Those of the first `rows` rows of an array that the job wants."""
    return before(rows, job.rows)


def checked_rows(rows: object) -> OpenRows:
    """`rows` as Python's integers. Raises `UsageError` for anything other than a range of one row or more."""
    match rows:
        case (SupportsIndex() as first, SupportsIndex() | None as last) if bool not in map(type, rows):
            start, stop = index(first), None if last is None else index(last)
            if start >= 0 and (stop is None or start < stop):
                return start, stop
    raise UsageError(
        f"rows are {rows!r}; expected (start, stop), integers with 0 ≤ start < stop, or (start, None) for all from "
        "`start` on"
    )


def check_one_of(name: str, value: str, expected: tuple[str, ...]) -> None:
    """Raise `UsageError` if `value`, the argument called `name`, is not one of the `expected`."""
    if value not in expected:
        raise UsageError(f"{name} is {value!r}; expected {' or '.join(map(repr, expected))}")


def checked_job(job: object) -> Job:
    """`job`. Raises `UsageError` for anything other than a job, such as the path of a configuration."""
    if isinstance(job, Job):
        return job
    raise UsageError(f"the job is {job!r}; expected a Job: give Job(source, output), or load_job(path)")
