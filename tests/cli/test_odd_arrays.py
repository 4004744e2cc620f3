"""Arrays that nobody can read or that are no layers, beside good ones: each is named, and the good ones are counted."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from streamstats.cli import main
from streamstats.outputs.results import open_results

VALUES = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
ACME: dict[str, Any] = {"name": "acme", "configuration": {"bits": 7}}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
SHARDS = {"chunk_shape": [1, 3, 2], "codecs": [ACME], "index_codecs": [BYTES]}
RECTILINEAR = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[1, 3], [3], [2]]}}
UNREADABLE_3: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"data_type": "r7"}, "r7"),
    "extension dtype": ({"data_type": ACME}, "acme"),
    "codec": ({"codecs": [BYTES, ACME]}, "acme"),
    "codec in a shard": ({"codecs": [{"name": "sharding_indexed", "configuration": SHARDS}]}, "acme"),
    "no codec": ({"codecs": []}, "cannot open it"),
    "extension": ({"acme": {"must_understand": True}}, "acme"),
    "transformer": ({"storage_transformers": [ACME]}, "cannot open it"),
    "keys": ({"chunk_key_encoding": ACME}, "acme"),
    "version": ({"zarr_format": 4}, "4"),
    "shape": ({"shape": "many"}, "cannot open it"),
    "attributes": ({"attributes": "text"}, "cannot open it"),
}
UNREADABLE_2: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "<f3"}, "<f3"),
    "codec": ({"compressor": {"id": "acme"}}, "acme"),
    "filter": ({"filters": [{"id": "acme"}]}, "acme"),
    "objects": ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "pickle"),
    "chunks": ({"chunks": [[1, 3], [3], [2]]}, "cannot open it"),
    "order": ({"order": "Z"}, "cannot open it"),
}
UNFIT: dict[str, dict[str, Any]] = {
    "scalar": {"shape": (), "dtype": "f4"},
    "line": {"shape": (3,), "dtype": "f4"},
    "text": {"shape": (4, 3), "dtype": str},
    "fixed": {"shape": (4, 3), "dtype": "U5"},
    "struct": {"shape": (4, 3), "dtype": [("x", "i4"), ("y", "f4")]},
    "complex": {"shape": (4, 3), "dtype": "c8"},
    "when": {"shape": (4, 3), "dtype": "M8[s]"},
}


def edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def odd_store(path: Path) -> dict[str, str]:
    """A store of v3 with a group of v2 in it; returns what a reason must contain, by unreadable array."""
    for folder, zarr_format in ((path, 3), (path / "old", 2)):
        group = zarr.open_group(folder, mode="a", zarr_format=zarr_format)  # type: ignore[arg-type]
        unreadable, metadata = (UNREADABLE_3, "zarr.json") if zarr_format == 3 else (UNREADABLE_2, ".zarray")
        for name in ("good", "block/fine", *unreadable):
            group.create_array(name, data=VALUES, chunks=(2, 3, 2))
        with warnings.catch_warnings(action="ignore"):
            for name, options in UNFIT.items():
                group.create_array(name, **options)
        for name, (changes, _) in unreadable.items():
            edit(folder / name / metadata, changes)
    old = {f"old/{name}": reason for name, (_, reason) in UNREADABLE_2.items()}
    return {name: reason for name, (_, reason) in UNREADABLE_3.items()} | old


def test_every_odd_array_is_named_with_its_reason_and_the_good_ones_are_counted(tmp_path: Path) -> None:
    reasons = odd_store(tmp_path / "s.zarr")
    (tmp_path / "c.yaml").write_text(f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\n")
    command = [sys.executable, "-m", "streamstats", "run", str(tmp_path / "c.yaml")]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 3, process.stderr
    lines = process.stderr.splitlines()
    assert [line for line in lines if not line.startswith("streamstats: ")] == []  # no warning, and no traceback
    results = open_results(tmp_path / "out")
    assert results.layers == ["block/fine", "good", "old/block/fine", "old/good"]
    for name in results.layers:
        np.testing.assert_array_equal(results.statistics(name).mean, VALUES.mean(axis=(0, 1)))
    assert results.manifest.unreadable.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in results.manifest.unreadable[name], name
    unfit = next(line for line in lines if "cannot be layers" in line)
    assert all(name in unfit for name in ("complex", "fixed", "line", "old/complex"))


@pytest.mark.parametrize(
    ("match", "status", "said"),
    [
        ("good", 0, "wrote"),
        ("codec", 4, "array codec cannot be read: zarr "),
        ("rectilinear", 4, "array rectilinear cannot be read: "),
        ("struct", 2, "layer struct: its values are [('x', '<i4'), ('y', '<f4')]; expected one of bool"),
        ("scalar", 2, "layer scalar: the array has the shape (); expected samples on axis 0"),
    ],
)
def test_an_odd_array_fails_a_job_only_if_it_is_selected(
    tmp_path: Path, match: str, status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    group = zarr.open_group(tmp_path / "s.zarr", mode="a")
    for name in ("good", "codec", "rectilinear"):
        group.create_array(name, data=VALUES, chunks=(2, 3, 2))
    with warnings.catch_warnings(action="ignore"):
        for name in ("struct", "scalar"):
            group.create_array(name, **UNFIT[name])
    edit(tmp_path / "s.zarr/codec/zarr.json", UNREADABLE_3["codec"][0])
    edit(tmp_path / "s.zarr/rectilinear/zarr.json", {"chunk_grid": RECTILINEAR})
    (tmp_path / "c.yaml").write_text(
        f"source: {tmp_path}/s.zarr\noutput: {tmp_path}/out\nlayers: [{{match: {match}}}]\n"
    )
    with warnings.catch_warnings(action="ignore"):
        assert main(["run", str(tmp_path / "c.yaml")]) == status
    captured = capfd.readouterr().err
    assert said in captured
    assert "Traceback" not in captured
