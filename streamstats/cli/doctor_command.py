"""`streamstats doctor`: the examination of this machine, as a table or as JSON."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from ..doctor.examination import Facts, examine, install
from ..doctor.machine import Place
from ..doctor.problems import Problem, megabytes, problems
from ..errors import DONE, FAILURE, counted
from .tables import print_json, print_table, say


def doctor(options: Namespace) -> int:
    """`streamstats doctor`."""
    if not options.quiet:
        say("examining this machine: a few seconds")
    facts = examine()
    found = problems(facts)
    if options.json:
        print_json(facts.document() | {"problems": [asdict(each) for each in found]})
    else:
        print_table(["what", "found"], list(_rows(facts)), left=2)
        _print_problems(found)
    return FAILURE if any(each.broken for each in found) else DONE


def _rows(facts: Facts) -> Iterator[list[str]]:
    yield from ([name, version] for name, version in facts.versions.items())
    for name, missing in facts.extras.items():
        yield [f"extra {name}", f"lacks {', '.join(missing)}: {install(name)}" if missing else "installed"]
    yield ["cores", _cores(facts)]
    yield ["memory", f"{_size(facts.memory.machine)}; limit of the cgroup: {_size(facts.memory.limit)}"]
    loops = facts.loops
    cached = counted(loops.cached + loops.compiled, "loop") + f" in {loops.folder}" if loops.folder else "no cache"
    yield ["compiled loops", f"{cached}; {loops.compiled:,} compiled for this report"]
    yield from ([f"{name} folder", _place(each)] for name, each in facts.places.items())
    for name, rate in facts.rates.items():
        every = f", {facts.cores.usable} threads: {megabytes(rate.all_threads)}" if rate.all_threads else ""
        yield [f"float32, {name}", f"1 thread: {megabytes(rate.one_thread)}{every}"]


def _cores(facts: Facts) -> str:
    cores = facts.cores
    quota = "none" if cores.quota is None else f"{cores.quota:g}"
    allowed = f"{cores.machine} in the machine, {cores.allowed} allowed"
    return f"{cores.usable} usable; {allowed}, quota of the cgroup: {quota}"


def _place(place: Place) -> str:
    state = "cannot be written" if place.refused else f"{_size(place.free)} free"
    return f"{place.path}: {state}, {place.file_system or 'unknown file system'}"


def _size(size: int | None) -> str:
    return "none" if size is None else f"{size / 1e9:,.1f} GB"


def _print_problems(found: Sequence[Problem]) -> None:
    print()
    for each in found:
        print(f"{'broken' if each.broken else 'slow'}: {each.what}\n  {each.remedy}")
    if not found:
        print("nothing is broken or slow")
