"""ClassSums: the rider that sums the values of each class of positions per channel, and its loops.

Each position of a sample belongs to one class. Rows of a class wait in a strip; when it is full, the loops of `loops`
sum over it. The class with the most positions is left out: its sums are what the others leave of the sums over all.
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
STRIP_ROWS, STRIP_BYTES = 64, 2**14
"""The fewest rows, and bytes, of a strip: summing over one costs as much as some 64 rows more."""
NEXT, UNITS, LABELS, STARTS, CLASSES, REST, LOOP, JOINED, ROWS, STRIPS, ROOM, WAITING, TAKEN, HEAD = range(14)
"""Words of the state of a loop: which unit of the sample comes next, of how many; the addresses of the labels of units,
or of the positions of each class, and of where these begin; the classes; the one left out; the loop that sums; the rows
it takes as one; the rows of a strip; the addresses of the strips, of the loop's working memory, of the rows waiting in
each strip, and of the values taken per class. The addresses of the arrays of each class follow."""
EACH = 3


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
        rows, joined = _strip(channels, dtype)
        arrays = 8 * (digit_count(dtype) + 4) * self.classes * (joined + 1) * channels
        strips = self.classes * rows * channels * dtype.itemsize + 16 * self.labels.size
        return arrays + COPIES * 8 * (digit_count(dtype) + 3) * self.classes * channels + strips


class ClassSums:
    """A `Rider`: the exact sums of each class of positions per channel, except the class with the most positions."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int, labels: Labels, classes: int) -> None:
        self.dtype, self.channels, self._axis, self._labels = dtype, shape[axis], axis, labels
        self._rest = _rest(labels)
        rows, self._joined = _strip(self.channels, dtype)
        self._joint = [Filled.empty(dtype, self._joined * self.channels) for _ in range(classes)]
        self._single = [Filled.empty(dtype, self.channels) for _ in range(classes)]
        self._strips = np.empty((classes, rows, self.channels), np.dtype(f"u{dtype.itemsize}"))
        self._waiting, self._taken = np.zeros((2, classes), np.int64)
        self._room = room()
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
        words[UNITS], words[CLASSES], words[REST] = len(labels), classes, self._rest
        words[LOOP] = address(loop(self.dtype, runs=False))
        words[JOINED], words[ROWS] = self._joined, self._strips.shape[1]
        pointed: dict[int, Array] = {LABELS: arrays[0], STARTS: arrays[1], STRIPS: self._strips}
        pointed |= {ROOM: self._room, WAITING: self._waiting, TAKEN: self._taken}
        for word, array in pointed.items():
            words[word] = array.ctypes.data
        words[HEAD:] = [word for joint in self._joint for word in joint.addresses]
        return _Place(inner, words, arrays)

    def found(self) -> Tally:
        """`digits` int64[D, K, C] canonical, `count`, `nan`, `infinite` int64[K, C], for K classes.

        All are zero for the class left out: see `with_rest`.
        """
        self._sum_waiting()
        joint = [each.folded(self._joined, self.channels, 1).sums for each in self._joint]
        sums = np.stack([a + b.sums for a, b in zip(joint, self._single, strict=True)], axis=1)
        nan, infinite = sums[-2].copy(), sums[-1].copy()
        count = self._taken[:, np.newaxis] - nan - infinite
        arrays = {"digits": carried(sums[:-2]), "count": count, "nan": nan, "infinite": infinite}
        return Tally(arrays, digits=("digits",))

    def _sum_waiting(self) -> None:
        """Sum over the rows that wait in the strips."""
        for label, rows in enumerate(self._waiting.tolist()):
            if rows:
                arrays = *self._single[label].addresses, self._room.ctypes.data
                loop(self.dtype, runs=False)(self._strips[label].ctypes.data, rows, self.channels, 1, *arrays)
        self._taken += self._waiting
        self._waiting[:] = 0

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


def _strip(channels: int, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The rows of a strip, and how many of them a loop joins, so that narrow rows fill the processor's registers."""
    rows = max(STRIP_ROWS, STRIP_BYTES // max(1, channels * dtype.itemsize))
    joined = max(1, min(NARROWEST // max(1, channels), rows // STRIP_ROWS))
    return rows - rows % joined, joined


@cache
def _summing(dtype: np.dtype[Any], *, runs: bool) -> Callable[..., None]:
    """The loop over units; it takes the arguments of `loops`, with its state in place of the sums."""
    name = f"classes-{'runs' if runs else 'rows'}-{dtype.itemsize}"
    return load(name, ARGUMENTS, lambda: _definition(dtype.itemsize, runs), CLASS_MODULES)


def _definition(itemsize: int, runs: bool) -> Callable[..., None]:
    import numba

    from .class_kernels import copy_columns, copy_row

    carray, call, at = numba.carray, foreign.caller(), foreign.at()
    word = np.dtype(f"u{itemsize}")

    @numba.njit(error_model="numpy")
    def sum_strip(words, label, channels):  # type: ignore[no-untyped-def]
        rows, joined, first = words[ROWS], words[JOINED], HEAD + EACH * label
        strip = words[STRIPS] + label * rows * channels * itemsize
        sums, least, most = words[first], words[first + 1], words[first + 2]
        call(words[LOOP], (strip, rows // joined, joined * channels, 1, sums, least, most, words[ROOM]))
        carray(at(words[TAKEN]), (words[CLASSES],), np.int64)[label] += rows

    def over_rows(data, units, channels, inner, state, low, high, space):  # type: ignore[no-untyped-def]
        classes = carray(state, (HEAD,), np.int64)[CLASSES]
        words = carray(state, (HEAD + EACH * classes,), np.int64)
        labels = carray(at(words[LABELS]), (words[UNITS],), np.int64)
        waiting = carray(at(words[WAITING]), (classes,), np.int64)
        strips = carray(at(words[STRIPS]), (classes, words[ROWS], channels), word)
        values = carray(data, (units, channels), word)
        place, rest, rows = words[NEXT], words[REST], words[ROWS]
        for unit in range(units):
            label = labels[place]
            place = place + 1 if place + 1 < labels.size else 0
            if label != rest:
                copy_row(values[unit], strips[label, waiting[label]])
                waiting[label] += 1
                if waiting[label] == rows:
                    sum_strip(words, label, channels)
                    waiting[label] = 0
        words[NEXT] = place

    def over_runs(data, units, channels, inner, state, low, high, space):  # type: ignore[no-untyped-def]
        classes = carray(state, (HEAD,), np.int64)[CLASSES]
        words = carray(state, (HEAD + EACH * classes,), np.int64)
        positions = carray(at(words[LABELS]), (words[UNITS], inner), np.int64)
        starts = carray(at(words[STARTS]), (words[UNITS], classes + 1), np.int64)
        waiting = carray(at(words[WAITING]), (classes,), np.int64)
        strips = carray(at(words[STRIPS]), (classes, words[ROWS], channels), word)
        values = carray(data, (units, channels, inner), word)
        place, rest, rows = words[NEXT], words[REST], words[ROWS]
        for unit in range(units):
            for label in range(classes):
                begin, end = starts[place, label], starts[place, label + 1]
                while begin < end and label != rest:
                    first = waiting[label]
                    number = min(rows - first, end - begin)
                    copy_columns(values[unit], positions[place, begin : begin + number], strips[label, first:])
                    begin += number
                    waiting[label] += number
                    if waiting[label] == rows:
                        sum_strip(words, label, channels)
                        waiting[label] = 0
            place = place + 1 if place + 1 < words[UNITS] else 0
        words[NEXT] = place

    return over_runs if runs else over_rows
