"""Reading blocks through zarr: from any store and with any codec, but several times slower than from the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from stat import S_ISREG
from typing import Any

import numpy.typing as npt
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ZipStore

from ...coverage import Rows
from ...errors import DataError, LostError, StoreError, StreamstatsError, UsageError, first_line
from ...statistics.statistics import StatisticsAccumulator
from ..encoding.chunks import ends_in_blosc
from ..encoding.decoders import BLOSC_HEADER_BYTES, MISSING_CODEC
from ..layer import Layer, Selection
from ..sources.identities import Identity
from ..sources.retrying import without_secrets
from ..sources.unlinked import UnlinkedStore
from ..zarr_settings import DEFAULT_PIPELINE, codec_pipeline
from .parts import failure, lost, new_block, overlap, relative, touched

PIECE_BYTES = 2**22
"""Of a file that is fetched again to see whether it arrives: large shards fit no memory."""


class ZarrReader:
    """A `Reader` that reads through zarr."""

    def __init__(self, layer: Layer, *, fill: bool = False) -> None:
        self._layer = layer
        self._fill = fill
        self.filled: list[Rows] = []
        self.identified: dict[str, Identity] = {}
        self.contents: dict[str, int] = {}
        self._array = _opened(layer)
        self._is_local = _is_local(self._array.store_path.store)
        self._has_blosc = ends_in_blosc(self._array)

    def close(self) -> None:
        """As `Reader.close`: it holds nothing."""

    def expect(self, selections: Iterable[Selection]) -> None:
        """As `Reader.expect`: nothing to do, zarr fetches chunk by chunk."""

    def read(self, selection: Selection) -> npt.NDArray[Any]:
        """As `Reader.read`."""
        block = new_block(self._layer, selection)
        for shard in product(*touched(selection, self._layer.shards)):
            inside = overlap(selection, shard, self._layer.shards)
            target = block[relative(inside, selection)]
            try:
                self.read_into(inside, target)
            except LostError:
                if not self._fill:
                    raise
                target[...] = 0 if self._array.fill_value is None else self._array.fill_value
                self.filled.append((inside[0].start, inside[0].stop))
        return block

    def read_into(self, inside: Selection, target: npt.NDArray[Any]) -> None:
        """Fill `target` with `inside`, which lies in one file. Raises as `read`."""
        shard = tuple(part.start // extent for part, extent in zip(inside, self._layer.shards, strict=True))
        key = self._array.metadata.encode_chunk_key(shard)
        try:
            size = self._stored_size(key, inside)
            self._check_blosc(key, size)
            try:
                self._decode(inside, target)
            except Exception:
                if self._is_local:
                    raise
                self._check_arrives(key, size)  # if it does not, that is the error
                self._decode(inside, target)
        except StreamstatsError:
            raise
        except Exception as error:
            raise failure(self._layer, inside, error, key) from error

    def _decode(self, inside: Selection, target: npt.NDArray[Any]) -> None:
        self._array.get_basic_selection(inside, out=default_buffer_prototype().nd_buffer.from_numpy_array(target))

    def _stored_size(self, key: str, inside: Selection) -> int:
        """The bytes of the file `key`; −1 if a server does not tell. Raises `LostError` for a missing file and
        `ValueError` for an empty one: zarr would read the fill value for both.
        """
        try:
            with self._fetching():
                size = _size_of(self._array, key)
        except FileNotFoundError as error:
            if self._is_local or self._fetched(key, 0, 1) is None:  # a server may refuse the size alone
                raise lost(self._layer, inside, key) from error
            return -1
        if size == 0:
            raise ValueError("it is empty")
        return size

    def _check_arrives(self, key: str, size: int) -> None:
        """Raise an error unless the whole file `key`, of `size` bytes (−1: unknown), can be fetched, piece by piece."""
        done = 0
        while done < size:
            wanted = min(PIECE_BYTES, size - done)
            found = len(self._fetched(key, done, done + wanted) or b"")
            if found != wanted and found != size:  # a server that knows no ranges sends the whole
                raise ConnectionError(f"received {done + found:,} of {size:,} bytes")
            done = size if found == size else done + found

    def _check_blosc(self, key: str, size: int) -> None:
        """Raise `ValueError` for a chunk of Blosc that is cut off: numcodecs decodes it from memory behind it."""
        if not self._has_blosc or size < 0:
            return
        header = self._fetched(key, 0, BLOSC_HEADER_BYTES) or b""
        if int.from_bytes(header[12:BLOSC_HEADER_BYTES], "little") > size or len(header) < BLOSC_HEADER_BYTES:
            raise ValueError(f"a Blosc chunk is cut off after {size:,} bytes")

    def _fetched(self, key: str, start: int, stop: int) -> bytes | None:
        """The bytes `start` to `stop` of the file `key`, as far as it has them; None if it does not exist."""
        place = self._array.store_path
        with self._fetching():
            part = RangeByteRequest(start, stop)
            found = sync(place.store.get(f"{place.path}/{key}", default_buffer_prototype(), part))
        return None if found is None else bytes(found.to_bytes())

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """Errors of fetching over a network say nothing of the stored bytes, whatever their class."""
        try:
            yield
        except (StreamstatsError, OSError, ImportError, MemoryError):
            raise
        except Exception as error:
            if self._is_local:
                raise
            raise ConnectionError(f"{type(error).__name__}: {first_line(error)}") from error

    def measure(self, selection: Selection, accumulator: StatisticsAccumulator) -> None:
        """As `Reader.measure`."""
        accumulator.add(self.read(selection), selection)


def _opened(layer: Layer) -> zarr.Array[Any]:
    store = layer.source.zarr_store()
    try:
        with codec_pipeline(DEFAULT_PIPELINE):
            return zarr.open_array(store, path=layer.path, mode="r")
    except StoreError:
        raise
    except Exception as error:
        said = f"zarr cannot open layer {layer.name}: {without_secrets(error)}"
        if isinstance(error, MISSING_CODEC):
            raise UsageError(f"{said}; install what its codec needs, and run again") from error
        if not _is_local(store):  # its metadata was read before, when the layer was found
            raise StoreError(f"{said}; check the network and the store, then run again") from error
        raise DataError(f"{said}; repair the store") from error


def _is_local(store: Any) -> bool:
    return isinstance(store, LocalStore | ZipStore | UnlinkedStore)


def _size_of(array: zarr.Array[Any], key: str) -> int:
    """Bytes of the file `key`. Raises `FileNotFoundError` if it does not exist, `ValueError` if it is no file."""
    store = array.store_path.store
    path = f"{array.store_path.path}/{key}"
    if isinstance(store, LocalStore):
        found = os.stat(store.root / path)
        if not S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        return found.st_size
    return int(sync(store.getsize(path)))
