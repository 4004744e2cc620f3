"""Exact second moments beside inexact ones: as shares of one float64 matrix product, and beside XᵀX in float32 by numpy
over the same store; and what 16,384 channels take.

All runs of a case follow each other in turn, in one process with one thread of BLAS; figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from measuring import RSS_UNIT, in_own_process, machine
from stores import working_folder
from tables import Table, show
from threadpoolctl import threadpool_limits

from streamstats import LayerRule, reduce
from streamstats.calibration.selection import select_layers
from streamstats.coverage import Coverage
from streamstats.floats import BFLOAT16, is_float
from streamstats.jobs.plan import make_plan
from streamstats.statistics.exact import unit_exponent
from streamstats.statistics.gram import Gram
from streamstats.statistics.gram_pieces import digits_of
from streamstats.statistics.products import ROWS, Products

Array = npt.NDArray[Any]
COLUMNS = (512, 1024, 2048, 4096)
KINDS = {
    "int8": (1, lambda x: np.rint(x * 30).clip(-128, 127).astype(np.int8)),
    "float16 behind layer normalisation": (1, lambda x: x.astype(np.float16)),
    "float16 behind ReLU": (1, lambda x: np.maximum(x, 0).astype(np.float16)),
    "bfloat16": (1, lambda x: x.astype(BFLOAT16)),
    "float32": (3, lambda x: x),
}
"""Name → (slice products that BLAS has to do, how the values are made)."""
BATCHES = 2
WIDE, WIDE_ROWS, WIDE_PLANNED = 16_384, 512, 2**20
NOTES = (
    "Shares: the time of one dgemm of the same shape, times the number of slice products that BLAS does, by that of "
    "the exact sums. They may exceed 1, because XᵀX is symmetric, which a general product does not know.",
    "numpy: chunks read by zarr, widened to float32, XᵀX added up in float32.",
)


def main() -> None:
    """Measure, and print three tables."""
    options = _parser().parse_args()
    columns = COLUMNS[:1] if options.quick else options.columns
    shares = []
    for name in KINDS:
        print(f"multiplying {name} …", file=sys.stderr)
        shares.append([name, *(f"{share(name, width, options.repeats):.2f}" for width in columns)])
    with working_folder(options.folder) as folder:
        beside = []
        for name in KINDS:
            print(f"measuring {name} …", file=sys.stderr)
            times = [beside_numpy(folder / f"{len(beside)}-{width}", name, width, options) for width in columns]
            beside.append([name, *(f"× {each:.2f}" for each in times)])
        wide = [] if options.quick else [in_own_process(wide_layer, folder / "wide.zarr")]
    tables = [
        Table("Exact products, share of dgemm × slice products", ["values", *map(_width, columns)], shares),
        Table("Second moments of a store, time by that of float32", ["values", *map(_width, columns)], beside),
    ]
    if wide:
        tables.append(Table(f"{WIDE:,} channels of float16, {WIDE_ROWS} rows", list(wide[0]), [[*wide[0].values()]]))
    show(tables, machine(), NOTES, markdown=options.markdown)


def _width(columns: int) -> str:
    return f"{columns:,} columns"


def values_of(name: str, rows: int, columns: int) -> Array:
    """Normal values, as the case has them."""
    normal = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    return KINDS[name][1](normal)


def share(name: str, columns: int, repeats: int) -> float:
    """The time of dgemm, times the slice products, by that of the exact sums of products of BATCHES · ROWS rows."""
    values = values_of(name, BATCHES * ROWS, columns)
    left = values.astype(np.float64)
    right = left + 1
    rows = values.astype(np.float32)[:, np.newaxis]

    def exact() -> None:
        dtype = values.dtype
        found = Products(
            1, columns, None, unit=unit_exponent(dtype), integral=not is_float(dtype), digits=digits_of(dtype)
        )
        found.add(rows)
        found.found()

    def inexact() -> None:
        for start in range(0, len(left), ROWS):
            left[start : start + ROWS].T @ right[start : start + ROWS]

    found = in_turn({"exact": exact, "dgemm": inexact}, repeats)
    return KINDS[name][0] * found["dgemm"] / found["exact"]


def beside_numpy(path: Path, name: str, columns: int, options: argparse.Namespace) -> float:
    """The time of `reduce` with `gram` over a store, by that of XᵀX in float32."""
    rows = max(ROWS, int(options.size * 1e9 / 2 / columns))
    values = values_of(name, rows, columns)
    group = zarr.open_group(path, mode="w")
    group.create_array("layer", data=values, chunks=(256, columns))
    del values

    def exact() -> None:
        reduce(path, statistics=["gram"], threads=1, memory="16GiB")

    def float32() -> None:
        array, sums = zarr.open_group(path, mode="r")["layer"], np.zeros((columns, columns), np.float32)
        for start in range(0, rows, ROWS):
            block = np.asarray(array[start : start + ROWS]).astype(np.float32)
            sums += block.T @ block

    found = in_turn({"exact": exact, "float32": float32}, options.repeats)
    return found["exact"] / found["float32"]


def in_turn(methods: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median processor seconds of each method, after a first run that does not count: other work disturbs less."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with threadpool_limits(1, user_api="blas"):
        for _ in range(repeats + 1):
            for name, method in methods.items():
                started = time.process_time()
                method()
                seconds[name].append(time.process_time() - started)
    return {name: median(each[1:]) for name, each in seconds.items()}


def wide_layer(path: Path) -> dict[str, str]:
    """A layer of WIDE channels: counted over a few rows, and planned over many."""
    values = values_of("float16 behind layer normalisation", WIDE_ROWS, WIDE)
    array = zarr.open_group(path, mode="w").create_array(
        "layer", shape=values.shape, dtype=values.dtype, chunks=(64, WIDE)
    )
    array[...] = values
    started = time.perf_counter()
    gram = reduce(path, statistics=["gram"], memory="20GiB", threads=2)["layer"].gram
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    array.resize((WIDE_PLANNED, WIDE))
    (layer,) = select_layers(str(path), [LayerRule("*", statistics=["gram"])]).layers
    plan = make_plan([layer], {"layer": Coverage.first(WIDE_PLANNED)}, memory=20 * 2**30, threads=4, processes=32)
    returned = len(plan.tasks) * Gram.cut_bytes(layer.space)
    return {
        "tasks": f"{plan.tasks[0].cuts}",
        "seconds": f"{seconds:.0f}",
        "peak, GB": f"{peak / 1e9:.1f}",
        "state, GB": f"{sum(each.nbytes for each in gram.arrays().values()) / 1e9:.1f}",
        f"planned: {WIDE_PLANNED:,} rows, tasks": f"{len(plan.tasks):,}",
        "memory, GB": f"{plan.peak_bytes / 1e9:.1f}",
        "read, GB": f"{plan.bytes / 1e9:,.0f}",
        "returned, GB at most": f"{returned / 1e9:.1f}",
        "multiplications": f"{plan.operations:.1e}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.1, metavar="GB", help="of each store in float16 (default 0.1)")
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS, help="of the layers")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--quick", action="store_true", help="the smallest case alone")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    return parser


if __name__ == "__main__":
    main()
