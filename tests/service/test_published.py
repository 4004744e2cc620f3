"""Sets of results: numbered, never changed, the newest of them current."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from streamstats.errors import DataError
from streamstats.service import published
from streamstats.storage.files import write_archive, write_bytes


def test_a_set_stays_as_it_is_when_the_files_are_written_anew(tmp_path: Path) -> None:
    source = tmp_path / "out" / "x"
    write_bytes(source, b"first")
    assert published.current(tmp_path) is None
    assert published.publish(tmp_path, {"x": source}) == 1
    write_bytes(source, b"second")
    assert published.publish(tmp_path, {"x": source}) == 2
    assert published.current(tmp_path) == 2
    contents = []
    for number in (1, 2):
        folder = published.folder_of(tmp_path, number)
        assert folder is not None
        contents.append((folder / "x").read_bytes())
    assert contents == [b"first", b"second"]


def test_old_sets_go_with_their_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "x"
    write_bytes(source, b"x")
    for number in range(1, 4):
        published.publish(tmp_path, {"x": source})
        folder = published.folder_of(tmp_path, number)
        assert folder is not None
        write_archive(published.archive_of(folder), {"x": source})
        os.utime(folder, (0, time.time() - 2 * published.RETAINED_SECONDS))
    assert published.numbers(tmp_path) == [2, 3]
    assert sorted(path.name for path in (tmp_path / published.RESULTS).glob("*.zip")) == ["2.zip", "3.zip"]
    monkeypatch.setattr(published, "RETAINED_SECONDS", 10**9)
    published.publish(tmp_path, {"x": source})
    assert published.numbers(tmp_path) == [2, 3, 4]  # somebody may be fetching them


def test_a_set_that_a_kill_left_half_made_is_never_current(tmp_path: Path) -> None:
    source = tmp_path / "x"
    write_bytes(source, b"x")
    published.publish(tmp_path, {"x": source})
    (tmp_path / published.RESULTS / "2").mkdir()
    assert published.current(tmp_path) == 1
    assert published.publish(tmp_path, {"x": source}) == 3


def test_a_damaged_record_of_the_current_set_is_named(tmp_path: Path) -> None:
    (tmp_path / published.CURRENT).write_text('{"number": "1"}')
    with pytest.raises(DataError, match=published.CURRENT):
        published.current(tmp_path)
