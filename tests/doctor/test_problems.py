"""What the doctor says of the facts of a machine; figures are made up, and none is asserted of this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from streamstats.doctor.examination import Facts, Loops
from streamstats.doctor.machine import Cores, Memory, Place
from streamstats.doctor.problems import problems
from streamstats.doctor.trial import IN_MEMORY, Rate

GOOD_PLACE = Place("/data", "", 10**12, "ext4")
REFUSED = Place("/data", "read-only", None, "ext4")
GOOD = Facts(
    versions={},
    extras={},
    cores=Cores(64, 64, None, 3.0),
    memory=Memory(256 * 10**9, None),
    loops=Loops("/cache", 90, 0),
    places=dict.fromkeys(("output", "temporary", "cache"), GOOD_PLACE),
    blas={},
    rates={"zstd": Rate(5e8, 2e10), "uncompressed": Rate(3e9, 4e10), IN_MEMORY: Rate(4e9, None)},
)
SLOW: dict[str, tuple[dict[str, Any], str, str]] = {
    "a quota": (
        {"cores": Cores(64, 64, 2.5, 1.0)},
        "2.5 of 64 cores busy, so runs start 2 threads",
        "raise the container",
    ),
    "an affinity": ({"cores": Cores(64, 4, None, 1.0)}, "4 of 64 cores", "taskset"),
    "a busy machine": ({"cores": Cores(8, 8, None, 30.0)}, "a load of 30.0 on 8 cores", "wait"),
    "little memory": ({"memory": Memory(64 * 10**9, 2**30)}, "1024 MiB, less than the 2048 MiB", "`memory: 512MiB`"),
    "no cache": ({"loops": Loops(None, 0, 0, "no home")}, "cannot be cached: no home", "XDG_CACHE_HOME"),
    "a cold cache": ({"loops": Loops("/cache", 0, 3)}, "3 loops had to be compiled", "streamstats warm"),
    "a network": ({"places": {**GOOD.places, "temporary": replace(GOOD_PLACE, file_system="nfs4")}}, "nfs4", "TMPDIR"),
    "a full disk": ({"places": {**GOOD.places, "output": replace(GOOD_PLACE, free=2**20)}}, "1 MiB left", "`output`"),
    "no place for output": ({"places": {**GOOD.places, "output": REFUSED}}, "read-only", "`output`"),
    "few threads of BLAS": ({"blas": {"OMP_NUM_THREADS": "1"}}, "1 thread of 64", "unset OMP_NUM_THREADS"),
    "a slow disk": (
        {"rates": {**GOOD.rates, "uncompressed": Rate(1e8, None)}},
        "100 MB/s of uncompressed values from /data, but 4,000 MB/s in memory",
        "TMPDIR",
    ),
}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a loop that does not compile": (
        {"rates": {}, "failed": "RuntimeError: no"},
        "counted: RuntimeError: no",
    ),
    "nothing can be written": ({"places": dict.fromkeys(GOOD.places, REFUSED)}, "cannot be written"),
}


def test_a_good_machine_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize("case", SLOW)
def test_what_is_slow_is_said_with_its_remedy(case: str) -> None:
    changed, what, remedy = SLOW[case]
    (found,) = problems(replace(GOOD, **changed))
    assert what in found.what
    assert remedy in found.remedy
    assert not found.broken


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_comes_first(case: str) -> None:
    changed, what = BROKEN[case]
    first, *_ = problems(replace(GOOD, cores=Cores(8, 8, None, 30.0), **changed))
    assert first.broken
    assert what in first.what
