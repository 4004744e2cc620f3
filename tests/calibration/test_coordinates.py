"""Coordinates of xarray's stores are no layers, unless an entry of `layers` names them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from streamstats import LayerRule
from streamstats.calibration.selection import select_layers
from streamstats.calibration.sources.finding import consolidated_groups
from streamstats.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*onsolidated metadata:UserWarning")


def weather() -> xr.Dataset:
    values = np.ones((4, 3, 2), np.float32)
    found = xr.Dataset(
        {"t2m": (("time", "y", "x"), values), "wind": (("time", "y", "x"), values)},
        coords={
            "time": ("time", np.arange(4)),
            "lat": (("y", "x"), values[0]),
            "lon": (("y", "x"), values[0]),
            "time_bnds": (("time", "two"), np.zeros((4, 2))),
            "spare": (("y", "z"), np.zeros((3, 5))),
        },
    )
    found["t2m"].attrs |= {"grid_mapping": "crs", "cell_measures": "area: cell_area"}
    found["time"].attrs["bounds"] = "time_bnds"
    return found.assign(crs=0, cell_area=(("y", "x"), values[0]))


ASIDE = {"cell_area", "crs", "lat", "lon", "spare", "time", "time_bnds"}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_coordinates_of_a_store_that_xarray_wrote_are_left_out_with_the_reason(
    tmp_path: Path, zarr_format: int
) -> None:
    weather().to_zarr(tmp_path, zarr_format=zarr_format)  # type: ignore[call-overload]
    assert set(xr.open_zarr(tmp_path, decode_coords="all", chunks=None).coords) | {"cell_area"} == ASIDE
    for rules in ((), [LayerRule("*")]):
        selected = select_layers(tmp_path, rules)
        assert [layer.name for layer in selected.layers] == ["t2m", "wind"]
        assert set(selected.coordinates) == ASIDE
        assert (selected.left_out, selected.unfit) == ((), {})
    assert selected.coordinates["time"] == "it has the name of its dimension"
    assert selected.coordinates["lat"] == "`coordinates` of cell_area"
    assert selected.coordinates["spare"] == "`coordinates` of the store"
    assert selected.coordinates["time_bnds"].startswith("`bounds` of time")


def test_an_entry_that_names_a_coordinate_makes_it_a_layer_and_a_glob_does_not(tmp_path: Path) -> None:
    weather().to_zarr(tmp_path)
    asked = select_layers(tmp_path, [LayerRule("lat"), LayerRule("t*")])
    assert [layer.name for layer in asked.layers] == ["lat", "t2m"]
    assert set(asked.coordinates) == ASIDE - {"lat"}
    with pytest.raises(UsageError, match=r"'l\*' matches no layer of .*, only coordinates: lat, lon; to count"):
        select_layers(tmp_path, [LayerRule("l*")])
    with pytest.raises(UsageError, match=r"layer time: the array has the shape \(4,\); expected samples on axis 0"):
        select_layers(tmp_path, [LayerRule("time")])


def test_the_mask_of_a_layer_may_be_a_coordinate(tmp_path: Path) -> None:
    dataset = weather().assign_coords(valid=(("time", "y"), np.ones((4, 3), np.int8)))
    dataset.to_zarr(tmp_path)
    selected = select_layers(tmp_path, [LayerRule("t2m", mask="valid")])
    assert selected.layers[0].mask is not None
    assert "valid" not in selected.coordinates


def test_coordinates_of_a_group_above_are_those_of_the_groups_below(tmp_path: Path) -> None:
    values = np.ones((4, 3, 2), np.float32)
    root = zarr.open_group(tmp_path, mode="w")
    for name, attributes in (("lat", {}), ("a/v", {"coordinates": "lat lon"}), ("a/lon", {}), ("b/lat", {})):
        root.create_array(name, data=values, attributes=attributes)
    selected = select_layers(tmp_path)
    assert [layer.name for layer in selected.layers] == ["a/v", "b/lat"]
    assert selected.coordinates == {"a/lon": "`coordinates` of a/v", "lat": "`coordinates` of a/v"}


@pytest.mark.parametrize(("zarr_format", "name"), [(2, ".zmetadata"), (3, "zarr.json")])
def test_groups_that_only_consolidated_metadata_tells_have_their_attributes(
    tmp_path: Path, zarr_format: int, name: str
) -> None:
    weather().to_zarr(tmp_path, zarr_format=zarr_format)  # type: ignore[call-overload]
    weather().to_zarr(tmp_path, group="a/b", mode="a", zarr_format=zarr_format)  # type: ignore[call-overload]
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(str(tmp_path), zarr_format=zarr_format)  # type: ignore[arg-type]
    groups = consolidated_groups(json.loads((tmp_path / name).read_text()))
    assert groups.keys() == {"", "a/b"}
    assert all("spare" in each["coordinates"].split() for each in groups.values())


def test_a_coordinate_that_cannot_be_read_is_no_gap(tmp_path: Path) -> None:
    weather().to_zarr(tmp_path, consolidated=False)
    path = tmp_path / "lat/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_type": "r7"}))
    selected = select_layers(tmp_path)
    assert "lat" in selected.coordinates
    assert not selected.unreadable


@pytest.mark.parametrize("attribute", [{"coordinates": ["lat"]}, {"coordinates": "nowhere v"}, {"bounds": 3}])
def test_attributes_that_name_no_other_array_leave_nothing_out(tmp_path: Path, attribute: dict[str, Any]) -> None:
    group = zarr.open_group(tmp_path, mode="w", attributes=attribute)
    for name in ("v", "lat"):
        group.create_array(name, data=np.ones((2, 2)), attributes=attribute)
    selected = select_layers(tmp_path)
    expected = {} if "nowhere v" not in attribute.values() else {"v": "`coordinates` of lat"}
    assert selected.coordinates == expected


def test_a_store_of_coordinates_alone_has_no_layers(tmp_path: Path) -> None:
    xr.Dataset(coords={"time": np.arange(4)}).to_zarr(tmp_path)
    with pytest.raises(UsageError, match="has no layers, only coordinates: time; name those to count under `layers`"):
        select_layers(tmp_path)
