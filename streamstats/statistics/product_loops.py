"""Loading the compiled loops of exact products; they take addresses and extents."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ..compiled.cache import POINTER, SIZE, load

SLICE_BITS = 22
"""Bits from one slice to the next."""
MODULES = (f"{__package__}.product_kernels", __name__)


@cache
def cutting() -> Callable[..., None]:
    """`product_kernels.cut`: values, rows, width, scales, place, slices, found."""
    arguments = (POINTER, SIZE, SIZE, POINTER, SIZE, POINTER, POINTER)
    return load("products-cut", arguments, _define_cutting, MODULES)


def _define_cutting() -> Callable[..., None]:
    import numba

    from .product_kernels import cut

    carray, step = numba.carray, 2.0**SLICE_BITS

    def cutting(values, rows, width, scales, place, slices, found):  # type: ignore[no-untyped-def]
        cut(
            carray(values, (rows, width), np.float32),
            carray(scales, (width,), np.float64),
            place,
            step,
            carray(slices, (rows, width), np.float64),
            carray(found, (2,), np.int64),
        )

    return cutting


@cache
def norming() -> Callable[..., None]:
    """`product_kernels.add_squares`: values, rows, width, squares."""
    return load("products-norms", (POINTER, SIZE, SIZE, POINTER), _define_norming, MODULES)


def _define_norming() -> Callable[..., None]:
    import numba

    from .product_kernels import add_squares

    carray = numba.carray

    def norming(values, rows, width, norms):  # type: ignore[no-untyped-def]
        add_squares(carray(values, (rows, width), np.float32), carray(norms, (width,), np.float64))

    return norming


@cache
def multiplying(both: bool) -> Callable[..., None]:
    """`product_kernels.add_sparse`, or `add_both_sparse`: their arguments, `sparse` and `dense` with their extents."""
    arguments = (POINTER, SIZE, SIZE, POINTER, SIZE, POINTER, POINTER, POINTER, SIZE)
    return load(f"products-{'both-' if both else ''}sparse", arguments, lambda: _define_multiplying(both), MODULES)


def _define_multiplying(both: bool) -> Callable[..., None]:
    import numba

    from .product_kernels import add_both_sparse, add_sparse

    carray, add = numba.carray, add_both_sparse if both else add_sparse

    def multiplying(sparse, rows, width, dense, others, products, starts, places, some):  # type: ignore[no-untyped-def]
        add(
            carray(sparse, (rows, width), np.float64),
            carray(dense, (rows, others), np.float64),
            carray(products, (width, others), np.float64),
            carray(starts, (width + 1,), np.int64),
            carray(places, (some,), np.int64),
        )

    return multiplying


@cache
def adding() -> Callable[..., None]:
    """`product_kernels.add_integers`: products, size, plane."""
    return load("products-add", (POINTER, SIZE, POINTER), _define_adding, MODULES)


def _define_adding() -> Callable[..., None]:
    import numba

    from .product_kernels import add_integers

    carray = numba.carray

    def adding(products, size, plane):  # type: ignore[no-untyped-def]
        add_integers(carray(products, (size,), np.float64), carray(plane, (size,), np.int64))

    return adding


@cache
def adding_triangles() -> Callable[..., None]:
    """`product_kernels.add_triangle`, for each group: products, groups, size, plane, twice."""
    arguments = (POINTER, SIZE, SIZE, POINTER, SIZE)
    return load("products-triangles", arguments, _define_adding_triangles, MODULES)


def _define_adding_triangles() -> Callable[..., None]:
    import numba

    from .product_kernels import add_triangle

    carray = numba.carray

    def adding_triangles(products, groups, size, plane, twice):  # type: ignore[no-untyped-def]
        found = carray(products, (groups, size, size), np.float64)
        target = carray(plane, (groups, size, size), np.int64)
        for group in range(groups):
            add_triangle(found[group], target[group], twice != 0)

    return adding_triangles


@cache
def depositing() -> Callable[..., None]:
    """`product_kernels.deposit`, for each group: the plane with its extents, exponents, shift, digits, their count."""
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
