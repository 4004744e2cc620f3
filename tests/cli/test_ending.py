"""Whatever is raised at an edge of the program, a command ends with one line, a status other than 0, no traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from graphs import Network
from stores import samples
from zarr.codecs import TransposeCodec

from streamstats.cli import main

IN_THE_LOOP = ("zarr.storage.LocalStore.get", "zarr.codecs.TransposeCodec._decode_single")
"""What runs in zarr's event loop, which `SystemExit` ends, so that nobody would be told."""


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def odd() -> list[BaseException]:
    """Exceptions that nobody expects of a library."""
    return [
        KeyError(),
        AssertionError(),
        ExceptionGroup("several", [ExceptionGroup("inner", [KeyError()]), OSError()]),
        BaseExceptionGroup("several", [Panic("of rust")]),
        Panic("of rust"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        RecursionError("maximum recursion depth exceeded"),
        MemoryError(),
        UnprintableError(),
        OSError(),
        BrokenPipeError(32, "Broken pipe"),
        asyncio.CancelledError(),
        SystemExit(0),
        StopIteration(),
        RuntimeError("many\nlines\n\n  of words"),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    group["plain"] = samples(4, 3)
    turned = group.create_array(
        "turned", shape=(4, 3), chunks=(2, 3), dtype="f4", filters=[TransposeCodec(order=(1, 0))]
    )
    turned[...] = samples(4, 3)
    return tmp_path / "s.zarr"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(source: object, **options: Any) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps({"source": str(source), "output": str(tmp_path / "out"), **options}))
        return str(path)

    return write


def raised_at(
    edge: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run `command` with each odd exception raised at `edge`."""
    for error in odd():
        if isinstance(error, SystemExit) and edge in IN_THE_LOOP:
            continue

        def fail(*_: Any, error: BaseException = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(edge, fail)
            status = main(command)
        said = capsys.readouterr().err
        assert status in (1, 2, 3, 4), (error, status, said)
        assert "Traceback" not in said, error
        last = said.splitlines()[-1]
        assert last.startswith("streamstats: "), (error, said)
        assert len(last) > len("streamstats: ") + 8, said


@pytest.mark.parametrize(
    "edge",
    [
        "yaml.load",
        "zarr.Array.from_dict",
        "zarr.storage.LocalStore.get",
        "zarr.codecs.TransposeCodec._decode_single",
        "streamstats.storage.tensors.safetensors_bytes",
        "os.replace",
        "os.fsync",
    ],
)
def test_whatever_is_raised_while_counting_is_one_line(
    edge: str,
    store: Path,
    written: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raised_at(edge, ["run", written(store)], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("edge", "cluster"),
    [("distributed.Client", {"scheduler": "tcp://127.0.0.1:9"}), ("distributed.LocalCluster", {"workers": 1})],
)
def test_whatever_dask_raises_is_one_line(
    edge: str,
    cluster: dict[str, Any],
    store: Path,
    written: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raised_at(edge, ["run", written(store, cluster=cluster)], monkeypatch, capsys)


def test_whatever_an_object_store_raises_is_one_line(
    written: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_REGION", "nowhere")
    monkeypatch.setattr("streamstats.calibration.sources.retrying.FIRST_PAUSE", 0.0)
    for edge in ("obstore.list_with_delimiter", "obstore.store.from_url"):
        raised_at(edge, ["run", written("s3://nobody/store")], monkeypatch, capsys)


@pytest.mark.parametrize("edge", ["onnx.load", "onnxruntime.InferenceSession"])
def test_whatever_onnx_raises_is_one_line(
    edge: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["record", str(network.path), "--samples", str(tmp_path / "x.npy"), "-o", str(tmp_path / "new.zarr")]
    raised_at(edge, command, monkeypatch, capsys)


def test_whatever_reading_results_raises_is_one_line(
    store: Path, written: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(store)
    assert main(["run", job]) == 0
    capsys.readouterr()
    raised_at(
        "streamstats.storage.tensors.safe_open",
        ["inspect", json.loads(Path(job).read_text())["output"]],
        monkeypatch,
        capsys,
    )


def test_whatever_a_service_and_its_database_raise_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMSTATS_TOKEN", "t" * 40)
    raised_at("httpx.Client.request", ["jobs"], monkeypatch, capsys)
    path = tmp_path / "service.yaml"
    path.write_text(json.dumps({"folder": str(tmp_path / "f"), "roots": {"r": str(tmp_path)}, "tokens": "tokens.yaml"}))
    raised_at("sqlite3.connect", ["serve", str(path)], monkeypatch, capsys)
