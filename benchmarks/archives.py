"""A zip archive beside the folder that is in it: how fast both are reduced, in turn, in one run.

Members are stored, as zarr stores them, or deflated, as most programs do. Files come from the page cache.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from measuring import common_options, in_own_process, machine, rates_in_turn
from stores import LAYOUTS, Layout, generate, working_folder
from tables import Table, show

import streamstats as ss

CASES = ("int8-raw-plain-last", "int8-zstd-plain-last", "int8-lz4-plain-last", "int8-zstd-shards-last")
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def main() -> None:
    """Measure each case and print a table."""
    options = common_options(__doc__, "case")
    rows = []
    for layout in (each for each in LAYOUTS if each.name in CASES):
        print(f"measuring {layout.name} …", file=sys.stderr)
        with working_folder(options.folder) as folder:
            rates = _rates(folder, layout, int(options.size * 1e9), options.threads, options.repeats)
        shares = [f"{rates[name] / rates['folder']:.2f}" for name in METHODS]
        rows.append([layout.name, f"{rates['folder'] / 1e9:.2f}", *shares])
    table = Table("Archives, as shares of the folder's speed", ["case", "folder, GB/s", *METHODS], rows)
    show([table], machine(), (), markdown=options.markdown)


def _rates(folder: Path, layout: Layout, size: int, threads: int, repeats: int) -> dict[str, float]:
    """Bytes a second of the folder, and of an archive by each method."""
    store = folder / "store.zarr"
    source = in_own_process(generate, store, layout, size)
    rules = [ss.LayerRule(layer.name, channel_axis=layer.channel_axis) for layer in source.layers]
    places = {"folder": store} | {name: folder / f"{name}.zip" for name in METHODS}
    for name, method in METHODS.items():
        with zipfile.ZipFile(places[name], "w", method) as archive:
            for file in sorted(path for path in store.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(store))
    reductions = {
        name: lambda place=place: ss.reduce(place, layers=rules, threads=threads) for name, place in places.items()
    }
    return rates_in_turn(reductions, size, repeats)


if __name__ == "__main__":
    main()
