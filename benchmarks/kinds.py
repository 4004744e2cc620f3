"""What a further statistic costs: the speed of a reduction with it, as a share of the speed of one without.

Both run on each store in one run and in turn; figures are medians. Files come from the page cache.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase

from measuring import available_cores, in_own_process, machine, measure_in_turn
from stores import LAYOUTS, generate, read_once, working_folder
from tables import Table, show

METHODS = ("reduction", "with_spread", "with_taps")
TITLES = {"reduction": "mean and extrema", "with_spread": "and spread", "with_taps": "and taps"}
CASES = "*-[zl]*"
"""Layouts that are compressed, by zstd or lz4."""


def main() -> None:
    """Measure the chosen cases and print the shares."""
    options = _parser().parse_args()
    rows = []
    with working_folder(options.folder) as folder:
        for layout in LAYOUTS:
            if not fnmatchcase(layout.name, options.cases):
                continue
            with working_folder(str(folder)) as inside:
                print(f"measuring {layout.name} …", file=sys.stderr)
                source = in_own_process(generate, inside / "store.zarr", layout, int(options.size * 1e9))
                read_once(source)
                measured = measure_in_turn(
                    METHODS, source, threads=options.threads, repeats=options.repeats, patience=options.patience
                )
                seconds = {method: measured[method].median for method in METHODS}
                rate = options.size / seconds["reduction"]
                shares = [f"{seconds['reduction'] / seconds[method]:.2f}" for method in METHODS[1:]]
                rows.append([layout.name, f"{rate:.2f}", *shares])
    headings = ["case", f"{TITLES['reduction']}, GB/s", *(f"{TITLES[method]}, share" for method in METHODS[1:])]
    show([Table("What a further statistic costs", headings, rows)], machine(), (), markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.8, metavar="GB", help="decoded, per case (default 0.8)")
    parser.add_argument("--cases", metavar="GLOB", default=CASES, help="of the layouts (default: compressed ones)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: the number of cores")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS", help="after which there are no more")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    return parser


if __name__ == "__main__":
    main()
