"""Real files are what `docs/reference/files.md` says: read here by its description alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import streamstats as ss
from streamstats.service.journal import Journal, Noted

DTYPES = {"I64": "<i8", "F64": "<f8", "F32": "<f4", "I8": "<i1"}
CODES = ss.Quantization(0.5, -3)


class File(NamedTuple):
    """A safetensors file, taken apart."""

    header: bytes
    metadata: dict[str, str]
    tensors: dict[str, np.ndarray[Any, Any]]


def taken_apart(path: Path) -> File:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata, values, tensors = header.pop("__metadata__"), content[8 + length :], {}
    for name, each in header.items():
        begin, end = each["data_offsets"]
        tensors[name] = np.frombuffer(values[begin:end], DTYPES[each["dtype"]]).reshape(each["shape"])
    assert max(each["data_offsets"][1] for each in header.values()) == len(values)
    return File(content[8 : 8 + length], metadata, tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and the output of a run over it."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(5)
    kernel = ss.Kernel((3, 3), ss.Geometry(pads=(1, 1, 1, 1)))
    with ss.Recorder(folder / "in.zarr") as recorder:
        conv = random.normal(size=(60, 3, 8, 8)).astype(np.float32)
        recorder.append("block 1/conv", conv, channel_axis=1, kernel=kernel)
        recorder.append("fc", random.integers(-128, 128, (60, 4)).astype(np.int8), quantization=CODES)
    rules = (
        ss.LayerRule("fc", statistics=("histogram",), quantization=CODES),
        ss.LayerRule("*", statistics=("taps", "squares", "histogram")),
    )
    ss.run(ss.Job(str(folder / "in.zarr"), str(folder / "out"), layers=rules))
    return folder


@pytest.fixture(scope="module")
def state(folder: Path) -> File:
    return taken_apart(folder / "out" / "state" / "block%201" / "conv.safetensors")


@pytest.fixture(scope="module")
def values(folder: Path) -> np.ndarray[Any, Any]:
    import zarr

    found: np.ndarray[Any, Any] = zarr.open_array(str(folder / "in.zarr" / "block 1" / "conv"), mode="r")[:]
    return found


def test_headers_are_sorted_and_padded_and_the_digest_is_that_of_the_content(folder: Path) -> None:
    files = [*(folder / "out").rglob("*.safetensors")]
    assert len(files) == 4
    for path in files:
        header, metadata, tensors = taken_apart(path)
        assert len(header) % 8 == 0
        assert header.rstrip() == json.dumps(json.loads(header), sort_keys=True, separators=(",", ":")).encode()
        assert metadata.pop("sha256") == digest(metadata, tensors)


def digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        found.update(json.dumps([name, array.dtype.str, array.shape]).encode() + array.tobytes())
    return found.hexdigest()


def test_a_state_says_what_was_counted_and_which_rows(state: File) -> None:
    metadata, tensors = state.metadata, state.tensors
    assert metadata["format"] == "streamstats.state/6"
    assert (metadata["layer"], metadata["dtype"], metadata["channel_axis"]) == ("block 1/conv", "float32", "1")
    assert json.loads(metadata["sample"]) == [3, 8, 8]
    assert json.loads(metadata["statistics"]) == ["mean", "extrema", "histogram", "squares", "taps"]
    assert json.loads(metadata["kernel"])["pads"] == [1, 1, 1, 1]
    ((_, rows, mask, settled, recorded),) = json.loads(metadata["sources"])
    assert (rows, mask, settled, recorded) == (60, "", 60, True)
    assert tensors["source.0.covered"].tolist() == [[0, 60]]
    for name in ("excluded", "filled", "accepted", "tail"):
        assert tensors[f"source.0.{name}"].shape == (0, 2)


def test_digits_are_exact_sums_in_the_units_of_the_table(state: File, values: np.ndarray[Any, Any]) -> None:
    for channel in range(3):
        exact = [Fraction(float(each)) for each in values[:, channel].reshape(-1)]
        for name, unit, wanted in (
            ("mean", Fraction(1, 2**149), sum(exact)),
            ("squares", Fraction(1, 2**298), sum(each * each for each in exact)),
        ):
            digits = state.tensors[f"{name}.digits"][:, channel].tolist()
            assert all(0 <= digit < 2**32 for digit in digits[:-1])
            assert sum(digit * 2 ** (32 * place) for place, digit in enumerate(digits)) * unit == wanted
    assert state.tensors["mean.count"].tolist() == [60 * 64] * 3


def test_bins_of_a_histogram_are_the_upper_halves_in_the_order_of_the_values(
    state: File, folder: Path, values: np.ndarray[Any, Any]
) -> None:
    upper = (values.view(np.uint32) >> 16).reshape(-1).astype(int)
    bins = np.where(upper >= 2**15, 65_535 - upper, 32_768 + upper)
    assert state.tensors["histogram.counts"].tolist() == np.bincount(bins, minlength=65_536).tolist()
    codes = taken_apart(folder / "out" / "state" / "fc.safetensors").tensors
    assert codes["histogram.counts"].shape == (256, 4)
    total = (np.arange(-128, 128) @ codes["histogram.counts"]).tolist()
    assert total == [low + high * 2**32 for low, high in codes["mean.digits"].T.tolist()]


def test_files_of_an_array_have_size_time_and_a_hash_of_the_content(state: File, folder: Path) -> None:
    chunks = sorted(path for path in (folder / "in.zarr" / "block 1" / "conv" / "c").rglob("*") if path.is_file())
    wanted = [[each.stat().st_size, each.stat().st_mtime_ns, hashed(each.read_bytes())] for each in chunks]
    assert state.tensors["source.0.files"].tolist() == wanted


@pytest.mark.parametrize("size", [0, 5, 1024, 1025])
def test_the_hash_of_files_of_other_sizes(size: int) -> None:
    from streamstats.calibration.encoding.content import contents_in

    content = np.random.default_rng(size).integers(0, 256, size + 1).astype(np.uint8)[:size]
    assert contents_in(content, np.array([[0, size]])).tolist() == [hashed(content.tobytes())]


def hashed(content: bytes) -> int:
    size, found = len(content), 0
    if size <= 1024:
        pieces = [content[i * size // 4 : (i + 1) * size // 4] for i in range(4)]
    else:
        pieces = [content[i * (size - 256) // 3 :][:256] for i in range(4)]
    words = [size]
    for piece in pieces:
        whole = len(piece) // 8 * 8
        words += [int.from_bytes(piece[at : at + 8], "little") for at in range(0, whole, 8)] + [*piece[whole:]]
    for word in words:
        found = (found ^ word) * 0x9E3779B97F4A7C15 % 2**64
        found ^= found >> 29
    return found // 2


def test_a_corrector_has_the_means_in_real_units(state: File, folder: Path) -> None:
    found = taken_apart(folder / "out" / "correctors" / "fc.safetensors")
    assert (found.metadata["format"], found.metadata["kind"]) == ("streamstats.corrector/1", "mean")
    codes = taken_apart(folder / "out" / "state" / "fc.safetensors").tensors
    sums = [low + high * 2**32 for low, high in codes["mean.digits"].T.tolist()]
    real = [(total + 3 * 60) * Fraction(1, 2) / 60 for total in sums]
    assert found.tensors["input_mean"].tolist() == [float(each) for each in real]
    taps = taken_apart(folder / "out" / "correctors" / "block%201" / "conv.safetensors")
    assert taps.metadata["kind"] == "taps"
    assert json.loads(taps.metadata["kernel"]) == json.loads(state.metadata["kernel"])
    assert taps.tensors["tap_mean"].shape == (3, 3, 3)


def test_the_manifest_has_the_digests_of_the_files(folder: Path) -> None:
    text = (folder / "out" / "manifest.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert text == json.dumps(found, indent=2, sort_keys=True) + "\n"
    assert found["format"] == "streamstats.manifest/2"
    for layer in found["layers"].values():
        for each in (layer["state"], layer["corrector"]):
            content = (folder / "out" / each["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == each["sha256"]


def test_a_recorder_says_how_its_arrays_are_stored_and_what_is_committed(folder: Path) -> None:
    found = json.loads((folder / "in.zarr" / "fc" / "zarr.json").read_text(encoding="utf-8"))
    assert found["zarr_format"] == 3
    assert [each["name"] for each in found["codecs"]] == ["bytes", "blosc", "crc32c"]
    attributes = found["attributes"]["streamstats"]
    uuid = attributes.pop("uuid")
    assert re.fullmatch("[0-9a-f]{32}", uuid)
    assert json.loads(taken_apart(folder / "out/state/fc.safetensors").metadata["uuids"]) == [uuid]
    assert attributes == {
        "channel_axis": 1,
        "recorded": True,
        "rows": 60,
        "order": 1,
        "quantization": {"step": 0.5, "zero_point": -3},
    }


def test_a_journal_has_a_line_for_each_request_and_says_which_were_withdrawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "block 1/conv")
    journal.note([Noted("a", "digest", 0, 8, "ann"), Noted("b", "digest", 8, 9)])
    journal.withdraw({"b": 12.5})
    name = hashlib.sha256(b"block 1/conv").hexdigest()
    lines = (tmp_path / ".keys" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"key": "a", "digest": "digest", "start": 0, "stop": 8, "sender": "ann"},
        {"key": "b", "digest": "digest", "start": 8, "stop": 9, "sender": ""},
    ]
    assert json.loads((tmp_path / ".keys" / f"{name}.withdrawn.json").read_text(encoding="utf-8")) == {"b": 12.5}
