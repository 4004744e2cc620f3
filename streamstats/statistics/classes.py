"""ClassSums: the rider that sums the values of each class of positions per channel, and its loops.

Each position of a sample belongs to one class. Values of a class are gathered, then summed by the loops of `loops`.
The class with the most positions is left out: its sums are what the others leave of the sums over all values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled import foreign
from ..compiled.cache import address, load
from .exact import carried, digit_count
from .loops import ARGUMENTS, MODULES, loop, room
from .pieces import LONGEST_PIECE, NARROWEST
from .riders import COPIES, Rider, Tally, Where
from .running import Filled, Intake, Measures, check_block, give

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

CLASS_MODULES = (*MODULES, f"{__package__}.class_kernels", __name__, foreign.__name__)
GATHERED_BYTES = 2**18
"""Bytes that are gathered before they are summed."""
FEWEST_JOINED = 32
"""The fewest joined rows of one class for which room is left where values are gathered: a strip."""
NEXT, UNITS, LABELS, STARTS, CLASSES, REST, LOOP, JOINED, CAPACITY, GATHERED, ROOM, TAKEN, ENDS, HEAD = range(14)
"""Words of the state of a loop: which unit of the sample comes next, of how many; the addresses of the labels of units,
or of the positions of each class, and of where these begin; the classes; the one left out; the loop that sums; the rows
it takes as one; values that fit where they are gathered; the addresses of that place, of the loop's working memory, of
the values taken per class, and of the ends of classes. The addresses of the arrays of each class follow."""
EACH = 6


@dataclass(frozen=True)
class ClassSumsOf:
    """A `RiderKind`: makes riders that sum the positions of a sample by their `labels`.

    `labels` int64 has the shape of a sample without its channel axis, and values from 0 to `classes` − 1.
    """

    labels: Labels
    classes: int

    def __call__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, /) -> Rider:
        """As `RiderKind`."""
        return ClassSums(dtype, shape, axis, self.labels, self.classes)

    def working_bytes(self, dtype: np.dtype[Any], shape: Sequence[int], axis: int, /) -> int:
        """As `RiderKind.working_bytes`."""
        channels = shape[axis]
        arrays = 8 * (digit_count(dtype) + 4) * self.classes * (_joined(channels, dtype) + 1) * channels
        gathered = max(GATHERED_BYTES, channels * dtype.itemsize) + 16 * self.labels.size
        return arrays + COPIES * 8 * (digit_count(dtype) + 3) * self.classes * channels + gathered


class ClassSums:
    """A `Rider`: the exact sums of each class of positions per channel, but for the class with the most positions."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, labels: Labels, classes: int) -> None:
        self.dtype, self.channels, self._axis, self._labels = dtype, shape[axis], axis, labels
        self._rest = _rest(labels)
        self._joined = _joined(self.channels, dtype)
        self._joint = [Filled.empty(dtype, self._joined * self.channels) for _ in range(classes)]
        self._single = [Filled.empty(dtype, self.channels) for _ in range(classes)]
        self._taken, self._ends = np.zeros((2, classes), np.int64)
        self._room = room()
        self._gathered = np.empty(max(GATHERED_BYTES, self.channels * dtype.itemsize), np.uint8)
        self._uncarried = 0
        self._places: dict[tuple[tuple[int, int], ...], _Place] = {}

    def add(self, block: Array, where: Where) -> None:
        """As `Rider.add`."""
        check_block(block, self._axis + 1, self.dtype, self.channels)
        if not block.size:
            return
        place = self._place(where[1:])
        as_it_lies = block.flags.c_contiguous and block.flags.aligned and block.dtype.isnative
        for samples in [block] if as_it_lies else block:
            native = np.require(samples, self.dtype, ["C", "A"])
            units = native.size // (self.channels * place.inner)
            self._make_room(units * place.inner)
            self._run(native, units, place)

    def intake(self, shape: Sequence[int]) -> Intake | None:
        """As `Rider.intake`."""
        place = self._place(tuple(slice(0, extent) for extent in shape[1:]))
        self._make_room(prod(shape) // self.channels)
        size = self.channels * place.inner * self.dtype.itemsize
        return Intake(size, address(_summing(self.dtype, runs=place.inner > 1)), *self._arguments(place))

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """As `Taker.take`."""
        return give(_summing(self.dtype, runs=intake.inner > 1), memory, intake)

    def took(self, size: int) -> None:
        """As `Taker.took`: the loop counts what it takes."""

    def rest(self, values: Array) -> None:
        """As `Taker.rest`: what follows the values taken through the last intake."""
        self._run(values, len(values), self._last)

    def _run(self, values: Array, units: int, place: _Place) -> None:
        _summing(self.dtype, runs=place.inner > 1)(values.ctypes.data, units, *self._arguments(place))

    def _arguments(self, place: _Place) -> tuple[int, int, int, int, int, int]:
        return self.channels, place.inner, place.words.ctypes.data, 0, 0, 0

    def _place(self, where: Where) -> _Place:
        """The labels of the part `where` of a sample, and the state of the loop over it."""
        key = tuple((part.start, part.stop) for part in where)
        if key not in self._places:
            labels = self._labels[tuple(part for axis, part in enumerate(where) if axis != self._axis)]
            inner = prod(labels.shape[self._axis :])
            self._places[key] = self._begin(labels.reshape(-1, inner), inner)
        self._last = self._places[key]
        return self._last

    def _begin(self, labels: Labels, inner: int) -> _Place:
        """The state for a part of a sample with `labels` [units, inner]."""
        classes = len(self._joint)
        order = np.argsort(labels, axis=1, kind="stable") if inner > 1 else labels
        starts = np.array([np.searchsorted(np.sort(row), np.arange(classes + 1)) for row in labels], np.int64)
        arrays = [np.ascontiguousarray(each, np.int64) for each in (order, starts)]
        words = np.zeros(HEAD + EACH * classes, np.int64)
        words[UNITS], words[CLASSES], words[REST], words[JOINED] = len(labels), classes, self._rest, self._joined
        words[LOOP] = address(loop(self.dtype, runs=inner > 1))
        words[CAPACITY] = self._gathered.size // self.dtype.itemsize
        pointed: dict[int, Array] = {LABELS: arrays[0], STARTS: arrays[1], GATHERED: self._gathered}
        pointed |= {ROOM: self._room, TAKEN: self._taken, ENDS: self._ends}
        for word, array in pointed.items():
            words[word] = array.ctypes.data
        filled = zip(self._joint, self._single, strict=True)
        words[HEAD:] = [word for joint, single in filled for word in (*joint.addresses, *single.addresses)]
        return _Place(inner, words, arrays)

    def found(self) -> Tally:
        """`digits` int64[D, K, C] canonical, `count`, `nan`, `infinite` int64[K, C], for K classes.

        All are zero for the class left out: see `with_rest`.
        """
        joint = [each.folded(self._joined, self.channels, 1).sums for each in self._joint]
        sums = np.stack([a + b.sums for a, b in zip(joint, self._single, strict=True)], axis=1)
        nan, infinite = sums[-2].copy(), sums[-1].copy()
        count = self._taken[:, np.newaxis] - nan - infinite
        arrays = {"digits": carried(sums[:-2]), "count": count, "nan": nan, "infinite": infinite}
        return Tally(arrays, digits=("digits",))

    @staticmethod
    def with_rest(found: Mapping[str, Array], labels: Labels, whole: Measures) -> dict[str, Array]:
        """The arrays `found` by such riders with these `labels`, and the class left out: the rest of the `whole`."""
        rest, arrays = _rest(labels), {name: array.copy() for name, array in found.items()}
        for name, array in arrays.items():
            array[..., rest, :] = getattr(whole, name) - array.sum(axis=-2)
        return arrays | {"digits": carried(arrays["digits"])}

    def _make_room(self, values: int) -> None:
        """Carry if `values` more per channel could overflow a digit."""
        self._uncarried += values
        if self._uncarried > LONGEST_PIECE:
            for filled in (*self._joint, *self._single):
                filled.sums[:-2] = carried(filled.sums[:-2])
            self._uncarried = values


@dataclass(frozen=True)
class _Place:
    """A part of a sample: the positions in a unit, the state of the loop, and the arrays that this points to."""

    inner: int
    words: npt.NDArray[np.int64]
    arrays: Sequence[Labels]


def _rest(labels: Labels) -> int:
    """The class with the most positions."""
    return int(np.bincount(labels.reshape(-1), minlength=1).argmax())


def _joined(channels: int, dtype: np.dtype[Any]) -> int:
    """The rows of one class that a loop joins, so that narrow rows fill the processor's registers."""
    gathered = GATHERED_BYTES // max(1, channels * dtype.itemsize)
    return max(1, min(NARROWEST // max(1, channels), gathered // FEWEST_JOINED))


@cache
def _summing(dtype: np.dtype[Any], *, runs: bool) -> Callable[..., None]:
    """The loop over units; it takes the arguments of `loops`, with its state in place of the sums."""
    name = f"classes-{'runs' if runs else 'rows'}-{dtype.itemsize}"
    return load(name, ARGUMENTS, lambda: _definition(dtype.itemsize, runs), CLASS_MODULES)


def _definition(itemsize: int, runs: bool) -> Callable[..., None]:
    import numba

    from .class_kernels import gather_rows, gather_runs

    carray, call, at = numba.carray, foreign.caller(), foreign.at()
    word = np.dtype(f"u{itemsize}")

    def over_rows(data, units, channels, inner, state, low, high, space):  # type: ignore[no-untyped-def]
        head = carray(state, (HEAD,), np.int64)
        classes, joined = head[CLASSES], head[JOINED]
        words = carray(state, (HEAD + EACH * classes,), np.int64)
        labels = carray(at(head[LABELS]), (head[UNITS],), np.int64)
        taken, ends = carray(at(head[TAKEN]), (classes,), np.int64), carray(at(head[ENDS]), (classes,), np.int64)
        values = carray(data, (units, channels), word)
        several = max(1, head[CAPACITY] // channels)
        gathered = carray(at(head[GATHERED]), (several, channels), word)
        row_bytes, room = channels * itemsize, head[ROOM]
        start = 0
        while start < units:
            rows = min(several, units - start)
            gather_rows(values[start : start + rows], labels, head[NEXT], head[REST], gathered, ends)
            begin = 0
            for label in range(classes):
                number = ends[label] - begin
                if number:
                    taken[label] += number
                    place, first = head[GATHERED] + begin * row_bytes, HEAD + EACH * label
                    together = number // joined
                    if together:
                        sums, least, most = words[first], words[first + 1], words[first + 2]
                        call(head[LOOP], (place, together, joined * channels, 1, sums, least, most, room))
                    rest = number - together * joined
                    if rest:
                        place += together * joined * row_bytes
                        sums, least, most = words[first + 3], words[first + 4], words[first + 5]
                        call(head[LOOP], (place, rest, channels, 1, sums, least, most, room))
                begin = ends[label]
            head[NEXT] = (head[NEXT] + rows) % head[UNITS]
            start += rows

    def over_runs(data, units, channels, inner, state, low, high, space):  # type: ignore[no-untyped-def]
        head = carray(state, (HEAD,), np.int64)
        classes = head[CLASSES]
        words = carray(state, (HEAD + EACH * classes,), np.int64)
        positions = carray(at(head[LABELS]), (head[UNITS], inner), np.int64)
        starts = carray(at(head[STARTS]), (head[UNITS], classes + 1), np.int64)
        taken = carray(at(head[TAKEN]), (classes,), np.int64)
        values = carray(data, (units, channels, inner), word)
        several, room = max(1, head[CAPACITY] // channels), head[ROOM]
        for unit in range(units):
            place = head[NEXT]
            for label in range(classes):
                if label == head[REST]:
                    continue
                begin, end = starts[place, label], starts[place, label + 1]
                taken[label] += end - begin
                first = HEAD + EACH * label + 3
                while begin < end:
                    number = min(several, end - begin)
                    into = carray(at(head[GATHERED]), (channels, number), word)
                    gather_runs(values[unit], positions[place, begin : begin + number], into)
                    sums, least, most = words[first], words[first + 1], words[first + 2]
                    call(head[LOOP], (head[GATHERED], 1, channels, number, sums, least, most, room))
                    begin += number
            head[NEXT] = (place + 1) % head[UNITS]

    return over_runs if runs else over_rows
