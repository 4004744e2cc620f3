"""Recorder: append samples to a calibration store, layer by layer, in bounded memory.

Rows are written in whole chunks; the rest waits in memory until it fills a chunk or the recorder is closed. Rows are
written first and committed after, by the attribute `rows`, so a reader never counts a row that is not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from ..artifacts import check_layer_name
from ..errors import MismatchError, OutputError, UsageError
from ..quantization import Quantization
from .layer import ATTRIBUTES_KEY, DEFAULT_PIPELINE, Layer, describe

DEFAULT_CHUNK_BYTES = 2**20


class Recorder:
    """Appends blocks of samples to the layers of a zarr v3 group at `store` (a local folder).

    Chunks hold whole samples, about `chunk_bytes` of them, compressed and with a checksum. At most one chunk a layer
    waits in memory. Use it as a context manager, or call `close`. Raises `OutputError` where nothing can be written.
    """

    def __init__(self, store: str | Path, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        self._store = str(store)
        self._chunk_bytes = chunk_bytes
        self._open: dict[str, _OpenLayer] = {}
        try:
            self._group = zarr.open_group(self._store, mode="a", zarr_format=3)
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
        `UsageError` for a name or values that cannot be a layer, `OutputError` where it cannot be written.
        """
        if layer not in self._open:
            self._open[layer] = self._open_layer(layer, samples, channel_axis, quantization)
        self._open[layer].append(np.asarray(samples), channel_axis, quantization)

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
        check_layer_name(name)
        if name not in self._group:
            self._create(name, samples, channel_axis, quantization)
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise UsageError(f"{self._store}: {name} is a group of layers; choose another name")
        return _OpenLayer(array, describe(self._store, name, array))

    def _create(
        self, name: str, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None
    ) -> None:
        layer = Layer(self._store, name, (0, *samples.shape[1:]), samples.dtype, (), (), 0)
        layer = layer.with_channel_axis(channel_axis).with_quantization(quantization)
        rows = max(1, self._chunk_bytes // max(1, layer.row_bytes))
        attributes: dict[str, Any] = {"channel_axis": layer.channel_axis, "rows": 0}
        if quantization is not None:
            attributes["quantization"] = quantization.to_metadata()
        try:
            self._group.create_array(
                name,
                shape=layer.shape,
                dtype=samples.dtype,
                chunks=(rows, *(max(1, extent) for extent in layer.shape[1:])),
                compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
                attributes={ATTRIBUTES_KEY: attributes},
                config={"write_empty_chunks": True},
            )
        except OSError as error:
            raise OutputError(f"cannot create layer {name} in {self._store}: {error}") from error


@dataclass
class _OpenLayer:
    """A layer being written: rows on disk, and the blocks that wait for a whole chunk."""

    array: zarr.Array[Any]
    layer: Layer
    waiting: list[npt.NDArray[Any]] = field(default_factory=list)

    def append(
        self, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None
    ) -> None:
        self._check(samples, channel_axis, quantization)
        self.waiting.append(samples.copy())
        rows = sum(map(len, self.waiting))
        whole = rows - (self.layer.rows + rows) % self.layer.chunks[0]
        if whole > 0:
            self._write(whole)

    def flush(self) -> None:
        self._write(sum(map(len, self.waiting)))

    def _check(self, samples: npt.NDArray[Any], channel_axis: int, quantization: Quantization | None) -> None:
        found = (samples.shape[1:], samples.dtype, channel_axis % max(1, samples.ndim), quantization)
        expected = (self.layer.shape[1:], self.layer.dtype, self.layer.channel_axis, self.layer.quantization)
        for name, left, right in zip(("sample shape", "dtype", "channel axis", "quantisation"), found, expected, strict=True):
            if left != right:
                raise MismatchError(f"layer {self.layer.name}: the {name} is {left}; the store holds {right}")

    def _write(self, rows: int) -> None:
        if rows == 0:
            return
        block = np.concatenate(self.waiting) if len(self.waiting) > 1 else self.waiting[0]
        start, stop = self.layer.rows, self.layer.rows + rows
        try:
            with zarr.config.set({"codec_pipeline.path": DEFAULT_PIPELINE}):
                self.array.resize((stop, *self.array.shape[1:]))
                self.array[start:stop] = block[:rows]
                self._commit(stop)
        except OSError as error:
            raise OutputError(f"cannot write rows {start}:{stop} of layer {self.layer.name}: {error}") from error
        self.waiting = [block[rows:]] if rows < len(block) else []
        self.layer = describe(self.layer.store, self.layer.name, self.array)

    def _commit(self, rows: int) -> None:
        attributes = dict(self.array.attrs[ATTRIBUTES_KEY])  # type: ignore[call-overload]
        self.array.attrs[ATTRIBUTES_KEY] = {**attributes, "rows": rows}
