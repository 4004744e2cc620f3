"""Describing: a zarr array → a `Layer`, with what the attributes under `streamstats` say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import zarr

from ..errors import DataError, counted, first_line
from ..layouts import Kernel
from ..quantization import Quantization
from ..storage.names import check_layer_name
from .attributes import attributes_of, ignored_attributes
from .encoding.chunks import ChunkKeys, Encoding, chunk_keys, encoding_of
from .layer import Layer, check_values
from .readers import Readers
from .recorded_model import weights_from
from .sources.source import Source

ATTRIBUTES_KEY = "streamstats"
UUID_FORM = re.compile("[0-9a-f]{32}")
MOST_FILES = 10**8
"""Files of one array, one per shard or chunk."""


def describe(source: Source, name: str, array: zarr.Array[Any], attributes_are: str = "apply") -> Layer:
    """The layer that is `array`, called `name` in the store of `source`; attributes of CF are applied, or ignored.

    Raises `UsageError` if the array cannot be a layer, `DataError` if its grid or its attributes are damaged.
    """
    check_layer_name(name)
    check_values(name, array.dtype, array.shape, "leave it out of `layers`")
    layer = _with_meaning(describe_array(source, name, array), array, attributes_are)
    attributes = array.attrs.asdict().get(ATTRIBUTES_KEY)
    return layer if attributes is None else _with_attributes(layer, attributes)


def _with_meaning(layer: Layer, array: zarr.Array[Any], attributes_are: str) -> Layer:
    """`layer` with what attributes of CF say of its values."""
    try:
        found = ignored_attributes(array) if attributes_are == "ignore" else attributes_of(array)
    except DataError as error:
        raise DataError(f"layer {layer.name}: {error}") from error
    return replace(layer, attributes=found, quantization=found.quantization) if found.says_something else layer


def mask_name(array: zarr.Array[Any]) -> str | None:
    """The name of the mask of `array` in its store, as its attributes give it; None if they give none."""
    return _named(array, "mask")


def masked_layer(array: zarr.Array[Any]) -> str | None:
    """The name of the layer of which `array` is the mask, if a recorder made it; else None."""
    return _named(array, "mask_of")


def part_in(array: zarr.Array[Any]) -> str | None:
    """The part that `array` is in, as the recorder that made it wrote; else None."""
    return _named(array, "part", "a part")


def _named(array: zarr.Array[Any], key: str, of: str = "an array") -> str | None:
    attributes = array.attrs.asdict().get(ATTRIBUTES_KEY)
    name = attributes.get(key) if isinstance(attributes, Mapping) else None
    if name is not None and not isinstance(name, str):
        raise DataError(f"{array.path}: `{key}` in its attributes is {name!r}; expected the name of {of}; repair them")
    return name


def describe_array(source: Source, name: str, array: zarr.Array[Any]) -> Layer:
    """How `array`, called `name`, is stored: a layer with its channels on the last axis, whatever its values.

    Raises `DataError` if its grid is damaged.
    """
    _check_grid(name, array)
    keys = chunk_keys(array)
    encoding = _encoding(source, array, keys)
    return Layer(
        store=source.location,
        name=name,
        shape=array.shape,
        dtype=np.dtype(array.dtype),
        chunks=(1, *array.chunks[1:]) if encoding and encoding.is_raw else array.chunks,
        shards=array.shards or array.chunks,
        channel_axis=array.ndim - 1,
        encoding=encoding,
        keys=keys,
        fingerprint=_fingerprint(array),
        at="" if array.path == name else array.path,
        follow_links=source.follow_links,
    )


def names_in(name: str, array: zarr.Array[Any]) -> tuple[str, ...]:
    """The names of the layers that read `array`, as its attributes give them, or its own; nothing else is checked."""
    attributes = array.attrs.asdict().get(ATTRIBUTES_KEY)
    layers = attributes.get("layers") if isinstance(attributes, Mapping) else None
    return tuple(map(str, layers)) if isinstance(layers, Mapping) and layers else (name,)


def seen_differently(layer: Layer) -> str | None:
    """How `layer` differs as this process sees it; None if it is the same."""
    try:
        array = zarr.open_array(layer.source.zarr_store(), path=layer.path, mode="r")
        seen = [_fingerprint(array) == layer.fingerprint, array.shape[0] >= layer.rows]
        if layer.mask is not None:
            mask = zarr.open_array(layer.source.zarr_store(), path=layer.mask.path, mode="r")
            seen.append(_fingerprint(mask) == layer.mask.fingerprint)
    except Exception as error:
        return f"cannot see layer {layer.name} of {layer.store} ({first_line(error)}); make the store visible there"
    if not all(seen):
        return f"sees a different layer {layer.name} at {layer.store}; make the same store visible there"
    return None


def _check_grid(name: str, array: zarr.Array[Any]) -> None:
    """Raise `DataError` for a grid without extents, or of more files than can be counted."""
    shards = array.shards or array.chunks
    if min(*array.chunks, *shards) < 1:
        raise DataError(f"layer {name}: its chunks are {array.chunks}; expected extents of 1 or more; repair the store")
    files = prod(-(-extent // shard) for extent, shard in zip(array.shape, shards, strict=True))
    if files > MOST_FILES:
        raise DataError(
            f"layer {name}: its shape {array.shape} makes {counted(files, 'chunk')}; expected at most {MOST_FILES:,}; "
            "store it in larger chunks, or in shards"
        )


def _encoding(source: Source, array: zarr.Array[Any], keys: ChunkKeys | None) -> Encoding | None:
    """How the files of `array` are stored; None if only zarr can read them."""
    if keys is None or source.folder(array.path) is None:
        return None
    return encoding_of(array)


def _with_attributes(layer: Layer, attributes: object) -> Layer:
    try:
        return _read_attributes(layer, attributes)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"layer {layer.name}: its attributes under {ATTRIBUTES_KEY!r} are not usable ({first_line(error)}); "
            "repair or remove them"
        ) from error


def _read_attributes(layer: Layer, attributes: object) -> Layer:
    if not isinstance(attributes, Mapping):
        raise TypeError(f"expected a mapping, found {type(attributes).__name__}")
    rows = _integer(attributes, "rows", layer.rows)
    if not 0 <= rows <= layer.rows:
        raise ValueError(f"rows is {rows}, the array has {layer.rows}")
    layer = replace(
        layer,
        shape=(rows, *layer.sample_shape),
        recorded=attributes.get("recorded") is True,
        unfinished=rows < layer.rows,
    )
    layer = layer.with_channel_axis(_integer(attributes, "channel_axis", -1))
    if attributes.get("quantization") is not None:
        layer = layer.with_quantization(Quantization.from_metadata(attributes["quantization"]))
    tensor, rows_are, model = (str(attributes.get(key, "")) for key in ("tensor", "rows_are", "model"))
    weights = weights_from(attributes.get("weights", {}))
    layer = replace(layer, tensor=tensor, rows_are=rows_are, model=model, weights=weights, uuid=_uuid(attributes))
    layer = replace(layer, order=_integer(attributes, "order", 0) if "order" in attributes else None)
    if "layers" in attributes:
        return layer.with_readers(Readers.from_metadata(attributes["layers"]))
    return layer.with_kernel(Kernel.from_metadata(attributes.get("kernel")))


def _uuid(attributes: Mapping[Any, Any]) -> str:
    """The UUID by which a recorder made the array known; empty if none did."""
    found = attributes.get("uuid") or ""
    if found and not UUID_FORM.fullmatch(str(found)):
        raise ValueError(f"uuid is {found!r:.60}, expected 32 hex digits")
    return str(found)


def _integer(attributes: Mapping[Any, Any], key: str, default: int) -> int:
    value = attributes.get(key, default)
    if type(value) is not int:
        raise TypeError(f"{key} is {value!r}, expected an integer")
    return value


def _fingerprint(array: zarr.Array[Any]) -> str:
    """SHA-256 (hex) of dtype, chunk grid, codecs and fill value; the number of rows is not in it."""
    document = array.metadata.to_dict()
    document.pop("attributes", None)
    document["shape"] = [None, *array.shape[1:]]
    return sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
