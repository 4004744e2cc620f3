"""What further statistics cost: the speed of reductions with them, beside the limit of decoding and other idioms.

All run on each store in one run and in turn; figures are medians. Files come from the page cache.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase

from measuring import available_cores, in_own_process, machine, measure_in_turn
from stores import LAYOUTS, NARROW_LAYOUTS, generate, read_once, working_folder
from tables import Table, show

METHODS = {
    "limit": "limit",
    "reduction": "mean, extrema",
    "with_spread": "with spread",
    "with_taps": "with taps",
    "with_all": "with all kinds",
}
OTHERS = {
    "dask_all": "dask: all of them",
    "dask_squares": "dask: squares",
    "dask_histogram": "dask: histogram",
    "dask_percentile": "dask: percentile",
    "dask_tdigest": "dask: t-digest",
}
CASES = "*-[zl]*-last"
"""Layouts that are compressed, by zstd or lz4, with the channels last."""
NOTES = (
    "limit: decoding the bytes, nothing else. Shares are of the limit's speed.",
    "dask: `dask.array` in float32; its histogram is told the range, its percentiles are approximate, and nothing is "
    'exact. t-digest: `da.percentile(internal_method="tdigest")`, which needs the package crick.',
)


def main() -> None:
    """Measure the chosen cases and print speeds and shares."""
    options = _parser().parse_args()
    rows = []
    with working_folder(options.folder) as folder:
        for layout in (*LAYOUTS, *NARROW_LAYOUTS):
            if not fnmatchcase(layout.name, options.cases):
                continue
            with working_folder(str(folder)) as inside:
                print(f"measuring {layout.name} …", file=sys.stderr)
                source = in_own_process(generate, inside / "store.zarr", layout, int(options.size * 1e9))
                read_once(source)
                methods = METHODS | (OTHERS if options.others and layout in LAYOUTS else {})
                measured = measure_in_turn(
                    tuple(methods), source, threads=options.threads, repeats=options.repeats, patience=options.patience
                )
                seconds = {method: measured[method].median for method in methods}
                shares = [f"{seconds['limit'] / seconds[method]:.2f}" for method in list(methods)[1:]]
                rows.append([layout.name, f"{options.size / seconds['limit']:.2f}", *shares])
    headings = ["case", "limit, GB/s", *list((METHODS | (OTHERS if options.others else {})).values())[1:]]
    rows = [[*row, *["–"] * (len(headings) - len(row))] for row in rows]
    show([Table("What further statistics cost", headings, rows)], machine(), NOTES, markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.8, metavar="GB", help="decoded, per case (default 0.8)")
    parser.add_argument("--cases", metavar="GLOB", default=CASES, help=f"of the layouts (default: {CASES})")
    parser.add_argument("--others", action="store_true", help="also dask.array's idioms; needs crick")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: the number of cores")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS", help="after which there are no more")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    return parser


if __name__ == "__main__":
    main()
