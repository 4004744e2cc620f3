"""Reading blocks through zarr: from any store and with any codec, but several times slower than from the files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import product
from stat import S_ISREG
from typing import Any

import numpy.typing as npt
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from ...coverage import Rows
from ...errors import DataError, StoreError, first_line
from ...statistics.statistics import StatisticsAccumulator
from ..layer import Layer, Selection
from ..sources.identities import Identity
from ..zarr_settings import DEFAULT_PIPELINE, codec_pipeline
from .parts import damage, is_passing, lost, new_block, overlap, relative, touched


class ZarrReader:
    """A `Reader` that reads through zarr."""

    def __init__(self, layer: Layer, *, fill: bool = False) -> None:
        self._layer = layer
        self._fill = fill
        self.filled: list[Rows] = []
        self.identified: dict[str, Identity] = {}
        try:
            with codec_pipeline(DEFAULT_PIPELINE):
                self._array = zarr.open_array(layer.source.zarr_store(), path=layer.name, mode="r")
        except StoreError:
            raise
        except Exception as error:
            raise DataError(f"zarr cannot open layer {layer.name}: {first_line(error)}; repair the store") from error

    def close(self) -> None:
        """As `Reader.close`: it holds nothing."""

    def expect(self, selections: Iterable[Selection]) -> None:
        """As `Reader.expect`: nothing to do, zarr fetches chunk by chunk."""

    def read(self, selection: Selection) -> npt.NDArray[Any]:
        """As `Reader.read`."""
        block = new_block(self._layer, selection)
        for shard in product(*touched(selection, self._layer.shards)):
            inside = overlap(selection, shard, self._layer.shards)
            try:
                self._read_into(inside, block[relative(inside, selection)])
            except DataError:
                if not self._fill:
                    raise
                for chunk in product(*touched(inside, self._layer.chunks)):
                    part = overlap(inside, chunk, self._layer.chunks)
                    self._read_or_fill(part, block[relative(part, selection)])
        return block

    def _read_into(self, inside: Selection, target: npt.NDArray[Any]) -> None:
        """Fill `target` with `inside`, which lies in one file."""
        shard = tuple(part.start // extent for part, extent in zip(inside, self._layer.shards, strict=True))
        key = self._array.metadata.encode_chunk_key(shard)
        try:
            self._check_stored(key, inside)
            self._array.get_basic_selection(inside, out=default_buffer_prototype().nd_buffer.from_numpy_array(target))
        except (DataError, StoreError):
            raise
        except Exception as error:
            raise damage(self._layer, inside, error, key) from error

    def _read_or_fill(self, part: Selection, target: npt.NDArray[Any]) -> None:
        try:
            self._read_into(part, target)
        except DataError as error:
            if is_passing(error):
                raise
            target[...] = 0 if self._array.fill_value is None else self._array.fill_value
            self.filled.append((part[0].start, part[0].stop))

    def _check_stored(self, key: str, inside: Selection) -> None:
        """Raise `LostError` for a missing file and `ValueError` for an empty one: zarr would read the fill value."""
        try:
            size = _stored_size(self._array, key)
        except FileNotFoundError as error:
            raise lost(self._layer, inside, key) from error
        if size == 0:
            raise ValueError("it is empty")

    def measure(self, selection: Selection, accumulator: StatisticsAccumulator) -> None:
        """As `Reader.measure`."""
        accumulator.add(self.read(selection), selection)


def _stored_size(array: zarr.Array[Any], key: str) -> int:
    """Bytes of the file `key`. Raises `FileNotFoundError` if it does not exist or is not a regular file."""
    store = array.store_path.store
    path = f"{array.store_path.path}/{key}"
    if isinstance(store, LocalStore):
        found = os.stat(store.root / path)
        if not S_ISREG(found.st_mode):
            raise FileNotFoundError(path)
        return found.st_size
    return int(sync(store.getsize(path)))
