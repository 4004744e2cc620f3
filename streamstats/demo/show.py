"""What `streamstats demo` does: record, reduce and correct the small network, and judge it on held-out digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ..config import JobConfig
from ..errors import UsageError, require
from ..jobs.run import run as run_job
from ..models.judgement import CORRECTED, ONE_PASS, UNCORRECTED
from ..models.onnx.by_moments import GRAM, NEAREST
from ..models.onnx.correct import How, correct
from ..models.onnx.iterative import Iterative
from ..models.onnx.judge import HeldOut
from ..models.onnx.record import record
from ..report import page, pictures
from ..storage.files import remove_folder, write_array, write_bytes
from .digits import calibration_digits, held_out_digits

BITS = 5
OTHER_BITS = (4, 6, 8)
STATISTICS = ["spread", "histogram", "gram"]
"""What is counted besides means and extrema: for the report, for ranges, and for rounding by second moments."""
ACTIVATION_BITS = 8
HEADINGS = ("quantised", "corrected", "layer by layer", "mse ranges", "activations, too", "gram")
PICTURE = "accuracy.png"

FILES = {
    "model.onnx": "the float network, trained on the digits that are not held out",
    "calibration.npy": "the digits that calibrate it",
    "calibration.zarr": "the input of every layer for these digits (streamstats record)",
    "run.yaml": "the configuration of the reduction (paths start at the current folder)",
    "out": "exact sums, correctors and manifest (streamstats run)",
    "held-out.npy": "the digits that judge it",
    "labels.npy": "their labels",
    "quantized.onnx": f"the network with weights of {BITS} bits, one range per tensor",
    "corrected.onnx": "the same, biases corrected layer by layer (streamstats correct --iterative)",
    "corrected.report.html": "what the correction did to every layer: open it in a browser",
    "corrected.report.json": "the same for programs",
    PICTURE: "accuracy on the held-out digits",
}
NEXT = (
    "run run.yaml",
    "inspect out",
    "inspect out block1/depthwise --plot",
    "correct model.onnx --bits 4 --correctors out -o four-bits.onnx --held-out held-out.npy",
)
"""Arguments of commands to try in the demo's folder."""


class Accuracies(NamedTuple):
    """Accuracies (0 to 1) of the network with weights of one bit width.

    First with ranges that include all weights: quantised, corrected in one pass, corrected layer by layer. Then
    corrected in one pass with ranges of least squared error: of the weights; of activations of 8 bits, too; of weights
    that are rounded by second moments.
    """

    quantized: float
    one_pass: float
    iterative: float
    least_squares: float
    with_activations: float
    by_moments: float


@dataclass(frozen=True)
class Outcome:
    """Accuracy (0 to 1) on the held-out digits: of the float network, and for each bit width of the weights."""

    folder: Path
    held_out: int
    float_accuracy: float
    by_bits: dict[int, Accuracies]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "folder": str(self.folder),
            "held_out_digits": self.held_out,
            "float": self.float_accuracy,
            "bits": {str(bits): found._asdict() for bits, found in self.by_bits.items()},
        }

    def bars(self) -> list[tuple[str, float]]:
        """(name, accuracy) of the float, the quantised and the corrected network at the demo's bit width."""
        found = self.by_bits[BITS]
        return [
            ("float", self.float_accuracy),
            (f"{BITS}-bit weights", found.quantized),
            ("corrected", found.one_pass),
            ("layer by layer", found.iterative),
        ]

    def text(self, command: str = "streamstats") -> str:
        """The accuracies as a table and as bars, what each file is, and what to type next, starting with `command`."""
        parts = [self._table(), pictures.plot_accuracies_text(self.bars()), self._files(), self._next(command)]
        return "\n\n".join(parts) + "\n"

    def _table(self) -> str:
        lines = [
            f"Accuracy on {self.held_out} held-out digits; weights of N bits, one range per tensor:",
            "",
            "  ".join(["bits", *HEADINGS]) + f"    (float {self.float_accuracy:.1%})",
            *(_row(bits, found) for bits, found in self.by_bits.items()),
            "",
            "mse ranges: weights in ranges of least squared error, corrected in one pass",
            f"activations, too: the same, and activations of {ACTIVATION_BITS} bits",
            "gram: as mse ranges, and weights rounded by the second moments of their inputs",
        ]
        return "\n".join(lines)

    def _files(self) -> str:
        width = max(map(len, FILES))
        return "\n".join([f"In {self.folder}:", *(f"  {name:<{width}}  {what}" for name, what in FILES.items())])

    def _next(self, command: str) -> str:
        commands = [f"  cd {self.folder}", *(f"  {command} {arguments}" for arguments in NEXT)]
        return "\n".join(["Next:", *commands])


def _row(bits: int, found: Accuracies) -> str:
    cells = [f"{each:>{len(heading)}.1%}" for heading, each in zip(HEADINGS, found, strict=True)]
    return "  ".join([f"{bits:>4}", *cells])


def run(folder: Path, say: Callable[[str], None]) -> Outcome:
    """Run the whole demo in `folder`, which is new, empty, or holds an earlier demo; `say` takes a line per step.

    Raises `MissingDependencyError` without the extra `demo`, `UsageError` or `OutputError` for an unusable folder.
    """
    require("sklearn", "demo")
    _check_folder(folder)
    model = folder / "model.onnx"
    _write_inputs(folder, model)
    say(f"record: the input of every layer for the calibration digits → {folder / 'calibration.zarr'}")
    record(model, folder / "calibration.npy", folder / "calibration.zarr", batch_size=64)
    say(f"run: the exact mean of every channel → {folder / 'out'}")
    run_job(_configuration(folder).job())
    say("correct: round the weights, correct the biases in one pass and layer by layer → accuracy on held-out digits")
    outcome = _judge(folder, model)
    pictures.plot_accuracies(outcome.bars(), folder / PICTURE, f"Accuracy on {outcome.held_out} held-out digits")
    return outcome


def _configuration(folder: Path) -> JobConfig:
    """That of `run.yaml`, with the paths as they are from here."""
    paths = {"source": str(folder / "calibration.zarr"), "output": str(folder / "out")}
    return JobConfig.model_validate(paths | {"statistics": STATISTICS})


def _judge(folder: Path, model: Path) -> Outcome:
    """The accuracies at every bit width. The models of width BITS come last, so they stay, with their report."""
    quantized, corrected = folder / "quantized.onnx", folder / "corrected.onnx"
    held_out = HeldOut(folder / "held-out.npy", folder / "labels.npy", batch_size=256)
    how = How(Iterative(folder / "calibration.npy", folder / "work", batch_size=256), held_out)
    found = {}
    for bits in (*OTHER_BITS, BITS):
        done = correct(model, folder / "out", corrected, bits=bits, uncorrected=quantized, how=how)
        assert done.judgement is not None
        accuracy = done.judgement.accuracy
        plain = (accuracy[UNCORRECTED], accuracy[ONE_PASS], accuracy[CORRECTED])
        found[bits] = Accuracies(*plain, *_least_squares(folder, model, bits, held_out))
    page.write(corrected.with_suffix(page.REPORT), page.document(folder / "out", done))
    return Outcome(folder, len(held_out_digits().labels), accuracy["float"], dict(sorted(found.items())))


def _least_squares(folder: Path, model: Path, bits: int, held_out: HeldOut) -> Iterator[float]:
    """The accuracies with ranges of least squared error: of weights; of activations, too; rounded by second moments."""
    for activation_bits, rounding in ((None, NEAREST), (ACTIVATION_BITS, NEAREST), (None, GRAM)):
        done = correct(
            model,
            folder / "out",
            None,
            bits=bits,
            weight_range="mse",
            rounding=rounding,
            activation_bits=activation_bits,
            activation_range="mse",
            how=How(held_out=held_out),
        )
        assert done.judgement is not None
        yield done.judgement.accuracy[CORRECTED]


def _check_folder(folder: Path) -> None:
    """Refuse a folder with files in it, unless its model is the one that the demo writes: an earlier demo's folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    model = folder / "model.onnx"
    if not model.is_file() or model.read_bytes() != _shipped_model():
        raise UsageError(f"{folder} has files in it that no earlier demo left; choose a new or an empty folder")


def _shipped_model() -> bytes:
    return (files(__package__) / "digits.onnx").read_bytes()


def _write_inputs(folder: Path, model: Path) -> None:
    """Write the network, the digits with their labels and the configuration to `folder`."""
    for earlier in ("calibration.zarr", "out"):
        remove_folder(folder / earlier)
    write_bytes(model, _shipped_model())
    held_out = held_out_digits()
    write_array(folder / "calibration.npy", calibration_digits().images)
    write_array(folder / "held-out.npy", held_out.images)
    write_array(folder / "labels.npy", held_out.labels)
    content = f"source: calibration.zarr\noutput: out\nstatistics: [{', '.join(STATISTICS)}]\n"
    write_bytes(folder / "run.yaml", content.encode())
