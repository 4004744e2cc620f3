"""What corrections do to the outputs of a network, with and without `do_no_harm`, judged and tested.

`python benchmarks/harm.py FOLDER --quantizer` takes a folder like that of `streamstats demo`: `model.onnx`,
`calibration.npy`, `held-out.npy`. Half of the held-out samples judge; the other half tests what was written. Gains are
in dB of signal to noise against the quantised network. `--bits N` rounds weights, `--quantizer` lets onnxruntime
quantise the network per tensor, `--data FOLDER` takes the real layers of `layer_errors.py` instead, one at a time.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from layer_errors import LAYERS, _model, _samples
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from tables import Table

from streamstats.models.judgement import CORRECTED
from streamstats.models.onnx.by_outputs import Outputs
from streamstats.models.onnx.correct import Correction, How, correct, correct_outputs, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import measure

Array = npt.NDArray[Any]
METHODS = ("one pass", "layer by layer", "mean outputs")
COLUMNS = ("calibration samples", "method", "judged", "tested", "judged, no harm", "tested, no harm", "left out")


def main() -> None:
    """Correct a network in all ways, and print what that does to its outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--quantizer", action="store_true")
    parser.add_argument("--calibration", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    for name, model, samples, held_out in _networks(options):
        with TemporaryDirectory(prefix="streamstats-harm-") as folder:
            rows = list(_rows(options, Path(folder), model, samples, held_out))
            print(Table(name, COLUMNS, rows).markdown(), flush=True)


def _networks(options: argparse.Namespace) -> Iterator[tuple[str, onnx.ModelProto, Array, Array]]:
    if options.data is None:
        folder = options.folder
        yield str(folder), onnx.load(folder / "model.onnx"), *map(np.load, _files(folder))
        return
    for layer in LAYERS:
        samples = _samples(layer, options.data)
        half = len(samples) // 2
        yield layer, _model(layer, options.data, samples), samples[:half], samples[half:]


def _files(folder: Path) -> list[Path]:
    return [folder / "calibration.npy", folder / "held-out.npy"]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, samples: Array) -> None:
        self._batches = iter([{name: samples[start : start + 16]} for start in range(0, len(samples), 16)])

    def get_next(self) -> Any:
        return next(self._batches, None)


def _rows(
    options: argparse.Namespace, folder: Path, model: onnx.ModelProto, samples: Array, held_out: Array
) -> Iterator[tuple[str, ...]]:
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "judge.npy", held_out[::2])
    reader = _Batches(model.graph.input[0].name, samples[:64])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(folder / "model.onnx", folder / "quantizer.onnx", reader)
    for count in sorted({min(count, len(samples)) for count in options.calibration}):
        np.save(folder / "x.npy", samples[:count])
        measure(folder / "model.onnx", folder / "x.npy", folder / f"out{count}", statistics=["spread"])
        for method in options.methods:
            if method == METHODS[2] and not options.quantizer:
                continue
            found = [_corrected(options, folder, count, method, careful) for careful in (False, True)]
            gains = [text for done in found for text in (_judged(done), _tested(folder, done, held_out[1::2]))]
            left = len([each for each in found[1].layers if each.quantized and not each.corrected])
            yield str(count), method, *gains, str(left)


def _corrected(options: argparse.Namespace, folder: Path, count: int, method: str, careful: bool) -> Correction:
    held_out = HeldOut(folder / "judge.npy", batch_size=16)
    iterative = Iterative(folder / "x.npy", folder / "work") if method == METHODS[1] else None
    outputs = Outputs(folder / "x.npy", folder / "work") if method == METHODS[2] else None
    how = How(iterative, held_out, careful, outputs=outputs)
    model, fixed, out = folder / "model.onnx", folder / f"fixed{careful}.onnx", folder / f"out{count}"
    quantized = folder / "quantizer.onnx"
    if outputs is not None:
        return correct_outputs(model, quantized, fixed, how=how)
    if options.quantizer:
        return correct_quantized(model, quantized, out, fixed, how=how)
    return correct(model, out, fixed, bits=options.bits, uncorrected=folder / "rounded.onnx", how=how)


def _judged(done: Correction) -> str:
    assert done.judgement is not None
    gain = done.judgement.gains[CORRECTED]
    return f"{gain.decibels:+.2f} ± {gain.error:.2f}"


def _tested(folder: Path, done: Correction, samples: Array) -> str:
    """The gain on samples that played no part."""
    wanted = _outputs(done.subject.original, samples)
    fixed = onnx.load(folder / f"fixed{done.how.do_no_harm}.onnx")
    noise = [np.square(_outputs(model, samples) - wanted).sum() for model in (done.subject.quantized, fixed)]
    return f"{10 * np.log10(noise[0] / noise[1]):+.2f}"


def _outputs(model: onnx.ModelProto, samples: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: samples[start : start + 16]})[0] for start in range(0, len(samples), 16)]
    return np.concatenate(parts).astype(np.float64)


if __name__ == "__main__":
    main()
