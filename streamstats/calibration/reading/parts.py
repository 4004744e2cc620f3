"""Parts of arrays: the chunks that a selection meets, the buffers that a thread reads into, and what is said of those
that cannot be read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, LostError, first_line
from ..encoding.chunks import Bytes
from ..layer import Layer, Selection

_KEPT = threading.local()


def touched(selection: Selection, extents: Sequence[int]) -> list[range]:
    """The numbers of the chunks of `extents` that `selection` meets, along each axis."""
    return [range(part.start // n, -(-part.stop // n)) for part, n in zip(selection, extents, strict=True)]


def overlap(selection: Selection, chunk: Sequence[int], extents: Sequence[int]) -> Selection:
    """The part of `selection` that lies in `chunk`, in coordinates of the array."""
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
        setattr(_KEPT, purpose, None)  # let go of the smaller one before taking the larger
        buffer = np.empty(size, np.uint8)
        setattr(_KEPT, purpose, buffer)
    return buffer[:size]


def new_block(layer: Layer, selection: Selection) -> npt.NDArray[Any]:
    """The block of this thread, in the shape of `selection`."""
    shape = tuple(part.stop - part.start for part in selection)
    return kept("block", prod(shape) * layer.dtype.itemsize).view(layer.dtype).reshape(shape)


def is_passing(error: BaseException | None) -> bool:
    """Whether `error` says nothing of the data: what it keeps from being read is never filled."""
    if isinstance(error, DataError) and not isinstance(error, LostError):
        return is_passing(error.__cause__)
    lies_wrong = isinstance(error, NotADirectoryError | IsADirectoryError)
    return isinstance(error, OSError | MemoryError) and not lies_wrong


def damage(layer: Layer, inside: Selection, error: Exception, key: str) -> DataError:
    """The error that says that the part `inside`, in the file `key`, cannot be read."""
    where = f"chunk {key} (rows {inside[0].start}:{inside[0].stop})"
    if is_passing(error):
        return DataError(f"layer {layer.name}: {where} cannot be read now: {first_line(error)}; run again when it can")
    return DataError(
        f"layer {layer.name}: {where} cannot be read: {first_line(error)}; repair the store, or set "
        "`missing: report` to go on without these rows"
    )


def lost(layer: Layer, inside: Selection, key: str) -> LostError:
    """The error that says that the file `key`, which holds the part `inside`, is not there."""
    rows = f"rows {inside[0].start}:{inside[0].stop}"
    if layer.recorded:
        return LostError(
            f"layer {layer.name}: chunk {key} ({rows}) was recorded and is missing; restore it, or record the layer "
            "again, or set `missing: report` to go on without these rows"
        )
    return LostError(
        f"layer {layer.name}: chunk {key} ({rows}) is missing; restore it, or set `missing: fill` if the store leaves "
        "out chunks that hold nothing but the fill value, or `missing: report` to go on without these rows"
    )
