"""What every source promises, whichever way its store is reached. A new source is one more entry in SOURCES."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import zarr
from objectstore import new_bucket, s3_server
from obstore.store import S3Store
from stores import Array, build_store, described, read, samples
from zarr.storage import ObjectStore

from streamstats.calibration.describing import seen_differently
from streamstats.calibration.encoding.content import UNSAMPLED, contents_in
from streamstats.calibration.identity import file_range, identities, sampled
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.sources import objects
from streamstats.calibration.sources.archive import ArchiveSource
from streamstats.calibration.sources.choose import source_of
from streamstats.calibration.sources.identities import MISSING, UNKNOWN, has_identity
from streamstats.calibration.sources.local import LocalSource
from streamstats.calibration.sources.objects import ObjectSource
from streamstats.calibration.sources.others import UrlSource
from streamstats.calibration.sources.source import Source
from streamstats.errors import StreamstatsError

LAYERS = {"a/conv": samples(7, 4, 3), "b": samples(5, 3, dtype="int8")}
CHUNK = "c/1/0/0"
"""The file of rows 2:4 of `a/conv`."""


@dataclass(frozen=True)
class Place:
    """A source with LAYERS in its store, and what others do to that store behind its back."""

    source: Source
    write: Callable[[str, Array], None]
    remove: Callable[[], None]


def folder(path: Path, request: pytest.FixtureRequest) -> Place:  # noqa: ARG001
    store = build_store(path / "store", LAYERS)
    return Place(source_of(store), lambda *written: _write(store, *written), lambda: rmtree(store))


def archive(path: Path, request: pytest.FixtureRequest) -> Place:  # noqa: ARG001
    store = build_store(path / "store.zip", LAYERS)

    def write(name: str, values: Array) -> None:
        store.unlink()
        build_store(store, LAYERS | {name: values})

    return Place(source_of(store), write, store.unlink)


def url(path: Path, request: pytest.FixtureRequest) -> Place:  # noqa: ARG001
    store = build_store(path / "store", LAYERS)
    return Place(source_of(store.as_uri()), lambda *written: _write(store, *written), lambda: rmtree(store))


def bucket(path: Path, request: pytest.FixtureRequest) -> Place:
    port = request.getfixturevalue("server")
    name = "".join(letter for letter in path.name.lower() if letter.isalnum())[-40:]
    new_bucket(port, name)
    store = ObjectStore(S3Store(name, prefix="store", endpoint=f"http://127.0.0.1:{port}"))
    _write_all(store)
    return Place(source_of(f"s3://{name}/store"), lambda *written: _write(store, *written), lambda: _empty(store))


def _write_all(store: Any) -> None:
    group = zarr.open_group(store, mode="w")
    for name, values in LAYERS.items():
        group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(2, *values.shape[1:]))[...] = values


def _write(store: Any, name: str, values: Array) -> None:
    zarr.open_array(store, path=name, mode="r+")[...] = values


def _empty(store: Any) -> None:
    zarr.core.sync.sync(store.delete_dir(""))


SOURCES = {"folder": folder, "archive": archive, "url": url, "bucket": bucket}
KINDS = {"folder": LocalSource, "archive": ArchiveSource, "url": UrlSource, "bucket": ObjectSource}
BY_FILE = ("folder", "archive", "bucket")
"""Those whose files are read without zarr."""


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(params=SOURCES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bucket":
        endpoint = f"http://127.0.0.1:{request.getfixturevalue('server')}"
        settings = {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        for key, value in {**settings, "ALLOW_HTTP": "true", "ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        objects.object_store.cache_clear()
    return str(request.param)


@pytest.fixture
def place(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return SOURCES[name](tmp_path, request)


def test_the_location_chooses_the_same_source_again_also_in_another_process(name: str, place: Place) -> None:
    assert type(place.source) is KINDS[name]
    assert source_of(place.source.location) == place.source
    assert pickle.loads(pickle.dumps(place.source)) == place.source


def test_arrays_come_by_name_in_order(place: Place) -> None:
    arrays = place.source.find().arrays
    assert list(arrays) == ["a/conv", "b"]
    for layer, values in LAYERS.items():
        assert arrays[layer].shape == values.shape


def test_zarr_opens_it_for_reading_only(place: Place) -> None:
    store = place.source.zarr_store()
    assert isinstance(store, str) or store.read_only
    np.testing.assert_array_equal(zarr.open_array(store, path="b", mode="r")[...], LAYERS["b"])


def test_a_layer_of_it_is_read_to_the_bit(name: str, place: Place) -> None:
    for each, values in LAYERS.items():
        layer = described(place.source.location, each)
        assert layer.source == place.source
        assert (layer.encoding is not None) == (name in BY_FILE)
        assert read(layer).tobytes() == values.tobytes()
        assert seen_differently(layer) is None


def test_it_has_folders_if_its_files_can_be_read_without_zarr(name: str, place: Place) -> None:
    found = place.source.folder("a/conv", 10_000)
    assert (found is not None) == (name in BY_FILE)
    if found is None:
        return
    try:
        found.expect([CHUNK, "c/2/0/0"])
        file = found.file(CHUNK)
        assert file is not None
        content = np.zeros(file.size, np.uint8)
        file.read(0, content)
        tail = np.zeros(3, np.uint8)
        file.read(file.size - 3, tail)
        assert tail.tobytes() == content[-3:].tobytes()
        with pytest.raises(ValueError, match="it ends at byte"):
            file.read(1, content)
        assert [*found.identities([CHUNK, "c/9/0/0"])] == [file.identity, MISSING]
        assert [*found.identities([CHUNK], {CHUNK: (1, 2)})] == [(1, 2)]
        file.close()
        assert found.file("c/9/0/0") is None
    finally:
        found.close()


def test_gathering_gives_the_bytes_of_files_or_none_of_them(place: Place) -> None:
    found = place.source.folder("a/conv", 10_000)
    if found is None:
        return
    buffer, keys = np.zeros(10_000, np.uint8), ["c/0/0/0", CHUNK, "c/9/0/0"]
    gathered = found.gather(keys, buffer, 10_000)
    assert len(gathered.places) == (2 if found.gathers else 0)
    for key, (start, size), identity in zip(keys, gathered.places.tolist(), gathered.identities.tolist(), strict=False):
        file = found.file(key)
        assert file is not None
        content = np.zeros(file.size, np.uint8)
        file.read(0, content)
        file.close()
        assert (size, tuple(identity)) == (file.size, file.identity)
        assert buffer[start : start + size].tobytes() == content.tobytes()
    found.close()


def test_a_change_changes_the_identity_of_its_file_where_files_have_one(name: str, place: Place) -> None:
    layer = described(place.source.location, "a/conv")
    files = file_range(layer, 0, layer.rows)
    before = identities(layer, files)
    assert before.shape == (4, 3)
    assert identities(layer, files).tolist() == before.tolist()
    place.write("a/conv", LAYERS["a/conv"] + 1)
    after = identities(layer, files)
    if name == "url":
        assert {tuple(each) for each in [*before[:, :2].tolist(), *after[:, :2].tolist()]} == {UNKNOWN}
    else:
        assert has_identity(before).all()
        assert has_identity(after).all()
        assert (before != after).any(axis=1).all()


def test_what_was_opened_is_identified_as_it_was_then(name: str, place: Place) -> None:
    layer = described(place.source.location, "a/conv")
    files = file_range(layer, 0, layer.rows)
    before = identities(layer, files)
    with open_reader(layer) as reader:
        reader.read(tuple(slice(0, extent) for extent in layer.shape))
    place.write("a/conv", LAYERS["a/conv"] + 1)
    if name in BY_FILE:
        assert identities(layer, files, reader.identified).tolist() == before.tolist()
    else:
        assert reader.identified == {}


def test_a_file_has_the_content_that_its_bytes_have_wherever_it_lies(name: str, place: Place, tmp_path: Path) -> None:
    layer = described(place.source.location, "a/conv")
    found = place.source.folder("a/conv", layer.encoding.most_file_bytes) if layer.encoding else None
    with open_reader(layer) as reader:
        reader.read(tuple(slice(0, extent) for extent in layer.shape))
    if name not in BY_FILE:
        assert (found, reader.contents) == (None, {})
        return
    assert found is not None
    other = described(build_store(tmp_path / "other", LAYERS), "a/conv")
    keys = [f"c/{number}/0/0" for number in range(4)]
    stored = [np.fromfile(tmp_path / "other/a/conv" / key, np.uint8) for key in keys]
    expected = [int(contents_in(each, np.array([[0, each.size]]))[0]) for each in stored]
    assert len(set(expected)) == 4
    assert [reader.contents[key] for key in keys] == expected
    asked = [UNSAMPLED] * 4 if name == "bucket" else expected
    assert [*found.contents([*keys, "c/9/0/0"])] == [*asked, UNSAMPLED]
    assert sampled(other, range(4))[:, 2].tolist() == expected
    found.close()


def test_opening_costs_something_and_only_fetching_ahead_takes_memory(name: str, place: Place) -> None:
    assert place.source.opening_bytes > 0
    sizes = [place.source.fetched_bytes(largest) for largest in (1, 1000, 2**20, 2**25)]
    assert all(size > 0 for size in sizes) if name == "bucket" else not any(sizes)
    assert place.source.fetched_bytes(2**40) == 0


def test_a_store_that_is_gone_is_an_error_of_ours_that_names_it(place: Place) -> None:
    place.remove()
    with pytest.raises(StreamstatsError, match="store"):
        source_of(place.source.location).find()


def test_choosing_a_source_contacts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    assert source_of("s3://nowhere/store") == ObjectSource("s3://nowhere/store")
    assert source_of("https://nowhere/store") == UrlSource("https://nowhere/store")
    assert source_of("simplecache::s3://nowhere/store") == UrlSource("simplecache::s3://nowhere/store")


def test_a_path_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert source_of("store") == source_of(Path("./store")) == LocalSource(str(tmp_path / "store"))
    assert source_of("file") == ArchiveSource(str(tmp_path / "file"))
