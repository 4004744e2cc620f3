"""One pass over the values of a layer, for all statistics of single values or of the sums of samples.

Blocks may be parts of samples and ranges of channels. Each range of channels has sums of its own, which `found` joins.
Unless a statistic needs the sums of samples, the pass does not tell samples apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .exact import ExactSum, digit_count
from .pieces import NARROWEST, WIDEST
from .running import Intake, Measures, RunningSums, SampleSquares
from .samples import SQUARES, SampleSums

Array = npt.NDArray[Any]
Where = tuple[slice, ...]
"""A part of an array: a slice per axis, with start and stop, rows first."""


class ValuePass:
    """Sums over blocks of samples of `shape` with the channels on `axis`; with `by_sample`, sample by sample."""

    def __init__(self, dtype: np.dtype[Any], shape: Sequence[int], axis: int, *, by_sample: bool) -> None:
        self.dtype, self._shape, self._axis, self._by_sample = dtype, tuple(shape), axis, by_sample
        self._channels = (0, 0)
        self._sums: RunningSums | SampleSums | None = None
        self._found: dict[tuple[int, int], Measures] = {}  # of ranges of channels that are done
        self._finite = True

    def add(self, block: Array, where: Where) -> None:
        """Take `block`, in any layout: the part `where` of the array."""
        sums = self._of(where)
        if isinstance(sums, SampleSums):
            sums.add(block, (where[0].start, where[0].stop), whole=self._is_whole(where))
        else:
            sums.add(block, self._axis + 1)

    def intake(self, where: Where) -> tuple[RunningSums | SampleSums, Intake] | None:
        """The sums for the channels in `where`, and how a loop takes its values in C order.

        None if the caller must use `add` instead.
        """
        sums, shape = self._of(where), [part.stop - part.start for part in where]
        if isinstance(sums, RunningSums):
            intake = sums.intake(shape, self._axis + 1)
        else:
            intake = sums.intake(shape) if self._is_whole(where) else None
        return None if intake is None else (sums, intake)

    @property
    def all_finite(self) -> bool:
        """Whether all values so far are finite."""
        return self._finite and (self._sums is None or self._sums.all_finite)

    def found(self) -> Measures:
        """The measures of all channels."""
        self._settle()
        if not self._found:
            return self._new((0, self._shape[self._axis])).found()
        found = [self._found[channels] for channels in sorted(self._found)]
        return found[0] if len(found) == 1 else _joined(found)

    def _of(self, where: Where) -> RunningSums | SampleSums:
        channels = where[self._axis + 1].start, where[self._axis + 1].stop
        if self._sums is None or channels != self._channels:
            self._settle()
            self._channels, self._sums = channels, self._new(channels)
        return self._sums

    def _settle(self) -> None:
        """Keep what was found of a range of channels, and let go of what the loops work in."""
        if self._sums is not None:
            found, before = self._sums.found(), self._found.get(self._channels)
            self._found[self._channels] = found if before is None else _added(before, found)
            self._finite = self.all_finite
            self._sums = None

    def _new(self, channels: tuple[int, int]) -> RunningSums | SampleSums:
        extent = channels[1] - channels[0]
        if self._by_sample:
            shape = (*self._shape[: self._axis], extent, *self._shape[self._axis + 1 :])
            return SampleSums(self.dtype, shape, self._axis)
        return RunningSums(self.dtype, extent)

    def _is_whole(self, where: Where) -> bool:
        """Whether `where` holds whole samples, apart from the range of channels."""
        others = [(part, extent) for part, extent in zip(where[1:], self._shape, strict=True)]
        del others[self._axis]
        return all((part.start, part.stop) == (0, extent) for part, extent in others)

    @classmethod
    def working_bytes(
        cls, dtype: np.dtype[Any], shape: Sequence[int], axis: int, block: Sequence[int], *, by_sample: bool
    ) -> int:
        """Peak working memory, in bytes, of a pass over blocks of shape `block`: the loops' arrays and copies."""
        channels, row = shape[axis], int(np.prod(shape, dtype=object)) * dtype.itemsize
        seen = max(channels, min(WIDEST, max(NARROWEST, row)))  # rows and short runs are joined
        loops = COPIES * 8 * (digit_count(dtype) + 5) * seen
        if not by_sample:
            return loops
        squares = COPIES * 8 * (digit_count(SQUARES) + 2) * channels
        cut = list(block[1:]) != list(shape)
        waiting = block[0] * block[axis + 1] * 8 * (digit_count(dtype) + 2) if cut else 0
        return loops + squares + waiting


COPIES = 4
"""Copies of the loops' arrays that are held while these are folded, carried and sent."""


def _added(one: Measures, other: Measures) -> Measures:
    """The measures of two sets of values of the same channels, as one."""
    squares = None
    if one.squares is not None and other.squares is not None:
        digits = ExactSum.from_raw(SQUARES, one.squares.digits + other.squares.digits).digits
        samples = one.squares.samples + other.squares.samples
        squares = SampleSquares(samples, digits, one.squares.beyond + other.squares.beyond)
    return Measures(
        one.dtype,
        one.count + other.count,
        ExactSum.from_raw(one.dtype, one.digits + other.digits).digits,
        one.nan + other.nan,
        one.infinite + other.infinite,
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        squares,
    )


def _joined(found: Sequence[Measures]) -> Measures:
    """The measures of all channels, from those of consecutive ranges of channels."""
    arrays: dict[str, Any] = {
        each.name: np.concatenate([getattr(one, each.name) for one in found], axis=-1)
        for each in fields(Measures)
        if each.name not in ("dtype", "squares")
    }
    squares = [one.squares for one in found if one.squares is not None]
    if squares:
        arrays["squares"] = SampleSquares(
            *(np.concatenate([getattr(one, each.name) for one in squares], axis=-1) for each in fields(SampleSquares))
        )
    return Measures(found[0].dtype, **arrays)
