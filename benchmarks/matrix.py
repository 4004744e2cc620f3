"""Which layers of fifteen small networks are corrected, and why the others are not: the README's matrix.

    python benchmarks/matrix.py --networks MobileNetV2 ViT

Each network is exported with both exporters of torch, quantised in each way of onnxruntime, and in each way of torch.
What is right is decided by onnxruntime and torch (`tests/matrix`). Needs torch, torchao and onnxscript; `make models`
installs them.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from measuring import machine
from tables import Table, show

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from matrix import exporting, torch_networks, torch_ways, ways
from matrix.ways import Outcome

COLUMNS = {
    "left in float": ("left its weight in float", "never quantised"),
    "recurrent": ("LSTM", "recurrent"),
    "stack of matrices": ("expected 2 axes", "no known bias"),
    "taken apart by tracing": ("tracing took",),
    "samples not first": ("expected samples on axis 0",),
}
"""Column of the table → words in the reasons that it counts; a reason belongs to the first that fits."""
OTHERS = "other reasons"


def main() -> None:
    """Print one table for onnxruntime and one for torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(torch_networks.NETWORKS), help="names (default all)")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    parser.add_argument("--reasons", action="store_true", help="also list the reasons of layers left alone")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    started = time.monotonic()
    found = {name: (list(_by_onnxruntime(name)), list(_by_torch(name))) for name in options.networks}
    columns = ["network", "layers", "corrected", "largest shift", "after", *COLUMNS, OTHERS, "wrong"]
    titles = (
        f"onnxruntime: {len(ways.WAYS)} ways × {len(exporting.EXPORTERS)} exporters",
        f"torch: {len(torch_ways.WAYS)} ways",
    )
    tables = [
        Table(title, columns, [_row(name, each[place]) for name, each in found.items()])
        for place, title in enumerate(titles)
    ]
    reasons = Counter(each.reason for both in found.values() for part in both for each in part if not each.corrected)
    notes = [f"{count} × {reason}" for reason, count in reasons.most_common()] if options.reasons else []
    show(tables, machine(), [*notes, f"{time.monotonic() - started:.0f} s"], markdown=options.markdown)


def _by_onnxruntime(name: str) -> Iterator[Outcome]:
    network, x = torch_networks.built(name)
    for exporter in exporting.EXPORTERS:
        print(f"{name}, {exporter}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
            path = Path(folder) / "float.onnx"
            exporting.export(network, x, path, exporter)
            recorded = ways.recorded(path, {key: np.asarray(each) for key, each in x.items()})
            for way in ways.WAYS.values():
                yield from ways.outcomes(recorded, way)


def _by_torch(name: str) -> Iterator[Outcome]:
    print(f"{name}, torch", file=sys.stderr)
    network, x = torch_networks.built(name)
    with tempfile.TemporaryDirectory() as folder:
        recorded = torch_ways.recorded(network, x, Path(folder))
        for way in torch_ways.WAYS.values():
            yield from torch_ways.outcomes(recorded, way)


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    corrected = [each for each in outcomes if each.corrected]
    counts = Counter(_column(each.reason) for each in outcomes if not each.corrected)
    wrong = sum(each.after is None or not each.after.is_undone for each in corrected)
    wrong += sum(not each.corrected and not each.reason for each in outcomes)
    before, after = (
        max((shift.errors for each in corrected if (shift := getattr(each, when))), default=0.0)
        for when in ("before", "after")
    )
    numbers = [f"{counts[column] or ''}" for column in (*COLUMNS, OTHERS)]
    return [name, f"{len(outcomes)}", f"{len(corrected)}", f"{before:.0f}", f"{after:.2f}", *numbers, f"{wrong}"]


def _column(reason: str) -> str:
    return next((column for column, words in COLUMNS.items() if any(each in reason for each in words)), OTHERS)


if __name__ == "__main__":
    main()
