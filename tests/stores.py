"""Calibration stores on disk, made with plain zarr as other tools make them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from streamstats.calibration.describing import describe
from streamstats.calibration.layer import Layer
from streamstats.calibration.reading.reader import open_reader
from streamstats.calibration.sources.choose import source_of

Array = np.ndarray[Any, Any]


def files_of(store: Path) -> dict[Path, bytes]:
    """The content of each file of a recorded store, but for the UUIDs of its arrays."""
    found = {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return {name: re.sub(rb'"uuid": "[0-9a-f]{32}"', b'"uuid": ""', content) for name, content in found.items()}


def build_store(
    path: Path,
    layers: Mapping[str, Array],
    *,
    zarr_format: int = 3,
    attributes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write `layers` (name → values) as a group at `path`, a zip archive if it ends in `.zip`; returns `path`.

    `attributes` (name → object) go under the key `streamstats`; `options` are those of `create_array`, and chunks
    are of two samples by default.
    """
    store = ZipStore(path, mode="w") if path.suffix == ".zip" else LocalStore(path)
    with closing(store):
        group = zarr.open_group(store, mode="a", zarr_format=zarr_format)  # type: ignore[arg-type]
        for name, values in layers.items():
            settings = {"chunks": (2, *values.shape[1:])} | options
            attached = {"streamstats": attributes[name]} if name in (attributes or {}) else {}
            array = group.create_array(name, shape=values.shape, dtype=values.dtype, attributes=attached, **settings)
            array[...] = values
    return path


def described(store: Path | str, name: str = "layer") -> Layer:
    """The layer `name` of the store at `store`."""
    source = source_of(store)
    return describe(source, name, source.find().arrays[name])


def read(layer: Layer, *selection: slice) -> Array:
    """The values of `layer` in `selection`, which is whole along the axes that it does not name."""
    whole = tuple(slice(0, extent) for extent in layer.shape)
    with open_reader(layer) as reader:
        return reader.read((*selection, *whole[len(selection) :])).copy()


def samples(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Random values that differ from each other and from the fill value."""
    random = np.random.default_rng(seed)
    return random.integers(1, 120, shape).astype(dtype)
