"""Saving: how often a run saves what it has counted, and what share of its time that takes.

A run over many layers of values that repeat, with gzip, which decodes slowly, so that it lasts long enough to save
several times; the saves are timed where they happen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from measuring import in_own_process, machine
from stores import working_folder
from tables import Table, show, show_json
from zarr.codecs import GzipCodec

from streamstats.jobs import session
from streamstats.jobs.job import Job
from streamstats.jobs.run import run
from streamstats.outputs import saving

CHUNK = (16, 64, 64, 64)
"""4 MiB of int8."""
LAYERS = 100
PATTERN_BYTES = 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work? 0.5 GB")
    parser.add_argument("--size", type=float, default=20, metavar="GB", help="decoded (default 20)")
    parser.add_argument("--folder", help="where to generate data (default: the folder for temporary files)")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    options = parser.parse_args()
    size = 0.5 if options.quick else options.size
    with working_folder(options.folder) as folder:
        print(f"writing {size} GB in {LAYERS} layers …", file=sys.stderr)
        in_own_process(_write, str(folder / "s.zarr"), size)
        whole, starts, saves, results = in_own_process(_run, str(folder / "s.zarr"), str(folder / "out"))
    between = np.diff([0.0, *starts]).tolist()
    figures = {
        "seconds": whole,
        "saves": len(starts),
        "seconds_between": between,
        "seconds_saving": sum(saves),
        "seconds_results": results,
    }
    if options.json:
        show_json({"machine": machine(), **figures})
        return
    median = f"{np.median(between):.1f}" if between else "-"
    row = [f"{LAYERS} layers, {size} GB", f"{whole:.1f}", str(len(starts)), median, f"{sum(saves):.2f}"]
    columns = ["run", "seconds", "saves", "seconds between", "seconds saving", "share", "writing the results"]
    table = Table("Saving what was counted", columns, [[*row, f"{sum(saves) / whole:.1%}", f"{results:.2f}"]])
    show([table], machine(), ["The workers go on while it saves."], markdown=options.markdown)


def _write(path: str, size: float) -> None:
    rows = CHUNK[0] * max(1, round(size * 1e9 / LAYERS / np.prod(CHUNK)))
    pattern = np.random.default_rng(4).integers(-128, 127, PATTERN_BYTES, np.int8)
    group = zarr.create_group(path)
    first = group.create_array(
        "layer000", shape=(rows, *CHUNK[1:]), chunks=CHUNK, dtype="int8", compressors=GzipCodec(level=1)
    )
    first[: CHUNK[0]] = np.resize(pattern, CHUNK)
    chunk = Path(path, "layer000/c/0/0/0/0").read_bytes()
    document = Path(path, "layer000/zarr.json").read_bytes()
    for layer in range(LAYERS):
        folder = Path(path, f"layer{layer:03}")
        for number in range(rows // CHUNK[0]):
            file = folder / f"c/{number}/0/0/0"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(chunk)
        (folder / "zarr.json").write_bytes(document)


def _run(store: str, output: str) -> tuple[float, list[float], list[float], float]:
    """Seconds of the whole run, when it saved, how long that took, and how long the results took at the end."""
    calls: dict[str, list[tuple[float, float]]] = {"saving": [], "results": []}

    def timed(kind: str, write: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            before = time.perf_counter()
            write(*arguments, **options)
            calls[kind].append((before - begun, time.perf_counter() - before))

        return call

    saving.write_states = timed("saving", saving.write_states)
    session.write_results = timed("results", session.write_results)
    begun = time.perf_counter()
    run(Job(store, output))
    whole = time.perf_counter() - begun
    return whole, [start for start, _ in calls["saving"]], [took for _, took in calls["saving"]], calls["results"][0][1]


if __name__ == "__main__":
    main()
