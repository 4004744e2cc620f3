"""Loading the compiled loops of exact products; they take addresses and extents."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..compiled.cache import POINTER, SIZE, load

SLICE_BITS = 22
"""Bits from one slice to the next."""
MODULES = (f"{__package__}.product_kernels", __name__)
SPARSE_MATRIX = (POINTER, POINTER, POINTER, SIZE)


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
def finding() -> Callable[..., None]:
    """`product_kernels.find`: values, rows, width, scales, place, the matrix as `_sparse` has it, ends, found."""
    arguments = (POINTER, SIZE, SIZE, POINTER, SIZE, *SPARSE_MATRIX, POINTER, POINTER)
    return load("products-find", arguments, _define_finding, MODULES)


def _define_finding() -> Callable[..., None]:
    import numba

    from .product_kernels import find

    carray, step = numba.carray, 2.0**SLICE_BITS
    sparse = _sparse()

    def finding(values, rows, width, scales, place, ats, integers, starts, count, ends, found):  # type: ignore[no-untyped-def]
        find(
            carray(values, (rows, width), np.float32),
            carray(scales, (width,), np.float64),
            place,
            step,
            sparse(ats, integers, starts, count, rows),
            carray(ends, (width,), np.int64),
            carray(found, (2,), np.int64),
        )

    return finding


def _sparse() -> Callable[..., Any]:
    """A matrix of product_kernels.Sparse, of rows, columns and order int64[3, count], integers and starts."""
    import numba

    carray = numba.carray

    @numba.njit
    def sparse(ats, integers, starts, count, rows):  # type: ignore[no-untyped-def]
        places = carray(ats, (3, count), np.int64)
        values, firsts = carray(integers, (count,), np.float64), carray(starts, (rows + 1,), np.int64)
        return places[0], places[1], values, firsts, places[2]

    return sparse  # type: ignore[no-any-return]


@cache
def multiplying() -> Callable[..., None]:
    """`product_kernels.add_sparse`: a matrix as `_sparse` has it, rows, the dense one, its width, products, width."""
    arguments = (*SPARSE_MATRIX, SIZE, POINTER, SIZE, POINTER, SIZE)
    return load("products-sparse", arguments, _define_multiplying, MODULES)


def _define_multiplying() -> Callable[..., None]:
    import numba

    from .product_kernels import add_sparse

    carray, matrix = numba.carray, _sparse()

    def multiplying(ats, integers, starts, count, rows, dense, others, products, width):  # type: ignore[no-untyped-def]
        add_sparse(
            matrix(ats, integers, starts, count, rows),
            carray(dense, (rows, others), np.float64),
            carray(products, (width, others), np.float64),
        )

    return multiplying


@cache
def multiplying_both() -> Callable[..., None]:
    """`product_kernels.add_both_sparse`: two matrices as `_sparse` has them, rows, products with their extents."""
    arguments = (*SPARSE_MATRIX, *SPARSE_MATRIX, SIZE, POINTER, SIZE, SIZE)
    return load("products-both-sparse", arguments, _define_multiplying_both, MODULES)


def _define_multiplying_both() -> Callable[..., None]:
    import numba

    from .product_kernels import add_both_sparse

    carray, matrix = numba.carray, _sparse()

    def multiplying(  # type: ignore[no-untyped-def]
        ats, integers, starts, count, ats2, integers2, starts2, count2, rows, products, width, others
    ):
        add_both_sparse(
            matrix(ats, integers, starts, count, rows),
            matrix(ats2, integers2, starts2, count2, rows),
            carray(products, (width, others), np.float64),
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
def adding_transposed() -> Callable[..., None]:
    """`product_kernels.add_transposed`: products, plane, extents of the plane."""
    return load("products-transposed", (POINTER, POINTER, SIZE, SIZE), _define_adding_transposed, MODULES)


def _define_adding_transposed() -> Callable[..., None]:
    import numba

    from .product_kernels import add_transposed

    carray = numba.carray

    def adding(products, plane, height, width):  # type: ignore[no-untyped-def]
        add_transposed(carray(products, (width, height), np.float64), carray(plane, (height, width), np.int64))

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
