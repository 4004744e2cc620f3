"""Jobs that do not follow links, as those of a service: they count the same, and nothing from behind a link."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import pytest
import zarr
from stores import build_store

from streamstats.calibration.reading.file_reader import FileReader
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.reading.zarr_reader import ZarrReader
from streamstats.calibration.selection import LayerRule
from streamstats.calibration.sources import gathering, links
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import DataError, StreamstatsError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.run import run
from streamstats.jobs.verify import verify
from streamstats.jobs.workers import Cluster
from streamstats.statistics.kinds import optional

VALUES = np.random.default_rng(5).integers(0, 100, (12, 3, 4)).astype(np.uint8)
SECRET = 200
"""A value that is in no store, but in every file outside."""
RAW: dict[str, Any] = {"compressors": None, "filters": None}
KINDS: dict[str, dict[str, Any]] = {
    "raw": RAW,
    "compressed": {},
    "sharded": {"chunks": (1, 3, 4), "shards": (2, 3, 4)},
    "v2": {"zarr_format": 2, **RAW},
    "read by zarr": {"zarr_format": 2, "order": "F", **RAW},
}


def job(store: Path | str, output: Path, **changes: Any) -> Job:
    return replace(Job(str(store), str(output), follow_links=False), **changes)


def stored(path: Path, **options: Any) -> Path:
    """A store with a layer, another one, a group, and a mask of the layer."""
    options = {"chunks": (2, 3, 4), **options}
    folder = build_store(path.with_suffix(".zarr"), {"layer": VALUES, "group/other": VALUES}, **options)
    version = {key: options[key] for key in ("zarr_format",) if key in options}
    build_store(folder, {"mask": np.zeros((12, 3), np.uint8)}, chunks=(2, 3), **version, **RAW)
    zarr.open_array(folder / "mask", mode="r+")[...] = VALUES[..., 0] < 90
    if path.suffix == ".zip":
        with ZipFile(path, "w") as archive:
            for file in sorted(each for each in folder.rglob("*") if each.is_file()):
                archive.write(file, file.relative_to(folder))
    return path


MASKED = (LayerRule("layer", mask="mask"), LayerRule("group/*"))


def readers(source: Job) -> set[type]:
    found = set()
    for layer in source.selected().layers:
        with open_reader(layer) as reader:
            found.add(type(reader))
    return found


@pytest.mark.parametrize("way", ["at once", "part by part"])
@pytest.mark.parametrize("name", ["s.zarr", "s.zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_links_it_counts_what_it_counts_when_it_follows_them(
    tmp_path: Path, kind: str, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (links, gathering):
        monkeypatch.setattr(module, "has_openat2", lambda: way == "at once")
    store = stored(tmp_path / name, **KINDS[kind])
    rules = [replace(rule, statistics=() if rule.mask else ("squares", "histogram")) for rule in MASKED]
    assert set(rules[1].statistics) < set(optional())
    strict = job(store, tmp_path / "strict", layers=tuple(rules))
    assert readers(strict) == {ZarrReader if kind == "read by zarr" else FileReader}
    found, expected = run(strict), run(replace(strict, follow_links=True, output=str(tmp_path / "followed")))
    assert found.complete
    assert found.statistics == expected.statistics
    assert found.statistics["group/other"].mean.tolist() == VALUES.mean((0, 1)).tolist()
    assert verify(strict) == []


def linked(path: Path, outside: Path) -> None:
    """Move what lies at `path` outside, with SECRET in the files of the layer, and put a link in its place."""
    files = [path] if path.is_file() else path.rglob("*")
    for file in [each for each in files if "/layer/c/" in str(each) and each.is_file()]:
        file.write_bytes(bytes([SECRET]) * file.stat().st_size)
    shutil.move(path, outside)
    path.symlink_to(outside)


PLACES = {
    "chunk": "layer/c/1/0/0",
    "folder of a chunk": "layer/c/1",
    "folder of chunks": "layer/c",
    "folder of an array": "layer",
    "metadata of an array": "layer/zarr.json",
    "chunk of a mask": "mask/c/1/0",
    "folder of a mask": "mask",
    "metadata of a mask": "mask/zarr.json",
    "metadata of the store": "zarr.json",
    "the store": "",
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_link_in_a_store_is_named_and_nothing_behind_it_is_read(tmp_path: Path, place: str, inside: bool) -> None:
    store = stored(tmp_path / "root/s.zarr", **RAW)
    linked(store / PLACES[place], tmp_path / "root/within" if inside else tmp_path / "outside")
    strict = job(store, tmp_path / "out", layers=MASKED)
    with pytest.raises((UsageError, DataError), match=r"is a link, or lies behind one; .*replace the link with"):
        run(strict)
    followed = run(replace(strict, follow_links=True, output=str(tmp_path / "followed")))
    assert followed.complete
    path = f"{PLACES[place]}/"
    leaks = path == "/" or (path.startswith("layer/") and "zarr.json" not in path)
    assert (followed.statistics["layer"].maximum.max() == SECRET) == leaks


def test_the_remedy_of_the_message_helps(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", **RAW)
    shutil.move(store / "layer", tmp_path / "elsewhere")
    (store / "layer").symlink_to(tmp_path / "elsewhere")
    os.system(f"cp -rL {store} {tmp_path / 'copy.zarr'}")
    found = run(job(tmp_path / "copy.zarr", tmp_path / "out"))
    assert found.statistics["layer"].mean.tolist() == VALUES.mean((0, 1)).tolist()


@pytest.mark.parametrize("missing", ["report", "fill"])
def test_a_link_is_no_missing_chunk(tmp_path: Path, missing: Any) -> None:
    store = stored(tmp_path / "s.zarr", **RAW)
    linked(store / "layer/c/1/0/0", tmp_path / "outside")
    with pytest.raises(UsageError, match=r"layer layer: chunk c/1/0/0 \(rows 2:4\) is not read: it is a link"):
        run(job(store, tmp_path / "out", missing=missing))


def test_a_job_of_all_layers_counts_the_others_and_names_what_is_a_link(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", **RAW)
    linked(store / "layer", tmp_path / "outside")
    (store / "notes").symlink_to("/etc")
    found = run(job(store, tmp_path / "out"))
    assert set(found.statistics) == {"group/other", "mask"}
    assert set(found.unreadable_arrays) == {"layer", "notes"}
    assert not found.complete


@pytest.mark.parametrize("place", ["layer/c/1/0/0", "layer/zarr.json", "mask/c/1/0"])
def test_a_pipe_in_a_store_is_refused_and_not_waited_for(tmp_path: Path, place: str) -> None:
    store = stored(tmp_path / "s.zarr", **RAW)
    (store / place).unlink()
    os.mkfifo(store / place)
    with pytest.raises(DataError, match="is not a file"):
        run(job(store, tmp_path / "out", layers=MASKED))


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_pipe_in_place_of_a_store_is_refused_and_not_waited_for(tmp_path: Path, follow_links: bool) -> None:
    os.mkfifo(tmp_path / "s.zip")
    with pytest.raises(UsageError, match="not a zip archive"):
        run(job(tmp_path / "s.zip", tmp_path / "out", follow_links=follow_links))


def test_an_archive_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "s.zip").symlink_to(stored(tmp_path / "outside.zip"))
    with pytest.raises(DataError, match="is a link, or lies behind one"):
        run(job(tmp_path / "s.zip", tmp_path / "out"))


def test_a_member_of_an_archive_that_is_a_link_is_the_text_in_it(tmp_path: Path) -> None:
    store, secret = stored(tmp_path / "s.zarr", **RAW), tmp_path / "secret"
    secret.write_bytes(bytes([SECRET]) * 24)
    member = ZipInfo("layer/c/1/0/0")
    member.external_attr = 0o120777 << 16
    with ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in store.rglob("*"):
            if path.is_file() and path.relative_to(store).as_posix() != member.filename:
                archive.write(path, path.relative_to(store))
        archive.writestr(member, str(secret).ljust(24, "/")[:24])
    found = run(job(tmp_path / "s.zip", tmp_path / "out"))
    assert found.statistics["layer"].maximum.max() < SECRET


def test_a_url_that_may_lead_to_this_machine_is_refused(tmp_path: Path) -> None:
    for url in (stored(tmp_path / "s.zarr").as_uri(), "simplecache::s3://bucket/s"):
        with pytest.raises(UsageError, match="may lead to links"):
            source_of(url, follow_links=False)


def test_processes_refuse_links_too(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", **RAW)
    linked(store / "layer/c/1/0/0", tmp_path / "outside")
    with pytest.raises(UsageError, match="it is a link"):
        run(job(store, tmp_path / "out", cluster=Cluster(workers=1, threads=1)))


@contextmanager
def exchanged(path: Path, outside: Path) -> Iterator[None]:
    """Put a link to `outside` in the place of `path`, and `path` back, over and over until the block ends."""
    stop, kept, link = threading.Event(), path.with_name("kept"), path.with_name("link")
    path.rename(kept)

    def put_back() -> None:
        if kept.is_dir():
            path.unlink(missing_ok=True)
            kept.rename(path)
        else:
            link.hardlink_to(kept)
            link.replace(path)

    def exchange() -> None:
        while not stop.wait(0.001):
            put_back()
            stop.wait(0.003)
            if path.is_dir():
                path.rename(kept)
            link.symlink_to(outside)
            link.replace(path)
        put_back()

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


RACES = {
    "a chunk": ("s.zarr", "raw", "layer/c/1/0/0"),
    "a folder": ("s.zarr", "raw", "layer"),
    "a chunk that zarr reads": ("s.zarr", "read by zarr", "layer/1.0.0"),
    "a folder that zarr reads": ("s.zarr", "read by zarr", "layer"),
    "an archive": ("s.zip", "raw", ""),
}


@pytest.mark.parametrize(
    "race", [each if each == "a folder" else pytest.param(each, marks=pytest.mark.soak) for each in RACES]
)
def test_no_byte_of_a_secret_is_counted_however_fast_links_come_and_go(tmp_path: Path, race: str) -> None:
    name, kind, below = RACES[race]
    store = build_store(tmp_path / name, {"layer": VALUES}, **KINDS[kind])
    secret = build_store(tmp_path / f"secret-{name}", {"layer": VALUES * 0 + SECRET}, **KINDS[kind])
    refused = counted = 0
    with exchanged(store / below if below else store, secret / below if below else secret):
        while min(refused, counted) < 3:
            try:
                found = run(job(store, tmp_path / "out"), restart=True)
            except (StreamstatsError, FileNotFoundError) as error:
                refused += "is a link" in str(error)
                continue
            assert all(each.maximum.max() < SECRET for each in found.statistics.values())
            counted += bool(found.statistics)
            refused += any("is a link" in reason for reason in found.unreadable_arrays.values())


@pytest.mark.parametrize("kind", KINDS)
def test_zarr_reads_the_same_through_it_in_whole_and_in_part(tmp_path: Path, kind: str) -> None:
    store = build_store(tmp_path / "s", {"layer": VALUES}, **KINDS[kind])
    array = zarr.open_array(source_of(store, follow_links=False).zarr_store(), path="layer", mode="r")
    np.testing.assert_array_equal(array[...], VALUES)  # type: ignore[arg-type]
    np.testing.assert_array_equal(array[3:5, :, 1], VALUES[3:5, :, 1])  # type: ignore[arg-type]
