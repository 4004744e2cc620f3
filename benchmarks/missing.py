"""Values that attributes call missing: how fast a store with them is reduced, beside one without, in turn, in one run.

The share of the values that are missing is spread at random, the hardest case: hardly a strip is without one. Files
come from the page cache.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measuring import common_options, machine, rates_in_turn
from stores import working_folder
from tables import Table, show
from zarr.codecs import ZstdCodec

import streamstats as ss

SAMPLE, CHUNK = (28, 28, 256), 16
"""The shape of a sample, channels last, and the samples of a chunk."""
MISSING = -9999
CASES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "float32, 0.1 % missing": ("float32", 0.001, {"missing_value": MISSING}),
    "float32, 5 % missing": ("float32", 0.05, {"missing_value": MISSING}),
    "float32, 5 % outside the valid range": ("float32", 0.05, {"valid_min": -100.0}),
    "int16 packed, 5 % missing": ("int16", 0.05, {"missing_value": MISSING, "scale_factor": 0.01, "add_offset": 1.5}),
}
"""Name → dtype, share of missing values, attributes."""


def main() -> None:
    """Measure each case and print a table."""
    options = common_options(__doc__, "store")
    rows = []
    for name, (dtype, share, attributes) in CASES.items():
        print(f"measuring {name} …", file=sys.stderr)
        with working_folder(options.folder) as folder:
            size = _store(folder / "applied", dtype, share, int(options.size * 1e9), attributes)
            _store(folder / "without", dtype, 0, int(options.size * 1e9), {})
            rates = _rates(folder, size, options.threads, options.repeats)
        rows.append([name, f"{rates['without'] / 1e9:.2f}", f"{rates['applied'] / rates['without']:.2f}"])
    columns = ["zstd, channels last", "without attributes, GB/s", "share of it with missing values"]
    show([Table("Missing values", columns, rows)], machine(), (), markdown=options.markdown)


def _store(path: Path, dtype: str, share: float, size: int, attributes: dict[str, Any]) -> int:
    """Write a store of about `size` bytes, of which `share` are missing; returns the bytes."""
    random = np.random.default_rng(0)
    rows = max(CHUNK, size // (int(np.prod(SAMPLE)) * np.dtype(dtype).itemsize) // CHUNK * CHUNK)
    array = zarr.open_group(path, mode="w").create_array(
        "layer",
        shape=(rows, *SAMPLE),
        dtype=dtype,
        chunks=(CHUNK, *SAMPLE),
        compressors=[ZstdCodec(level=1)],
        attributes=attributes,
    )
    for start in range(0, rows, CHUNK):
        values = np.maximum(random.normal(0, 50, (CHUNK, *SAMPLE)), 0).astype(dtype)
        values[random.random(values.shape) < share] = MISSING
        array[start : start + CHUNK] = values
    return int(array.nbytes)


def _rates(folder: Path, size: int, threads: int, repeats: int) -> dict[str, float]:
    """Bytes a second of both stores."""
    reductions = {name: lambda name=name: ss.reduce(folder / name, threads=threads) for name in ("without", "applied")}
    return rates_in_turn(reductions, size, repeats)


if __name__ == "__main__":
    main()
