"""What a process may use of a machine, from the files of the system, versions 1 and 2 of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamstats.doctor.machine import Cores, cores, memory, place

V2 = {"proc/self/cgroup": "0::/job/step"}
V1 = {"proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/"}
QUOTAS: dict[str, tuple[dict[str, str], float | None]] = {
    "none": ({}, None),
    "version 2, unlimited": ({**V2, "sys/fs/cgroup/job/step/cpu.max": "max 100000"}, None),
    "version 2": ({**V2, "sys/fs/cgroup/job/step/cpu.max": "150000 100000"}, 1.5),
    "version 2, above": ({**V2, "sys/fs/cgroup/job/cpu.max": "200000 100000"}, 2),
    "version 2, in a namespace": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
    "version 1, unlimited": ({**V1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1"}, None),
    "version 1, without a period": ({**V1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000"}, None),
    "version 1": (
        {
            **V1,
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
        },
        0.5,
    ),
}


def made(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_of_a_cgroup_limits_the_cores(tmp_path: Path, case: str) -> None:
    files, expected = QUOTAS[case]
    found = cores(made(tmp_path, files))
    assert found.quota == expected
    assert 1 <= found.usable <= found.allowed <= found.machine


@pytest.mark.parametrize(("quota", "usable"), [(None, 8), (0.5, 1), (2.9, 2), (64.0, 8)])
def test_usable_cores_are_whole_and_at_least_one(quota: float | None, usable: int) -> None:
    assert Cores(16, 8, quota, None).usable == usable


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({**V2, "sys/fs/cgroup/job/memory.max": "max", "sys/fs/cgroup/job/step/memory.max": "1000000"}, 10**6),
        ({**V1, "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000"}, 2 * 10**6),
        ({**V1, "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
    ids=["none", "version 2", "version 1", "version 1, unlimited"],
)
def test_the_memory_limit_of_a_cgroup_is_found(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    assert memory(made(tmp_path, files)).limit == limit


def test_a_place_has_free_bytes_and_the_file_system_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {tmp_path.resolve()} rw - nfs4 host:/x rw"
    found = place(tmp_path, made(tmp_path, {"proc/self/mountinfo": mounts}))
    assert (found.refused, found.file_system) == ("", "nfs4")
    assert found.free is not None
    assert place(tmp_path.parent, tmp_path).file_system == "ext4"


def test_a_place_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    found = place(tmp_path / "missing")
    assert "No such file or directory" in found.refused
    assert found.free is None
