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
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..compiled.accelerator import multiply
from .product_loops import (
    SLICE_BITS,
    adding,
    adding_transposed,
    adding_triangles,
    cutting,
    depositing,
    finding,
    multiplying,
    multiplying_both,
    norming,
)

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


@dataclass(frozen=True)
class _Sparse:
    """The integers float64[k] of a slice that are not zero; their rows, columns, and order by column, int64[3, k]; and
    the place int64[rows + 1] of the first one of each row.
    """

    BYTES: ClassVar[int] = 32
    """Of each integer."""

    integers: Float64Array
    places: Integers
    starts: Integers

    @classmethod
    def of(cls, rows: int, most: int) -> _Sparse:
        """Room for `most` integers."""
        return cls(np.empty(most), np.empty((3, most), np.int64), np.empty(rows + 1, np.int64))

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        """As compiled loops take it."""
        return self.places.ctypes.data, self.integers.ctypes.data, self.starts.ctypes.data, len(self.integers)


@dataclass(frozen=True)
class _Slice:
    """Slice number `place` of a side: how many of its integers are not zero, and of how many values more is left."""

    place: int
    some: int
    left: int
    sparse: _Sparse | None = None


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

    def slices(self, rows: int, *, may_be_sparse: bool) -> list[_Slice]:
        """The slices of the waiting `rows`, as many as they need."""
        self.held.clear()
        found: list[_Slice] = []
        most = SPARSE * rows * len(self.exponents) if may_be_sparse else 0
        while not found or found[-1].left:
            place = len(found)
            if found and found[-1].left < most:
                found.append(self._find(rows, place, found[-1].left))
                continue
            found.append(self._cut(rows, place, min(place, 1)))
            if 0 < found[-1].some < most:
                found[-1] = self._find(rows, place, found[-1].some)
        return found

    def dense(self, rows: int, place: int, *, other: bool = False) -> Float64Array:
        """Slice number `place` of the waiting `rows`, float64[rows, G · n]; `other` if another one is in use."""
        number = min(place, 1 + other)
        if self.held.get(number) != place:
            self._cut(rows, place, number)
        return self.memory[number][:rows]

    def _cut(self, rows: int, place: int, number: int) -> _Slice:
        flat, scales, found = self._scaled(rows)
        if number not in self.memory:
            self.memory[number] = np.empty((ROWS, flat.shape[1]))
        slices = self.memory[number].ctypes.data
        cutting()(flat.ctypes.data, *flat.shape, scales.ctypes.data, place, slices, found.ctypes.data)
        self.held[number] = place
        return _Slice(place, *found.tolist())

    def _find(self, rows: int, place: int, most: int) -> _Slice:
        flat, scales, found = self._scaled(rows)
        sparse, ends = _Sparse.of(rows, most), np.empty(flat.shape[1], np.int64)
        finding()(
            flat.ctypes.data, *flat.shape, scales.ctypes.data, place, *sparse.arguments, ends.ctypes.data,
            found.ctypes.data,
        )  # fmt: skip
        some, left = found.tolist()
        return _Slice(place, some, left, sparse)

    def _scaled(self, rows: int) -> tuple[Rows, Float64Array, Integers]:
        """The waiting `rows`, float32[rows, G · n], what scales them, and room for what is counted."""
        return self.values[:rows].reshape(rows, -1), np.ldexp(1.0, -self.exponents), np.zeros(2, np.int64)


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
        values = ROWS * groups * (columns + (others or 0))
        pairs = groups * columns * (columns if others is None else others)
        dense, planes = min(most_slices, 3 if others is None else 2), min(PLANES, 2 * most_slices - 1)
        more = 2 * most_slices - 1 > PLANES  # a plane for an order that has none
        sparse = int(SPARSE * values) * _Sparse.BYTES * most_slices
        return values * (4 + 8 * dense) + sparse + pairs * (8 * (1 + more + planes) + 4 * digits)

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
        may_be_sparse = self._shape[0] == 1
        lefts = self._left.slices(rows, may_be_sparse=may_be_sparse)
        rights = lefts if self._is_square else self._right.slices(rows, may_be_sparse=may_be_sparse)
        for left in lefts:
            for right in rights:
                if left.some and right.some and not (self._is_square and right.place < left.place):
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
        order = left.place + right.place
        if order not in self._planes and order < PLANES:
            self._planes[order] = np.zeros(self._shape, np.int64)
        plane = self._planes[order] if order < PLANES else np.zeros(self._shape, np.int64)
        transposed = self._find_products(rows, left, right)
        target = plane.ctypes.data
        groups, columns, others = self._shape
        if self._is_square:
            adding_triangles()(self._found.ctypes.data, groups, columns, target, int(left is not right))
        elif transposed:
            adding_transposed()(self._found.ctypes.data, target, columns, others)
        else:
            adding()(self._found.ctypes.data, self._found.size, target)
        if order >= PLANES:
            self._widen(plane, order)

    def _find_products(self, rows: int, left: _Slice, right: _Slice) -> bool:
        """Find the products of both slices. True if they are found transposed."""
        _, columns, others = self._shape
        found = self._found.ctypes.data
        if left.sparse or right.sparse:
            self._found[:] = 0
        if left.sparse and right.sparse:
            multiplying_both()(*left.sparse.arguments, *right.sparse.arguments, rows, found, columns, others)
        elif left.sparse:
            dense = self._right.dense(rows, right.place)
            multiplying()(*left.sparse.arguments, rows, dense.ctypes.data, others, found, columns)
        elif right.sparse:
            dense = self._left.dense(rows, left.place)
            multiplying()(*right.sparse.arguments, rows, dense.ctypes.data, columns, found, others)
        else:
            self._multiply_dense(rows, left, right)
        return right.sparse is not None and left.sparse is None

    def _multiply_dense(self, rows: int, left: _Slice, right: _Slice) -> None:
        same = self._is_square and left is right
        mine = self._left.dense(rows, left.place)
        theirs = mine if same else self._right.dense(rows, right.place, other=self._is_square)
        groups, columns, others = self._shape
        if groups > 1:
            by_group = mine.reshape(rows, groups, columns).transpose(1, 2, 0)
            np.matmul(by_group, theirs.reshape(rows, groups, others).transpose(1, 0, 2), out=self._found)
        else:
            multiply(mine, theirs, self._found[0])

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
