"""Products: the exact sums of the products of columns, XᵀY, at the speed of matrix products in float64.

The law: what is added up are integers, so the sums are the same for any partition of the rows, any order, and any BLAS
with any number of threads. The values of each column are cut into slices: integers in units of 2^e, 2^(e − 22), and so
on. A slice from the second on is at most 2^21, so its norm over ROWS = 2^11 rows is at most 2^26.5; e is chosen so that
the norm of the first slice is, too. By Cauchy and Schwarz, the products of two slices, and all their partial sums in
any order, are integers of at most 2^26.5 · 2^26.5 = 2^53: exact in float64. Products of slices k and l go to the int64
plane of order k + l, and from there into integers as wide as the dtype may need. (After Ozaki et al., Error-free
transformations of matrix multiplication, Numerical Algorithms 59, 2012; there, the largest value takes the part of the
norm.)

Most values of a float column need one slice or two. Slices in which few values have something left are multiplied value
by value, all others by BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.accelerator import multiply
from .product_loops import SLICE_BITS, adding, adding_triangles, cutting, depositing, multiplying, norming

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Digits = npt.NDArray[np.uint32]

ROWS = 2**11
"""The most rows of one matrix product."""
NORM_BITS = 26
"""A column whose norm is below 2^(e + 26) has a first slice of a norm below 2^26.5, rounding included."""
SPARSE = 0.04
"""The share of values that are not zero below which a slice is multiplied value by value."""
PLANES = 5
"""The orders that have a plane; products of higher ones are rare, and go into the wide integers at once."""
MOST_ADDED = 2**7
"""Batches of rows after which planes are emptied. An order has at most three pairs of slices, each of which may count
twice: 6 · 2^7 products of at most 2^53 fit an int64.
"""
MORE = 1 + 2.0**-20
"""A factor above what rounding may have taken from a norm."""


@dataclass
class _Slice:
    """Slice number `place` of a side: how many of its integers are not zero, and of how many values more is left."""

    place: int
    share: float
    left: int


@dataclass
class _Side:
    """The columns on one side: their waiting rows float32[ROWS, G, n], and their exponents int64[G · n].

    `known` says which exponents fit values that were seen. Slices are cut into memory that is used again.
    """

    values: Rows
    exponents: Integers
    known: npt.NDArray[np.bool_]
    memory: dict[int, Float64Array] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: int, columns: int, unit: int, integral: bool) -> _Side:
        """Integers have the exponent 0, floats for now that of their smallest denormal."""
        width = groups * columns
        exponents = np.full(width, 0 if integral else unit, np.int64)
        return cls(np.empty((ROWS, groups, columns), np.float32), exponents, np.full(width, integral))

    def choose_exponents(self, rows: int) -> tuple[Integers, bool]:
        """The exponents that the waiting `rows` need, and whether one differs from what its column had before.

        A new exponent has a bit to spare, so that later rows seldom need another one.
        """
        flat, squares = self.values[:rows].reshape(rows, -1), np.empty(len(self.exponents))
        norming()(flat.ctypes.data, *flat.shape, squares.ctypes.data)
        least = np.frexp(np.sqrt(squares) * MORE)[1].astype(np.int64) - NORM_BITS
        too_small = (squares > 0) & (~self.known | (least > self.exponents))
        changed = bool((too_small & self.known).any())
        self.known = self.known | (squares > 0)
        return np.where(too_small, np.maximum(least + 1, self.exponents), self.exponents), changed

    def slices(self, rows: int) -> list[_Slice]:
        """The slices of the waiting `rows`, as many as they need."""
        self.held.clear()
        found: list[_Slice] = []
        while not found or found[-1].left:
            found.append(self._cut(rows, len(found), min(len(found), 1)))
        return found

    def cut(self, rows: int, place: int, *, other: bool = False) -> Float64Array:
        """Slice number `place` of the waiting `rows`, float64[rows, G · n]; `other` if another one is in use."""
        number = min(place, 1 + other)
        if self.held.get(number) != place:
            self._cut(rows, place, number)
        return self.memory[number][:rows]

    def _cut(self, rows: int, place: int, number: int) -> _Slice:
        flat, found = self.values[:rows].reshape(rows, -1), np.zeros(2, np.int64)
        if number not in self.memory:
            self.memory[number] = np.empty((ROWS, flat.shape[1]))
        scales = np.ldexp(1.0, -self.exponents)
        slices = self.memory[number].ctypes.data
        cutting()(flat.ctypes.data, *flat.shape, scales.ctypes.data, place, slices, found.ctypes.data)
        self.held[number] = place
        return _Slice(place, int(found[0]) / max(1, flat.size), int(found[1]))


class Products:
    """The sums of the products of each column of X with each column of Y, for each of G groups of columns.

    `unit` is the exponent of the smallest denormal of their dtype, 0 for `integral` values of at most 2^16; the sums
    are integers in units of 2^(2·unit), of `digits` digits. Without `others`, Y is X, and only the upper triangles are
    added up.
    """

    def __init__(
        self, groups: int, columns: int, others: int | None, *, unit: int, integral: bool, digits: int
    ) -> None:
        self._shape = groups, columns, columns if others is None else others
        self._unit, self._integral = unit, integral
        self._left = _Side.of(groups, columns, unit, integral)
        self._right = self._left if others is None else _Side.of(groups, others, unit, integral)
        self._waiting = self._added = 0
        self._found = np.empty(self._shape)
        self._planes: dict[int, Integers] = {}
        self._digits = np.zeros((digits, *self._shape), np.uint32)

    @classmethod
    def working_bytes(cls, groups: int, columns: int, others: int | None, digits: int, most_slices: int) -> int:
        """Peak bytes, where values have at most so many slices."""
        sides = ROWS * groups * (columns + (others or 0))
        pairs = groups * columns * (columns if others is None else others)
        memory, planes = min(most_slices, 3 if others is None else 2), min(PLANES, 2 * most_slices - 1)
        more = min(most_slices - 1, 1)  # the product of slices in the other order
        return sides * (4 + 8 * memory) + pairs * (8 * (1 + more + planes) + 4 * digits)

    @property
    def _is_square(self) -> bool:
        return self._right is self._left

    def add(self, left: Rows, right: Rows | None = None) -> None:
        """Take rows of X [rows, G, n], and the same rows of Y unless it is X: finite values."""
        taken = 0
        while taken < len(left):
            number = min(len(left) - taken, ROWS - self._waiting)
            places = slice(self._waiting, self._waiting + number)
            self._left.values[places] = left[taken : taken + number]
            if right is not None:
                self._right.values[places] = right[taken : taken + number]
            self._waiting, taken = self._waiting + number, taken + number
            if self._waiting == ROWS:
                self._multiply()

    def found(self) -> Digits:
        """The sums of all rows so far, a two's complement uint32[digits, G, n, m], lowest digit first."""
        self._multiply()
        self._empty_planes()
        return self._digits

    def _multiply(self) -> None:
        """Multiply the waiting rows."""
        rows, self._waiting = self._waiting, 0
        if not rows:
            return
        if not self._integral:
            self._choose_exponents(rows)
        lefts = self._left.slices(rows)
        rights = lefts if self._is_square else self._right.slices(rows)
        for left in lefts:
            for right in rights:
                if left.share and right.share and not (self._is_square and right.place < left.place):
                    self._add_products(rows, left, right)
        self._added += 1
        if self._added == MOST_ADDED:
            self._empty_planes()

    def _choose_exponents(self, rows: int) -> None:
        sides = [self._left] if self._is_square else [self._left, self._right]
        chosen = [side.choose_exponents(rows) for side in sides]
        if any(changed for _, changed in chosen):
            self._empty_planes()
        for side, (exponents, _) in zip(sides, chosen, strict=True):
            side.exponents = exponents

    def _add_products(self, rows: int, left: _Slice, right: _Slice) -> None:
        """Add the products of both slices; of X with itself, they are those of the exchanged slices, too."""
        self._find_products(rows, left, right)
        order, twice = left.place + right.place, left is not right
        if order < PLANES:
            if order not in self._planes:
                self._planes[order] = np.zeros(self._shape, np.int64)
            self._add_to(self._planes[order], twice=twice)
        else:
            plane = np.zeros(self._shape, np.int64)
            self._add_to(plane, twice=twice)
            self._widen(plane, order)

    def _find_products(self, rows: int, left: _Slice, right: _Slice) -> None:
        mine = self._left.cut(rows, left.place)
        same = self._is_square and left.place == right.place
        theirs = mine if same else self._right.cut(rows, right.place, other=self._is_square)
        groups, columns, others = self._shape
        found = self._found[0]
        if groups > 1:
            by_group = mine.reshape(rows, groups, columns).transpose(1, 2, 0)
            np.matmul(by_group, theirs.reshape(rows, groups, others).transpose(1, 0, 2), out=self._found)
        elif min(left.share, right.share) >= SPARSE:
            multiply(mine, theirs, found)
        elif left.share <= right.share:
            _multiply_sparse(mine, left, theirs, right, found)
        else:
            exchanged = np.empty((others, columns))
            _multiply_sparse(theirs, right, mine, left, exchanged)
            found[:] = exchanged.T

    def _add_to(self, plane: Integers, *, twice: bool) -> None:
        if self._is_square:
            groups, columns, _ = self._shape
            adding_triangles()(self._found.ctypes.data, groups, columns, plane.ctypes.data, int(twice))
        else:
            adding()(self._found.ctypes.data, self._found.size, plane.ctypes.data)

    def _empty_planes(self) -> None:
        for order, plane in self._planes.items():
            self._widen(plane, order)
            plane[:] = 0
        self._added = 0

    def _widen(self, plane: Integers, order: int) -> None:
        shift = -SLICE_BITS * order - 2 * self._unit
        left, right, digits = self._left.exponents, self._right.exponents, self._digits
        depositing()(
            plane.ctypes.data, *self._shape, left.ctypes.data, right.ctypes.data, shift, digits.ctypes.data, len(digits)
        )


def _multiply_sparse(
    mine: Float64Array, sparse: _Slice, theirs: Float64Array, other: _Slice, found: Float64Array
) -> None:
    """Set `found` to the product of two slices, the first of which is sparse, or both."""
    both = other.share < SPARSE
    found[:] = 0
    starts = np.empty(mine.shape[1] + 1, np.int64)
    places = np.empty(theirs.shape[1] if both else round(sparse.share * mine.size), np.int64)
    multiplying(both)(
        mine.ctypes.data, *mine.shape, theirs.ctypes.data, theirs.shape[1], found.ctypes.data, starts.ctypes.data,
        places.ctypes.data, len(places),
    )  # fmt: skip
