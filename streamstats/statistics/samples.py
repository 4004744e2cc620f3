"""Running sums that go sample by sample: what `RunningSums` finds, and the moments of the exact sums of samples.

One pass serves both, also while chunks are being decoded: the sums over all samples are the sums of the samples' sums.
If samples arrive in parts, the parts of the same rows follow each other; their sums wait until other rows begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled import foreign
from ..compiled.cache import POINTER, SIZE, address, load
from ..errors import MismatchError
from .exact import ExactSum, carried, digit_count
from .loops import ARGUMENTS, MODULES, loop, room
from .pieces import NARROWEST, arrangement
from .running import Filled, Intake, Measures, SampleMoments, check_block, give, nonfinite_in, together

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Rows = tuple[int, int]

FEWEST_JOINED = 32
"""The fewest joined rows of a sample: a strip of the loops."""
MOST_SAMPLES = 2**20
"""The maximum number of samples that are squared between carries: each adds less than 2^41 to a digit."""
VALUE_BITS = 31
MOST_VALUES = 2**VALUE_BITS
"""The limit of values per channel in one sample: so many deposits fit a digit."""
SAMPLE_MODULES = (*MODULES, f"{__package__}.sample_kernels", __name__, foreign.__name__)


COUNT_DIGITS = 4
"""Digits of the sum of the squares of 2^64 counts."""
WORDS, LEFT, PART_WORDS = 21, 7, 8
"""Words in the state of the loop over samples, which `SampleSums._words` fills; the word with the units that remain of
the current sample; words of the state of the loop over parts."""


class SampleSums:
    """Takes blocks of samples of `shape`, with the channels on `axis`, and sums over each sample separately."""

    def __init__(self, dtype: np.dtype[Any], shape: Sequence[int], axis: int) -> None:
        self.dtype, self.channels, self._axis = dtype, shape[axis], axis
        rows, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
        if rows * inner >= MOST_VALUES:
            raise MismatchError(
                f"samples of shape {tuple(shape)} have {rows * inner:,} values per channel; expected fewer than "
                f"{MOST_VALUES:,} for statistics that sum each sample separately; request none of them for this layer"
            )
        self._sample_values = rows * inner
        self._values = self._uncarried = 0
        digits = digit_count(dtype) + 2
        self._sums, self._totals = np.zeros((2, digits, self.channels), np.int64)
        self._moments = np.zeros((moment_digits(dtype), self.channels), np.int64)
        self._unit = self.channels * inner
        runs, self._joined = _arrangement(rows, self.channels, inner)
        self._run = 1 if runs else max(1, inner)
        self._joint = Filled.empty(dtype, self._joined * self.channels * self._run)
        self._single = Filled.empty(dtype, self.channels * self._run)
        self._room = room()
        self._state = self._words(rows, inner if runs else 1, runs=runs)
        self._open_rows: Rows = (0, 0)
        self._open = np.zeros((0, digits, self.channels), np.int64)
        self._open_values = np.zeros(0, np.int64)
        self._open_bounds = Filled.empty(dtype, self.channels)

    def _words(self, rows: int, inner: int, *, runs: bool) -> npt.NDArray[np.int64]:
        """The state of the loop over samples, as `_definition` reads it."""
        widths = [self.channels if runs else n * self.channels * self._run for n in (self._joined, 1)]
        arrays = [each.ctypes.data for each in (self._room, self._sums, self._totals, self._moments)]
        loops = [address(loop(self.dtype, runs=runs)), *widths, inner, self._joined]
        units = [self._unit * self.dtype.itemsize, rows, rows]
        fold = [self.channels, self._run]
        filled = [*self._joint.addresses, *self._single.addresses]
        return np.array([*loops, *units, *filled, *fold, *arrays, self._sample_values], np.int64)

    def add(self, block: Array, rows: Rows, *, whole: bool) -> None:
        """Take `block`, [rows, …] in any layout: the samples `rows`, or, unless `whole`, a part of each of them."""
        check_block(block, self._axis + 1, self.dtype, self.channels)
        if not whole:
            self._add_parts(block, rows)
            return
        intake = self.intake(block.shape)
        if intake is None:
            return
        as_it_lies = block.flags.c_contiguous and block.flags.aligned and block.dtype.isnative
        for samples in [block] if as_it_lies else block:
            memory = np.require(samples, self.dtype, ["C", "A"])
            _over_samples(self.dtype)(memory.ctypes.data, memory.size // self._unit, *intake[2:])
            self.took(memory.nbytes)

    def intake(self, shape: Sequence[int]) -> Intake | None:
        """How the loop takes all of the whole samples of a block of `shape`, in C order; None if they have no values.

        The caller passes the number of bytes that the loop has taken to `took`.
        """
        self._settle_open()
        if not prod(shape):
            return None
        self._make_room(shape[0])
        function = address(_over_samples(self.dtype))
        return Intake(self._unit * self.dtype.itemsize, function, 0, 0, self._state.ctypes.data, 0, 0, 0)

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """As `RunningSums.take`."""
        return give(_over_samples(self.dtype), memory, intake)

    def rest(self, values: Array) -> None:
        """As `LoopSums.rest`: here, every row is a unit."""
        _over_samples(self.dtype)(values.ctypes.data, len(values), 0, 0, self._state.ctypes.data, 0, 0, 0)
        self.took(values.nbytes)

    def took(self, size: int) -> None:
        """Count the values in `size` bytes that the loop has taken through an intake."""
        self._values += size // (self.dtype.itemsize * self.channels)

    @property
    def all_finite(self) -> bool:
        """Whether all values so far are finite."""
        return not any(sums[-2:].any() for sums in self._filled())

    @property
    def nonfinite(self) -> Counts:
        """(NaN, infinities) so far, int64[2]."""
        return nonfinite_in(self._filled())

    def _filled(self) -> tuple[Array, ...]:
        """The sums of values: each value is in one of them."""
        return self._sums, self._totals, self._joint.sums, self._single.sums, *self._open

    def found(self) -> Measures:
        """The measures of all samples so far."""
        self._settle_open()
        joint = self._joint.folded(self._joined, self.channels, self._run)
        folded = [joint, self._single.folded(1, self.channels, self._run), self._open_bounds]
        _, low, high = together(folded, self.dtype, self.channels)
        sums, nan, infinite = self._totals[:-2].copy(), self._totals[-2].copy(), self._totals[-1].copy()
        count = self._values - nan - infinite
        return Measures(self.dtype, count, sums, nan, infinite, low, high, self._moments_found())

    def _moments_found(self) -> SampleMoments:
        squares, products, counts = (carried(each) for each in _parts_of(self._moments[:-1], self.dtype))
        return SampleMoments(self._moments[-1].copy(), squares, products, counts)

    def _add_parts(self, block: Array, rows: Rows) -> None:
        """Add a part of each of the samples `rows`."""
        outer, inner = prod(block.shape[1 : self._axis + 1]), prod(block.shape[self._axis + 2 :])
        self._add_open(block, rows, np.full(len(block), outer, np.int64), inner)

    def add_chosen(self, values: Array, rows: Rows, numbers: Counts) -> None:
        """Take chosen values of the samples `rows`, one sample after the other: `numbers` int64[rows] per channel."""
        self._add_open(values, rows, numbers, 1)

    def _add_open(self, values: Array, rows: Rows, outer: Counts, inner: int) -> None:
        """Add values to the open samples, `outer` times `inner` to each; if these are not `rows`, open `rows` first."""
        if rows != self._open_rows:
            self._settle_open()
            self._open_rows, self._open = rows, np.zeros((len(outer), *self._sums.shape), np.int64)
            self._open_values = np.zeros(len(outer), np.int64)
            self._make_room(len(outer))
        if not values.size:
            return
        native = np.require(values, self.dtype, ["C", "A"])
        bounds = self._open_bounds.addresses[1:]
        unit = self.channels * inner * self.dtype.itemsize
        arrays = [address(loop(self.dtype, runs=inner > 1)), self.channels, inner, unit, self._open[0].nbytes]
        words = np.array([*arrays, *bounds, self._room.ctypes.data], np.int64)
        _over_parts()(native.ctypes.data, len(outer), outer.ctypes.data, self._open.ctypes.data, words.ctypes.data)
        self._open_values += outer * inner
        self._values += int(outer.sum()) * inner

    def _settle_open(self) -> None:
        if len(self._open):
            arrays = [each.ctypes.data for each in (self._open_values, self._totals, self._moments)]
            _settling(self.dtype)(self._open.ctypes.data, len(self._open), self.channels, *arrays)
        self._open_rows, self._open = (0, 0), self._open[:0]

    def _make_room(self, samples: int) -> None:
        """Carry if `samples` more could overflow a digit."""
        self._uncarried += samples
        if self._uncarried > MOST_SAMPLES:
            self._totals[:-2] = ExactSum.from_raw(self.dtype, self._totals[:-2]).digits
            for each in _parts_of(self._moments[:-1], self.dtype):
                each[:] = carried(each)
            self._uncarried = samples


def square_digits(dtype: np.dtype[Any]) -> int:
    """The digits of the sum of the squares of 2^64 samples' sums, each of fewer than `MOST_VALUES` values."""
    return digit_count(dtype, 2, 2 * VALUE_BITS)


def product_digits(dtype: np.dtype[Any]) -> int:
    """The digits of the sum of the products of 2^64 samples' sums and their numbers of values."""
    return digit_count(dtype, 1, 2 * VALUE_BITS)


def moment_digits(dtype: np.dtype[Any]) -> int:
    """The rows of the moments of samples: digits of squares, of products and of squared counts, and one of counts."""
    return square_digits(dtype) + product_digits(dtype) + COUNT_DIGITS + 1


def _parts_of(moments: Array, dtype: np.dtype[Any]) -> list[Array]:
    """The rows of squares, of products, and the others."""
    squares, products = square_digits(dtype), product_digits(dtype)
    return [moments[:squares], moments[squares : squares + products], moments[squares + products :]]


def _arrangement(rows: int, channels: int, inner: int) -> tuple[bool, int]:
    """As `arrangement`, but for one sample: its joined rows are folded at its end, so there must be enough of them."""
    runs, _ = arrangement(rows, channels, inner)
    most = max(1, min(NARROWEST // max(1, channels * inner), rows // FEWEST_JOINED))
    even = next((joined for joined in range(most, most // 2, -1) if rows % joined == 0), most)
    return runs, 1 if runs else even


@cache
def _over_samples(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop over samples of `dtype`; it takes the arguments of `loops`, with its state in place of the sums."""
    return load(f"samples-{dtype.name}", ARGUMENTS, lambda: _definition(dtype), SAMPLE_MODULES)


@cache
def _over_parts() -> Callable[..., None]:
    """The function that adds a part of each sample: (values, samples, units of each, sums, PART_WORDS words)."""
    return load("parts", (POINTER, SIZE, POINTER, POINTER, POINTER), _parts_definition, SAMPLE_MODULES)


@cache
def _settling(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The function that settles sums [samples, D + 2, channels]: (sums, samples, channels, values, totals, moments)."""
    arguments = (POINTER, SIZE, SIZE, POINTER, POINTER, POINTER)
    return load(f"settle-{dtype.name}", arguments, lambda: _settling_definition(dtype), SAMPLE_MODULES)


# Compiled


def _definition(dtype: np.dtype[Any]) -> Callable[..., None]:
    import numba

    from .sample_kernels import fold, settle

    carray, call, at, address_of = numba.carray, foreign.caller(), foreign.at(), foreign.address_of()
    digits, rows = digit_count(dtype) + 2, moment_digits(dtype)
    squared, multiplied = square_digits(dtype), square_digits(dtype) + product_digits(dtype)

    def over_samples(data, units, channels, inner, sums, low, high, room):  # type: ignore[no-untyped-def]
        state = carray(sums, (WORDS,), np.int64)
        loop, joint_width, width, run, joined, unit, of_sample = state[:7]
        joint, joint_low, joint_high, single, single_low, single_high = state[8:14]
        number, short, space = state[14], state[15], state[16]
        place = address_of(data)
        while units > 0:
            taken = min(units, state[LEFT])
            together = taken // joined
            behind = together * joined
            if together:
                call(loop, (place, together, joint_width, run, joint, joint_low, joint_high, space))
            if behind < taken:
                rest = place + behind * unit
                call(loop, (rest, taken - behind, width, run, single, single_low, single_high, space))
            place += taken * unit
            units -= taken
            state[LEFT] -= taken
            if state[LEFT] == 0:
                state[LEFT] = of_sample
                one = carray(at(state[17]), (digits, number), np.int64)
                fold(carray(at(joint), (digits, joined, number, short), np.int64), one)
                fold(carray(at(single), (digits, 1, number, short), np.int64), one)
                totals = carray(at(state[18]), (digits, number), np.int64)
                moments = carray(at(state[19]), (rows, number), np.int64)
                products, counts = moments[squared:multiplied], moments[multiplied:]
                settle(one, state[20], totals, moments[:squared], products, counts)

    return over_samples


def _parts_definition() -> Callable[..., None]:
    import numba

    carray, call, address_of = numba.carray, foreign.caller(), foreign.address_of()

    def over_parts(data, samples, units, sums, words):  # type: ignore[no-untyped-def]
        loop, channels, inner, unit, state, low, high, room = carray(words, (PART_WORDS,), np.int64)
        place, found = address_of(data), address_of(sums)
        outer = carray(units, (samples,), np.int64)
        for sample in range(samples):
            if outer[sample]:
                call(loop, (place, outer[sample], channels, inner, found + sample * state, low, high, room))
            place += outer[sample] * unit

    return over_parts


def _settling_definition(dtype: np.dtype[Any]) -> Callable[..., None]:
    import numba

    from .sample_kernels import settle

    carray = numba.carray
    digits, rows = digit_count(dtype) + 2, moment_digits(dtype)
    squared, multiplied = square_digits(dtype), square_digits(dtype) + product_digits(dtype)

    def settle_all(sums, samples, channels, values, totals, moments):  # type: ignore[no-untyped-def]
        each, numbers = carray(sums, (samples, digits, channels), np.int64), carray(values, (samples,), np.int64)
        into, found = carray(totals, (digits, channels), np.int64), carray(moments, (rows, channels), np.int64)
        products, counts = found[squared:multiplied], found[multiplied:]
        for sample in range(samples):
            settle(each[sample], numbers[sample], into, found[:squared], products, counts)

    return settle_all
