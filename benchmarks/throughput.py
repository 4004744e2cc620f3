"""How close the reduction is to the limit of reading and decoding, and how far ahead of the usual idioms.

On each store, in one run and in turn: the limit, streamstats, dask, xarray, and concatenate-and-mean. Rates
are decoded bytes a second, medians; ratios are of medians. `README.md` says what is and what is not in a
figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import psutil
from measuring import Measured, available_cores, in_own_process, machine, measure_in_turn
from reference import exact_means, largest_error
from stores import LAYOUTS, Source, generate, layer_shapes, read_once, real_source, working_folder
from tables import Table, show, show_json

METHODS = ("limit", "reduction", "dask_mean", "xarray_mean", "concatenate", "command")
TITLES = {
    "limit": "limit",
    "reduction": "streamstats",
    "dask_mean": "dask",
    "xarray_mean": "xarray",
    "concatenate": "concatenate",
    "command": "`streamstats run`",
}
QUICK_CASES = ("int8-zstd-shards-last", "float32-lz4-plain-first", "real")
WITH_A_RESULT = ("reduction", "dask_mean", "xarray_mean", "concatenate")
REAL_DATA = Path(__file__).resolve().parents[2] / "shared/data/activations.zarr"
NOTES = (
    "Files were read once before, so they come from the page cache as far as they fit in memory.",
    "streamstats is timed from the plan being ready to the means; "
    "`streamstats run` is the whole process, the start of Python and writing the results included.",
    "concatenate reads the first 0.5 GB of a store only (it holds everything several times); "
    "its rate is over what it read.",
    "error: the largest of a channel, as a share of the layer's largest mean; exact: every channel has the "
    "same bits as the exact mean, which is found without streamstats.",
    "peak memory: resident, of a process that does nothing else; imports included.",
)


@dataclass(frozen=True)
class CaseResult:
    """What was measured on one store."""

    name: str
    decoded_bytes: int
    disk_bytes: int
    measured: Mapping[str, Measured]
    bytes_read: Mapping[str, float]
    errors: Mapping[str, float]

    def rate(self, method: str) -> float:
        """Decoded bytes a second, by the median."""
        return self.bytes_read[method] / self.measured[method].median

    def figures(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "case": self.name,
            "decoded_bytes": self.decoded_bytes,
            "disk_bytes": self.disk_bytes,
            "methods": {
                method: {
                    "bytes_per_second": self.rate(method),
                    "bytes_read": self.bytes_read[method],
                    "seconds": measured.seconds,
                    "peak_bytes": measured.peak_bytes,
                    "error": self.errors.get(method),
                }
                for method, measured in self.measured.items()
            },
        }


def main() -> None:
    """Measure the chosen cases and print the figures."""
    options = _parser().parse_args()
    about = machine()
    results = []
    with working_folder(options.folder) as folder:
        for name, source in _cases(options, folder):
            print(f"measuring {name} …", file=sys.stderr)
            results.append(_measure(name, source, options))
    if options.json:
        show_json({"machine": about, "cases": [result.figures() for result in results]})
    else:
        show(
            [_speed(results), _seconds(results), _memory(results), _errors(results)],
            about,
            NOTES,
            markdown=options.markdown,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? 0.05 GB a case, two repeats, few cases")
    parser.add_argument("--size", type=float, default=1.6, metavar="GB", help="decoded, a case (default 1.6)")
    parser.add_argument(
        "--cases",
        metavar="GLOB",
        help=f"of {', '.join(layout.name for layout in LAYOUTS)}, real",
    )
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: the cores")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each method (default 7)")
    parser.add_argument(
        "--patience", type=float, default=20, metavar="SECONDS", help="after which a method gets no more runs"
    )
    parser.add_argument(
        "--data", type=Path, default=REAL_DATA, help="a store of real activations, left out if not there"
    )
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


def _is_chosen(name: str, options: argparse.Namespace) -> bool:
    if options.cases is None:
        return name in QUICK_CASES or not options.quick
    return fnmatchcase(name, options.cases)


def _cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Source]]:
    """The chosen stores; a generated one is there until the next is asked for."""
    size = int((0.05 if options.quick else options.size) * 1e9)
    for layout in LAYOUTS:
        if _is_chosen(layout.name, options):
            with working_folder(str(folder)) as inside:
                yield layout.name, in_own_process(generate, inside / "store.zarr", layout, size)
    if options.data.exists() and _is_chosen("real", options):
        yield "real", real_source(options.data)


def _measure(name: str, source: Source, options: argparse.Namespace) -> CaseResult:
    shapes = layer_shapes(source)
    disk_bytes = read_once(source)
    free = psutil.virtual_memory().available
    print(f"  {disk_bytes / 1e9:.2f} GB on disk, {free / 1e9:.1f} GB of memory available", file=sys.stderr)
    repeats = 2 if options.quick else options.repeats
    measured = measure_in_turn(METHODS, source, threads=options.threads, repeats=repeats, patience=options.patience)
    all_rows = {layer: shape[0] for layer, (shape, _) in shapes.items()}
    row_bytes = {layer: size / shape[0] for layer, (shape, size) in shapes.items()}
    rows = {method: dict(of_method.last.rows) or all_rows for method, of_method in measured.items()}
    return CaseResult(
        name=name,
        decoded_bytes=sum(size for _, size in shapes.values()),
        disk_bytes=disk_bytes,
        measured=measured,
        bytes_read={method: sum(row_bytes[layer] * count for layer, count in rows[method].items()) for method in rows},
        errors=_found_errors(source, measured, rows),
    )


def _found_errors(
    source: Source, measured: Mapping[str, Measured], rows: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """Method → its error against the exact mean of the rows it read."""
    exact: list[tuple[Mapping[str, int], Any]] = []
    for method in WITH_A_RESULT:
        if not any(known == rows[method] for known, _ in exact):
            exact.append((rows[method], in_own_process(exact_means, source, rows[method])))
    return {
        method: largest_error(
            measured[method].last.means, next(means for known, means in exact if known == rows[method])
        )
        for method in WITH_A_RESULT
    }


# The tables


def _speed(results: Sequence[CaseResult]) -> Table:
    return Table(
        "Decoded GB/s, and ratios",
        [
            "case",
            "decoded / on disk",
            "limit",
            "streamstats",
            "share of the limit",
            "× dask",
            "× xarray",
            "× concatenate",
        ],
        [
            [
                result.name,
                f"{result.decoded_bytes / result.disk_bytes:.2f}",
                f"{result.rate('limit') / 1e9:.2f}",
                f"{result.rate('reduction') / 1e9:.2f}",
                f"{result.rate('reduction') / result.rate('limit'):.2f}",
                *(
                    f"{result.rate('reduction') / result.rate(other):.1f}"
                    for other in ("dask_mean", "xarray_mean", "concatenate")
                ),
            ]
            for result in results
        ],
    )


def _seconds(results: Sequence[CaseResult]) -> Table:
    return Table(
        "Seconds, medians (what the method read)",
        ["case", "decoded GB", *(TITLES[method] for method in METHODS)],
        [
            [
                result.name,
                f"{result.decoded_bytes / 1e9:.2f}",
                *(f"{result.measured[m].median:.2f}" for m in METHODS),
            ]
            for result in results
        ],
    )


def _memory(results: Sequence[CaseResult]) -> Table:
    return Table(
        "Peak memory, MB",
        ["case", *(TITLES[method] for method in METHODS)],
        [[result.name, *(f"{result.measured[m].peak_bytes / 1e6:.0f}" for m in METHODS)] for result in results],
    )


def _errors(results: Sequence[CaseResult]) -> Table:
    return Table(
        "Error against the exact mean",
        ["case", *(TITLES[method] for method in WITH_A_RESULT)],
        [[result.name, *(_error_text(result.errors[method]) for method in WITH_A_RESULT)] for result in results],
    )


def _error_text(error: float) -> str:
    return "exact" if error == 0 else f"{error:.1e}"


if __name__ == "__main__":
    main()
