"""What padding leaves of a mean shift that channel means correct: 3×3 layers, padded with zeros, at several sizes.

The weights are normal, rounded to 4 bits; the inputs are independent normal values behind a ReLU. The shift is that of
the outputs over the samples themselves, in float64. With the means of what each tap sees, nothing is left.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine
from tables import Table, show

import streamstats as ss

SIZES = (7, 14, 28, 56)
KINDS = {"depthwise, 32 channels": (32, 32), "dense, 32 to 32 channels": (32, 1)}
"""Kind of layer → (outputs, groups), of 32 input channels."""
SAMPLES, CHANNELS, BITS = 16, 32, 4
Array = np.ndarray[Any, Any]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    rows = [[f"{size}×{size}", kind, *_left(size, *KINDS[kind])] for size in SIZES for kind in KINDS]
    columns = ["positions", "layer", "left by channel means", "left by tap means"]
    show([Table("Share of the mean shift that is left", columns, rows)], machine(), (), markdown=options.markdown)


def _left(size: int, outputs: int, groups: int) -> list[str]:
    """The shares of the shift, as norms over output channels, that both corrections leave."""
    random = np.random.default_rng(size)
    x = np.maximum(random.normal(0.5, 1, (SAMPLES, CHANNELS, size, size)), 0).astype(np.float32)
    weight = random.normal(size=(outputs, CHANNELS // groups, 3, 3)).astype(np.float32)
    rounded = ss.fake_quantize(weight, BITS)
    shift = _mean_outputs(x, (weight.astype(np.float64) - rounded), groups)
    terms = [corrector.calculate(weight, rounded, layout="OIHW", groups=groups) for corrector in _correctors(x)]
    return [f"{np.linalg.norm(shift - term) / np.linalg.norm(shift):.2g}" for term in terms]


def _correctors(x: Array) -> tuple[ss.BiasCorrector, ss.BiasCorrector]:
    """Those of the channel means, and of the means that the taps see."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = ss.Kernel((3, 3), ss.Geometry(pads=(1, 1, 1, 1)))
        with ss.Recorder(Path(folder) / "s.zarr") as recorder:
            recorder.append("layer", x, channel_axis=1, kernel=kernel)
        found = ss.reduce(Path(folder) / "s.zarr", layers=[ss.LayerRule("*", statistics=("taps",))])["layer"]
    assert found.tap_mean is not None
    return ss.MeanBiasCorrector(found.mean), ss.TapBiasCorrector(found.mean, found.tap_mean, kernel)


def _mean_outputs(x: Array, weight: Array, groups: int) -> Array:
    """The mean output of each channel, straight from the definition: float64[outputs]."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    height, width = x.shape[2:]
    seen = np.array(
        [[padded[:, :, i : i + height, j : j + width].mean(axis=(0, 2, 3)) for j in range(3)] for i in range(3)]
    )
    by_group = seen.reshape(3, 3, groups, -1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return np.asarray(np.einsum("goihw,hwgi->go", grouped, by_group).reshape(-1))


if __name__ == "__main__":
    main()
