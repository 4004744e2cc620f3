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

from .exact import digit_count
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
        self._sums: dict[tuple[int, int], RunningSums | SampleSums] = {}

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
        return all(sums.all_finite for sums in self._sums.values())

    def found(self) -> Measures:
        """The measures of all channels."""
        whole = (0, self._shape[self._axis])
        if not self._sums:
            return self._new(whole).found()
        found = [self._sums[channels].found() for channels in sorted(self._sums)]
        return found[0] if [*self._sums] == [whole] else _joined(found)

    def _of(self, where: Where) -> RunningSums | SampleSums:
        channels = where[self._axis + 1].start, where[self._axis + 1].stop
        if channels not in self._sums:
            self._sums[channels] = self._new(channels)
        return self._sums[channels]

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
        """The most working memory, in bytes, of a pass over blocks of shape `block`: the loops' arrays and copies."""
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
