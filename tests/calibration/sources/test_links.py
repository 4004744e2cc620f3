"""Links that are not followed: no byte from behind one is read, however fast it comes and goes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from streamstats.calibration.sources import links
from streamstats.calibration.sources.links import (
    LinkError,
    has_openat2,
    names_in,
    opened_file,
    opened_folder,
    status_of,
)

SECRET, OPEN = b"secret", b"open"


@pytest.fixture(params=["at once", "part by part"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = request.param == "at once"
    if at_once and not has_openat2():
        pytest.skip("this kernel has no openat2")
    monkeypatch.setattr(links, "has_openat2", lambda: at_once)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files and links, beside a secret one."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_bytes(SECRET)
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below/file").write_bytes(OPEN)
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("..")
    (folder / "in").symlink_to("below")
    (folder / "below/to_file").symlink_to("file")
    (folder / "below/to_secret").symlink_to("../../secret/file")
    (folder / "broken").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    return folder


BEHIND = (
    *("out", "out/file", "up/secret/file", "in/file", "below/to_file", "below/to_secret"),
    *("broken", "circle", "circle/x", "below/../below/file", "../secret/file", "below/../out/file"),
)


def content(path: Path) -> bytes:
    with open(opened_file(str(path), follow_links=False), "rb") as file:
        return file.read()


@pytest.mark.parametrize("path", BEHIND)
def test_what_lies_behind_a_link_is_neither_read_nor_seen(folder: Path, path: str) -> None:
    for look in (opened_file, opened_folder, status_of):
        with pytest.raises(LinkError, match=r"is a link, or lies behind one; .* replace the link with what it leads"):
            look(f"{folder}/{path}", follow_links=False)


def test_what_lies_behind_no_link_is_read(folder: Path) -> None:
    assert content(folder / "below/file") == OPEN
    assert status_of(str(folder / "below/file"), follow_links=False) == (folder / "below/file").stat()
    os.close(opened_folder(str(folder / "below"), follow_links=False))


def test_what_does_not_exist_is_said_to_be_missing(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content(folder / "below/nothing")
    with pytest.raises(NotADirectoryError):
        content(folder / "below/file/below")


def test_links_are_followed_by_those_who_ask_for_it(folder: Path) -> None:
    with open(opened_file(str(folder / "out/file"), follow_links=True), "rb") as file:
        assert file.read() == SECRET
    assert status_of(str(folder / "in/file"), follow_links=True).st_size == len(OPEN)


@pytest.mark.parametrize("follow_links", [True, False])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, follow_links: bool) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "socket"))
        for path in (folder / "pipe", folder / "below", Path("/dev/zero")):
            with pytest.raises(ValueError, match="it is not a file"):
                opened_file(str(path), follow_links=follow_links)
        with pytest.raises(OSError, match=r"No such device or address|not supported"):
            opened_file(str(folder / "socket"), follow_links=follow_links)


def test_a_listing_tells_links_from_folders(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    found = names_in(str(folder))
    assert (found.folders, found.others) == ({"below"}, {"pipe"})
    assert found.links == {"out", "up", "in", "broken", "circle"}
    with pytest.raises(LinkError):
        names_in(str(folder / "in"))


@contextmanager
def exchanged(back_and_forth: Callable[[], None]) -> Iterator[None]:
    """Call `back_and_forth` over and over, in another thread, until the block ends."""
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            back_and_forth()

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def seen(look: Callable[[], bytes], enough: int = 100) -> set[bytes]:
    """What `look` returns; until it has returned and has met a link so many times each."""
    found, met = set(), {"read": 0, "link": 0}
    while min(met.values()) < enough:
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                found.add(look())
                met["read"] += 1
            except LinkError:
                met["link"] += 1
    return found


def test_a_file_that_becomes_a_link_at_any_moment_gives_nothing_away(folder: Path) -> None:
    path, link, file = folder / "below/file", folder / "link", folder / "copy"

    def back_and_forth() -> None:
        link.symlink_to("../../secret/file")
        link.replace(path)
        file.write_bytes(OPEN)
        file.replace(path)

    with exchanged(back_and_forth):
        assert seen(lambda: content(path)) == {OPEN}


def test_a_folder_that_becomes_a_link_at_any_moment_gives_nothing_away(folder: Path) -> None:
    path, away = folder / "below", folder / "away"

    def back_and_forth() -> None:
        path.rename(away)
        path.symlink_to(folder.parent / "secret")
        path.unlink()
        away.rename(path)

    with exchanged(back_and_forth):
        assert seen(lambda: content(path / "file")) == {OPEN}
        assert seen(lambda: b"".join(map(os.fsencode, sorted(names_in(str(path)).others)))) == {b"file"}
