"""Products: the exact sums of the products of columns, XᵀY, at the speed of matrix products in float64.

The law: what is added up are integers, so the sums are the same for any partition of the rows, any order, and any BLAS
with any number of threads. Each column has an exponent e, chosen so that its values are below 2^(e + 21); they are cut
into slices, integers of at most 2^21 in units of 2^e, 2^(e − 22), and so on. The product of two slices over ROWS rows
is exact in float64: its terms and all partial sums are integers of at most 2^21 · 2^21 · 2^11 = 2^53. Products of
slices k and l go to the int64 plane of order k + l, and from there into integers as wide as the dtype may need.
(After Ozaki et al., Error-free transformations of matrix multiplication, Numerical Algorithms 59, 2012.)

Most values of a float column need one slice or two. Slices in which few values have something left are multiplied value
by value, all others by BLAS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.cache import POINTER, SIZE, load

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Digits = npt.NDArray[np.uint32]

ROWS = 2**11
"""The most rows of one matrix product."""
SLICE_BITS, LARGEST_BITS = 22, 21
"""Bits from one slice to the next, and those of the largest slice."""
SPARSE = 0.04
"""The share of values that are not zero below which a slice is multiplied value by value."""
PLANES = 3
"""The orders that have a plane; products of higher ones are rare, and go into the wide integers at once."""
MOST_ADDED = 2**8
"""Matrix products of at most 2^53 that a plane of int64 takes, twice each, before it is emptied."""


@dataclass
class _Side:
    """The columns on one side: their waiting rows float32[ROWS, G, n], and their exponents int64[G · n]."""

    values: Rows
    exponents: Integers
    known: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, groups: int, columns: int, unit: int, integral: bool) -> _Side:
        """Integers have the exponent 0, floats for now that of their smallest denormal."""
        width = groups * columns
        exponents = np.full(width, 0 if integral else unit, np.int64)
        return cls(np.empty((ROWS, groups, columns), np.float32), exponents, np.full(width, integral))

    def needed(self, rows: int) -> tuple[Integers, bool]:
        """The exponents that the waiting `rows` need, and whether one differs from what its column had before."""
        flat = self.values[:rows].reshape(rows, -1)
        largest = np.maximum(flat.max(axis=0), -flat.min(axis=0))
        occupied = largest > 0
        least = np.frexp(largest)[1].astype(np.int64) - LARGEST_BITS
        too_small = occupied & (~self.known | (least > self.exponents))
        raised = np.where(too_small, np.maximum(least + 1, self.exponents), self.exponents)
        changed = bool((too_small & self.known).any())
        self.known = self.known | occupied
        return raised, changed


class Products:
    """The sums of the products of each column of X with each column of Y, for each of G groups of columns.

    `unit` is the exponent of the smallest denormal of their dtype, 0 for `integral` values of at most 2^21; the sums
    are integers in units of 2^(2·unit), of `digits` digits. Without `others`, Y is X.
    """

    def __init__(
        self, groups: int, columns: int, others: int | None, *, unit: int, integral: bool, digits: int
    ) -> None:
        self._shape = groups, columns, columns if others is None else others
        self._unit, self._integral = unit, integral
        self._left = _Side.of(groups, columns, unit, integral)
        self._right = self._left if others is None else _Side.of(groups, others, unit, integral)
        self._waiting = self._added = 0
        self._planes: dict[int, Integers] = {}
        self._digits = np.zeros((digits, *self._shape), np.uint32)

    @classmethod
    def working_bytes(cls, groups: int, columns: int, others: int | None, digits: int) -> int:
        """Peak bytes."""
        sides = ROWS * groups * (columns + (others or 0))
        pairs = groups * columns * (columns if others is None else others)
        return sides * (4 + 8 * (2 if others is None else 1)) + pairs * (8 * (1 + PLANES) + 4 * digits)

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
        lefts = self._slices_of(self._left, rows)
        rights = lefts if self._is_square else self._slices_of(self._right, rows)
        for left in lefts:
            for right in rights:
                if not self._is_square or right.place >= left.place:
                    self._add_products(left, right)
        self._added += 1
        if self._added == MOST_ADDED:
            self._empty_planes()

    def _choose_exponents(self, rows: int) -> None:
        sides = [self._left] if self._is_square else [self._left, self._right]
        needed = [side.needed(rows) for side in sides]
        if any(changed for _, changed in needed):
            self._empty_planes()
        for side, (exponents, _) in zip(sides, needed, strict=True):
            side.exponents = exponents

    def _slices_of(self, side: _Side, rows: int) -> list[_Slice]:
        slices: list[_Slice] = []
        flat = side.values[:rows].reshape(rows, -1)
        scales = np.ldexp(1.0, -side.exponents)
        left = True
        while left:
            each = _Slice(flat, scales, len(slices))
            each.count()
            slices.append(each)
            left = each.left > 0
        return slices

    def _add_products(self, left: _Slice, right: _Slice) -> None:
        """Add the products of both slices; of X with itself, they are those of the exchanged slices, too."""
        products, order = self._products(left, right), left.place + right.place
        self._deposit(products, order)
        if self._is_square and left is not right:
            self._deposit(np.ascontiguousarray(products.transpose(0, 2, 1)), order)

    def _products(self, left: _Slice, right: _Slice) -> Float64Array:
        groups, columns, others = self._shape
        if not (left.some and right.some):
            return np.zeros(self._shape)
        if groups == 1 and min(left.share, right.share) < SPARSE:
            if left.share <= right.share:
                return _sparse_product(left.slices, right.slices)[np.newaxis]
            return np.ascontiguousarray(_sparse_product(right.slices, left.slices).T)[np.newaxis]
        if groups == 1:
            return (left.slices.T @ right.slices)[np.newaxis]
        mine = left.slices.reshape(-1, groups, columns).transpose(1, 2, 0)
        return mine @ right.slices.reshape(-1, groups, others).transpose(1, 0, 2)

    def _deposit(self, products: Float64Array, order: int) -> None:
        if order < PLANES:
            plane = self._planes.get(order)
            if plane is None:
                plane = self._planes[order] = np.zeros(self._shape, np.int64)
            _adding()(products.ctypes.data, products.size, plane.ctypes.data)
        else:
            self._widen(products.astype(np.int64), order)

    def _empty_planes(self) -> None:
        for order, plane in self._planes.items():
            self._widen(plane, order)
            plane[:] = 0
        self._added = 0

    def _widen(self, plane: Integers, order: int) -> None:
        groups, columns, others = self._shape
        shift = -SLICE_BITS * order - 2 * self._unit
        rows, right = (np.ascontiguousarray(each.exponents) for each in (self._left, self._right))
        _depositing()(
            plane.ctypes.data, groups, columns, others, rows.ctypes.data, right.ctypes.data, shift,
            self._digits.ctypes.data, len(self._digits),
        )  # fmt: skip


@dataclass
class _Slice:
    """Slice number `place` of values float32[rows, width], whose columns have the `scales` 2^−e."""

    values: Rows
    scales: Float64Array
    place: int
    some: int = 0
    left: int = 0

    @cached_property
    def slices(self) -> Float64Array:
        """float64[rows, width]."""
        return self._cut()

    @property
    def share(self) -> float:
        """The share of its values that are not zero."""
        return self.some / max(1, self.values.size)

    def count(self) -> None:
        """Find how many of its values are not zero, and how many leave something."""
        if self.place < 2:
            self.slices  # noqa: B018
        else:
            self._cut()

    def _cut(self) -> Float64Array:
        slices, found = np.empty(self.values.shape), np.zeros(2, np.int64)
        _cutting()(
            self.values.ctypes.data, *self.values.shape, self.scales.ctypes.data, self.place, slices.ctypes.data,
            found.ctypes.data,
        )  # fmt: skip
        self.some, self.left = found.tolist()
        return slices


def _sparse_product(sparse: Float64Array, dense: Float64Array) -> Float64Array:
    products = np.zeros((sparse.shape[1], dense.shape[1]))
    _multiplying()(sparse.ctypes.data, *sparse.shape, dense.ctypes.data, dense.shape[1], products.ctypes.data)
    return products


MODULES = (f"{__package__}.product_kernels", __name__)


@cache
def _cutting() -> Callable[..., None]:
    arguments = (POINTER, SIZE, SIZE, POINTER, SIZE, POINTER, POINTER)
    return load("products-cut", arguments, _define_cutting, MODULES)


def _define_cutting() -> Callable[..., None]:
    import numba

    from .product_kernels import cut

    carray = numba.carray

    def cutting(values, rows, width, scales, place, slices, found):  # type: ignore[no-untyped-def]
        cut(
            carray(values, (rows, width), np.float32),
            carray(scales, (width,), np.float64),
            place,
            carray(slices, (rows, width), np.float64),
            carray(found, (2,), np.int64),
        )

    return cutting


@cache
def _multiplying() -> Callable[..., None]:
    return load("products-sparse", (POINTER, SIZE, SIZE, POINTER, SIZE, POINTER), _define_multiplying, MODULES)


def _define_multiplying() -> Callable[..., None]:
    import numba

    from .product_kernels import add_sparse

    carray = numba.carray

    def multiplying(sparse, rows, width, dense, others, products):  # type: ignore[no-untyped-def]
        add_sparse(
            carray(sparse, (rows, width), np.float64),
            carray(dense, (rows, others), np.float64),
            carray(products, (width, others), np.float64),
        )

    return multiplying


@cache
def _adding() -> Callable[..., None]:
    return load("products-add", (POINTER, SIZE, POINTER), _define_adding, MODULES)


def _define_adding() -> Callable[..., None]:
    import numba

    from .product_kernels import add_integers

    carray = numba.carray

    def adding(products, size, plane):  # type: ignore[no-untyped-def]
        add_integers(carray(products, (size,), np.float64), carray(plane, (size,), np.int64))

    return adding


@cache
def _depositing() -> Callable[..., None]:
    arguments = (POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, SIZE, POINTER, SIZE)
    return load("products-deposit", arguments, _define_depositing, MODULES)


def _define_depositing() -> Callable[..., None]:
    import numba

    from .product_kernels import deposit

    carray = numba.carray

    def depositing(plane, groups, width, others, rows, columns, shift, digits, count):  # type: ignore[no-untyped-def]
        planes = carray(plane, (groups, width, others), np.int64)
        of_rows, of_columns = carray(rows, (groups, width), np.int64), carray(columns, (groups, others), np.int64)
        wide = carray(digits, (count, groups, width, others), np.uint32)
        for group in range(groups):
            deposit(planes[group], of_rows[group], of_columns[group], shift, wide[:, group])

    return depositing
