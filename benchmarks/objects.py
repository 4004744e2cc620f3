"""Objects: the same store on a local disk, behind a server, and behind one that takes its time with every request."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from counting import Counting
from measuring import available_cores, in_own_process, machine
from s3 import BUCKET, serving
from stores import working_folder
from tables import Table, show, show_json

from streamstats.jobs.opening import open_workers
from streamstats.jobs.workers import Cluster

KiB, MiB = 2**10, 2**20
SIZES = (64 * KiB, MiB, 8 * MiB, 32 * MiB)
"""Decoded bytes of an object."""
LATENCIES = (0.0, 0.02, 0.1)
"""Seconds that are added to each request."""
ROW_BYTES = 64 * KiB


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? a tenth of everything")
    parser.add_argument("--size", type=float, default=1.0, help="GB decoded a case (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, taken in turn (default: 3)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    options = parser.parse_args()
    size = options.size * 1e9 / (10 if options.quick else 1)
    with working_folder(options.folder) as folder:
        found = [_measure(folder, each, size, 1 if options.quick else options.repeats) for each in SIZES]
    if options.json:
        show_json({"machine": machine(), "cases": found})
        return
    notes = ["the server is one process of Python on the same cores; ratios are to the server without latency."]
    show([_table(found)], machine(), notes, markdown=options.markdown)


def _measure(folder: Path, object_bytes: int, size: float, repeats: int) -> dict[str, Any]:
    print(f"objects of {object_bytes // KiB:,} KiB …", file=sys.stderr)
    name = f"{object_bytes}.zarr"
    number = max(1, round(size / object_bytes))
    in_own_process(_write, str(folder / name), object_bytes, number)
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        seconds.setdefault("disk", []).append(in_own_process(_reduce, str(folder / name), {}))
        for latency in LATENCIES:
            with serving(folder, latency) as environment:
                taken = in_own_process(_reduce, f"s3://{BUCKET}/{name}", environment)
            seconds.setdefault(f"{latency:g}", []).append(taken)
    return {
        "object_bytes": object_bytes,
        "bytes": number * object_bytes,
        "seconds": {key: float(np.median(s)) for key, s in seconds.items()},
    }


def _write(path: str, object_bytes: int, number: int) -> None:
    """A layer of equal chunks of ReLU-like codes, one of which is encoded and all others are copied from."""
    import zarr
    from zarr.codecs import ZstdCodec

    rows = object_bytes // ROW_BYTES
    array = zarr.create_group(path).create_array(
        "layer",
        shape=(rows * number, 16, 16, 256),
        chunks=(rows, 16, 16, 256),
        dtype="int8",
        compressors=ZstdCodec(level=1),
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    values = np.maximum(np.random.default_rng(7).normal(-1, 40, (rows, 16, 16, 256)), 0).astype("int8")
    array[:rows] = values
    content = Path(path, "layer/c.0.0.0.0").read_bytes()
    for each in range(1, number):
        Path(path, f"layer/c.{each}.0.0.0").write_bytes(content)


def _reduce(store: str, environment: dict[str, str]) -> float:
    """Seconds to reduce `store`, once it is opened."""
    os.environ.update(environment)
    with open_workers(Cluster(threads=available_cores()), []) as workers:
        counting = Counting.of(store, workers)
        begun = time.perf_counter()
        counting.count()
        return time.perf_counter() - begun


def _table(found: list[dict[str, Any]]) -> Table:
    columns = ["object, decoded", "disk MB/s", "server MB/s"]
    columns += [f"+{latency * 1e3:.0f} ms: MB/s (ratio)" for latency in LATENCIES[1:]]
    rows = []
    for each in found:
        rates = {key: each["bytes"] / seconds / 1e6 for key, seconds in each["seconds"].items()}
        row = [f"{each['object_bytes'] // KiB:,} KiB", f"{rates['disk']:.0f}", f"{rates['0']:.0f}"]
        row += [f"{rates[f'{late:g}']:.0f} ({rates[f'{late:g}'] / rates['0']:.2f})" for late in LATENCIES[1:]]
        rows.append(row)
    return Table("Reducing objects", columns, rows)


if __name__ == "__main__":
    main()
