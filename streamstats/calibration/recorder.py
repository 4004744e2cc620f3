"""Recorder: append samples to a calibration store, layer by layer, in bounded memory.

Rows are written in whole chunks; the rest waits in memory until it fills a chunk or the recorder is closed. Rows are
written first and committed after, by the attribute `rows`, so a reader never counts a row that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from ..artifacts import check_layer_name
from ..errors import MismatchError, OutputError, StreamstatsError, UsageError
from ..quantization import Quantization
from .layer import ATTRIBUTES_KEY, DEFAULT_PIPELINE, Layer, check_values, codec_pipeline, describe

DEFAULT_CHUNK_BYTES = 2**20
V2_METADATA = (".zgroup", ".zarray", ".zattrs")
METADATA_NAMES = frozenset(("zarr.json", *V2_METADATA))


class Recorder:
    """Appends blocks of samples to the layers of a zarr v3 group at `store` (a local folder).

    Chunks hold whole samples, about `chunk_bytes` of them, compressed and with a checksum. At most one chunk a layer
    waits in memory. Use it as a context manager, or call `close`. Raises `OutputError` where nothing can be written.
    """

    def __init__(self, store: str | Path, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        self._store = str(store)
        self._chunk_bytes = chunk_bytes
        self._open: dict[str, _OpenLayer] = {}
        if any(Path(store, name).exists() for name in V2_METADATA):  # zarr would begin a v3 group that hides it
            raise UsageError(f"{store} is a zarr v2 store, which is only read; record into another folder")
        try:
            self._group = zarr.open_group(self._store, mode="a", zarr_format=3, use_consolidated=False)
        except Exception as error:
            raise OutputError(f"cannot write a calibration store at {store}: {error}") from error

    def append(
        self,
        layer: str,
        samples: npt.NDArray[Any],
        *,
        channel_axis: int = -1,
        quantization: Quantization | None = None,
    ) -> None:
        """Append `samples` (samples on axis 0) to `layer`, which is made at the first call.

        Raises `MismatchError` where shape, dtype, channel axis or quantisation differ from what the layer holds,
        `UsageError` for a name or values that cannot be a layer, `OutputError` where it cannot be written. A call
        that raises has appended nothing.
        """
        samples = np.asarray(samples)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        if layer not in self._open:
            self._open[layer] = self._open_layer(layer, samples, channel_axis, quantization)
        self._open[layer].append(samples, channel_axis, quantization)

    def close(self) -> None:
        """Write and commit what waits in memory."""
        for layer in self._open.values():
            layer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_layer(
        self, name: str, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None
    ) -> _OpenLayer:
        self._check_name(name)
        check_values(name, samples.dtype, samples.shape, "convert or reshape the samples")
        try:
            if name not in self._group:
                self._create(name, samples, channel_axis, quantization)
            array = self._open_array(name)
        except StreamstatsError:
            raise
        except Exception as error:
            raise OutputError(f"cannot open or create layer {name} in {self._store}: {error}") from error
        return _OpenLayer(array, describe(self._store, name, array))

    def _open_array(self, name: str) -> zarr.Array[Any]:
        if isinstance(self._group[name], zarr.Group):
            raise UsageError(f"{self._store}: {name} is a group of layers; choose another name")
        with codec_pipeline(DEFAULT_PIPELINE), zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(self._store, path=name, mode="r+")  # zarr ignores `config` for arrays that exist

    def _check_name(self, name: str) -> None:
        *above, last = check_layer_name(name).split("/")
        if METADATA_NAMES.intersection([*above, last]):
            raise UsageError(f"layer name {name!r} is not usable: zarr calls its own files so; rename the layer")
        for group in accumulate(above, "{}/{}".format):
            if group in self._group and isinstance(self._group[group], zarr.Array):
                raise UsageError(f"{self._store}: {group} is a layer, so {name} cannot be; rename it")

    def _create(
        self, name: str, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None
    ) -> None:
        layer = Layer(self._store, name, (0, *samples.shape[1:]), samples.dtype, (), (), 0)
        layer = layer.with_channel_axis(channel_axis).with_quantization(quantization)
        rows = max(1, self._chunk_bytes // max(1, layer.row_bytes))
        attributes: dict[str, Any] = {"channel_axis": layer.channel_axis, "rows": 0}
        if quantization is not None:
            attributes["quantization"] = quantization.to_metadata()
        self._group.create_array(
            name,
            shape=layer.shape,
            dtype=samples.dtype,
            chunks=(rows, *(max(1, extent) for extent in layer.shape[1:])),
            compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
            attributes={ATTRIBUTES_KEY: attributes},
        )


@dataclass
class _OpenLayer:
    """A layer being written: rows on disk, and the blocks that wait for a whole chunk."""

    array: zarr.Array[Any]
    layer: Layer
    waiting: list[npt.NDArray[Any]] = field(default_factory=list)

    def append(self, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None) -> None:
        self._check(samples, channel_axis, quantization)
        rows = sum(map(len, self.waiting)) + len(samples)
        whole = rows - (self.layer.rows + rows) % self.layer.chunks[0]
        if whole <= 0:
            self.waiting.append(samples.copy())
            return
        block = np.concatenate([*self.waiting, samples])  # a copy: zarr holds on to the last block it wrote
        self._write(block[:whole])
        self.waiting = [block[whole:].copy()]  # not a view, which would keep the whole block

    def flush(self) -> None:
        if any(map(len, self.waiting)):
            self._write(np.concatenate(self.waiting))
        self.waiting = []

    def _check(self, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None) -> None:
        self._match("sample shape", samples.shape[1:], self.layer.shape[1:])
        self._match("dtype", samples.dtype, self.layer.dtype)
        axis = self.layer.with_channel_axis(channel_axis).channel_axis
        self._match("channel axis", axis, self.layer.channel_axis)
        self._match("quantisation", quantization, self.layer.quantization)

    def _match(self, name: str, found: object, stored: object) -> None:
        if found != stored:
            raise MismatchError(f"layer {self.layer.name}: the {name} is {found}; the store holds {stored}")

    def _write(self, block: npt.NDArray[Any]) -> None:
        start, stop = self.layer.rows, self.layer.rows + len(block)
        try:
            self._commit(start)  # an array made by others may not say how many rows it has
            self.array.resize((stop, *self.array.shape[1:]))
            self.array[start:stop] = block
            self._commit(stop)
        except Exception as error:
            raise OutputError(f"cannot write rows {start}:{stop} of layer {self.layer.name}: {error}") from error
        self.layer = describe(self.layer.store, self.layer.name, self.array)

    def _commit(self, rows: int) -> None:
        attributes: Any = self.array.attrs.asdict().get(ATTRIBUTES_KEY, {})
        if attributes.get("rows") != rows:
            self.array.attrs[ATTRIBUTES_KEY] = {**attributes, "rows": rows}
