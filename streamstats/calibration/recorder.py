"""Recorder: append samples to a calibration store, layer by layer, in bounded memory.

The recorder writes rows in whole chunks; the rest wait in memory until they fill a chunk, or until the recorder is
closed. It writes rows first and commits them afterwards, in the attribute `rows`: a reader never counts a row that is
not stored. A store has one recorder at a time, and so has each part of it: where several record at once, each has a
part of its own, and readers take the arrays of all parts for one layer.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsGroupError

from ..errors import DataError, OutputError, StreamstatsError, UsageError, counted, first_line
from ..layouts import Kernel
from ..quantization import Quantization
from ..storage.names import V2_METADATA, V3_METADATA, check_recorded_name
from .addresses import PARTS, check_part, part_path, placed
from .describing import ATTRIBUTES_KEY, describe, describe_array, mask_name, masked_layer, names_in
from .identity import file_key, file_range
from .layer import Layer, described
from .masking import given_mask, with_mask
from .readers import readers_of
from .recorded_model import check_model_fingerprint, check_weight_fingerprints, weights_among
from .sources.choose import source_of
from .sources.source import Source
from .sources.writing import IsOwn, Target, target_of
from .tensors import array_of
from .zarr_settings import DEFAULT_PIPELINE, codec_pipeline

DEFAULT_CHUNK_BYTES = 2**20
Block = list[npt.NDArray[Any]]


class Recorder:
    """Appends blocks of samples to the layers of a zarr v3 group at `store`: a folder, or a URL of an object store.

    A second recorder for the same store is refused, with the name of the process that records into it, until that one
    is closed or has ended. With a `part`, such as "rank3", it records into a part of the store: processes and hosts
    that record at once each name a part of their own. A run counts the rows of all parts as those of one layer.
    Chunks hold whole samples, about `chunk_bytes` of them, compressed and with a checksum. At most one chunk per layer
    waits in memory. Use it as a context manager, or call `close`. Raises `OutputError` if it cannot write to `store`.

    `model_fingerprint` identifies the weights of the model that is recorded, as a kind, a colon and a SHA-256 (hex);
    it is empty if the model is unknown. Samples of one model are not appended to those of another.
    `weight_fingerprints` do the same for the weight of each layer, by name, as far as they are known: a layer of the
    same name with another weight is another layer.

    With `buffered=False` nothing waits in memory: when `append` returns, its rows are on disk and committed, all at
    once: even if the process is killed or the power fails, the store and its readers have all of them or none.

    >>> with ss.Recorder("recorded.zarr") as recorder:
    ...     for batch in np.ones((3, 8, 5, 5, 4), np.float32):
    ...         recorder.append("block1/conv", batch)
    >>> ss.reduce("recorded.zarr")["block1/conv"].rows
    24
    """

    def __init__(
        self,
        store: str | Path,
        *,
        part: str = "",
        model_fingerprint: str = "",
        weight_fingerprints: Mapping[str, str] | None = None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        buffered: bool = True,
    ) -> None:
        self._model = check_model_fingerprint(model_fingerprint)
        self._weights = check_weight_fingerprints(weight_fingerprints)
        self._target = recorded_at(store, part)
        self._store, self._source, self._part = self._target.location, source_of(self._target.location), part
        self._chunk_bytes, self._buffered = chunk_bytes, buffered
        self._open: dict[str, _OpenLayer] = {}
        self._array_of: dict[str, str] | None = None  # of each layer; read when the first array is created
        self._closed, self._process = False, os.getpid()
        whole = target_of(store)
        _check_version(whole)
        try:
            self._group = _group(whole.zarr_store(durable=not buffered))
            if part:
                self._group = _group_of_part(self._group, part)
        except Exception as error:
            raise OutputError(
                f"cannot write a calibration store at {store}: {first_line(error)}; choose another folder"
            ) from error
        held = ExitStack()
        self._is_own: IsOwn = held.enter_context(self._target.claimed())
        self._release = weakref.finalize(self, held.close)  # also without `close`, when the recorder is dropped

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<Recorder into {self._store}: {counted(len(self._open), 'layer')} appended to{closed}>"

    def append(
        self,
        layer: str,
        samples: npt.ArrayLike,
        *,
        channel_axis: int = -1,
        quantization: Quantization | None = None,
        kernel: Kernel | None = None,
        layers: Mapping[str, Kernel | None] | None = None,
        tensor: str = "",
        mask: npt.ArrayLike | None = None,
        rows_are: str = "",
    ) -> None:
        """Append `samples` (samples on axis 0) to `layer`, which the first call creates.

        Samples are an array, or a tensor of torch on any device; bfloat16 and float8 are stored as they are.
        `kernel` is the one that the layer moves over its samples, None if unknown. If several layers read the samples,
        `layers` names them, each with its kernel; the array is then stored and counted once, and `layer`, its name, may
        be any. An empty `layers` describes a tensor that no layer reads. `tensor` is the model's name for the samples.
        `mask` says which positions count: booleans, or 1 and 0, in the shape of `samples` without the channel axis, or
        with 1 in place of an extent after the first. Either every call gives a mask, or none does. If rows are no
        samples, `rows_are` says what they are, such as "positions".

        Raises `MismatchError` if shape, dtype, channel axis, quantisation, layers, a known kernel, the shape of the
        mask or a known fingerprint, of the model or a weight, differ from those of the layer, `UsageError` for a name,
        values or a mask that a layer cannot have, and for a layer that reads another array, `OutputError` if writing
        fails. A call that raises has appended nothing.
        """
        samples = array_of(samples)
        readers = readers_of(layer, kernel, layers)
        appended = described(
            self._source.location, layer, samples, channel_axis, quantization, readers, tensor, rows_are
        )
        appended, given = given_mask(appended, samples.shape, mask)
        self._opened(appended).append([samples] if given is None else [samples, given], self._buffered)

    def next_row(
        self,
        layer: str,
        samples: npt.ArrayLike,
        *,
        channel_axis: int = -1,
        quantization: Quantization | None = None,
        kernel: Kernel | None = None,
    ) -> int:
        """The row at which `samples` would begin if they were appended; creates the layer if it does not exist.

        Raises as `append`.
        """
        readers = readers_of(layer, kernel, None)
        appended = described(self._source.location, layer, array_of(samples), channel_axis, quantization, readers)
        opened = self._opened(appended)
        return opened.layer.rows + opened.waiting_rows

    def take_back(self, layer: str, rows: int) -> None:
        """Take back the rows of `layer` from `rows` on: readers no longer count them; the next take their places.

        Raises `OutputError`.
        """
        opened = _OpenLayer.of(self._source, self._target, self._is_own, layer, self._open_array)
        opened.take_back(rows)
        self._open[layer] = opened

    def _opened(self, appended: Layer) -> _OpenLayer:
        name, weights = appended.name, weights_among(self._weights, appended.names)
        appended = replace(appended, model=self._model, weights=weights)
        self._check_process()
        if self._closed:
            raise UsageError(
                f"cannot append to layer {name} of {self._store}: the recorder is closed; open another one"
            )
        if name not in self._open:
            self._open[name] = self._open_layer(appended)
        opened = self._open[name]
        appended.check_continues(opened.layer, "the store holds", "append to another store")
        return opened

    def close(self) -> None:
        """Write and commit the rows that wait in memory, layer by layer, and let others record there.

        Raises the first `OutputError` at the end; rows that could not be written still wait, for another `close`.
        """
        self._check_process()
        errors, self._closed = [], True
        for layer in self._open.values():
            try:
                layer.flush()
            except StreamstatsError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if self._release.alive and self._open and not self._is_own():
            raise _taken(self._store)
        self._release()

    def _check_process(self) -> None:
        """Raise `UsageError` in a process that was forked from the one that opened the recorder."""
        if os.getpid() != self._process:
            raise UsageError(
                f"{self._store} is recorded into by process {self._process}, from which this process, {os.getpid()}, "
                "was forked; open a recorder in each process, with a `part` of its own"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it. Samples are committed even if the block raised an error: each `append` was complete."""
        self.close()

    def _open_layer(self, appended: Layer) -> _OpenLayer:
        name = appended.name
        try:
            existing = _existing_array(self._group, self._store, name)
            if existing is not None and masked_layer(existing):
                raise UsageError(
                    f"{self._store}: {name} is the mask of layer {masked_layer(existing)}; append it with the samples "
                    "of that layer, or rename the layer"
                )
            if existing is None:
                self._check_read_once(appended)
                self._create(appended)
            return _OpenLayer.of(self._source, self._target, self._is_own, name, self._open_array)
        except StreamstatsError:
            raise
        except Exception as error:
            raise OutputError(
                f"cannot open or create layer {name} in {self._store}: {first_line(error)}; check the folder"
            ) from error

    def _check_read_once(self, appended: Layer) -> None:
        """Note the layers that read the new array. Raises `UsageError` if one of them reads another one."""
        if self._array_of is None:
            self._array_of = stored_readers(self._store)  # the place of the part, if it has one
        for layer in appended.names:
            array = self._array_of.get(layer, appended.name)
            if array != appended.name:
                raise UsageError(
                    f"layer {layer} reads the array {array} of {self._store} already; expected one array for it: "
                    f"append its samples to {array}, or to another store"
                )
        self._array_of |= dict.fromkeys(appended.names, appended.name)

    def _open_array(self, name: str) -> zarr.Array[Any]:
        with codec_pipeline(DEFAULT_PIPELINE), zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(
                self._target.zarr_store(durable=not self._buffered), path=name, mode="r+"
            )  # zarr ignores `config` for arrays that exist

    def _create(self, layer: Layer) -> None:
        rows = max(1, self._chunk_bytes // max(1, layer.row_bytes))
        attributes: dict[str, Any] = {"channel_axis": layer.channel_axis, "recorded": True, "rows": 0}
        attributes["uuid"] = uuid4().hex
        attributes["order"] = len(self._open)
        attributes |= self._in_part
        if layer.mask is not None:
            attributes["mask"] = layer.mask.name
            self._create_mask(layer.mask, layer.name, rows)
        if layer.quantization is not None:
            attributes["quantization"] = layer.quantization.to_metadata()
        if layer.readers is not None:
            attributes["layers"] = layer.readers.to_metadata()
        elif layer.kernel is not None:
            attributes["kernel"] = layer.kernel.to_metadata()
        if layer.tensor:
            attributes["tensor"] = layer.tensor
        if layer.rows_are:
            attributes["rows_are"] = layer.rows_are
        if layer.model:
            attributes["model"] = layer.model
        if layer.weights:
            attributes["weights"] = dict(layer.weights)
        self._create_array(layer, rows, attributes)

    def _create_mask(self, mask: Layer, layer: str, rows: int) -> None:
        """Create the array `mask` of `layer`, which does not exist yet. Raises `UsageError` if its name is taken."""
        existing = _existing_array(self._group, self._store, mask.name)
        if existing is not None and masked_layer(existing) != layer:
            raise UsageError(f"{self._store}: {mask.name} is a layer already; rename the layer, or use another store")
        if existing is not None:  # a recorder was interrupted before it created the layer
            del self._group[mask.name]
        self._create_array(mask, rows, {"recorded": True, "mask_of": layer, **self._in_part})

    @property
    def _in_part(self) -> dict[str, str]:
        """What the attributes of an array say of the part that it is in."""
        return {"part": self._part} if self._part else {}

    def _create_array(self, array: Layer, rows: int, attributes: Mapping[str, Any]) -> None:
        """Create `array`, in chunks of `rows` whole samples."""
        self._group.create_array(
            array.name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(rows, *(max(1, extent) for extent in array.shape[1:])),
            compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
            attributes={ATTRIBUTES_KEY: attributes},
        )


def recorded_at(store: str | Path, part: str = "") -> Target:
    """The place of the recording at `store`, or of its `part`. Raises `UsageError` for one that cannot be recorded."""
    return target_of(f"{str(store).rstrip('/')}/{part_path(check_part(part))}" if part else store)


def _group(store: Store | str, path: str = "", attributes: Mapping[str, Any] | None = None) -> zarr.Group:
    """The group at `path`, which is created if it does not exist, perhaps by several processes at once."""
    given = {} if attributes is None else {"attributes": dict(attributes)}
    options: Any = {"mode": "a", "zarr_format": 3, "use_consolidated": False, **given}
    try:
        return zarr.open_group(store, path=path, **options)
    except ContainsGroupError:  # another process has created it meanwhile
        return zarr.open_group(store, path=path, **options)


def _group_of_part(whole: zarr.Group, part: str) -> zarr.Group:
    """The group of `part` in the group of the store, as a group of its own."""
    _group(whole.store, PARTS)
    return _group(whole.store, part_path(part), {ATTRIBUTES_KEY: {"part": part}})


def stored_layer(store: str | Path, name: str, part: str = "") -> Layer | None:
    """The layer `name`, with its mask, as `store`, or its `part`, holds it so far; None if it does not.

    Raises `UsageError` if `store` is not a zarr v3 group, or cannot have a layer of that name; `DataError` if its
    metadata is damaged.
    """
    place = recorded_at(store, part)
    group = _existing_group(place)
    array = None if group is None else _existing_array(group, place.location, name)
    if group is None or array is None:
        return None
    mask = None if (named := mask_name(array)) is None else _existing_array(group, place.location, named)
    return _described(source_of(place.location), name, [array] if mask is None else [array, mask])


def stored_readers(store: str | Path, part: str = "") -> dict[str, str]:
    """Layer → the array that it reads in `store`, outside its parts, or in its `part`; empty if there is none.

    Raises as `stored_layer`, and `DataError` if the store is damaged.
    """
    place = recorded_at(store, part)
    group = _existing_group(place)
    if group is None:
        return {}
    try:
        found = source_of(place.location).find()
    except UsageError:  # it has no arrays yet
        return {}
    own = {name: array for name, array in found.arrays.items() if not placed(name)[0]}
    for name, reason in found.unreadable.items():
        if not placed(name)[0]:
            raise DataError(f"{store}: array {name} cannot be read: {reason}; repair it, or append to another store")
    return {layer: name for name, array in own.items() for layer in names_in(name, array)}


def _existing_group(place: Target) -> zarr.Group | None:
    """The group at `place`, if it exists; consolidated metadata, which may be out of date, is not read."""
    _check_version(place)
    if V3_METADATA not in place.files():
        return None
    try:
        return zarr.open_group(place.zarr_store(), mode="r", use_consolidated=False)
    except Exception as error:
        raise UsageError(
            f"{place.location} is not a zarr group to record into: {first_line(error)}; record into another folder"
        ) from error


def _existing_array(group: zarr.Group, store: str, name: str) -> zarr.Array[Any] | None:
    """The array `name` of `group`, if it exists. Raises `UsageError` if the group cannot have such an array."""
    *above, _ = check_recorded_name(name).split("/")
    for path in accumulate(above, "{}/{}".format):
        if isinstance(_member(group, store, path), zarr.Array):
            raise UsageError(
                f"{store}: {path} is a layer, so {name} cannot be one: rename it, or append to another store"
            )
    found = _member(group, store, name)
    if isinstance(found, zarr.Group):
        raise UsageError(f"{store}: {name} is a group of layers; rename the layer, or append to another store")
    return found


def _member(group: zarr.Group, store: str, path: str) -> zarr.Array[Any] | zarr.Group | None:
    try:
        return group.get(path)
    except Exception as error:
        raise DataError(f"{store}: cannot read the metadata of {path}: {first_line(error)}; repair it") from error


def _check_version(place: Target) -> None:
    if place.files().intersection(V2_METADATA):  # zarr would create a v3 group that hides it
        raise UsageError(f"{place.location} is a zarr v2 store, which is read-only here; record into another folder")


def _taken(store: str) -> OutputError:
    return OutputError(
        f"{store}: another process records there now, or the claim of this one was removed; nothing more is written, "
        "and rows that were not committed before are lost; record them again into a part of their own"
    )


@dataclass
class _OpenLayer:
    """A layer being written: its array, and its mask's if it has one, and the blocks that wait until they fill a chunk.

    A block is a list of arrays with the same rows: the samples, and their mask. The rows of a mask count as committed
    with those of the layer.
    """

    source: Source
    target: Target
    is_own: IsOwn
    layer: Layer
    arrays: Sequence[zarr.Array[Any]]
    waiting: list[Block] = field(default_factory=list)

    @classmethod
    def of(
        cls, source: Source, target: Target, is_own: IsOwn, name: str, opened: Callable[[str], zarr.Array[Any]]
    ) -> _OpenLayer:
        """The layer `name`, whose arrays `opened` opens."""
        array = opened(name)
        mask = mask_name(array)
        arrays = [array] if mask is None else [array, opened(mask)]
        return cls(source, target, is_own, _described(source, name, arrays), arrays)

    @property
    def waiting_rows(self) -> int:
        """The rows that wait."""
        return sum(len(block[0]) for block in self.waiting)

    def append(self, block: Block, buffered: bool) -> None:
        if not buffered:
            if len(block[0]):
                self._write(block, durably=True)
            return
        rows = self.waiting_rows + len(block[0])
        whole = rows - (self.layer.rows + rows) % self.layer.chunks[0]
        if whole <= 0:
            self.waiting.append([part.copy() for part in block])
            return
        joined = _joined([*self.waiting, block])  # a copy: zarr keeps the last block that it wrote
        self._write([part[:whole] for part in joined])
        self.waiting = [[part[whole:].copy() for part in joined]]  # not a view, which would keep the whole block

    def flush(self) -> None:
        if self.waiting_rows:
            self._write(_joined(self.waiting))
        self.waiting = []

    def _write(self, block: Block, *, durably: bool = False) -> None:
        start, stop = self.layer.rows, self.layer.rows + len(block[0])
        if not self.is_own():
            raise _taken(self.layer.store)
        try:
            self._commit(start)  # an array that another tool made may lack the attribute `rows`
            for array, values in zip(self.arrays, block, strict=True):
                array.resize((stop, *array.shape[1:]))
                array[start:stop] = values
            if durably:
                self.target.sync(self._files(start, stop))
            self._commit(stop)
            if durably:
                self.target.sync([f"{part.name}/{V3_METADATA}" for part in self._parts])
        except Exception as error:
            why = first_line(error).partition(";")[0]  # what a store says to do is not what to do here
            raise OutputError(
                f"cannot write rows {start}:{stop} of layer {self.layer.name}: {why}; check the folder "
                f"{self.layer.store}/{self.layer.name}, and append them again"
            ) from error
        self.layer = _described(self.source, self.layer.name, self.arrays)

    def take_back(self, rows: int) -> None:
        """Commit `rows` rows, fewer than there are."""
        try:
            self._commit(rows)
            self.target.sync([f"{self.layer.name}/{V3_METADATA}"])
        except OSError as error:
            raise OutputError(
                f"cannot take back rows of layer {self.layer.name}: {error}; check {self.layer.store}"
            ) from error
        self.layer = _described(self.source, self.layer.name, self.arrays)

    @property
    def _parts(self) -> list[Layer]:
        """The layer, and its mask if it has one."""
        return [self.layer] if self.layer.mask is None else [self.layer, self.layer.mask]

    def _files(self, start: int, stop: int) -> list[str]:
        return [
            f"{part.name}/{file_key(part, number)}" for part in self._parts for number in file_range(part, start, stop)
        ]

    def _commit(self, rows: int) -> None:
        array = self.arrays[0]
        attributes: Any = array.attrs.asdict().get(ATTRIBUTES_KEY, {})
        if attributes.get("rows") != rows:
            array.attrs[ATTRIBUTES_KEY] = {**attributes, "rows": rows}


def _described(source: Source, name: str, arrays: Sequence[zarr.Array[Any]]) -> Layer:
    """The layer `name`, whose array is the first of `arrays`; the second, if there is one, is its mask."""
    layer = describe(source, name, arrays[0])
    masks = [describe_array(source, array.path, array) for array in arrays[1:]]
    return with_mask(layer, *masks) if masks else layer


def _joined(blocks: Sequence[Block]) -> Block:
    """The rows of all `blocks`, as one."""
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
