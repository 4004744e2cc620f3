"""The arrays of a store are found by their paths wherever they lie; those that cannot be read are named, and why."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import build_store, described, read, samples

from streamstats.calibration.places import places_of
from streamstats.calibration.sources.choose import source_of
from streamstats.errors import DataError, UsageError

SHAPE = (7, 3, 4)


def wide(value: Any) -> dict[str, Any]:
    return {"layer": value}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["store", "store.zip"])
def test_every_array_below_the_group_is_found_by_its_path_in_order(tmp_path: Path, zarr_format: int, name: str) -> None:
    layers = {
        path: samples(*SHAPE, seed=len(path)) for path in ("stem", "block/b/conv", "block/a", "block/b/add", "a b")
    }
    store = build_store(tmp_path / name, layers, zarr_format=zarr_format)
    assert list(source_of(store).find().arrays) == sorted(layers)
    for path, values in layers.items():
        layer = described(store, path)
        assert (layer.shape, layer.dtype, layer.chunks, layer.shards) == (SHAPE, values.dtype, (2, 3, 4), (2, 3, 4))
        assert (layer.rows, layer.channel_axis, layer.channels, layer.row_bytes) == (7, 2, 4, 48)
        np.testing.assert_array_equal(read(layer), values)


def test_a_url_of_a_folder_is_a_store(tmp_path: Path) -> None:
    values = samples(*SHAPE)
    store = build_store(tmp_path / "store", wide(values)).as_uri()
    layer = described(store)
    assert layer.encoding is None
    np.testing.assert_array_equal(read(layer), values)


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.zarr does not exist; check `source`"):
        source_of(tmp_path / "none.zarr").find()


def test_a_pattern_is_refused_with_the_advice_to_list_stores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\*\.zarr does not exist; check `source`, which is no pattern: list"):
        source_of(tmp_path / "*.zarr").find()


@pytest.mark.parametrize("source", [{"fc": np.zeros(3)}, np.zeros((3, 4)), [np.zeros((3, 4))]])
def test_arrays_in_memory_are_no_names_of_stores(source: Any) -> None:
    with pytest.raises(UsageError, match=r"expected the path or URL of a store, or a list of them; .* a `Meter`"):
        places_of(source)


@pytest.mark.parametrize("name", ["layer.npy", "a folder"])
def test_arrays_of_numpy_are_refused_with_the_way_into_a_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    for file in (tmp_path / "layer.npy", tmp_path / "a folder" / "layer.npy"):
        np.save(file, np.zeros((3, 4)))
    with pytest.raises(UsageError, match=r"arrays of other formats, such as \.npy, go into a store by `Recorder`"):
        source_of(tmp_path / name).find()


@pytest.mark.parametrize("name", ["store.zip", "store.txt"])
@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is a file, but not a zip archive; give a zarr group"):
        source_of(tmp_path / name).find()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_in_place_of_a_group_is_refused(tmp_path: Path, zarr_format: int) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=zarr_format)
    with pytest.raises(UsageError, match=r"layer is a zarr array; .*the group above it"):
        source_of(tmp_path / "layer").find()


def test_a_folder_that_is_no_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a zarr group \(it has no zarr\.json or \.zgroup\); give"):
        source_of(tmp_path).find()


@pytest.mark.parametrize("name", ["store", "store.zip"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_without_arrays_is_refused(tmp_path: Path, name: str, zarr_format: int) -> None:
    store = build_store(tmp_path / name, {}, zarr_format=zarr_format)
    with pytest.raises(UsageError, match="is a zarr group without arrays; record activations into it first"):
        source_of(store).find()


def test_metadata_of_the_group_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=rf"{tmp_path}: zarr\.json is not JSON: .*; repair the store"):
        source_of(tmp_path).find()


def test_a_stray_file_is_not_a_layer(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "README.md").write_text("Recorded on a Monday.")
    (tmp_path / "notes").mkdir()
    assert list(source_of(tmp_path).find().arrays) == ["layer"]


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "not JSON": (lambda layer: (layer / "zarr.json").write_text("{"), r"zarr\.json is not JSON: "),
    "no object": (lambda layer: (layer / "zarr.json").write_text("[]"), "holds list; expected a JSON object"),
    "too long": (lambda layer: (layer / "zarr.json").write_bytes(bytes(2**24 + 1)), "has 16,777,217 bytes; expected"),
    "unknown dtype": (lambda layer: _edit(layer / "zarr.json", data_type="r7"), "zarr .* cannot open it: .*r7"),
    "unknown codec": (lambda layer: _edit(layer / "zarr.json", codecs=[{"name": "acme.zip"}]), "acme.zip"),
    "unknown grid": (lambda layer: _edit(layer / "zarr.json", chunk_grid={"name": "bent"}), "cannot open it: "),
    "fill value": (lambda layer: _edit(layer / "zarr.json", data_type="uint8", fill_value=-1), "cannot open it: "),
    "both": (lambda layer: (layer / ".zarray").write_text('{"shape": [1, 2]}'), "describe different arrays; remove"),
    "a pipe": (
        lambda layer: ((layer / "zarr.json").unlink(), os.mkfifo(layer / "zarr.json")),
        r"zarr\.json is not a file",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_array_that_cannot_be_read_is_named_and_hides_no_other(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    layers = {name: samples(*SHAPE) for name in ("a", "block/bad", "block/good", "z")}
    build_store(tmp_path, layers)
    spoil(tmp_path / "block/bad")
    found = source_of(tmp_path).find()
    assert list(found.arrays) == ["a", "block/good", "z"]
    assert list(found.unreadable) == ["block/bad"]
    assert re.search(reason, found.unreadable["block/bad"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["store", "store.zip", "store.url"])
def test_arrays_below_folders_without_metadata_and_of_the_other_format_are_found(tmp_path: Path, name: str) -> None:
    store = build_store(tmp_path / "store", {each: samples(*SHAPE) for each in ("a/b/c", "top", "a/d")})
    (store / "a/zarr.json").unlink()
    (store / "a/b/zarr.json").unlink()
    build_store(tmp_path / "old", {"x/y": samples(*SHAPE, seed=1)}, zarr_format=2)
    (tmp_path / "old/x").rename(store / "x")
    (store / "x/.zgroup").unlink()
    if name == "store.zip":
        shutil.make_archive(str(tmp_path / "store"), "zip", store)
    place = store.as_uri() if name == "store.url" else tmp_path / name
    assert list(source_of(place).find().arrays) == ["a/b/c", "a/d", "top", "x/y"]
    np.testing.assert_array_equal(read(described(place, "x/y")), samples(*SHAPE, seed=1))


def test_a_link_that_leads_to_itself_is_named_and_not_followed(tmp_path: Path) -> None:
    build_store(tmp_path, {"block/layer": samples(*SHAPE)})
    (tmp_path / "block/loop").symlink_to("..")
    (tmp_path / "other").symlink_to("block")
    found = source_of(tmp_path).find()
    assert list(found.arrays) == ["block/layer", "other/layer"]
    assert found.unreadable["block/loop"] == "it is a link to a folder that contains it; remove the link"


def test_links_that_lead_in_circles_are_named_and_keep_nothing_else_from_being_found(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", {f"{name}/conv": samples(*SHAPE) for name in ("a", "b", "c")})
    for name in ("a", "b", "c"):  # each leads to the other two, so paths would never end
        for other in {"a", "b", "c"} - {name}:
            (store / name / f"to_{other}").symlink_to(f"../{other}")
    (store / "self").symlink_to("self")
    found = source_of(store).find()
    assert {"a/conv", "a/to_b/conv", "a/to_b/to_c/conv", "c/conv"} <= set(found.arrays)
    assert found.unreadable["a/to_b/to_a"] == "it is a link to a folder that contains it; remove the link"
    assert found.unreadable["self"].startswith("it is a link that cannot be followed: Too many levels")


@pytest.mark.parametrize("name", ["store", "store.zip"])
def test_metadata_too_deep_to_parse_is_named(tmp_path: Path, name: str) -> None:
    store = build_store(tmp_path / "folder", wide(samples(*SHAPE)))
    (store / "deep").mkdir()
    (store / "deep/zarr.json").write_text("[" * 10**5)
    if name.endswith(".zip"):
        store = Path(shutil.make_archive(str(tmp_path / "store"), "zip", store))
    found = source_of(store).find()
    assert list(found.arrays) == ["layer"]
    assert found.unreadable["deep"].startswith("zarr.json is not JSON")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_that_only_the_consolidated_metadata_knows_is_named(tmp_path: Path, zarr_format: int) -> None:
    build_store(tmp_path, {"a": samples(*SHAPE), "gone": samples(*SHAPE)}, zarr_format=zarr_format)
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(str(tmp_path), zarr_format=zarr_format)
    shutil.rmtree(tmp_path / "gone")
    found = source_of(tmp_path).find()
    assert list(found.arrays) == ["a"]
    assert found.unreadable["gone"].startswith("only the consolidated metadata of the store lists it")


def test_consolidated_metadata_does_not_hide_what_was_appended(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=2)
    zarr.consolidate_metadata(str(tmp_path), zarr_format=2)
    zarr.open_array(str(tmp_path / "layer"), mode="r+").append(samples(*SHAPE))
    zarr.open_group(str(tmp_path), mode="r+", use_consolidated=False).create_array("new", shape=(2, 2), dtype="int8")
    assert list(source_of(tmp_path).find().arrays) == ["layer", "new"]
    assert described(tmp_path).rows == 14


def test_stores_are_opened_for_reading_only(tmp_path: Path) -> None:
    for name in ("store", "store.zip"):
        store = source_of(build_store(tmp_path / name, wide(samples(*SHAPE)))).zarr_store()
        assert not isinstance(store, str)
        assert store.read_only
