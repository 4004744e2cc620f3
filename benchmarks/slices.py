"""Slices of activations: how many integer slices exact products cut them into, how full these are, what other grids and
other exact ways to multiply integers would cost, and how far apart float32 sums are.

The slices are cut here as docs/explanation/exact-products.md describes, in numpy, from the first 2,048 rows.
"""

from __future__ import annotations

import argparse
import time
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from measuring import machine
from tables import Table, show

from streamstats.floats import BFLOAT16
from streamstats.statistics.product_loops import SLICE_BITS
from streamstats.statistics.products import NORM_BITS, ROWS, SPARSE

Array = np.ndarray[Any, Any]
COLUMNS = 512
LARGEST_BITS = 21
"""Of slices whose largest value, not their norm, is bounded."""
random = np.random.default_rng(0)
NORMAL = random.normal(size=(ROWS, COLUMNS))
CHANNELS = NORMAL * 10.0 ** random.uniform(-1.5, 1.5, COLUMNS)
SPREAD = NORMAL * 10.0 ** random.uniform(-8, 8, NORMAL.shape)
ACTIVATIONS = {
    "int8": np.rint(NORMAL * 30).astype("i1"),
    "normal, float16": NORMAL.astype("f2"),
    "normal, bfloat16": NORMAL.astype(BFLOAT16),
    "normal, float32": NORMAL.astype("f4"),
    "normal behind ReLU, float32": np.maximum(NORMAL, 0).astype("f4"),
    "channels of scales over 3 decades, float16": CHANNELS.astype("f2"),
    "Student's t, 2 degrees of freedom, float16": random.standard_t(2, NORMAL.shape).astype("f2"),
    "Student's t, 2 degrees of freedom, float32": random.standard_t(2, NORMAL.shape).astype("f4"),
    "spread over 16 decades, float32": SPREAD.astype("f4"),
}


def main() -> None:
    """Cut, multiply, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    options = parser.parse_args()
    shares = {name: _shares(values, _by_norm(values)) for name, values in ACTIVATIONS.items()}
    rows = [[name, *map(_share, found), *[""] * (5 - len(found)), _products(found)] for name, found in shares.items()]
    columns = ["activations", *(f"slice {place}" for place in range(5)), "dense + sparse products"]
    title = f"Share of values that are not zero, {ROWS:,} rows × {COLUMNS} columns"
    grids = ["activations", *(f"by the {what}" for what in GRIDS)]
    ways = ["product", "× the time of dgemm"]
    tables = [
        Table(title, columns, rows),
        Table("Dense + sparse products with other grids", grids, [*map(_on_grids, OTHER_GRIDS)]),
        Table("Other ways to multiply integers exactly", ways, _ways()),
        Table("Entries of float32 XᵀX that are the same", ["rows", "equal"], [_float32_splits()]),
    ]
    show(tables, machine(), (), markdown=options.markdown)


def _by_norm(values: Array) -> Array:
    """The exponents of the columns by their norms, with a bit to spare; 0 for integers."""
    if values.dtype.kind == "i":
        return np.zeros(values.shape[1], int)
    return np.frexp(np.linalg.norm(values.astype("f8"), axis=0))[1] - NORM_BITS + 1


def _by_largest(values: Array) -> Array:
    """By their largest values, which must then stay below 2^21."""
    return np.frexp(np.abs(values.astype("f8")).max(axis=0))[1] - LARGEST_BITS + 1


def _by_matrix(values: Array) -> Array:
    return np.full(values.shape[1], _by_norm(values).max())


def _by_dtype(values: Array) -> Array:
    return np.full(values.shape[1], np.finfo(values.dtype).maxexp - LARGEST_BITS)


GRIDS = {
    "norm of each column": _by_norm,
    "largest value of each column": _by_largest,
    "norms of the matrix": _by_matrix,
    "dtype": _by_dtype,
}
OTHER_GRIDS = (
    "normal, float16",
    "normal, float32",
    "Student's t, 2 degrees of freedom, float16",
    "channels of scales over 3 decades, float16",
    "Student's t, 2 degrees of freedom, float32",
)


def _on_grids(name: str) -> list[str]:
    return [name, *(_products(_shares(ACTIVATIONS[name], grid(ACTIVATIONS[name]))) for grid in GRIDS.values())]


def _float32_splits() -> list[str]:
    """The share of entries that are equal whether the rows are multiplied at once or in two halves."""
    values = NORMAL.astype("f4")
    once, halves = values.T @ values, sum(half.T @ half for half in np.split(values, 2))
    return [f"{ROWS:,}, at once and in two halves", f"{(once == halves).mean():.1%}"]


def _shares(values: Array, exponents: Array) -> list[float]:
    """The share of values that are not zero in each slice, on the grid of these exponents, int[columns]."""
    rest, found = np.ldexp(values.astype("f8"), -exponents), []
    while rest.any():
        whole = np.rint(rest)
        found.append(float((whole != 0).mean()))
        rest = np.ldexp(rest - whole, SLICE_BITS)
    return found


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else f"{share:.0e}"


def _products(shares: list[float]) -> str:
    """How many pairs of slices BLAS multiplies, and how many are multiplied value by value."""
    pairs = [*map(min, combinations_with_replacement(shares, 2))]
    dense = sum(share >= SPARSE for share in pairs)
    sparse = sum(0 < share < SPARSE for share in pairs)
    return f"{dense} + {sparse}"


def _ways() -> list[list[str]]:
    values = random.integers(-127, 128, (ROWS, COLUMNS))
    kinds = {
        "int8 as float32, sgemm in blocks of 1,024 rows": "f4",
        "int8 as int32, numpy's loop": "i4",
        "any slice as int64, numpy's loop": "i8",
        "any slice as 80-bit floats, numpy's loop": "longdouble",
    }
    base = _seconds(values.astype("f8"), 1)
    return [[name, f"{_seconds(values.astype(kind), 2) / base:.2g}"] for name, kind in kinds.items()]


def _seconds(values: Array, blocks: int) -> float:
    """The least time of five products XᵀX, of blocks of rows."""
    found = []
    for _ in range(5 if values.dtype.kind == "f" and values.dtype.itemsize <= 8 else 2):
        start = time.perf_counter()
        for block in np.split(values, blocks):
            block.T @ block
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
