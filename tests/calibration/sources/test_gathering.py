"""Many files in one call: it reads the files that exist, and ends before the first that it cannot read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from stores import build_store, described, samples

from streamstats.calibration.identity import file_range, identities
from streamstats.calibration.layer import Layer
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.sources import gathering, local
from streamstats.calibration.sources.gathering import Gathered, can_gather, gather
from streamstats.errors import DataError
from streamstats.statistics.statistics import Statistics, StatisticsAccumulator

pytestmark = pytest.mark.skipif(not can_gather(), reason="this system has no statx")

MOST = 1000


def gathered(folder: Path, names: list[str], *, room: int = 10_000, most: int = MOST) -> tuple[list[bytes], Gathered]:
    descriptor, buffer = os.open(folder, os.O_RDONLY), np.zeros(room, np.uint8)
    try:
        found = gather(descriptor, names, buffer, most)
    finally:
        os.close(descriptor)
    return [buffer[start : start + size].tobytes() for start, size in found.places.tolist()], found


def test_files_come_in_order_with_what_identifies_them(tmp_path: Path) -> None:
    contents = {f"{'long' * number}c.{number}": os.urandom(1 + 7 * number) for number in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(5, 1_700_000_000_123_456_789 + len(content)))
    found, about = gathered(tmp_path, [*contents])
    assert found == [*contents.values()]
    stats = [os.stat(tmp_path / name) for name in contents]
    assert about.identities.tolist() == [[each.st_size, each.st_mtime_ns] for each in stats]
    assert about.places.flags.c_contiguous


def test_a_time_before_1970_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    os.utime(tmp_path / "old", ns=(0, -1_500_000_001))
    assert gathered(tmp_path, ["old"])[1].identities[0, 1] == (tmp_path / "old").stat().st_mtime_ns


@pytest.mark.parametrize("obstacle", ["missing", "folder", "pipe", "empty", "large", "dangling", "no room"])
def test_what_is_in_the_way_ends_it_and_leaves_nothing_open(tmp_path: Path, obstacle: str) -> None:
    for name in "abd":
        (tmp_path / name).write_bytes(name.encode() * 10)
    third = tmp_path / "c"
    {
        "missing": lambda: None,
        "folder": third.mkdir,
        "pipe": lambda: os.mkfifo(third),
        "empty": third.touch,
        "large": lambda: third.write_bytes(bytes(MOST + 1)),
        "dangling": lambda: third.symlink_to("nowhere"),
        "no room": lambda: third.write_bytes(bytes(20)),
    }[obstacle]()
    before = len(os.listdir("/proc/self/fd"))
    room = 39 if obstacle == "no room" else 10_000
    assert gathered(tmp_path, ["a", "b", "c", "d"], room=room)[0] == [b"a" * 10, b"b" * 10]
    assert gathered(tmp_path, ["c"], room=19 if obstacle == "no room" else room)[0] == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_as_much_as_there_may_be_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MOST))
    assert gathered(tmp_path, ["a"], room=MOST)[0] == [bytes(MOST)]
    assert gathered(tmp_path, [])[0] == []


# In a reader


def small_files(folder: Path, rows: int = 3000) -> Layer:
    build_store(folder, {"layer": samples(rows, 4, 3)}, chunks=(2, 4, 3))
    return described(folder)


def measured(layer: Layer, rows: slice) -> tuple[Statistics, dict[str, tuple[int, int]]]:
    accumulator = StatisticsAccumulator(layer.kinds, layer.space)
    with open_reader(layer) as opened:
        opened.measure((rows, slice(0, 4), slice(0, 3)), accumulator)
    return accumulator.found(), opened.identified


def test_more_files_than_a_call_takes_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = small_files(tmp_path)
    calls: list[int] = []
    watched = gathering.gather

    def counting(folder: int, names: list[str], *rest: object, follow_links: bool) -> Gathered:
        calls.append(len(names))
        return watched(folder, names, *rest, follow_links=follow_links)  # type: ignore[arg-type]

    monkeypatch.setattr("streamstats.calibration.sources.local.gather", counting)
    found = measured(layer, slice(1, 2999))
    assert calls == [1024, 474]  # the first and the last chunk are wanted in part
    monkeypatch.setattr(local, "can_gather", lambda **_: False)
    assert measured(layer, slice(1, 2999)) == found
    assert len(calls) == 2


def test_each_file_is_identified_as_it_was_when_it_was_read(tmp_path: Path) -> None:
    layer = small_files(tmp_path, rows=20)
    before = identities(layer, file_range(layer, 0, 20))
    known = measured(layer, slice(0, 20))[1]
    (tmp_path / "layer" / "c" / "3" / "0" / "0").write_bytes(b"other")
    files = file_range(layer, 0, 20)
    assert identities(layer, files, known).tolist() == before.tolist()
    assert identities(layer, files).tolist() != before.tolist()


@pytest.mark.parametrize("number", [0, 7, 1499])
def test_a_damaged_file_among_many_is_named(tmp_path: Path, number: int) -> None:
    layer = small_files(tmp_path)
    file = tmp_path / "layer" / "c" / str(number) / "0" / "0"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"chunk c/{number}/0/0 \(rows {2 * number}:{2 * number + 2}\) cannot be read"):
        measured(layer, slice(0, 3000))
    file.unlink()
    with pytest.raises(DataError, match=rf"chunk c/{number}/0/0 \(rows {2 * number}:{2 * number + 2}\) is missing"):
        measured(layer, slice(0, 3000))
