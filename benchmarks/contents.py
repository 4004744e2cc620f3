"""What it costs to know a copy: the processor time of a reduction that samples the content of each file, as a share of
that of one that does not, in turn, in one run.

Files come from the page cache. Small files cost most: each is sampled, whatever its size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr
from measuring import in_own_process, machine
from stores import COMPRESSORS, working_folder
from tables import Table, show

import streamstats as ss
from streamstats.calibration.encoding.content import UNSAMPLED
from streamstats.calibration.reading import file_reader
from streamstats.calibration.sources.local import LocalFile

CASES = (("int8", "raw"), ("int8", "zstd"), ("int8", "lz4"), ("float32", "lz4"))
FILE_KIB = (16, 128, 1024, 8192)
"""Decoded."""


def main() -> None:
    """Measure each case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.1, metavar="GB", help="decoded, per case (default 0.1)")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each (default 9)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        print(f"measuring {case} …", file=sys.stderr)
        shares = []
        for size in FILE_KIB:
            with working_folder(options.folder) as folder:
                in_own_process(_generate, folder / "s.zarr", *case, size * 2**10, int(options.size * 1e9))
                shares.append(f"{_share(folder / 's.zarr', options.repeats):.3f}")
        rows.append([" ".join(case), *shares])
    columns = ["case", *(f"files of {size:,} KiB, decoded" for size in FILE_KIB)]
    table = Table("Processor time with samples of contents, by that without", columns, rows)
    show([table], machine(), (), markdown=options.markdown)


def _generate(path: Path, dtype: str, codec: str, file_bytes: int, size: int) -> None:
    """A store of rows of 1 KiB, ReLU of normal values, in files of `file_bytes`."""
    width = 2**10 // np.dtype(dtype).itemsize
    values = np.maximum(np.random.default_rng(0).normal(0, 30, (2**14, width)), 0)
    block = np.minimum(values, 127).astype(dtype)
    rows = -(-size // block.nbytes) * len(block)
    chunks, compressors = (file_bytes // 2**10, width), COMPRESSORS[dtype, codec]
    settings: dict[str, Any] = {"dtype": dtype, "chunks": chunks, "compressors": compressors}
    array = zarr.open_group(path).create_array("layer", shape=(rows, width), **settings)
    for start in range(0, rows, len(block)):
        array[start : start + len(block)] = block


def _share(store: Path, repeats: int) -> float:
    """The processor time of a reduction of `store`, by that of one without samples."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats + 1):
        for sampling in seconds:
            with _sampling(sampling):
                start = time.process_time()
                ss.reduce(store, threads=1)
                seconds[sampling].append(time.process_time() - start)
    return median(seconds[True][1:]) / median(seconds[False][1:])


@contextmanager
def _sampling(wanted: bool) -> Iterator[None]:
    if wanted:
        yield
        return
    with (
        patch.object(file_reader, "contents_in", lambda _, places: places[:, 1]),
        patch.object(LocalFile, "content", lambda _: UNSAMPLED),
    ):
        yield


if __name__ == "__main__":
    main()
