"""Which layers of fifteen small networks are corrected, and why the others are not: a table of the documentation.

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
from itertools import chain
from pathlib import Path

import numpy as np
from measuring import machine
from tables import Table, show

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from matrix import exporting, torch_networks, torch_ways, ways
from matrix.ways import Outcome

REASONS = {
    "never quantised": ("left its weight in float", "is the float one"),
    "recurrent": ("LSTM", "recurrent"),
    "stacked": ("expected 2 axes", "no one parameter"),
    "taken apart": ("tracing took",),
}
"""Short name of a reason → words in it; a reason has the first name that fits."""
OTHER = "other"


def main() -> None:
    """Print which layers of each network were corrected, in all ways of onnxruntime and of torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(torch_networks.NETWORKS), help="names (default all)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--reasons", action="store_true", help="also list the reasons in full")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    started = time.monotonic()
    found = {name: (list(_by_onnxruntime(name)), list(_by_torch(name))) for name in options.networks}
    title = (
        f"onnxruntime: {len(exporting.EXPORTERS)} exporters × {len(ways.WAYS)} ways; torch: {len(torch_ways.WAYS)} ways"
    )
    columns = ["network", "onnxruntime: layers", "corrected", "left out", "torch: layers", "corrected", "left out"]
    rows = [[name, *_counts(by_onnxruntime), *_counts(by_torch)] for name, (by_onnxruntime, by_torch) in found.items()]
    both = [list(chain.from_iterable(each)) for each in zip(*found.values(), strict=True)]
    notes = [_summary(name, each) for name, each in zip(("onnxruntime", "torch"), both, strict=True)]
    if options.reasons:
        reasons = Counter(each.reason for outcomes in both for each in outcomes if not each.corrected)
        notes += [f"{count} × {reason}" for reason, count in reasons.most_common()]
    seconds = f"{time.monotonic() - started:.0f} s"
    show([Table(title, columns, rows)], machine(), [*notes, seconds], markdown=options.markdown)


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


def _counts(outcomes: Sequence[Outcome]) -> list[str]:
    """Layers in all, those corrected, and those left out by reason."""
    counts = Counter(_short(each.reason) for each in outcomes if not each.corrected)
    left_out = ", ".join(f"{counts[name]} {name}" for name in (*REASONS, OTHER) if counts[name])
    return [f"{len(outcomes)}", f"{sum(each.corrected for each in outcomes)}", left_out or "-"]


def _summary(name: str, outcomes: Sequence[Outcome]) -> str:
    """The largest shifts, as multiples of what rounding a bias once may leave, and how many layers are wrong."""
    corrected = [each for each in outcomes if each.corrected]
    before, after = (
        max((shift.errors for each in corrected if (shift := getattr(each, when))), default=0.0)
        for when in ("before", "after")
    )
    wrong = sum(each.after is None or not each.after.is_undone for each in corrected)
    silent = sum(not each.corrected and not each.reason for each in outcomes)
    return f"{name}: largest shift {before:.0f}, corrected {after:.2f}; {wrong} wrong, {silent} without a reason"


def _short(reason: str) -> str:
    return next((name for name, words in REASONS.items() if any(each in reason for each in words)), OTHER)


if __name__ == "__main__":
    main()
