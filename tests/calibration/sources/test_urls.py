"""Stores behind other URLs: a server that fails is never taken for missing data, and what cannot be listed is said."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from stores import build_store, samples
from zarr.storage import FsspecStore

from streamstats import reduce
from streamstats.calibration.layer import Layer
from streamstats.calibration.reading import zarr_reader
from streamstats.calibration.selection import select_layers
from streamstats.calibration.sources.choose import source_of
from streamstats.config import JobConfig
from streamstats.errors import DamageError, LostError, StoreError, StreamstatsError, UsageError
from streamstats.jobs.run import run

CHUNK = "/c/1/0/0"


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; meets a fault where a chunk is asked for, and lists folders unless it must not."""

    fault: str = ""
    lists: bool = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def list_directory(self, path: Any) -> Any:
        """As the base class, unless this server lists nothing."""
        if self.fault == "upwards":
            return self.list_more(path)
        if self.lists:
            return super().list_directory(path)
        self.send_error(404)
        return None

    def list_more(self, path: Any) -> BytesIO:
        """The folders and files at `path`, and links that lead back to the folder above, or into others."""
        names = [*(each.name + "/" * each.is_dir() for each in Path(path).iterdir()), "%2e%2e/", "%2E%2e/block/", "./"]
        page = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return BytesIO(page)

    def do_HEAD(self) -> None:
        if self.fault in ("HEAD 503", "404") and self.path.endswith(CHUNK):
            self.send_error(int(self.fault[-3:]))
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        if not self.fault or not self.path.endswith(CHUNK):
            super().do_GET()
        elif self.fault == "dropped":
            self.close_connection = True
            self.connection.shutdown(2)
        elif self.fault == "cut off":
            self.send_response(200)
            self.send_header("Content-Length", "80")
            self.end_headers()
            self.wfile.write(b"x" * 40)
        elif self.fault == "HEAD 503":
            super().do_GET()
        else:
            self.send_error(int(self.fault))


@contextmanager
def serving(folder: Path, fault: str = "", *, lists: bool = True) -> Iterator[str]:
    """The URL of `folder`."""
    handler: Callable[..., Any] = type("Faulty", (Server,), {"fault": fault, "lists": lists})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def consolidated(folder: Path, **layers: Any) -> Path:
    build_store(folder, layers, compressors=None)
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(str(folder))
    return folder


@pytest.mark.parametrize("missing", ["fill", "report"])
@pytest.mark.parametrize("fault", ["503", "429", "403", "dropped", "cut off"])
def test_a_server_that_fails_is_never_taken_for_missing_rows(
    tmp_path: Path, fault: str, missing: Literal["fill", "report"]
) -> None:
    store = consolidated(tmp_path / "s.zarr", x=samples(8, 3, 4))
    with serving(store, fault) as url:
        job = JobConfig(source=url, output=str(tmp_path / "out"), missing=missing).job()
        with pytest.raises(StreamstatsError, match=r"layer x: chunk c/1/0/0 \(rows 2:4\) cannot be read at the moment"):
            run(job)


def test_whatever_fetching_raises_says_nothing_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = consolidated(tmp_path / "s.zarr", x=samples(8, 3, 4))

    async def closed(*_: object, **__: object) -> None:
        raise RuntimeError("Session is closed")

    with serving(store) as url:
        job = JobConfig(source=url, output=str(tmp_path / "out"), missing="fill").job()
        for function in ("get", "getsize"):
            with monkeypatch.context() as patch:
                patch.setattr(FsspecStore, function, closed)
                layer = select_layers(str(store)).layers[0]
                with pytest.raises(StoreError, match=r"Session is closed; check .*, then run again"):
                    read_through_zarr(replace(layer, store=url), fill=True)
        assert run(job).complete


@pytest.mark.parametrize("piece", [7, 96, 2**22])
@pytest.mark.parametrize("fault", ["cut off", "dropped"])
def test_a_file_that_does_not_arrive_is_told_from_one_that_is_damaged_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, piece: int
) -> None:
    monkeypatch.setattr(zarr_reader, "PIECE_BYTES", piece)
    store = consolidated(tmp_path / "s.zarr", x=samples(8, 3, 4))
    with serving(store, fault) as url, pytest.raises(StoreError, match="cannot be read at the moment"):
        reduce(url, missing="fill")
    (store / "x/c/1/0/0").write_bytes(bytes(95))  # one byte is missing
    with serving(store) as url, pytest.raises(DamageError, match="cannot be read: "):
        reduce(url)


def read_through_zarr(layer: Layer, *, fill: bool) -> None:
    reader = zarr_reader.ZarrReader(layer, fill=fill)
    reader.read(tuple(slice(0, extent) for extent in layer.shape))


def test_a_size_that_is_refused_is_not_a_missing_file(tmp_path: Path) -> None:
    values = samples(8, 3, 4)
    store = consolidated(tmp_path / "s.zarr", x=values)
    with serving(store, "HEAD 503") as url:
        assert reduce(url, missing="fill")["x"].sums == reduce(store)["x"].sums


def test_a_file_that_the_server_does_not_have_is_missing(tmp_path: Path) -> None:
    values = samples(8, 3, 4)
    store = consolidated(tmp_path / "s.zarr", x=values)
    with serving(store, "404") as url, pytest.raises(LostError, match=r"chunk c/1/0/0 \(rows 2:4\) is missing"):
        reduce(url)
    values[2:4] = 0
    expected = values.astype(np.float64).mean(axis=(0, 1))
    with serving(store, "404") as url:
        np.testing.assert_allclose(reduce(url, missing="fill")["x"].mean, expected, rtol=1e-15)


def test_a_store_that_cannot_be_listed_is_what_its_consolidated_metadata_says_and_that_is_told(tmp_path: Path) -> None:
    values = samples(8, 3, 4)
    store = consolidated(tmp_path / "s.zarr", x=values)
    zarr.open_array(str(store / "x"), mode="r+").append(values)
    zarr.open_group(str(store), mode="r+", use_consolidated=False).create_array("new", data=values)
    with serving(store) as url:
        assert list(source_of(url).find().arrays) == ["new", "x"]
    with serving(store, lists=False) as url:
        found = select_layers(url)
        assert [(layer.name, layer.rows) for layer in found.layers] == [("x", 16)]
        assert found.note == "it cannot be listed: only arrays in its consolidated metadata are known"
    plain = build_store(tmp_path / "plain.zarr", {"x": values})
    with serving(plain, lists=False) as url, pytest.raises(UsageError, match="cannot be listed, and has no consolid"):
        source_of(url).find()


def test_what_a_server_lists_outside_a_folder_is_not_followed(tmp_path: Path) -> None:
    build_store(tmp_path / "s", {"block/one": samples(4, 2, 3), "block/two": samples(4, 2, 3), "three": samples(4, 3)})
    with serving(tmp_path / "s", "upwards") as url:
        found = source_of(url).find()
    assert list(found.arrays) == ["block/one", "block/two", "three"]
    assert not found.unreadable
