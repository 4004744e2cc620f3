"""How right the standard error of a correction is, which takes the channels of a layer for independent.

For each layer of real activations with their weights, the corrections that single samples would give are found, and
their standard error is compared with the one that follows from the channels alone: the ratio for the median output,
and for the output where it is largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import zarr
from measuring import machine
from safetensors.numpy import load_file
from tables import Table, show, show_json

from streamstats.correction import MeanBiasCorrector, correction_error
from streamstats.quantization import Quantization

LAYERS = {
    "block02/depthwise": (3, Quantization(0.049613301894244025, -128), 144),
    "block04/depthwise": (1, None, 192),
    "block04/project": (3, Quantization(0.013603678871603573, -128), 1),
    "block08/expand": (3, Quantization(0.03057065290563247, 116), 1),
    "block12/depthwise": (3, Quantization(0.02832076502781288, -128), 576),
    "head": (3, None, 1),
    "classifier": (1, None, 1),
}
"""Layer → channel axis, quantisation of its activations, groups of its weight."""


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of activations.zarr and weights.safetensors")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {layer: _ratios(options.data, layer) for layer in LAYERS}
    if options.json:
        show_json({"machine": machine(), "true_by_estimated": found})
        return
    rows = [[layer, f"{median:.2f}", f"{largest:.2f}"] for layer, (median, largest) in found.items()]
    columns = ["layer", "median output", "largest"]
    show(
        [Table("True by estimated standard error of corrections", columns, rows)],
        machine(),
        (),
        markdown=options.markdown,
    )


def _ratios(data: Path, layer: str) -> tuple[float, float]:
    """(of the median output, of the largest errors): true by estimated."""
    axis, quantization, groups = LAYERS[layer]
    stored = np.asarray(zarr.open_group(data / "activations.zarr", mode="r")[layer])
    values = stored.astype(np.float64) if quantization is None else quantization.dequantize(stored)
    samples = np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1).mean(axis=2)
    tensors = load_file(data / "weights.safetensors")
    weights = tensors[f"{layer}.weight"], tensors[f"{layer}.fake_quantized"]
    layout = "OI" if weights[0].ndim == 2 else "OIHW"
    by_channel = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    estimated = correction_error(by_channel, *weights, layout=layout, groups=groups)
    terms = [MeanBiasCorrector(each).calculate(*weights, layout=layout, groups=groups) for each in samples]
    true = np.std(terms, axis=0, ddof=1) / np.sqrt(len(samples))
    differing = estimated > 0
    return float(np.median(true[differing] / estimated[differing])), float(true.max() / estimated.max())


if __name__ == "__main__":
    main()
