"""Local scaling: 1, 2, 4, … threads, and as many processes, as speed-up and as a share of the limit of so many threads.

The cases are those where threads should do well (files that are read without zarr), and those where Python's lock could
stand in their way: many small files, and chunks along every axis.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measuring import Measured, available_cores, in_own_process, machine, measure_in_turn
from stores import LayerSource, Layout, Source, generate, read_once, working_folder
from tables import Table, show, show_json
from zarr.codecs import ZstdCodec

KINDS = {"reduction": "threads", "processes": "processes"}
SMALL_CHUNK = (1, 8, 8, 256)
"""16 KiB of int8."""
SPLIT_CHUNK = (16, 14, 14, 64)
"""200 KiB of int8, a quarter of the pixels and of the channels."""
GB = 10**9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? a twentieth of everything")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, in turn (default 5)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    options = parser.parse_args()
    part, repeats = (20, 2) if options.quick else (1, options.repeats)
    counts = [count for count in (1, 2, 4, 8, 16) if count <= available_cores()]
    about, found = machine(), []
    for name, size, write in CASES:
        print(f"{name} …", file=sys.stderr)
        with working_folder(options.folder) as folder:
            source: Source = in_own_process(write, folder / "store.zarr", size // part)
            found.append(_measure(name, source, size // part, counts, repeats))
    if options.json:
        show_json({"machine": about, "cases": found})
        return
    notes = ["share: of the rate at which as many threads read the files and decode the chunks, and do nothing else."]
    show([_table(found, counts)], about, notes, markdown=options.markdown)


def _measure(name: str, source: Source, size: int, counts: list[int], repeats: int) -> dict[str, Any]:
    methods = ["limit", *KINDS]
    read_once(source)
    rates: dict[str, dict[int, float]] = {method: {} for method in methods}
    for count in counts:
        measured: dict[str, Measured] = measure_in_turn(methods, source, threads=count, repeats=repeats, patience=10)
        for method, runs in measured.items():
            rates[method][count] = size / runs.median
    return {"case": name, "bytes": size, "bytes_per_second": rates}


def _table(found: list[dict[str, Any]], counts: list[int]) -> Table:
    columns = ["case", "by", f"GB/s by {counts[0]}", *(f"× by {count}" for count in counts[1:])]
    columns += [f"share by {count}" for count in counts]
    return Table("Speed-up", columns, [row for each in found for row in _rows(each, counts)])


def _rows(found: dict[str, Any], counts: list[int]) -> Iterator[list[str]]:
    rates = found["bytes_per_second"]
    for method, title in KINDS.items():
        row = [found["case"], title, f"{rates[method][counts[0]] / GB:.2f}"]
        row += [f"{rates[method][count] / rates[method][counts[0]]:.2f}" for count in counts[1:]]
        row += [f"{rates[method][count] / rates['limit'][count]:.2f}" for count in counts]
        yield row


def _shards(path: Path, size: int) -> Source:
    return generate(path, Layout("int8", "zstd", sharded=True), size)


def _blosc(path: Path, size: int) -> Source:
    return generate(path, Layout("int8", "lz4"), size)


def _floats(path: Path, size: int) -> Source:
    return generate(path, Layout("float32", "lz4"), size)


def _small_files(path: Path, size: int) -> Source:
    return _in_chunks(path, size, SMALL_CHUNK[1:], SMALL_CHUNK)


def _split(path: Path, size: int) -> Source:
    return _in_chunks(path, size, (28, 28, 256), SPLIT_CHUNK)


def _in_chunks(path: Path, size: int, sample: tuple[int, ...], chunk: tuple[int, ...]) -> Source:
    rows = max(chunk[0], size // int(np.prod(sample)))
    array = zarr.create_group(path).create_array(
        "layer", shape=(rows, *sample), chunks=chunk, dtype="int8", compressors=ZstdCodec(level=1)
    )
    values = np.maximum(np.random.default_rng(7).normal(-1, 40, (64, *sample)), 0).astype("int8")
    for start in range(0, rows, 64):
        array[start : start + 64] = values[: rows - start]
    return Source(str(path), (LayerSource("layer", 3),))


CASES: tuple[tuple[str, int, Callable[[Path, int], Source]], ...] = (
    ("int8 zstd, shards", GB, _shards),
    ("int8 lz4, plain", GB, _blosc),
    ("float32 lz4, plain", GB, _floats),
    ("int8 zstd, files of 16 KiB", GB // 2, _small_files),
    ("int8 zstd, chunks along all axes", GB // 2, _split),
)
"""Name, decoded bytes, what writes the store."""


if __name__ == "__main__":
    main()
