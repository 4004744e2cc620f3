"""The arrays of a store are found by their paths, or the store is refused with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import build_store, described, read, samples
from zarr.errors import ZarrUserWarning

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
    assert list(source_of(store).arrays()) == sorted(layers)
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
        source_of(tmp_path / "none.zarr").arrays()


@pytest.mark.parametrize("name", ["store.zip", "store.txt"])
@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is a file, but not a zip archive; give a zarr group"):
        source_of(tmp_path / name).arrays()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_in_place_of_a_group_is_refused(tmp_path: Path, zarr_format: int) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=zarr_format)
    with pytest.raises(UsageError, match=r"layer is a zarr array; .*the group above it"):
        source_of(tmp_path / "layer").arrays()


def test_a_folder_that_is_no_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a zarr group \(it has no zarr\.json or \.zgroup\); give"):
        source_of(tmp_path).arrays()


@pytest.mark.parametrize("name", ["store", "store.zip"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_without_arrays_is_refused(tmp_path: Path, name: str, zarr_format: int) -> None:
    store = build_store(tmp_path / name, {}, zarr_format=zarr_format)
    with pytest.raises(UsageError, match="is a zarr group without arrays; record activations into it first"):
        source_of(store).arrays()


@pytest.mark.parametrize("where", ["zarr.json", "layer/zarr.json"])
def test_metadata_that_cannot_be_read_is_damage(tmp_path: Path, where: str) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / where).write_text("{")
    with pytest.raises(DataError, match=f"{tmp_path}"):
        source_of(tmp_path).arrays()


def test_a_stray_file_is_not_a_layer(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)))
    (tmp_path / "README.md").write_text("Recorded on a Monday.")
    with pytest.warns(ZarrUserWarning, match=r"README\.md is not recognized"):
        assert list(source_of(tmp_path).arrays()) == ["layer"]


def test_consolidated_metadata_does_not_hide_what_was_appended(tmp_path: Path) -> None:
    build_store(tmp_path, wide(samples(*SHAPE)), zarr_format=2)
    zarr.consolidate_metadata(str(tmp_path), zarr_format=2)
    zarr.open_array(str(tmp_path / "layer"), mode="r+").append(samples(*SHAPE))
    zarr.open_group(str(tmp_path), mode="r+", use_consolidated=False).create_array("new", shape=(2, 2), dtype="int8")
    assert list(source_of(tmp_path).arrays()) == ["layer", "new"]
    assert described(tmp_path).rows == 14


def test_stores_are_opened_for_reading_only(tmp_path: Path) -> None:
    for name in ("store", "store.zip"):
        store = source_of(build_store(tmp_path / name, wide(samples(*SHAPE)))).zarr_store()
        assert not isinstance(store, str)
        assert store.read_only
    assert source_of("https://host/store").zarr_store() == "https://host/store"
