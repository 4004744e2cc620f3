"""What a worker does: it opens the array from its small description, reads block after block, and sends back statistics
of kilobytes, or says which rows cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.identity import Identities, file_range, identities
from ..calibration.layer import Layer, Selection
from ..calibration.reading.reader import Reader, open_reader
from ..coverage import Rows, join_rows
from ..errors import DataError, LostError, NonFiniteError
from ..interrupts import check_wanted
from ..statistics.extrema import ChannelExtrema
from ..statistics.mean import ChannelMean
from ..statistics.pieces import Accumulator
from ..statistics.positions import PositionSums
from ..statistics.spread import SampleSpread, SpreadOfParts
from .plan import Part, Task, blocks


@dataclass(frozen=True)
class Measured:
    """What was measured of the `rows` of a layer, and what identified their `files`, from the number `first_file` on.

    `filled` are the rows of what could not be read and was taken for the fill value. `spread`, and `positions`, whose
    channels are the elements of a sample in C order, are there where the layer wants them.
    """

    layer: str
    rows: Rows
    sums: ChannelMean
    extrema: ChannelExtrema
    first_file: int
    files: Identities
    filled: tuple[Rows, ...] = ()
    spread: SampleSpread | None = None
    positions: ChannelMean | None = None


@dataclass(frozen=True)
class Unreadable:
    """Rows of a layer that cannot be read, and why; `lost` if their chunk is not there at all."""

    layer: str
    rows: Rows
    reason: str
    lost: bool


@dataclass(frozen=True)
class Policy:
    """What to do about NaN and infinities (error, skip), and about rows that cannot be read (error, report, fill)."""

    nonfinite: str = "error"
    missing: str = "error"


STRICT = Policy()
Found = Measured | Unreadable
Reduced = tuple[list[Found], DataError | None]
"""What was found in a task, and the error that ended it."""


def measure_task(task: Task, layers: Mapping[str, Layer], policy: Policy) -> Reduced:
    """What a worker does for a task: measure its parts, one after the other, up to the first error."""
    found: list[Found] = []
    try:
        for part in task.parts:
            check_wanted()
            found.extend(_measure_under(policy, layers[part.layer], part))
    except DataError as error:
        return found, error
    return found, None


def _measure_under(policy: Policy, layer: Layer, part: Part) -> list[Found]:
    try:
        return [measure_part(layer, part, policy)]
    except NonFiniteError:
        raise
    except DataError:
        if policy.missing == "error":
            raise
        return [*_measure_what_can_be_read(layer, part, policy)]


def measure_part(layer: Layer, part: Part, policy: Policy, *, fill: bool = False) -> Measured:
    """Measure the rows of `part`, block by block; ranges of channels are measured apart and joined.

    With `fill`, what cannot be read has the fill value. Raises `DataError`, `NonFiniteError`.
    """
    files = file_range(layer, part.start, part.stop)
    before = identities(layer, files) if layer.encoding is None else None  # so the next run notices later changes
    positions = PositionSums(layer.dtype.newbyteorder("="), layer.sample_shape) if "positions" in layer.extras else None
    with open_reader(layer, fill=fill or policy.missing == "fill") as reader:
        reader.expect(selection for _, selections in blocks(layer, part) for selection in selections)
        measured = [
            _measure_channels(layer, reader, selections, stop - start, policy, positions, whole=not fill)
            for (start, stop), selections in blocks(layer, part)
        ] or [_measure_channels(layer, reader, (), 0, policy, positions, whole=True)]
        filled = join_rows(reader.filled)
        identified = identities(layer, files, reader.identified) if before is None else before
    sums, extrema, spreads = zip(*measured, strict=True)
    return Measured(
        layer.name,
        (part.start, part.stop),
        ChannelMean.join(sums),
        ChannelExtrema.join(extrema),
        files.start,
        identified,
        filled,
        SampleSpread.join(spreads) if "spread" in layer.extras else None,
        positions.found() if positions else None,
    )


def _measure_what_can_be_read(layer: Layer, part: Part, policy: Policy) -> Iterator[Found]:
    """The rows of `part`, a chunk's at a time: what is damaged takes no other rows with it."""
    height = (layer.encoding or layer).chunks[0]
    for start in range(part.start - part.start % height, part.stop, height):
        check_wanted()
        rows = replace(part, start=max(start, part.start), stop=min(start + height, part.stop))
        try:
            yield measure_part(layer, rows, policy, fill=policy.missing == "fill")
        except NonFiniteError:
            raise
        except DataError as error:
            yield Unreadable(layer.name, (rows.start, rows.stop), str(error), isinstance(error, LostError))


def _measure_channels(
    layer: Layer,
    reader: Reader,
    selections: Iterator[Selection] | Sequence[Selection],
    channels: int,
    policy: Policy,
    positions: PositionSums | None,
    *,
    whole: bool,
) -> tuple[ChannelMean, ChannelExtrema, SampleSpread]:
    """Measure the blocks `selections`; not `whole`: each is read before any of it is measured."""
    dtype, axis = layer.dtype.newbyteorder("="), layer.channel_axis
    accumulator, spread = Accumulator(dtype, channels), SpreadOfParts(dtype, channels)
    for selection in selections:
        check_wanted()
        if whole and not layer.extras:
            reader.measure(selection, accumulator)
        else:
            block = reader.read(selection)
            accumulator.add(block, axis)
            if "spread" in layer.extras:
                spread.add(block, axis, (selection[0].start, selection[0].stop))
            if positions:
                positions.add(block, selection[1:])
        if policy.nonfinite == "error" and not accumulator.all_finite:
            raise _nonfinite_error(layer, selection, reader.read(selection))
    measures = accumulator.measures()
    return ChannelMean.from_measures(measures), ChannelExtrema.from_measures(measures), spread.found()


def _nonfinite_error(layer: Layer, selection: Selection, block: npt.NDArray[Any]) -> NonFiniteError:
    bad = ~np.isfinite(block)
    found = bad.any(axis=tuple(axis for axis in range(1, block.ndim) if axis != layer.channel_axis))
    rows = np.flatnonzero(found.any(axis=1)) + selection[0].start
    channels = np.flatnonzero(found.any(axis=0)) + selection[layer.channel_axis].start
    more = f" and {len(channels) - 1} more" if len(channels) > 1 else ""
    return NonFiniteError(
        f"layer {layer.name}, channel {channels[0]}{more}, rows {rows[0]}:{rows[-1] + 1}: {bad.sum()} values are NaN "
        "or infinite; repair the data, or set `nonfinite: skip` to leave them out of sum and count"
    )
