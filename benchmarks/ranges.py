"""How long quantisation ranges take: each method for a layer of float32 values, by the distribution and the bits."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine
from tables import Table, show

import streamstats as ss
from streamstats.ranges.finding import METHODS

VALUES = (4000, 1000)
BITS = (2, 4, 8)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = _counted(Path(folder))
        layers = ss.find_ranges(output, "minmax")
        rows = [[layer, str(bits), *_seconds(output, layer, bits)] for layer in layers for bits in BITS]
    columns = ["values", "bits", *METHODS]
    show([Table("Seconds per layer", columns, rows)], machine(), (), markdown=options.markdown)


def _counted(folder: Path) -> Path:
    """The output of a run over layers of different distributions."""
    random = np.random.default_rng(0)
    layers = {
        "normal": random.normal(size=VALUES),
        "normal behind a ReLU": np.maximum(random.normal(size=VALUES), 0),
        "Laplace": random.laplace(size=VALUES),
        "Student's t, 2 degrees of freedom": random.standard_t(2, size=VALUES),
        "log-normal, sigma 3": random.lognormal(sigma=3, size=VALUES),
    }
    meter = ss.Meter(["histogram"])
    for name, values in layers.items():
        meter.append(name, values.astype(np.float32))
    meter.save(folder / "out")
    return folder / "out"


def _seconds(output: Path, layer: str, bits: int) -> list[str]:
    found = []
    for method in METHODS:
        start = time.perf_counter()
        ss.find_ranges(output, method, bits, layers=layer)
        found.append(f"{time.perf_counter() - start:.2f}")
    return found


if __name__ == "__main__":
    main()
