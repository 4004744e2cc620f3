"""What both readers share: chunks that a selection meets, the buffers of a thread, and errors that name a chunk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, LostError, first_line
from ..encoding.decoders import Bytes
from ..layer import Layer, Selection

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


def is_passing(error: BaseException | None) -> bool:
    """Whether `error` is the fault of disk, network or memory: then the data may be sound, and must not be filled."""
    if isinstance(error, DataError) and not isinstance(error, LostError):
        return is_passing(error.__cause__)
    lies_wrong = isinstance(error, NotADirectoryError | IsADirectoryError)
    return isinstance(error, OSError | MemoryError) and not lies_wrong


def damage(layer: Layer, inside: Selection, error: Exception, key: str) -> DataError:
    """The error to raise when the part `inside`, which lies in the file `key`, cannot be read."""
    where = f"chunk {key} (rows {inside[0].start}:{inside[0].stop})"
    if is_passing(error):
        return DataError(
            f"layer {layer.name}: {where} cannot be read at the moment: {first_line(error)}; check the disk, the "
            "network and free memory, then run again"
        )
    return DataError(
        f"layer {layer.name}: {where} cannot be read: {first_line(error)}; repair the store, or set "
        "`missing: report` to skip these rows"
    )


def lost(layer: Layer, inside: Selection, key: str) -> LostError:
    """The error to raise when the file `key`, which holds the part `inside`, does not exist."""
    rows = f"rows {inside[0].start}:{inside[0].stop}"
    if layer.recorded:
        return LostError(
            f"layer {layer.name}: chunk {key} ({rows}) was recorded and is missing; restore it, record the layer "
            "again, or set `missing: report` to skip these rows"
        )
    return LostError(
        f"layer {layer.name}: chunk {key} ({rows}) is missing; restore it, or set `missing: fill` if the store omits "
        "chunks that hold only the fill value, or `missing: report` to skip these rows"
    )
