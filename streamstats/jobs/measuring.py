"""What a worker does: it opens the array from a small description, reads it block by block, and returns kilobytes of
statistics, or says which rows cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..calibration.identity import file_range, identities, mask_identities, sampled
from ..calibration.layer import Layer, Selection
from ..calibration.reading.mask_reader import MaskReader
from ..calibration.reading.reader import Reader, open_reader
from ..coverage import Coverage, Rows
from ..errors import DamageError, DataError, LostError, NonFiniteError, StreamstatsError, UnstreamedError
from ..interrupts import check_wanted
from ..outputs.ledger import Measured
from ..statistics.masks import Mask, nonfinite
from ..statistics.meaning import InexactError
from ..statistics.statistics import StatisticsAccumulator, operations
from .blas import one_thread
from .plan import Part, Task, blocks


@dataclass(frozen=True)
class Unreadable:
    """Rows of a layer that cannot be read, and why; `lost` if their chunk does not exist."""

    layer: str
    rows: Rows
    reason: str
    lost: bool


@dataclass(frozen=True)
class Policy:
    """What to do about NaN and infinities (error, skip) and about rows that cannot be read (error, report).

    With `fill`, chunks that do not exist can be read: they hold the fill value. Damaged ones never do.
    """

    nonfinite: str = "error"
    unreadable: str = "error"
    fill: bool = False

    @classmethod
    def of(cls, nonfinite: str, missing: str) -> Self:
        """That of a job, which says of `missing` chunks error, report or fill."""
        return cls(nonfinite, "report" if missing == "report" else "error", missing == "fill")


STRICT = Policy()
Found = Measured | Unreadable
Reduced = tuple[list[Found], StreamstatsError | None]
"""What a task has found, and the error that ended it, if any."""


def measure_task(task: Task, layers: Mapping[str, Layer], policy: Policy) -> Reduced:
    """Measure the parts of `task`, one after the other, up to the first error."""
    found: list[Found] = []
    multiplies = any(operations(layers[part.layer].kinds, layers[part.layer].space) for part in task.parts)
    try:
        with one_thread() if multiplies else nullcontext():
            for part in task.parts:
                check_wanted()
                found.extend(_measure_under(policy, layers[part.layer], part, task.cut if task.cuts > 1 else None))
    except StreamstatsError as error:
        return found, error
    return found, None


def _measure_under(policy: Policy, layer: Layer, part: Part, cut: int | None) -> list[Found]:
    try:
        return [_measured(layer, part, policy, cut)]
    except DamageError:
        if policy.unreadable == "error":
            raise
        return [*_measure_what_can_be_read(layer, part, policy, cut)]


def _measured(layer: Layer, part: Part, policy: Policy, cut: int | None) -> Measured:
    """As `measure_part`; chunks that cannot be measured while they are decoded are decoded first."""
    try:
        return measure_part(layer, part, policy, cut, while_decoding=True)
    except UnstreamedError:
        return measure_part(layer, part, policy, cut)


def measure_part(
    layer: Layer,
    part: Part,
    policy: Policy,
    cut: int | None = None,
    *,
    while_decoding: bool = False,
) -> Measured:
    """Measure the rows of `part`, block by block; unless `while_decoding`, a block is read whole before it is measured.

    If the layer is measured in several cuts, `cut` says which one. Raises `DataError`, `NonFiniteError`,
    `UnstreamedError`.
    """
    files = file_range(layer, part.start, part.stop)
    before = sampled(layer, files) if layer.encoding is None else None  # before reading, so no change is missed
    masks_before = mask_identities(layer, (part.start, part.stop))
    with MaskReader(layer, fill=policy.fill) as masks, open_reader(layer, fill=policy.fill) as reader:
        masks.expect(blocks(layer, part))
        reader.expect(blocks(layer, part))
        accumulator = StatisticsAccumulator(layer.kinds, layer.space, layer.meaning, cut)
        _measure_blocks(layer, part, reader, masks, policy, accumulator, while_decoding=while_decoding)
        identified = identities(layer, files, reader.identified, reader.contents) if before is None else before
        filled = Coverage.of([*reader.filled, *masks.filled])
    in_tail = part.start >= layer.settled_rows
    rows = part.start, part.stop
    found, cuts = accumulator.found(), accumulator.cuts()
    return Measured(layer.name, rows, found, files.start, identified, filled, *masks_before, in_tail, cuts)


def _measure_what_can_be_read(layer: Layer, part: Part, policy: Policy, cut: int | None) -> Iterator[Found]:
    """Measure `part` one chunk of rows at a time, so that a damaged chunk costs no other rows."""
    height = (layer.encoding or layer).chunks[0]
    for start in range(part.start - part.start % height, part.stop, height):
        check_wanted()
        rows = replace(part, start=max(start, part.start), stop=min(start + height, part.stop))
        try:
            yield _measured(layer, rows, policy, cut)
        except DamageError as error:
            yield Unreadable(layer.name, (rows.start, rows.stop), str(error), isinstance(error, LostError))


def _measure_blocks(
    layer: Layer,
    part: Part,
    reader: Reader,
    masks: MaskReader,
    policy: Policy,
    accumulator: StatisticsAccumulator,
    *,
    while_decoding: bool,
) -> None:
    """Accumulate the blocks of `part`; unless `while_decoding`, a block is read whole before it is measured."""
    for selection in blocks(layer, part):
        check_wanted()
        mask = masks.read(selection)
        with _named(layer, selection):
            if while_decoding and mask is None:
                reader.measure(selection, accumulator)
            else:
                accumulator.add(reader.read(selection), selection, mask)
        if policy.nonfinite == "error" and not accumulator.all_finite:
            raise _nonfinite_error(layer, selection, reader.read(selection), mask)


@contextmanager
def _named(layer: Layer, selection: Selection) -> Iterator[None]:
    """Add layer and rows to an error of `Meaning`."""
    try:
        yield
    except InexactError as error:
        raise DataError(
            f"layer {layer.name}, rows {selection[0].start}:{selection[0].stop}: {error}; set `attributes: ignore` for "
            "this layer"
        ) from error


def _nonfinite_error(layer: Layer, selection: Selection, block: npt.NDArray[Any], mask: Mask | None) -> NonFiniteError:
    bad = nonfinite(block, layer.channel_axis, mask)
    bad = bad if layer.meaning is None else bad & ~layer.meaning.where(block)
    found: Any = bad.any(axis=tuple(axis for axis in range(1, block.ndim) if axis != layer.channel_axis))
    rows = np.flatnonzero(found.any(axis=1)) + selection[0].start
    channels = np.flatnonzero(found.any(axis=0)) + selection[layer.channel_axis].start
    more = f" and {len(channels) - 1} more" if len(channels) > 1 else ""
    return NonFiniteError(
        f"layer {layer.name}, channel {channels[0]}{more}, rows {rows[0]}:{rows[-1] + 1}: {bad.sum()} values are NaN "
        "or infinite; repair the data, or set `nonfinite: skip` to exclude them from sums and counts"
    )
