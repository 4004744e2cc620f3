"""What both readers share: chunks that a selection meets, the buffers of a thread, and errors that name a chunk."""

from __future__ import annotations

import lzma
import threading
import zlib
from collections.abc import Sequence
from gzip import BadGzipFile
from io import UnsupportedOperation
from math import prod
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import zarr
from zarr.errors import MetadataValidationError

from ...errors import DamageError, LostError, StoreError, StreamstatsError, UsageError
from ..encoding.decoders import MISSING_CODEC, Bytes
from ..layer import Layer, Selection
from ..sources.links import LinkError
from ..sources.retrying import without_secrets

_KEPT = threading.local()


def touched(selection: Selection, extents: Sequence[int]) -> list[range]:
    """Along each axis, the numbers of the chunks of shape `extents` that `selection` meets."""
    return [range(part.start // n, -(-part.stop // n)) for part, n in zip(selection, extents, strict=True)]


def overlap(selection: Selection, chunk: Sequence[int], extents: Sequence[int]) -> Selection:
    """The part of `selection` that lies in the chunk numbered `chunk`, in coordinates of the array."""
    return tuple(
        slice(max(part.start, number * n), min(part.stop, (number + 1) * n))
        for part, number, n in zip(selection, chunk, extents, strict=True)
    )


def relative(part: Selection, selection: Selection) -> Selection:
    """`part` in coordinates of `selection`."""
    return tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, selection, strict=True))


def kept(purpose: str, size: int) -> Bytes:
    """`size` bytes of the buffer that this thread keeps for `purpose`."""
    buffer: Bytes | None = getattr(_KEPT, purpose, None)
    if buffer is None or buffer.size < size:
        buffer = None
        setattr(_KEPT, purpose, None)  # free the smaller one before allocating the larger
        buffer = np.empty(size, np.uint8)
        setattr(_KEPT, purpose, buffer)
    return buffer[:size]


def new_block(layer: Layer, selection: Selection) -> npt.NDArray[Any]:
    """The buffer that this thread keeps for blocks, in the shape of `selection`."""
    shape = tuple(part.stop - part.start for part in selection)
    return kept("block", prod(shape) * layer.dtype.itemsize).view(layer.dtype).reshape(shape)


DAMAGE = (ValueError, RuntimeError, EOFError, zlib.error, lzma.LZMAError, BadZipFile, BadGzipFile)
"""What readers and codecs raise for bytes that are not what they should be, with NotADirectoryError, IsADirectoryError,
and an OSError of the codec bz2."""
NO_DAMAGE = (*MISSING_CODEC, RecursionError, UnsupportedOperation, MetadataValidationError)
"""Which of these say nothing of the bytes."""
BZ2_SAYS = "Invalid data stream"


def is_damage(error: BaseException) -> bool:
    """Whether `error` says that stored bytes are lost or wrong. All others, unknown ones too, say nothing of them."""
    if isinstance(error, StreamstatsError):
        return isinstance(error, DamageError)
    if isinstance(error, NotADirectoryError | IsADirectoryError) or str(error) == BZ2_SAYS:
        return True
    return isinstance(error, DAMAGE) and not isinstance(error, NO_DAMAGE)


def failure(layer: Layer, inside: Selection, error: Exception, key: str) -> StreamstatsError:
    """The error to raise when `error` kept the part `inside`, which lies in the file `key`, from being read."""
    where = f"layer {layer.name}: chunk {key} (rows {inside[0].start}:{inside[0].stop})"
    said = without_secrets(error)
    if isinstance(error, LinkError):
        return UsageError(f"{where} is not read: {said}")
    if is_damage(error):
        return DamageError(
            f"{where} cannot be read: {said}; repair the store, or run a job with `missing: report`, which skips "
            "these rows"
        )
    kind = type(error).__name__
    if isinstance(error, MISSING_CODEC):
        return UsageError(
            f"{where} cannot be decoded here: {kind}: {said}; install what its codec needs, and run again"
        )
    if isinstance(error, AssertionError | TypeError | LookupError | AttributeError | RecursionError):
        return StreamstatsError(
            f"{where} cannot be decoded by zarr {zarr.__version__}: {kind}: {said}; try another version of zarr, or "
            "store the layer with other codecs"
        )
    return StoreError(
        f"{where} cannot be read at the moment: {kind}: {said}; check the disk, the network and free memory, then run "
        "again"
    )


def lost(layer: Layer, inside: Selection, key: str) -> LostError:
    """The error to raise when the file `key`, which holds the part `inside`, does not exist."""
    rows = f"rows {inside[0].start}:{inside[0].stop}"
    if layer.recorded:
        return LostError(
            f"layer {layer.name}: chunk {key} ({rows}) was recorded and is missing; restore it, record the layer "
            "again, or run a job with `missing: report`, which skips these rows"
        )
    return LostError(
        f"layer {layer.name}: chunk {key} ({rows}) is missing; restore it, or set `missing: fill` if the store omits "
        "chunks that hold only the fill value, or run a job with `missing: report`, which skips these rows"
    )
