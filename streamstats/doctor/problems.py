"""The problems of a machine, each with its remedy. They follow from the facts, so those of any machine will do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import counted
from ..jobs.job import DEFAULT_MEMORY
from ..jobs.sizes import in_mib
from .examination import Facts, Loops
from .machine import Cores, Memory
from .trial import IN_MEMORY

NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb3"),
    *("fuse.gcsfuse", "fuse.s3fs", "fuse.sshfs"),
)
"""Types of file systems that are not on a disk of this machine."""
LITTLE_SPACE = 2**30
FAR_BELOW = 1 / 4
"""As a share of the rate in memory, the rate at which one thread reads uncompressed values: less is slow."""


@dataclass(frozen=True)
class Problem:
    """What is slow, or `broken`, and what to do about it."""

    what: str
    remedy: str
    broken: bool = False


def problems(facts: Facts) -> list[Problem]:
    """What is broken or slow, what is broken first."""
    found = [*_of_trial(facts), *_of_places(facts), *_of_cores(facts.cores), *_of_memory(facts.memory)]
    found += [*_of_loops(facts.loops), *_of_rates(facts), *_of_blas(facts)]
    return sorted(found, key=lambda each: not each.broken)


def _of_trial(facts: Facts) -> Iterator[Problem]:
    if facts.failed:
        remedy = "correct that, or install streamstats again; STREAMSTATS_TRACEBACK=1 streamstats warm shows more"
        where = facts.places["temporary"].path
        yield Problem(f"a small store in {where} cannot be counted: {facts.failed}", remedy, broken=True)


def _of_places(facts: Facts) -> Iterator[Problem]:
    nothing = all(each.refused for each in facts.places.values())
    for name, each in facts.places.items():
        if each.refused:
            remedy = "choose another folder: " + REMEDIES[name]
            yield Problem(f"the {name} folder {each.path} cannot be written: {each.refused}", remedy, nothing)
            continue
        if each.free is not None and each.free < LITTLE_SPACE:
            yield Problem(f"{each.path} has {in_mib(each.free)} left", f"free some, or {REMEDIES[name]}")
        if each.file_system in NETWORK:
            where = f"the {name} folder {each.path} is on a network ({each.file_system})"
            yield Problem(f"{where}: small files are slow", f"put it on a disk of this machine: {REMEDIES[name]}")


REMEDIES = {
    "output": "set `output` to a folder elsewhere, or run there",
    "temporary": "set TMPDIR",
    "cache": "set XDG_CACHE_HOME",
}
"""How to choose another folder."""


def _of_cores(found: Cores) -> Iterator[Problem]:
    if found.usable < found.allowed:
        yield Problem(
            f"the cgroup of this process lets it keep {found.quota:g} of {found.allowed} cores busy, so runs start "
            f"{counted(found.usable, 'thread')}",
            "raise the container's CPU limit, if you can",
        )
    if found.allowed < found.machine:
        yield Problem(
            f"this process may run on {found.allowed} of {found.machine} cores",
            "allow more where that is limited (taskset, the batch system, the container), if they are yours",
        )
    if found.load is not None and found.load > found.machine:
        yield Problem(
            f"the cores are busy: a load of {found.load:.1f} on {counted(found.machine, 'core')}, so all rates are low",
            "wait for the other programs, or run elsewhere",
        )


def _of_memory(found: Memory) -> Iterator[Problem]:
    least = min((each for each in (found.machine, found.limit) if each is not None), default=DEFAULT_MEMORY)
    if least < DEFAULT_MEMORY:
        yield Problem(
            f"a process may use {in_mib(least)}, less than the {in_mib(DEFAULT_MEMORY)} that runs take by default",
            f"set `memory: {least // 2**21}MiB`, or raise the limit",
        )


def _of_loops(found: Loops) -> Iterator[Problem]:
    if found.folder is None:
        yield Problem(
            f"compiled loops cannot be cached: {found.refused}; every process compiles them again, for a few seconds",
            "set XDG_CACHE_HOME to a folder that can be written",
        )
    elif found.compiled:
        yield Problem(
            f"{counted(found.compiled, 'loop')} had to be compiled for this report; runs compile others as they need "
            "them",
            "compile them now: streamstats warm",
        )


def _of_rates(facts: Facts) -> Iterator[Problem]:
    if not facts.rates:
        return
    read, counting = facts.rates["uncompressed"].one_thread, facts.rates[IN_MEMORY].one_thread
    if read < FAR_BELOW * counting:
        yield Problem(
            f"one thread reads and counts {megabytes(read)} of uncompressed values from "
            f"{facts.places['temporary'].path}, but {megabytes(counting)} in memory",
            "the file system of that folder is slow even for cached files (network, FUSE, virus scanner); set "
            "TMPDIR to try another",
        )


def _of_blas(facts: Facts) -> Iterator[Problem]:
    for name, value in facts.blas.items():
        if value.isdigit() and int(value) < facts.cores.usable:
            yield Problem(
                f"{name} is {value}: rounding by second moments and spectra use {counted(int(value), 'thread')} of "
                f"{facts.cores.usable}; runs are not affected",
                f"unset {name}",
            )


def megabytes(rate: float) -> str:
    """A rate as text."""
    return f"{rate / 1e6:,.0f} MB/s"
