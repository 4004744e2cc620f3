"""What ranges and rounding are worth on real layers: the SQNR of their outputs, with weights in ranges of both kinds.

    python benchmarks/layer_errors.py --data FOLDER --bits 4 --activation-bits 8

Each layer is a network of its own, fed with its real activations: three quarters of the samples calibrate, the others
judge. Its weights have one range per tensor. In the column gram, they are rounded by the second moments of their
inputs, in ranges of least squared error. The last columns also round the activations, in ranges of both kinds. SQNR is
the ratio of signal to quantisation noise in dB, against the float layer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zarr
from measuring import machine
from onnx import helper, numpy_helper
from precision import LAYERS
from safetensors.numpy import load_file
from tables import Table, show, show_json

from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.models.judgement import CORRECTED, UNCORRECTED
from streamstats.models.onnx.correct import How, correct
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import record

CALIBRATING = 3 / 4
STATISTICS = ["histogram", "taps", "spread", "gram"]
COLUMNS = (
    *("minmax", "minmax, corrected", "mse", "mse, corrected", "gram, corrected"),
    *("and activations, minmax", "and activations, mse"),
)


def main() -> None:
    """Judge every layer, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of activations.zarr and weights.safetensors")
    parser.add_argument("--bits", type=int, default=4, help="of the weights (default 4)")
    parser.add_argument("--activation-bits", type=int, default=8, help="of the activations (default 8)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {layer: _judged(layer, options) for layer in LAYERS}
    if options.json:
        show_json({"machine": machine(), "sqnr_db": found})
        return
    rows = [[layer, *(f"{ratios[name]:.1f}" for name in COLUMNS)] for layer, ratios in found.items()]
    title = f"SQNR of outputs in dB, weights of {options.bits} bits, activations of {options.activation_bits}"
    show([Table(title, ["layer", *COLUMNS], rows)], machine(), (), markdown=options.markdown)


def _judged(layer: str, options: argparse.Namespace) -> dict[str, float]:
    """Column → SQNR."""
    print(f"{layer} …", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(layer, options.data, folder)
        plain = {kind: _ratios(folder, options.bits, weight_range=kind) for kind in ("minmax", "mse")}
        _, by_moments = _ratios(folder, options.bits, weight_range="mse", rounding="gram")
        rounded = {
            kind: _ratios(
                folder,
                options.bits,
                weight_range="mse",
                activation_bits=options.activation_bits,
                activation_range=kind,
            )
            for kind in ("minmax", "mse")
        }
    ratios = [each for kind in plain for each in plain[kind]]
    return dict(zip(COLUMNS, [*ratios, by_moments, *(rounded[kind][1] for kind in rounded)], strict=True))


def _ratios(folder: Path, bits: int, **ranges: Any) -> tuple[float, float]:
    """The SQNR of the quantised layer, and of the corrected one."""
    how = How(held_out=HeldOut(folder / "held-out.npy"))
    done = correct(folder / "model.onnx", folder / "out", None, bits=bits, how=how, **ranges)
    assert done.judgement is not None
    (found,) = done.judgement.layers.values()
    return found[UNCORRECTED].sqnr, found[CORRECTED].sqnr


def _prepare(layer: str, data: Path, folder: Path) -> None:
    """The layer as a model, its samples, and the output of a run over those that calibrate."""
    samples = _samples(layer, data)
    calibrating = round(len(samples) * CALIBRATING)
    np.save(folder / "samples.npy", samples[:calibrating])
    np.save(folder / "held-out.npy", samples[calibrating:])
    onnx.save(_model(layer, data, samples), folder / "model.onnx")
    record(folder / "model.onnx", folder / "samples.npy", folder / "store.zarr")
    job = {"source": str(folder / "store.zarr"), "output": str(folder / "out"), "statistics": STATISTICS}
    run(JobConfig.model_validate(job).job())


def _samples(layer: str, data: Path) -> np.ndarray[Any, Any]:
    """float32, channels on axis 1."""
    axis, quantization, _ = LAYERS[layer]
    stored = np.asarray(zarr.open_group(data / "activations.zarr", mode="r")[layer])
    real = stored if quantization is None else quantization.dequantize(stored)
    return np.ascontiguousarray(np.moveaxis(real, axis, 1), np.float32)


def _model(layer: str, data: Path, samples: np.ndarray[Any, Any]) -> Any:
    tensors = load_file(data / "weights.safetensors")
    weight = tensors[f"{layer}.weight"]
    pads = [taps // 2 for taps in weight.shape[2:]] * 2
    options = {"pads": pads, "group": LAYERS[layer][2]} if weight.ndim > 2 else {"transB": 1}
    node = helper.make_node("Conv" if weight.ndim > 2 else "Gemm", ["x", "w", "b"], ["y"], name="layer", **options)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(tensors[f"{layer}.bias"], "b")]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *samples.shape[1:]])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], layer, inputs, outputs, constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


if __name__ == "__main__":
    main()
