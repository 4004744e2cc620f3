"""Threads: as many as this process may keep busy, by its affinity and the quota of its cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamstats.config import ClusterConfig
from streamstats.jobs import cores

FILES = {
    "version 2": {"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "250000 100000"},
    "version 1": {
        "proc/self/cgroup": "3:memory:/\n2:cpu,cpuacct:/job",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
    },
    "no quota": {"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "max 100000"},
    "no cgroup": {},
    "something else": {"proc/self/cgroup": "no colons here\n0::"},
}


@pytest.mark.parametrize("case", FILES)
def test_a_run_starts_as_many_threads_as_its_quota_lets_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name, text in FILES[case].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(cores, "ROOT", tmp_path)
    expected = 2 if case.startswith("version") else 64
    assert ClusterConfig().chosen().threads == expected
    assert ClusterConfig(workers=2).chosen().threads == max(1, expected // 2)
