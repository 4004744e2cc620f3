"""Stores in an object store: the same bits, whatever fails on the way, and no secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import obstore
import pytest
import zarr
from objectstore import FAULTS, Proxy, new_bucket, s3_server
from obstore.store import S3Store
from stores import build_store, samples
from zarr.codecs import TransposeCodec
from zarr.storage import ObjectStore

from streamstats.calibration.recorder import Recorder, stored_layer, stored_readers
from streamstats.calibration.sources import objects, retrying
from streamstats.calibration.sources.choose import source_of
from streamstats.calibration.sources.identities import Identity
from streamstats.config import JobConfig
from streamstats.errors import DataError, MismatchError, OutputError, StoreError, UsageError
from streamstats.jobs.job import Job
from streamstats.jobs.merge import merge
from streamstats.jobs.run import reduce, run

SECRET = "do-not-print-this"
LAYERS = {"a/conv": samples(40, 8, 16), "b": samples(40, 3, dtype="int8")}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    objects.object_store.cache_clear()
    yield
    objects.object_store.cache_clear()


def bucket(server: int, name: str, **options: Any) -> str:
    """A new bucket with LAYERS in it; its URL."""
    store = S3Store(name, endpoint=f"http://127.0.0.1:{server}")
    new_bucket(server, name)
    group = zarr.open_group(ObjectStore(store), path="store", mode="w")
    for layer, values in LAYERS.items():
        settings = {"chunks": (2, *values.shape[1:])} | options.get(layer, {})
        array = group.create_array(layer, shape=values.shape, dtype=values.dtype, **settings)
        array[...] = values
    return f"s3://{name}/store"


@contextmanager
def through(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
        yield proxy


def config(source: str, output: Path, **options: Any) -> Job:
    return JobConfig(source=source, output=str(output), **options).job()


def tensors(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((output / "correctors").rglob("*.safetensors"))]


SHARDED = {"a/conv": {"chunks": (1, 8, 16), "shards": (8, 8, 16)}, "b": {"chunks": (1, 3), "shards": (4, 3)}}


@pytest.mark.parametrize("layout", [{}, SHARDED], ids=["chunks", "shards"])
def test_the_same_bits_as_from_a_folder_whatever_fails(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any]
) -> None:
    source = bucket(server, f"bits{len(layout)}", **layout)
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    for name, values in LAYERS.items():
        group.create_array(name, data=values)
    run(config(str(tmp_path / "s.zarr"), tmp_path / "folder"))
    with through(Proxy(server, share=0.2, seed=1), monkeypatch) as proxy:
        run(config(source, tmp_path / "bucket"))
    assert tensors(tmp_path / "bucket") == tensors(tmp_path / "folder")
    assert set(proxy.met) <= set(FAULTS)
    assert proxy.met.total() >= 3


def test_a_whole_object_is_one_request(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bucket(server, "requests")
    with through(Proxy(server), monkeypatch) as proxy:
        run(config(source, tmp_path / "out"))
    chunks = [(verb, path) for verb, path in proxy.requests if "/c/" in path]
    assert sorted(chunks) == sorted({("GET", path) for _, path in chunks})
    assert len(chunks) == 40


def test_appended_objects_alone_are_read_and_changed_ones_are_named(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket(server, "appended")
    store = S3Store("appended", endpoint=f"http://127.0.0.1:{server}")
    with through(Proxy(server), monkeypatch) as proxy:
        run(config(source, tmp_path / "out"))
        array = zarr.open_array(ObjectStore(store), path="store/b", mode="r+")
        array.append(samples(4, 3, dtype="int8"))
        proxy.requests.clear()
        assert run(config(source, tmp_path / "out")).statistics["b"].rows == 44
        read = sorted(path.split("/")[-2] for _, path in proxy.requests if "/c/" in path)
        assert read == ["20", "21"]
        content = bytes(obstore.get(store, "store/b/c/3/0").bytes())
        obstore.put(store, "store/b/c/3/0", content[::-1])
        with pytest.raises(DataError, match=r"layer b: chunk c/3/0 \(rows 6:8\) was rewritten since it was counted"):
            run(config(source, tmp_path / "out"))
        obstore.delete(store, "store/b/c/3/0")
        with pytest.raises(DataError, match=r"layer b: chunk c/3/0 \(rows 6:8\) was removed since it was counted"):
            run(config(source, tmp_path / "out"))
        with pytest.raises(DataError, match=r"layer b: chunk c/3/0 \(rows 6:8\) is missing; restore it"):
            run(config(source, tmp_path / "out"), restart=True)


def test_a_store_that_was_uploaded_is_not_merged_with_the_original(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_store(tmp_path / "s.zarr", LAYERS)
    new_bucket(server, "uploaded")
    store = S3Store("uploaded", endpoint=f"http://127.0.0.1:{server}")
    for path in (tmp_path / "s.zarr").rglob("*"):
        if path.is_file():
            obstore.put(store, f"store/{path.relative_to(tmp_path / 's.zarr')}", path.read_bytes())
    run(config(str(tmp_path / "s.zarr"), tmp_path / "out"))
    with through(Proxy(server), monkeypatch):
        run(config("s3://uploaded/store", tmp_path / "other"))
    with pytest.raises(
        MismatchError, match=r"rows 0:40 are counted in .*40 of 40 chunks have the same size and content"
    ):
        merge([tmp_path / "out", tmp_path / "other"], tmp_path / "all")


def test_objects_that_stand_for_folders_are_no_arrays_and_hide_none(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket(server, "markers")
    store = S3Store("markers", endpoint=f"http://127.0.0.1:{server}")
    for key in ("store/", "store/a/", "store/a/conv/", "store/empty/"):
        urlopen(Request(f"http://127.0.0.1:{server}/markers/{key}", b"", method="PUT")).close()
    assert b"<Key>store/a/</Key>" in urlopen(f"http://127.0.0.1:{server}/markers?list-type=2").read()
    with through(Proxy(server), monkeypatch):
        assert list(source_of(source).find().arrays) == ["a/conv", "b"]
        assert {*run(config(source, tmp_path / "out")).statistics} == {"a/conv", "b"}
    assert obstore.head(store, "store/b/zarr.json")["size"] > 0


def test_metadata_that_appending_left_behind_is_not_believed(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket(server, "stale")
    store = ObjectStore(S3Store("stale", endpoint=f"http://127.0.0.1:{server}"))
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(store, path="store")
    rows = zarr.open_array(store, path="store/b", mode="r+").append(samples(4, 3, dtype="int8"))[0]
    zarr.open_group(store, path="store", mode="r+", use_consolidated=False).create_array("new", data=samples(4, 3))
    with through(Proxy(server), monkeypatch):
        found = run(config(source, tmp_path / "out")).statistics
    assert (found["b"].rows, found["new"].rows) == (rows, 4)


def test_a_percent_sign_in_a_url_is_one_in_the_keys(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    new_bucket(server, "percent")
    store = S3Store("percent", endpoint=f"http://127.0.0.1:{server}")
    for place, value in {"my%20store": 1, "my store": 2}.items():
        group = zarr.open_group(ObjectStore(store), path=place, mode="w")
        group.create_array("a%2Fb c", data=np.full((4, 3), value, "f4"), chunks=(2, 3))
    with through(Proxy(server), monkeypatch):
        for place, value in {"my%20store": 1, "my store": 2}.items():
            assert reduce(f"s3://percent/{place}")["a%2Fb c"].mean.tolist() == [value] * 3


def test_an_object_that_is_listed_late_was_not_removed(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket(server, "late")
    with through(Proxy(server), monkeypatch):
        run(config(source, tmp_path / "out"))
        listed = objects.ObjectFolder._list

        def late(folder: objects.ObjectFolder) -> dict[str, Identity]:
            return {key: identity for key, identity in listed(folder).items() if not key.endswith("3/0")}

        monkeypatch.setattr(objects.ObjectFolder, "_list", late)
        assert run(config(source, tmp_path / "out")).statistics["b"].rows == 40
        monkeypatch.setattr(objects, "MOST_ASKED", 0)
        with pytest.raises(DataError, match="was removed since it was counted"):
            run(config(source, tmp_path / "out"))


@pytest.mark.parametrize("through_zarr", [False, True])
def test_a_store_that_is_down_is_not_a_lack_of_rows(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_zarr: bool
) -> None:
    transposed = {"a/conv": {"filters": [TransposeCodec(order=(2, 1, 0))]}, "b": {}}
    source = bucket(server, f"down{through_zarr}", **(transposed if through_zarr else {}))
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)
    with through(Proxy(server), monkeypatch) as proxy:

        def fail(_handler: Any) -> str | None:
            return "truncated" if "/c/" in _handler.path else None

        monkeypatch.setattr("objectstore._Handler._fault", fail)
        with pytest.raises(
            StoreError, match=r"the object store failed 6 times: .*; what was counted is saved: run again"
        ):
            run(config(source, tmp_path / "out", missing="report"))
    assert proxy.requests


def test_large_objects_are_read_in_ranges(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bucket(server, "ranges", **SHARDED)
    monkeypatch.setattr(objects, "WHOLE_BYTES", 100)
    with through(Proxy(server), monkeypatch) as proxy:
        found = reduce(source)
    assert found["a/conv"].mean.tolist() == LAYERS["a/conv"].mean(axis=(0, 1), dtype=np.float64).tolist()
    assert any(verb == "HEAD" and "/c/" in path for verb, path in proxy.requests)
    assert proxy.ranges
    assert all(proxy.ranges)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/s.zarr",
        "s3://key:sec/ret@bucket/s.zarr",
        "s3://bucket/s.zarr?sig=secret",
        "s3://bucket/s.zarr#secret",
        "https://user:secret@host/s.zarr",
        "simplecache::s3://key:secret@bucket/s.zarr",
        "memory://secret@x",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_printed(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="has credentials or options in it") as error:
        run(config(url, tmp_path / "out"))
    assert "secret" not in str(error.value)


def test_no_secret_is_printed_or_stored(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bucket(server, "secrets")
    path = tmp_path / "job.yaml"
    path.write_text(f"source: {source}\noutput: {tmp_path / 'out'}\n")
    command = [sys.executable, "-m", "streamstats", "run", str(path)]
    with through(Proxy(server), monkeypatch):
        fine = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert fine.returncode == 0, fine.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode == 1, failed.stderr
    assert "the object store failed 6 times" in failed.stderr
    assert SECRET not in failed.stdout + failed.stderr
    written = b"".join(each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file())
    assert SECRET not in fine.stdout + fine.stderr
    assert SECRET.encode() not in written


def test_a_group_with_too_many_members_is_refused(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bucket(server, "many")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    monkeypatch.setattr(objects, "MOST_NAMES", 1)
    with pytest.raises(DataError, match="has more than 1 members; give a smaller group as the source"):
        run(config(source, tmp_path / "out"))


def test_signatures_in_urls_are_not_shown() -> None:
    assert retrying.without_secrets(OSError("GET http://me:word@host/b failed")) == "GET http://…@host/b failed"
    said = OSError("GET https://host/bucket/key?X-Amz-Signature=0a1b&X-Amz-Credential=me failed\nsecond line")
    assert retrying.without_secrets(said) == "GET https://host/bucket/key?… failed"


def test_an_object_is_the_same_in_a_listing_and_in_an_answer() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    listed = {"size": 3, "e_tag": '"a"', "version": None, "last_modified": when.replace(microsecond=678_000)}
    answered = {"size": 3, "e_tag": '"a"', "version": "v1", "last_modified": when}
    assert objects.identity_of(listed) == objects.identity_of(answered)
    assert objects.identity_of({**listed, "e_tag": None}) == objects.identity_of({**answered, "e_tag": None})
    assert objects.identity_of({**listed, "e_tag": '"b"'}) != objects.identity_of(listed)
    assert objects.identity_of({**listed, "size": 4}) != objects.identity_of(listed)


def test_an_error_of_our_own_is_not_taken_for_one_of_the_store() -> None:
    tries: list[int] = []

    def wrong() -> None:
        tries.append(1)
        raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        retrying.retried(wrong)
    assert len(tries) == 1


def test_each_object_is_fetched_once_also_where_channels_are_read_in_ranges(
    server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = bucket(server, "ranged", **{"a/conv": {"chunks": (2, 8, 4)}})
    monkeypatch.setattr("streamstats.jobs.plan.BLOCK_BYTES", 256)
    with through(Proxy(server), monkeypatch) as proxy:
        reduce(source, threads=1)
    fetched = [path for verb, path in proxy.requests if verb == "GET" and "/a/conv/c/" in path]
    assert len(fetched) == len(set(fetched)) == 80


# Recording


@pytest.fixture
def place(server: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store to record, in a new bucket."""
    name = f"recorded-{abs(hash(request.node.name))}"[:60]
    new_bucket(server, name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    return f"s3://{name}/store"


def claim(place: str) -> Any:
    return obstore.get(objects.object_store(place), ".recorder.json")


def test_what_is_recorded_into_an_object_store_is_what_is_recorded_into_a_folder(place: str, tmp_path: Path) -> None:
    values = samples(23, 3, 4)
    for store in (place, tmp_path / "s"):
        for part, rows in (("", values[:10]), ("rank1", values[10:20]), ("", values[20:])):
            with Recorder(store, part=part, chunk_bytes=200, buffered=part == "rank1") as recorder:
                for block in np.array_split(rows, 3):
                    recorder.append("a/fc", block, mask=np.ones((len(block), 3)))
    found, expected = reduce(place)["a/fc"], reduce(tmp_path / "s")["a/fc"]
    assert found.statistics == expected.statistics
    assert [str(each.covered) for each in found.sources] == ["0:13", "0:10"]
    assert stored_readers(place, "rank1")["a/fc"] == "a/fc"


def test_a_second_recorder_in_an_object_store_is_refused_until_the_first_is_closed(place: str) -> None:
    with Recorder(place) as first:
        first.append("fc", samples(3, 4))
        with pytest.raises(OutputError, match=r"store is in use by process \d+ on .*part of your own"):
            Recorder(place)
        with Recorder(place, part="rank1") as other:
            other.append("fc", samples(2, 4))
    with Recorder(place) as again:
        again.append("fc", samples(4, 4))
    assert reduce(place)["fc"].rows == 9
    with pytest.raises(FileNotFoundError):
        claim(place)


def test_a_killed_recorder_keeps_nobody_out_of_its_host_and_others_learn_the_way_out(place: str) -> None:
    code = "import sys, os; from streamstats import Recorder; r = Recorder(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, place], check=False).returncode == -9
    left = bytes(claim(place).bytes())
    with Recorder(place) as recorder:
        recorder.append("fc", samples(4, 4))
    elsewhere = json.loads(left) | {"host": "elsewhere"}
    obstore.put(objects.object_store(place), ".recorder.json", json.dumps(elsewhere).encode())
    with pytest.raises(OutputError, match=r"on elsewhere.*if it has ended, remove s3://.*/store/\.recorder\.json"):
        Recorder(place)
    obstore.delete(objects.object_store(place), ".recorder.json")
    Recorder(place).close()


def test_a_recorder_whose_claim_was_taken_writes_nothing_more(place: str) -> None:
    slow = Recorder(place)
    slow.append("fc", samples(4, 4))
    obstore.put(objects.object_store(place), ".recorder.json", b'{"token": "of another"}')
    with pytest.raises(OutputError, match="another process records there now"):
        slow.close()
    assert stored_layer(place, "fc").rows == 0  # type: ignore[union-attr]


def test_recording_goes_on_while_requests_fail(server: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with through(Proxy(server, share=0.15, seed=3), monkeypatch) as proxy:
        monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)
        objects.object_store.cache_clear()
        with Recorder(place, chunk_bytes=64) as recorder:
            for block in np.array_split(samples(40, 4), 10):
                recorder.append("fc", block)
        objects.object_store.cache_clear()
    assert proxy.met.total() > 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    assert reduce(place)["fc"].mean.tolist() == (samples(40, 4).astype(float).sum(axis=0) / 40).tolist()


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_requests_that_are_not_encrypted_are_only_sent_if_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    objects.object_store.cache_clear()
    with pytest.raises(UsageError, match=rf"{variable} begins with http://.*AWS_ALLOW_HTTP=true"):
        reduce("s3://bucket/store.zarr")
