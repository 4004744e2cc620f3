"""Small things: the start of the program, many small layers, and what compiling the kernels costs.

Every figure is the time of a whole process, from its start to its end; medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import zarr
from commands import run_to_the_end, streamstats, write_config
from measuring import in_own_process, machine
from stores import LayerSource, Source, working_folder
from tables import Table, show, show_json
from zarr.codecs import ZstdCodec

LAYERS = 200
ROWS, SAMPLE, CHUNK_ROWS = 16, (16, 16, 256), 4
"""1 MiB of int8 a layer, in four chunks."""
DTYPES = ("int8", "float32")
ALL_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
AT_ONCE = 8
PROCESSES = Path(__file__).parent / "processes"
NO_CACHE = {"XDG_CACHE_HOME": "/dev/null"}
"""Nowhere to keep compiled kernels."""
NOTES = (
    "first block: `streamstats.reduce` of the 200 layers, ended where it would read its first block.",
    "kernels: imports, and the mean and extrema of a small block of each dtype, channels last and first; cold: "
    "an empty cache each time; not cached: no folder for it can be written.",
)


def main() -> None:
    """Measure every case and print seconds."""
    options = _parser().parse_args()
    repeats = 1 if options.quick else options.repeats
    about = machine()
    seconds: dict[str, list[float]] = {}
    with working_folder(options.folder) as folder:
        source = Source(str(folder / "store.zarr"), tuple(LayerSource(_name(index), 3) for index in range(LAYERS)))
        in_own_process(_write, source)
        for name, function in _cases(source, folder).items():
            print(f"measuring {name} …", file=sys.stderr)
            function()
            seconds[name] = [function() for _ in range(repeats)]
    if options.json:
        show_json({"machine": about, "seconds": seconds})
    else:
        show([_table(seconds)], about, NOTES, markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind (default 5), one more warms up")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    return parser


def _cases(source: Source, folder: Path) -> dict[str, Callable[[], float]]:
    """What is measured → the seconds of one process (or of all that run at once)."""
    config = write_config(folder, source)
    dtypes = " and ".join(DTYPES)
    return {
        "python, doing nothing": lambda: _python("-c", "pass"),
        "streamstats --help": lambda: streamstats("--help").seconds,
        "streamstats.reduce up to its first block": lambda: _python(str(PROCESSES / "first_block.py"), source.path),
        f"streamstats run, {LAYERS} layers of 1 MiB": lambda: streamstats("run", str(config)).seconds,
        f"kernels of {dtypes}, cached": lambda: _first_measures(DTYPES),
        f"kernels of {dtypes}, cold": lambda: _cold(DTYPES),
        f"kernels of {dtypes}, not cached": lambda: _first_measures(DTYPES, NO_CACHE),
        f"kernels of {dtypes}, cold, {AT_ONCE} processes at once": lambda: _cold(DTYPES, AT_ONCE),
        f"kernels of all {len(ALL_DTYPES)} dtypes, cached": lambda: _first_measures(ALL_DTYPES),
        f"kernels of all {len(ALL_DTYPES)} dtypes, cold": lambda: _cold(ALL_DTYPES),
    }


def _python(*arguments: str, environment: Mapping[str, str] | None = None) -> float:
    return run_to_the_end([sys.executable, *arguments], environment).seconds


def _first_measures(dtypes: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    return _python(str(PROCESSES / "first_measures.py"), *dtypes, environment=environment)


def _cold(dtypes: Sequence[str], processes: int = 1) -> float:
    """The slowest of `processes` that start at once with one empty cache."""
    with ExitStack() as stack:
        empty = stack.enter_context(tempfile.TemporaryDirectory())
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        return max(pool.map(lambda _: _first_measures(dtypes, {"XDG_CACHE_HOME": empty}), range(processes)))


def _name(index: int) -> str:
    return f"block{index:03}/project"


def _write(source: Source) -> None:
    group = zarr.create_group(source.path)
    values = np.random.default_rng(3).integers(-128, -100, (ROWS, *SAMPLE), np.int8)
    for layer in source.layers:
        group.create_array(layer.name, data=values, chunks=(CHUNK_ROWS, *SAMPLE), compressors=ZstdCodec())


def _table(seconds: Mapping[str, Sequence[float]]) -> Table:
    rows = [
        [name, f"{median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"] for name, values in seconds.items()
    ]
    return Table("Seconds of a whole process", ["what", "median", "least", "most"], rows)


if __name__ == "__main__":
    main()
