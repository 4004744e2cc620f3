"""Sets of results: numbered, never changed, the newest of them current."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamstats.errors import DataError
from streamstats.service import published
from streamstats.service.clock import Clock
from streamstats.service.published import Published
from streamstats.storage.files import write_archive, write_bytes


def test_a_set_stays_as_it_is_when_the_files_are_written_anew(tmp_path: Path) -> None:
    source = tmp_path / "out" / "x"
    write_bytes(source, b"first")
    assert published.current(tmp_path) is None
    assert Published(tmp_path).publish({"x": source}) == 1
    write_bytes(source, b"second")
    assert Published(tmp_path).publish({"x": source}) == 2
    assert published.current(tmp_path) == 2
    contents = []
    for number in (1, 2):
        folder = published.folder_of(tmp_path, number)
        assert folder is not None
        contents.append((folder / "x").read_bytes())
    assert contents == [b"first", b"second"]


def test_old_sets_go_with_their_archives_whatever_the_wall_clock_says(tmp_path: Path) -> None:
    """A set is retained for a while after it was replaced; a clock that is set back or forth changes nothing."""
    source, seconds = tmp_path / "x", 0.0
    write_bytes(source, b"x")
    sets = Published(tmp_path, Clock(lambda: 1e9 * (-1) ** int(seconds), lambda: seconds))
    for number, after in ((1, 0.0), (2, 0.0), (3, 0.5), (4, 1.1), (5, 2.0)):
        seconds = after * published.RETAINED_SECONDS
        assert sets.publish({"x": source}) == number
        folder = published.folder_of(tmp_path, number)
        assert folder is not None
        write_archive(published.archive_of(folder), {"x": source})
        os.utime(folder, (0, 0))
        expected = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [2, 3, 4], 5: [3, 4, 5]}[number]
        assert published.numbers(tmp_path) == expected
        archives = sorted(path.stem for path in (tmp_path / published.RESULTS).glob("*.zip"))
        assert archives == [str(each) for each in expected]


def test_a_set_that_a_kill_left_half_made_is_never_current(tmp_path: Path) -> None:
    source = tmp_path / "x"
    write_bytes(source, b"x")
    Published(tmp_path).publish({"x": source})
    (tmp_path / published.RESULTS / "2").mkdir()
    assert published.current(tmp_path) == 1
    assert Published(tmp_path).publish({"x": source}) == 3


def test_a_damaged_record_of_the_current_set_is_named(tmp_path: Path) -> None:
    (tmp_path / published.CURRENT).write_text('{"number": "1"}')
    with pytest.raises(DataError, match=published.CURRENT):
        published.current(tmp_path)
