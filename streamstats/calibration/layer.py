"""A layer: an array of a calibration store, its channel axis and its quantisation, and how it is stored.

A `Layer` is a small description that travels to workers; each opens the array, or its files, for itself. Samples are
on axis 0, one axis holds the channels, every other axis is reduced. Nothing is rewritten: chunks are read as they lie.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import LocalStore, ZipStore

from ..errors import DataError, MismatchError, StoreError, UsageError, first_line
from ..quantization import Quantization
from ..statistics.kinds import Kind, kinds_of
from ..statistics.statistic import SUPPORTED_DTYPES, Space
from ..storage.names import check_layer_name
from .encoding.chunks import ChunkKeys, Encoding, chunk_keys, encoding_of
from .sources.objects import FEWER, PatientStore, check_url, is_object_store, object_store

Selection = tuple[slice, ...]
"""A part of a layer's array: a slice for each axis, with start and stop, inside the array."""
ATTRIBUTES_KEY = "streamstats"
DEFAULT_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
FETCHES = 4
"""Chunks that zarr's own pipeline fetches and decodes at a time, for one read."""
MOST_ARRAYS = 100_000
MOST_FILES = 10**8
"""Of one array, chunks or shards."""
DEEPEST = 64
"""Groups inside each other."""
LONGEST_METADATA = 2**24
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_OPENING = threading.Lock()  # zarr takes the pipeline from its configuration, which all threads share


@dataclass(frozen=True)
class Layer:
    """One layer of a store.

    `shape` is that of the array with `rows` on axis 0; `chunks` is the part that is decoded at once (a row of a chunk
    that is not encoded) and `shards` the part that is stored at once. `channel_axis` is not negative. `keys` is how its
    files are called, if that is known; `encoding` says how to read them from a folder without zarr, where that is
    possible; `recorded` says that our recorder wrote it, every chunk of it. `fingerprint` (SHA-256, hex) identifies
    what the array is made of (dtype, chunk grid, codecs), whatever its rows. `kinds` are the statistics that
    are wanted of it. `unfinished` says that rows were being appended when it was described, or that this was
    stopped: the file that they begin in may have been written again.
    """

    store: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    channel_axis: int
    quantization: Quantization | None = None
    encoding: Encoding | None = None
    keys: ChunkKeys | None = None
    recorded: bool = False
    fingerprint: str = ""
    kinds: tuple[Kind, ...] = kinds_of(())
    unfinished: bool = False

    @property
    def rows(self) -> int:
        """Samples that are committed: those to count."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """Extent of the channel axis."""
        return self.shape[self.channel_axis]

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of one sample."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    def with_channel_axis(self, axis: int) -> Layer:
        """The layer with its channels on `axis`, negative counts from the end. Raises `UsageError`."""
        ndim = len(self.shape)
        if not -ndim <= axis < ndim or axis % ndim == 0:
            raise UsageError(
                f"layer {self.name}: channel_axis is {axis}, but the array has the shape {self.shape} with samples "
                f"on axis 0; expected an axis from 1 to {ndim - 1}, or from {1 - ndim} to -1"
            )
        return replace(self, channel_axis=axis % ndim)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.shape[1:]

    @property
    def space(self) -> Space:
        """What its statistics know of it."""
        return Space(self.dtype, self.sample_shape, self.channel_axis - 1)

    def with_quantization(self, quantization: Quantization | None) -> Layer:
        """The layer with its codes mapped by `quantization`. Raises `UsageError`, `MismatchError`."""
        if quantization is None:
            return replace(self, quantization=None)
        if self.dtype.kind not in "iu":
            raise UsageError(
                f"layer {self.name}: a quantisation is given, but its values are {self.dtype}, not integer codes; "
                "leave the quantisation out"
            )
        try:
            quantization.check_channels(self.channels)
        except MismatchError as error:
            raise MismatchError(f"layer {self.name}: {error}") from error
        return replace(self, quantization=quantization)


def is_url(location: str) -> bool:
    """Whether `location` is an address, and not a path on this machine."""
    return "://" in location or "::" in location


def is_folder(location: str) -> bool:
    """Whether `location` is a folder on this machine, and not an archive or an address."""
    return not is_url(location) and Path(location).is_dir()


def open_store(location: str | Path) -> Store | str:
    """What zarr opens for `location`: a local folder, a `.zip`, or any URL as it is. Raises `UsageError`."""
    text = str(location)
    if is_object_store(text):
        return PatientStore(object_store(text), read_only=True)
    if is_url(text):
        check_url(text)
        return text
    path = Path(text)
    if not path.exists():
        raise UsageError(f"calibration store {text} does not exist; check `source`")
    if path.is_dir():
        return LocalStore(path, read_only=True)
    if not is_zipfile(path):  # ZipStore would say so only when it is read
        raise UsageError(f"calibration store {text} is a file, but not a zip archive; expected a zarr group")
    return ZipStore(path, mode="r", read_only=True)


def find_arrays(location: str | Path) -> dict[str, zarr.Array[Any]]:
    """Every array below the group at `location`, by name, in order.

    Raises `UsageError` for a location that is not a zarr group or has no arrays.
    """
    _check_bounds(Path(location))
    group = _open_group(location)
    members = _members(group, location)
    if not members:
        raise UsageError(f"{location} is a zarr group without arrays; record activations into it first")
    return {name: members[name] for name in sorted(members)}


def _check_bounds(folder: Path) -> None:
    """Raise `DataError` for a folder that zarr would take too long, or too much memory, to open."""
    waiting, arrays = [(folder, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        if depth > DEEPEST:
            raise DataError(f"{here} lies more than {DEEPEST} groups deep; give a group further in as the source")
        if _has_array_metadata(here):  # its chunks are not listed: they can be millions
            arrays += 1
            if arrays > MOST_ARRAYS:
                raise DataError(f"{folder} has more than {MOST_ARRAYS:,} arrays; {FEWER}")
            continue
        try:
            with os.scandir(here) as entries:
                below = [entry for entry in entries if entry.is_dir()]  # zarr follows links, too
            for entry in below:
                if entry.is_symlink() and Path(here).resolve().is_relative_to(Path(entry).resolve()):
                    raise DataError(f"{entry.path} is a link to a folder that it lies in; remove it")
            waiting += [(Path(entry), depth + 1) for entry in below]
        except OSError:  # not a folder, or not to be read: zarr says so
            continue


def _has_array_metadata(folder: Path) -> bool:
    """Whether an array is in `folder`. Raises `DataError` for metadata that is too long to be read."""
    sizes = {}
    for name in METADATA:
        with contextlib.suppress(OSError):  # most of them are not there
            found = os.stat(folder / name)
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{folder / name} is not a file; expected the metadata of an array or group; repair it")
            sizes[name] = found.st_size
    for name, size in sizes.items():
        if size > LONGEST_METADATA:
            raise DataError(f"{folder / name} has {size:,} bytes; expected at most {LONGEST_METADATA:,}; repair it")
    return ".zarray" in sizes or ("zarr.json" in sizes and b'"array"' in (folder / "zarr.json").read_bytes())


def _members(group: zarr.Group, location: str | Path) -> dict[str, zarr.Array[Any]]:
    try:
        return {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    except (DataError, StoreError):
        raise
    except Exception as error:
        raise DataError(
            f"{location}: the metadata of an array or group in it cannot be read: {first_line(error)}; repair it"
        ) from error


def _open_group(location: str | Path) -> zarr.Group:
    store = open_store(location)
    consolidated = None if is_url(str(location)) else False  # a copy that appending leaves behind the arrays
    try:
        return zarr.open_group(store, mode="r", use_consolidated=consolidated)
    except ContainsArrayError as error:
        raise UsageError(f"{location} is a zarr array; expected the group above it") from error
    except (GroupNotFoundError, FileNotFoundError) as error:
        if _is_array(location):
            raise UsageError(f"{location} is a zarr array; give the group above it as the source") from error
        raise UsageError(f"{location} is not a zarr group (no zarr.json or .zgroup in it)") from error
    except (DataError, StoreError):
        raise
    except Exception as error:
        raise DataError(f"{location} cannot be opened as a zarr group: {first_line(error)}") from error


def _is_array(location: str | Path) -> bool:
    try:
        zarr.open_array(open_store(location), mode="r")
    except Exception:
        return False
    return True


def describe(store: str, name: str, array: zarr.Array[Any]) -> Layer:
    """The `Layer` of one array: shape, dtype, chunk grid, and the attributes under `streamstats` if there are any."""
    check_layer_name(name)
    check_values(name, array.dtype, array.shape, "name the layers to reduce under `layers`")
    if min(array.chunks) < 1 or min(array.shards or array.chunks) < 1:
        raise DataError(f"layer {name}: its chunks are {array.chunks}; expected extents of 1 or more")
    shards = array.shards or array.chunks
    files = prod(-(-extent // shard) for extent, shard in zip(array.shape, shards, strict=True))
    if files > MOST_FILES:
        raise DataError(
            f"layer {name}: it has {files:,} chunks in the shape {array.shape}; expected at most {MOST_FILES:,}; store "
            "it in larger chunks, or in shards"
        )
    keys = chunk_keys(array)
    straight = keys is not None and (is_folder(store) or is_object_store(store))
    encoding = encoding_of(array) if straight else None
    layer = Layer(
        store=store,
        name=name,
        shape=array.shape,
        dtype=np.dtype(array.dtype),
        chunks=(1, *array.chunks[1:]) if encoding and encoding.is_raw else array.chunks,
        shards=shards,
        channel_axis=array.ndim - 1,
        encoding=encoding,
        keys=keys,
        fingerprint=_fingerprint(array),
    )
    attributes = array.attrs.asdict().get(ATTRIBUTES_KEY)
    return layer if attributes is None else _with_attributes(layer, attributes)


def seen_differently(layer: Layer) -> str | None:
    """What is different about `layer` as this process sees it, None if it is the same."""
    try:
        array = zarr.open_array(open_store(layer.store), path=layer.name, mode="r")
    except Exception as error:
        return f"cannot see layer {layer.name} of {layer.store} ({first_line(error)}); make the store visible there"
    if _fingerprint(array) != layer.fingerprint or array.shape[0] < layer.rows:
        return f"sees another layer {layer.name} at {layer.store}; make the same store visible there"
    return None


def check_values(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], remedy: str) -> None:
    """Raise `UsageError`, which ends in `remedy`, unless values of `dtype` and `shape` can be a layer's."""
    if (dtype.kind, dtype.itemsize) not in {(each.kind, each.itemsize) for each in SUPPORTED_DTYPES}:
        expected = ", ".join(map(str, SUPPORTED_DTYPES))
        raise UsageError(f"layer {name}: its values are {dtype}; expected one of {expected}; {remedy}")
    if len(shape) < 2:
        raise UsageError(
            f"layer {name}: the array has the shape {shape}; expected samples on axis 0 and at least one more "
            f"axis for the channels; {remedy}"
        )


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
    if not 0 <= rows <= layer.shape[0]:
        raise ValueError(f"rows is {rows}, the array has {layer.shape[0]}")
    layer = replace(
        layer,
        shape=(rows, *layer.shape[1:]),
        recorded=attributes.get("recorded") is True,
        unfinished=rows < layer.shape[0],
    )
    layer = layer.with_channel_axis(_integer(attributes, "channel_axis", -1))
    return layer.with_quantization(Quantization.from_metadata(attributes.get("quantization")))


def _integer(attributes: Mapping[Any, Any], key: str, default: int) -> int:
    value = attributes.get(key, default)
    if type(value) is not int:
        raise TypeError(f"{key} is {value!r}, expected an integer")
    return value


def _fingerprint(array: zarr.Array[Any]) -> str:
    """SHA-256 (hex) of what the array is made of: dtype, chunk grid, codecs, fill value, and no number of rows."""
    document = array.metadata.to_dict()
    document.pop("attributes", None)
    document["shape"] = [None, *array.shape[1:]]
    return sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def codec_pipeline(path: str) -> Iterator[None]:
    """What is opened inside is decoded and encoded by the pipeline at `path`, whatever zarr's configuration says."""
    with _OPENING, zarr.config.set({"codec_pipeline.path": path}):
        yield


@contextlib.contextmanager
def decoding(threads: int) -> Iterator[None]:
    """What is read inside is decoded by `threads` threads over all reads, FETCHES chunks of a read at a time."""
    with zarr.config.set(_decoding(threads)):
        yield


def set_decoding(threads: int) -> None:
    """As `decoding`, for as long as this process lives."""
    zarr.config.set(_decoding(threads))


def _decoding(threads: int) -> dict[str, int]:
    return {"threading.max_workers": threads, "async.concurrency": FETCHES}
