"""Reading blocks from the files of a layer, whose encoding is known.

Bytes go from a file into a buffer, and are decoded to their place in the block. A thread keeps its buffers, because
fresh memory costs more than reading.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, product
from typing import Any

import numpy as np
import numpy.typing as npt

from ...coverage import Rows
from ...errors import ChangedError, LostError, StoreError, StreamstatsError, UnstreamedError, first_line
from ...statistics.statistics import StatisticsAccumulator
from ..encoding.chunks import ChunkKeys, Encoding, is_stored
from ..encoding.content import contents_in
from ..encoding.decoders import Bytes
from ..layer import Layer, Selection
from ..sources.identities import MISSING, Identity
from ..sources.source import File, Folder
from .parts import failure, kept, lost, new_block, overlap, relative, touched
from .streaming import Stream
from .zarr_reader import ZarrReader

MOST_GATHERED = 1024
"""Files that are read in one call."""


class UndecodedError(ValueError):
    """A codec does not take the stored bytes of a chunk; sizes and checksums that are wrong are other errors."""


class FileReader:
    """A `Reader` that reads the files in `folder`; one of them is open at a time."""

    def __init__(
        self, layer: Layer, encoding: Encoding, keys: ChunkKeys, folder: Folder, *, fill: bool = False
    ) -> None:
        self._layer = layer
        self._encoding = encoding
        self._keys = keys
        self._fill = fill
        self.filled: list[Rows] = []
        self._folder = folder
        self._key = ""
        self._file: File | None = None
        self._index: npt.NDArray[np.int64] | None = None
        self._most_gathered = encoding.gathered_bytes if folder.gathers else 0
        self._offered = MOST_GATHERED
        self.identified: dict[str, Identity] = {}
        self.contents: dict[str, int] = {}

    def close(self) -> None:
        """Close the file and the folder."""
        self._close_file()
        self._folder.close()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
        self._key, self._file, self._index = "", None, None

    def expect(self, selections: Iterable[Selection]) -> None:
        """As `Reader.expect`."""
        shards = (shard for each in selections for shard in product(*touched(each, self._encoding.shards)))
        self._folder.expect(self._keys.key(shard) for shard, _ in groupby(shards))

    def read(self, selection: Selection) -> npt.NDArray[Any]:
        """As `Reader.read`. Raises `LostError` if a chunk is missing."""
        block = new_block(self._layer, selection)
        for shard in product(*touched(selection, self._encoding.shards)):
            self._read_into(block, shard, selection)
        return block

    def _read_into(self, block: npt.NDArray[Any], shard: Sequence[int], selection: Selection) -> None:
        """Fill what lies in `shard` of `block`, the part `selection` of the array."""
        inside = overlap(selection, shard, self._encoding.shards)
        key = self._keys.key(shard)
        with self._or_filled(inside, key, block[relative(inside, selection)]):
            self._open(key)
            if self._file is None:
                raise lost(self._layer, inside, key)
            self._read_shard(shard, inside, selection, block)

    @contextmanager
    def _or_filled(self, inside: Selection, key: str, target: npt.NDArray[Any]) -> Iterator[None]:
        """Turn an error into a `DataError`, or fill `target`, the part `inside`, if it is not stored."""
        try:
            yield
        except (StoreError, ChangedError):
            raise
        except Exception as error:
            if self._zarr_reads(inside, error, target):
                return
            if self._fill and isinstance(error, LostError):
                target[...] = self._encoding.fill
                self.filled.append((inside[0].start, inside[0].stop))
            elif isinstance(error, StreamstatsError):
                raise
            else:
                raise failure(self._layer, inside, error, key) from error

    def _zarr_reads(self, inside: Selection, error: Exception, target: npt.NDArray[Any]) -> bool:
        """Whether zarr decodes the part `inside`, which this reader could not, and fills `target` with it.

        It is not asked about Blosc, of which it decodes chunks whose end is missing.
        """
        if not isinstance(error, UndecodedError) or self._encoding.compressor == "blosc":
            return False
        try:
            ZarrReader(self._layer).read_into(inside, target)
        except StreamstatsError:
            return False
        return True

    def measure(self, selection: Selection, accumulator: StatisticsAccumulator) -> None:
        """As `Reader.measure`: compressed chunks are measured while they are decoded."""
        in_a_row = all(len(numbers) == 1 for numbers in touched(selection, self._encoding.chunks)[1:])
        streams = in_a_row and (self._encoding.compressor or self._most_gathered)
        taken = accumulator.intake(selection) if streams else None
        if taken is None:
            accumulator.add(self.read(selection), selection)
            return
        block = new_block(self._layer, selection) if accumulator.takes_blocks else None
        stream = Stream(self._encoding, *taken, block)
        apart = self._stream(selection, stream, block)
        stream.finish(selection, self._layer.channel_axis)
        for inside in apart:
            accumulator.add(self.read(inside), inside)
        if block is not None:
            accumulator.add_measured(block, selection)

    def _stream(self, selection: Selection, stream: Stream, block: npt.NDArray[Any] | None) -> list[Selection]:
        """Give the chunks of `selection` to `stream`, and return the parts that are not rows of whole, stored chunks.

        If the stream fills `block`, these are read into it, too, and none is returned.
        """
        apart = []
        for shard in self._left_by_gathering(selection, stream):
            inside = overlap(selection, shard, self._encoding.shards)
            key = self._keys.key(shard)
            with self._explained(inside, key):
                self._open(key)
                run = self._run(shard, inside)
                if run is not None:
                    stream.take(*run)
            if run is None and block is not None:
                self._read_into(block, shard, selection)
                stream.take_decoded(block[relative(inside, selection)].nbytes)
            elif run is None:
                apart.append(inside)
        return apart

    @contextmanager
    def _explained(self, inside: Selection, key: str) -> Iterator[None]:
        """Turn an error in the part `inside`, which lies in the file `key`, into a `DataError` that names the chunk."""
        try:
            yield
        except (StoreError, ChangedError):
            raise
        except Exception as error:
            self.read(inside)  # which names the chunk, if it cannot be read
            raise UnstreamedError(
                f"layer {self._layer.name}: chunk {key} cannot be measured while it is decoded: {first_line(error)}; "
                "please report this as a bug"
            ) from error

    def _left_by_gathering(self, selection: Selection, stream: Stream) -> Iterator[tuple[int, ...]]:
        """Give small files to `stream`, many per call; yields the coordinates of the files to read one by one."""
        rows, *others = touched(selection, self._encoding.shards)
        height, *extents = self._encoding.chunks
        whole = range(-(-selection[0].start // height), selection[0].stop // height)
        if not self._most_gathered or [part.stop - part.start for part in selection[1:]] != extents:
            whole = range(0)
        number = rows.start
        while number < rows.stop:
            while number in whole:
                offered = range(number, min(whole.stop, number + self._offered))
                done = self._gather(offered, selection[1:], stream)
                self._offered = min(MOST_GATHERED, max(1, 2 * done))
                if not done:
                    break
                number += done
            if number < rows.stop:
                yield number, *(numbers[0] for numbers in others)
                number += 1

    def _gather(self, numbers: range, sample: Selection, stream: Stream) -> int:
        """Give the first of the files `numbers` along axis 0 to `stream` in one call; returns how many it was.

        `sample`, the part along the other axes, is that of a whole chunk.
        """
        height, *extents = self._encoding.chunks
        beside = [part.start // extent for part, extent in zip(sample, extents, strict=True)]
        keys = [self._keys.key((number, *beside)) for number in numbers]
        inside = (slice(numbers.start * height, numbers.stop * height), *sample)
        buffer = kept("stored", self._most_gathered)
        with self._explained(inside, keys[0]):
            found = self._folder.gather(keys, buffer, self._encoding.most_stored_bytes)
            done = len(found.places)
            for key, (size, changed) in zip(keys[:done], found.identities.tolist(), strict=True):
                self._identify(key, (size, changed))
            self.contents.update(zip(keys[:done], contents_in(buffer, found.places).tolist(), strict=True))
            stream.take(buffer, found.places)
        return done

    def _open(self, key: str) -> None:
        """Open the file `key`, unless it is open, and read its index; `_file` is None if it does not exist."""
        if key == self._key:
            return
        self._close_file()
        self._file = self._folder.file(key)
        self._identify(key, MISSING if self._file is None else self._file.identity)
        if self._file is None:
            self._key = key
            return
        if not self._file.size:
            raise ValueError("it is empty")
        if key not in self.contents:
            self.contents[key] = self._file.content()
        size = self._encoding.index_bytes
        if size:
            start = self._size - size if self._encoding.index_at_end else 0
            if start < 0:
                raise ValueError(f"it has {start + size} bytes, too few for the index of a shard ({size} bytes)")
            self._index = self._encoding.index(self._read_bytes(start, np.empty(size, np.uint8)))
        self._key = key

    def _identify(self, key: str, identity: Identity) -> None:
        """Raise `ChangedError` if the file `key` had another identity when it was opened before."""
        if self.identified.setdefault(key, identity) != identity:
            raise ChangedError(f"layer {self._layer.name}: chunk {key} was replaced while it was read; run again")

    @property
    def _size(self) -> int:
        """Bytes of the open file."""
        assert self._file is not None
        return self._file.size

    def _read_shard(self, shard: Sequence[int], inside: Selection, selection: Selection, block: Any) -> None:
        """Fill the part `inside` of `block` from the open file."""
        encoding = self._encoding
        for chunk in product(*touched(inside, encoding.chunks)):
            part = overlap(inside, chunk, encoding.chunks)
            target = block[relative(part, selection)]
            with self._or_filled(part, self._key, target):
                self._read_chunk(shard, chunk, part, target)

    def _read_chunk(self, shard: Sequence[int], chunk: Sequence[int], part: Selection, target: Any) -> None:
        """Fill `target` with `part`, which lies in `chunk`, from the open file."""
        encoding = self._encoding
        place = self._place(shard, chunk)
        if place is None:  # zarr does not store chunks of fill values in a shard; our recorder does
            if self._layer.recorded:
                raise lost(self._layer, part, f"{tuple(chunk)} of {self._key}")
            target[...] = encoding.fill
            return
        corner = [extent * number for extent, number in zip(encoding.chunks, chunk, strict=True)]
        within = tuple(slice(p.start - c, p.stop - c) for p, c in zip(part, corner, strict=True))
        if encoding.is_raw:
            self._read_raw(place, within, target)
        else:
            self._decode(self._read_bytes(place[0], kept("stored", place[1])), within, target)

    def _run(self, shard: Sequence[int], inside: Selection) -> tuple[Bytes, npt.NDArray[np.int64]] | None:
        """Stored bytes, and the places of chunks in them, if `inside` is a row of whole chunks that are all stored."""
        encoding = self._encoding
        rows, *others = touched(inside, encoding.chunks)
        shape = tuple(part.stop - part.start for part in inside)
        if self._file is None or shape != (len(rows) * encoding.chunks[0], *encoding.chunks[1:]):
            return None
        places = self._places(shard, rows, [numbers[0] for numbers in others])
        if places.min() < 0 or (places[:, 0] > self._size - places[:, 1]).any():  # a sum of the two could overflow
            return None
        in_order = places[places[:, 0].argsort()]
        if (in_order[:-1].sum(axis=1) > in_order[1:, 0]).any():  # chunks that share bytes: decoding changes headers
            return None
        first, last = int(places[:, 0].min()), int(places.sum(axis=1).max())
        if last - first > len(rows) * encoding.most_stored_bytes:
            return None
        return self._read_bytes(first, kept("stored", last - first)), places - (first, 0)

    def _places(self, shard: Sequence[int], rows: range, others: Sequence[int]) -> npt.NDArray[np.int64]:
        """Offset and length of the chunks numbered `rows` on axis 0, int64[chunks, 2], as the index has them."""
        if self._index is None:
            return np.array([[0, self._size]])
        first, *rest = (
            number - place * extent
            for number, place, extent in zip((rows.start, *others), shard, self._index.shape, strict=False)
        )
        return self._index[(slice(first, first + len(rows)), *rest)]

    def _place(self, shard: Sequence[int], chunk: Sequence[int]) -> tuple[int, int] | None:
        """Offset and length of `chunk` in the open file; None if not stored. Raises `ValueError` for a bad index."""
        place = self._places(shard, range(chunk[0], chunk[0] + 1), chunk[1:])[0]
        if not is_stored(place):
            return None
        offset, size = place.tolist()
        if offset < 0 or size < 0 or offset + size > self._size:
            raise ValueError(
                f"its index puts chunk {tuple(chunk)} at {offset}:{offset + size}, but it has {self._size} bytes"
            )
        if size > self._encoding.most_stored_bytes:
            raise ValueError(f"chunk {tuple(chunk)} takes {size} bytes, but decodes to {self._encoding.chunk_bytes}")
        return offset, size

    def _read_raw(self, place: tuple[int, int], within: Selection, target: Any) -> None:
        """Fill `target` with the part `within` a chunk that is not encoded, reading only the rows of that part."""
        offset, size = place
        encoding = self._encoding
        if size != encoding.chunk_bytes:
            raise ValueError(f"it has {size} bytes, expected {encoding.chunk_bytes}")
        rows = within[0]
        row_bytes = encoding.chunk_bytes // encoding.chunks[0]
        shape = (rows.stop - rows.start, *encoding.chunks[1:])
        out = _bytes_of(target) if target.shape == shape else None
        read = self._read_bytes(
            offset + rows.start * row_bytes, kept("chunk", shape[0] * row_bytes) if out is None else out
        )
        if out is None:
            target[...] = read.view(encoding.dtype).reshape(shape)[:, *within[1:]]

    def _decode(self, stored: Bytes, within: Selection, target: Any) -> None:
        """Fill `target` with the part `within` a chunk, decoding its `stored` bytes."""
        encoding = self._encoding
        out = _bytes_of(target) if target.shape == encoding.chunks else None
        chunk = kept("chunk", encoding.chunk_bytes) if out is None else out
        try:
            encoding.decode(stored, chunk)
        except (RuntimeError, zlib.error) as error:
            raise UndecodedError(str(error)) from error
        if out is None:
            target[...] = chunk.view(encoding.dtype).reshape(encoding.chunks)[within]

    def _read_bytes(self, start: int, out: Bytes) -> Bytes:
        """`out`, filled from byte `start` of the open file. Raises `ValueError` if the file is too short."""
        assert self._file is not None
        self._file.read(start, out)
        return out


def _bytes_of(target: npt.NDArray[Any]) -> Bytes | None:
    """The memory of `target` as bytes, None where it is not contiguous."""
    return target.reshape(-1).view(np.uint8) if target.flags.c_contiguous else None
