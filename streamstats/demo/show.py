"""What `streamstats demo` does: record, reduce and correct the small network, and judge it on held-out digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..config import JobConfig
from ..errors import UsageError, require
from ..jobs.run import run as run_job
from ..models.onnx.correct import CORRECTED, ONE_PASS, UNCORRECTED, How, correct
from ..models.onnx.iterative import Iterative
from ..models.onnx.judge import HeldOut
from ..models.onnx.record import record
from ..report import page, pictures
from ..storage.files import remove_folder, write_array, write_bytes
from .digits import calibration_digits, held_out_digits

BITS = 5
OTHER_BITS = (4, 6, 8)
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


@dataclass(frozen=True)
class Outcome:
    """Accuracy (0 to 1) on the held-out digits: of the float network, and for each bit width of the quantised network,
    the one corrected in one pass, and the one corrected layer by layer.
    """

    folder: Path
    held_out: int
    float_accuracy: float
    by_bits: dict[int, tuple[float, float, float]]

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "folder": str(self.folder),
            "held_out_digits": self.held_out,
            "float": self.float_accuracy,
            "bits": {
                str(bits): dict(zip(("quantized", "one_pass", "iterative"), found, strict=True))
                for bits, found in self.by_bits.items()
            },
        }

    def bars(self) -> list[tuple[str, float]]:
        """(name, accuracy) of the float, the quantised and the corrected network at the demo's bit width."""
        quantized, one_pass, iterative = self.by_bits[BITS]
        return [
            ("float", self.float_accuracy),
            (f"{BITS}-bit weights", quantized),
            ("corrected", one_pass),
            ("layer by layer", iterative),
        ]

    def text(self, command: str = "streamstats") -> str:
        """The accuracies as a table and as bars, what each file is, and what to type next, starting with `command`."""
        parts = [self._table(), pictures.plot_accuracies_text(self.bars()), self._files(), self._next(command)]
        return "\n\n".join(parts) + "\n"

    def _table(self) -> str:
        lines = [
            f"Accuracy on {self.held_out} held-out digits; weights of N bits, one range per tensor:",
            "",
            f"bits  quantised  corrected  layer by layer    (float {self.float_accuracy:.1%})",
            *(f"{bits:>4}  {q:>9.1%}  {c:>9.1%}  {i:>14.1%}" for bits, (q, c, i) in self.by_bits.items()),
        ]
        return "\n".join(lines)

    def _files(self) -> str:
        width = max(map(len, FILES))
        return "\n".join([f"In {self.folder}:", *(f"  {name:<{width}}  {what}" for name, what in FILES.items())])

    def _next(self, command: str) -> str:
        commands = [f"  cd {self.folder}", *(f"  {command} {arguments}" for arguments in NEXT)]
        return "\n".join(["Next:", *commands])


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
    return JobConfig.model_validate(paths | {"statistics": ["spread"]})


def _judge(folder: Path, model: Path) -> Outcome:
    """The accuracies at every bit width. The models of width BITS come last, so they stay, with their report."""
    quantized, corrected = folder / "quantized.onnx", folder / "corrected.onnx"
    how = How(
        Iterative(folder / "calibration.npy", folder / "work", batch_size=256),
        HeldOut(folder / "held-out.npy", folder / "labels.npy", batch_size=256),
    )
    found = {}
    for bits in (*OTHER_BITS, BITS):
        done = correct(model, folder / "out", corrected, bits=bits, uncorrected=quantized, how=how)
        assert done.judgement is not None
        found[bits] = done.judgement.accuracy
    page.write(corrected.with_suffix(page.REPORT), page.document(folder / "out", done))
    by_bits = {
        bits: (accuracy[UNCORRECTED], accuracy[ONE_PASS], accuracy[CORRECTED])
        for bits, accuracy in sorted(found.items())
    }
    return Outcome(folder, len(held_out_digits().labels), found[BITS]["float"], by_bits)


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
    write_bytes(folder / "run.yaml", b"source: calibration.zarr\noutput: out\nstatistics: [spread]\n")
