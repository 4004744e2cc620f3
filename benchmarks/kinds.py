"""What further statistics cost: the speed of reductions with them, beside the limit of decoding and other idioms.

All run on each store in one run and in turn; figures are medians. Files come from the page cache. With `--others`, the
idioms of `dask.array` run in turn with the reductions, in as many threads, each statistic alone and all in one compute;
a second table says how wrong their results are.
"""

from __future__ import annotations

import argparse
import math
import sys
from fnmatch import fnmatchcase

import numpy as np
import zarr
from measuring import available_cores, in_own_process, machine, measure_in_turn
from methods.idioms import computed
from stores import LAYOUTS, NARROW_LAYOUTS, LayerSource, Source, generate, read_once, working_folder
from tables import Table, show

from streamstats import LayerRule, Quantization, reduce

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
    "dask: `dask.array` in float32; how many times as long as the reduction with all kinds it takes. Its histogram is "
    'told the range. t-digest: `da.percentile(internal_method="tdigest")`, which needs the package crick.',
    "Errors are relative to the exact value: of E[x²], of the worst channel; of percentiles, that of all values. In "
    "brackets: the share of the values that are no greater than what was found. Ours is the end of a bin; `--refine` "
    "makes it exact.",
)
QUANTILE = 0.999


def main() -> None:
    """Measure the chosen cases and print speeds and shares."""
    options = _parser().parse_args()
    layouts = (*LAYOUTS, *NARROW_LAYOUTS)
    methods = METHODS | (OTHERS if options.others else {})
    rows, wrong = [], []
    if not any(fnmatchcase(layout.name, options.cases) for layout in layouts):
        sys.exit(f"no case matches {options.cases}; there are {', '.join(layout.name for layout in layouts)}")
    with working_folder(options.folder) as folder:
        for layout in layouts:
            if not fnmatchcase(layout.name, options.cases):
                continue
            compared = options.others and layout in LAYOUTS
            with working_folder(str(folder)) as inside:
                print(f"measuring {layout.name} …", file=sys.stderr)
                source = in_own_process(generate, inside / "store.zarr", layout, int(options.size * 1e9))
                read_once(source)
                chosen = tuple(methods if compared else METHODS)
                measured = measure_in_turn(
                    chosen, source, threads=options.threads, repeats=options.repeats, patience=options.patience
                )
                seconds = {method: measured[method].median for method in chosen}
                shares = [f"{seconds['limit'] / seconds[method]:.2f}" for method in list(METHODS)[1:]]
                times = [
                    f"× {seconds[method] / seconds['with_all']:.1f}" if compared else "–"
                    for method in list(methods)[len(METHODS) :]
                ]
                rows.append([layout.name, f"{options.size / seconds['limit']:.2f}", *shares, *times])
                if compared:
                    wrong.append([layout.name, *in_own_process(errors, source, options.threads)])
    headings = ["case", "limit, GB/s", *list(methods.values())[1:]]
    tables = [Table("What further statistics cost", headings, rows)]
    if options.others:
        tables.append(Table("How wrong the results are", ["case", *ERRORS], wrong))
    show(tables, machine(), NOTES if options.others else NOTES[:1], markdown=options.markdown)


ERRORS = ("dask: E[x²]", "ours: E[x²]", "dask: 99.9 %", "t-digest: 99.9 %", "ours: 99.9 %")


def errors(source: Source, threads: int) -> list[str]:
    """The errors of `ERRORS` for the only layer of `source`."""
    (layer,) = source.layers
    stored = np.asarray(zarr.open_group(source.path, mode="r")[layer.name])
    by_channel = np.moveaxis(stored, layer.channel_axis, -1).reshape(-1, stored.shape[layer.channel_axis])
    step, zero_point = (1.0, 0) if layer.step is None else (layer.step, layer.zero_point)
    squares = [float(np.square((column.astype(np.float64) - zero_point) * step).mean()) for column in by_channel.T]
    flat = stored.reshape(-1)
    place = math.ceil(QUANTILE * flat.size) - 1
    exact = (float(np.partition(flat, place)[place]) - zero_point) * step
    dask_squares, dask_quantiles, digest = computed(source, threads, "squares", "percentile", "tdigest")
    found = reduce(source.path, layers=[_rule(layer)], threads=threads)[layer.name]
    quantiles = [dask_quantiles[-1], digest[-1], found.quantile(QUANTILE)[1]]
    below = [float((flat <= each / step + zero_point).mean()) for each in quantiles]
    return [
        *(f"{np.abs(each / squares - 1).max():.0e}" for each in (dask_squares, found.rms**2)),
        *(f"{each / exact - 1:+.1e} ({share:.4%})" for each, share in zip(quantiles, below, strict=True)),
    ]


def _rule(layer: LayerSource) -> LayerRule:
    quantization = None if layer.step is None else Quantization(layer.step, layer.zero_point)
    return LayerRule(layer.name, layer.channel_axis, quantization, ("squares", "histogram"))


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
