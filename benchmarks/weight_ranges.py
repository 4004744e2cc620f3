"""What the range of the weights is worth: accuracy of the demo's network, corrected, with ranges of both kinds.

    python benchmarks/weight_ranges.py --bits 3 4 5

Weights have one range per tensor. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import machine
from tables import Table, show

from streamstats.demo.show import run
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.quantization import WEIGHT_RANGES


def main() -> None:
    """Run the demo in a temporary folder, correct its network at each width, and print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5], help="of the weights (default 3 4 5)")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "demo", lambda line: print(line, file=sys.stderr))
        rows = [_row(Path(folder) / "demo", bits, how) for bits in options.bits for how in WEIGHT_RANGES]
    headings = ["bits", "range", "float", "quantised", "one pass", "layer by layer"]
    show([Table("Accuracy on the held-out digits", headings, rows)], machine(), (), markdown=options.markdown)


def _row(folder: Path, bits: int, weight_range: str) -> list[str]:
    work = folder / f"work-{bits}-{weight_range}"
    how = How(
        Iterative(folder / "calibration.npy", work, batch_size=256),
        HeldOut(folder / "held-out.npy", folder / "labels.npy", batch_size=256),
    )
    done = correct(folder / "model.onnx", folder / "out", None, bits=bits, weight_range=weight_range, how=how)
    assert done.judgement is not None
    accuracy = done.judgement.accuracy
    return [
        str(bits),
        weight_range,
        *(f"{accuracy[name]:.1%}" for name in ("float", "quantised", "one pass", "corrected")),
    ]


if __name__ == "__main__":
    main()
