"""One pass over the values of a layer, for all statistics of single values or of the sums of samples.

Blocks may be parts of samples and ranges of channels. Each range of channels has sums of its own, which `found` joins.
Unless a statistic needs the sums of samples, the pass does not tell samples apart. What few statistics need is measured
by riders, which take the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .exact import ExactSum, digit_count
from .masks import Mask, chosen
from .riders import COPIES, Chain, Rider, RiderKind, Taker, Tally, Where
from .running import Intake, Measures, RunningSums, SampleMoments, widest
from .samples import SampleSums, moment_digits

Array = npt.NDArray[Any]


class ValuePass:
    """Sums over blocks of samples of `shape` with the channels on `axis`; with `by_sample`, sample by sample.

    `riders` measure more of the same values; what they find is in `Measures.beside`, by their names.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        axis: int,
        *,
        by_sample: bool,
        riders: Mapping[str, RiderKind] | None = None,
    ) -> None:
        self.dtype, self._shape, self._axis, self._by_sample = dtype, tuple(shape), axis, by_sample
        self._make_riders = riders or {}
        self._channels = (0, 0)
        self._sums: RunningSums | SampleSums | None = None
        self._riders: dict[str, Rider] = {}
        self._found: dict[tuple[int, int], tuple[Measures, dict[str, Tally]]] = {}  # of ranges of channels
        self._finite = True

    def add(self, block: Array, where: Where, mask: Mask | None = None) -> None:
        """Take `block`, in any layout: the part `where` of the array; with a `mask`, only positions where it is true.

        Riders then get these one after the other, so those that use `where` are not for masked layers.
        """
        sums = self._of(where)
        rows = where[0].start, where[0].stop
        block = as_counted(block)
        values = block if mask is None else chosen(block, self._axis + 1, mask)
        if isinstance(sums, RunningSums):
            sums.add(values, self._axis + 1)
        elif mask is None:
            sums.add(values, rows, whole=self._is_whole(where))
        else:
            sums.add_chosen(values, rows, mask.sum(axis=tuple(range(1, mask.ndim)), dtype=np.int64))
        for rider in self._riders.values():
            rider.add(values, where)

    def intake(self, where: Where) -> tuple[Taker, Intake] | None:
        """What takes the values in `where`, and how a loop passes them to it in C order.

        None if the caller must use `add` instead.
        """
        if self.dtype == np.bool_:
            return None  # see `as_counted`
        shape = [part.stop - part.start for part in where]
        if not prod(shape):
            return None
        sums = self._of(where)
        if isinstance(sums, RunningSums):
            intake = sums.intake(shape, self._axis + 1)
        else:
            intake = sums.intake(shape) if self._is_whole(where) else None
        if intake is None or not self._riders:
            return None if intake is None else (sums, intake)
        taken = [(rider, rider.intake(shape)) for rider in self._riders.values()] if self._is_whole(where) else []
        intakes = [(rider, found) for rider, found in taken if found is not None]
        if len(intakes) < len(self._riders):
            return None
        chain = Chain([(sums, intake), *intakes])
        return chain, chain.intake

    @property
    def all_finite(self) -> bool:
        """Whether all values so far are finite."""
        return self._finite and (self._sums is None or self._sums.all_finite)

    @property
    def nonfinite(self) -> tuple[int, int]:
        """(NaN, infinities) so far."""
        now = np.zeros(2, np.int64) if self._sums is None else self._sums.nonfinite
        before = [(int(each.nan.sum()), int(each.infinite.sum())) for each, _ in self._found.values()]
        nan, infinite = map(sum, zip(now.tolist(), *before, strict=True))
        return nan, infinite

    def found(self) -> Measures:
        """The measures of all channels."""
        self._settle()
        if not self._found:
            self._begin((0, self._shape[self._axis]))
            self._settle()
        found = [self._found[channels] for channels in sorted(self._found)]
        measures = [each for each, _ in found]
        tallies = {name: found[0][1][name].beside([each[name] for _, each in found[1:]]) for name in self._make_riders}
        whole = measures[0] if len(measures) == 1 else _joined(measures)
        return replace(whole, beside={name: tally.arrays for name, tally in tallies.items()})

    def _of(self, where: Where) -> RunningSums | SampleSums:
        channels = where[self._axis + 1].start, where[self._axis + 1].stop
        if self._sums is None or channels != self._channels:
            self._settle()
            return self._begin(channels)
        return self._sums

    def _begin(self, channels: tuple[int, int]) -> RunningSums | SampleSums:
        """Begin a range of channels."""
        shape = (*self._shape[: self._axis], channels[1] - channels[0], *self._shape[self._axis + 1 :])
        self._channels = channels
        self._riders = {name: make(self.dtype, shape, self._axis) for name, make in self._make_riders.items()}
        sums = SampleSums(self.dtype, shape, self._axis) if self._by_sample else None
        self._sums = sums or RunningSums(self.dtype, shape[self._axis])
        return self._sums

    def _settle(self) -> None:
        """Keep what was found of a range of channels, and let go of what the loops work in."""
        if self._sums is not None:
            found = self._sums.found(), {name: rider.found() for name, rider in self._riders.items()}
            before = self._found.get(self._channels)
            self._found[self._channels] = found if before is None else _added(before, found)
            self._finite = self.all_finite
            self._sums, self._riders = None, {}

    def _is_whole(self, where: Where) -> bool:
        """Whether `where` holds whole samples, apart from the range of channels."""
        others = [(part, extent) for part, extent in zip(where[1:], self._shape, strict=True)]
        del others[self._axis]
        return all((part.start, part.stop) == (0, extent) for part, extent in others)

    @classmethod
    def working_bytes(
        cls,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        axis: int,
        block: Sequence[int],
        *,
        by_sample: bool,
        masked: bool = False,
        riders: Iterable[RiderKind] = (),
    ) -> int:
        """Peak working memory, in bytes, of a pass over blocks of shape `block`: the loops' arrays and copies."""
        loops = COPIES * 8 * (digit_count(dtype) + 5) * widest(dtype, shape, axis)
        loops += sum(rider.working_bytes(dtype, tuple(shape), axis) for rider in riders)
        if dtype == np.bool_:
            loops += int(np.prod(block, dtype=object))
        if not by_sample:
            return loops
        moments = COPIES * 8 * moment_digits(dtype) * shape[axis]
        in_parts = masked or list(block[1:]) != list(shape)
        waiting = block[0] * block[axis + 1] * 8 * (digit_count(dtype) + 2) if in_parts else 0
        return loops + moments + waiting


def as_counted(block: Array) -> Array:
    """`block`; if it is of booleans, with 1 for every byte that is not 0, as numpy counts them."""
    if block.dtype != np.bool_ or not block.size or block.view(np.uint8).max() <= 1:
        return block
    counted: Array = block.view(np.uint8) != 0
    return counted


Found = tuple[Measures, dict[str, Tally]]


def _added(one: Found, other: Found) -> Found:
    """What was found in two sets of values of the same channels, as one."""
    return _summed(one[0], other[0]), {name: tally.plus(other[1][name]) for name, tally in one[1].items()}


def _summed(one: Measures, other: Measures) -> Measures:
    """The measures of both."""
    return Measures(
        one.dtype,
        one.count + other.count,
        ExactSum.from_raw(one.dtype, one.digits + other.digits).digits,
        one.nan + other.nan,
        one.infinite + other.infinite,
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        one.moments.plus(other.moments) if one.moments and other.moments else None,
    )


def _joined(found: Sequence[Measures]) -> Measures:
    """The measures of all channels, from those of consecutive ranges of channels."""
    arrays: dict[str, Any] = {
        each.name: np.concatenate([getattr(one, each.name) for one in found], axis=-1)
        for each in fields(Measures)
        if each.name not in ("dtype", "moments", "beside")
    }
    moments = [one.moments for one in found if one.moments is not None]
    if moments:
        arrays["moments"] = SampleMoments(
            *(np.concatenate([getattr(one, each.name) for one in moments], axis=-1) for each in fields(SampleMoments))
        )
    return Measures(found[0].dtype, **arrays)
