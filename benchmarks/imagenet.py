"""Does bias correction help? Any image classifier in ONNX, and labelled images, from the pixels to the accuracy.

    python benchmarks/imagenet.py mobilenetv2.onnx imagenet/val --bits 8 5 4

The images lie in a folder for each class, as ImageNet's do; the classes are the sorted names of the folders, or the
lines `FILE LABEL` of `--labels`. Some are drawn for calibration, others to be judged by; no image is both. The weights
are fake-quantised to each of `--bits`, per tensor, in the range of all weights and in that of least squared error
(mse), there also rounded by the second moments of their inputs (gram), and with `--per-channel` scaled by them; with
`--activation-bits`, also with activations of so many bits, in ranges of least squared error; `--quantizer` has
onnxruntime quantise weights and activations to 8 bits instead. What comes out: top-1 accuracy of the float model,
the quantised one, and the corrected ones, in one pass and layer by layer; a report of each stays in `--folder`. With
`--trial` the network and the images of `streamstats demo` are used: is everything there?
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from measuring import machine
from PIL import Image, UnidentifiedImageError
from stores import working_folder
from tables import Table, show, show_json

from streamstats.config import JobConfig
from streamstats.demo.digits import calibration_digits, held_out_digits
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.judge import HeldOut
from streamstats.models.onnx.record import record
from streamstats.report import page
from streamstats.storage.files import remove_folder

Images = npt.NDArray[np.float32]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Quantise, correct and judge, and print a table."""
    parser = _parser()
    options = parser.parse_args()
    if not options.trial and (options.images is None or not Path(options.model).is_file()):
        parser.error("give a model, a .onnx file, and a folder of images; or --trial")
    if not options.trial and not Path(options.images).is_dir():
        parser.error(f"{options.images} is no folder; expected images in a folder for each class")
    with ExitStack() as stack:
        folder = Path(options.folder) if options.folder else stack.enter_context(working_folder(None))
        folder.mkdir(parents=True, exist_ok=True)
        if options.trial:
            _write_trial(folder, options)
        files = _labelled(Path(options.images), options.labels)
        _write_samples(files, folder, options)
        print("recording and reducing the float model …", file=sys.stderr)
        model, out = Path(options.model), folder / "out"
        store = folder / "calibration.zarr"
        remove_folder(store)
        record(model, folder / "calibration.npy", store, batch_size=options.batch_size)
        source, settings = str(store), {"statistics": ["spread", "taps", "histogram", "gram"]}
        run(JobConfig.model_validate({"source": source, "output": str(out), **settings}).job(), restart=True)
        found = {_title(case, options): _accuracies(case, model, folder, options) for case in _cases(options)}
    about = machine()
    if options.json:
        show_json({"machine": about, "top1": found})
    else:
        show([_table(found, options)], about, (), markdown=options.markdown)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and defaults."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("model", nargs="?", help="the float model, one input of images, class scores first")
    parser.add_argument("images", nargs="?", help="a folder of images, in one folder for each class")
    parser.add_argument("--trial", action="store_true", help="the demo's network and digits instead")
    parser.add_argument("--labels", help="a text file of lines FILE LABEL, instead of folders by class")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 5, 4], help="of fake-quantised weights")
    parser.add_argument("--activation-bits", type=int, help="of fake-quantised activations, as a further case")
    parser.add_argument("--quantizer", action="store_true", help="onnxruntime's, weights and activations of 8 bits")
    parser.add_argument("--per-channel", action="store_true", help="one range an output channel")
    parser.add_argument("--calibration", type=int, default=512, help="images to calibrate with")
    parser.add_argument("--held-out", type=int, default=5000, help="images to judge by, at most")
    parser.add_argument("--resize", type=int, default=256, help="pixels of the shorter side")
    parser.add_argument("--crop", type=int, default=224, help="pixels of the square in the middle")
    parser.add_argument("--mean", type=float, nargs="+", help="of channels, of 0 to 1; ImageNet's, or 0 for one")
    parser.add_argument("--deviation", type=float, nargs="+", help="likewise; ImageNet's, or 1 for one channel")
    parser.add_argument("--batch-size", type=int, default=16, help="images run at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of images")
    parser.add_argument("--folder", help="where stores, models and reports go; default: a temporary one")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


# Images


def _labelled(folder: Path, labels: str | None) -> list[tuple[Path, int]]:
    """Every image and its label, in the order of names."""
    if labels is not None:
        lines = [line.rsplit(maxsplit=1) for line in Path(labels).read_text().splitlines() if line.strip()]
        return [(folder / name, int(label)) for name, label in lines]
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]


def _write_samples(files: Sequence[tuple[Path, int]], folder: Path, options: argparse.Namespace) -> None:
    """`calibration.npy`, `held-out.npy` and `labels.npy`; every image in one of them at most."""
    order = np.random.default_rng(options.seed).permutation(len(files))
    chosen = [files[place] for place in order[: options.calibration + options.held_out]]
    if len(chosen) <= options.calibration:
        sys.exit(
            f"{options.images} has {len(files)} images in folders by class, of which {options.calibration} are to "
            "calibrate; expected more, to judge by (see --calibration)"
        )
    (node,) = onnxruntime.InferenceSession(options.model).get_inputs()
    channels_last = node.shape[-1] in (1, 3)
    channels = node.shape[-1] if channels_last else node.shape[1]
    options.mean = options.mean or (IMAGENET_MEAN if channels == 3 else (0.0,))
    options.deviation = options.deviation or (IMAGENET_DEVIATION if channels == 3 else (1.0,))
    shape = (options.crop, options.crop, channels) if channels_last else (channels, options.crop, options.crop)
    parts = {"calibration": chosen[: options.calibration], "held-out": chosen[options.calibration :]}
    for name, part in parts.items():
        print(f"reading {len(part)} images: {name} …", file=sys.stderr)
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (len(part), *shape))
        for place, (path, _) in enumerate(part):
            image = _image(path, channels, options)
            array[place] = image if channels_last else np.moveaxis(image, -1, 0)
        array.flush()
    np.save(folder / "labels.npy", np.array([label for _, label in parts["held-out"]], np.int64))


def _image(path: Path, channels: int, options: argparse.Namespace) -> Images:
    """float32[crop, crop, channels]: resized, the middle, less the mean, by the deviation."""
    try:
        image = Image.open(path).convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError) as error:
        sys.exit(f"cannot read the image {path}: {error}")
    ratio = options.resize / min(image.size)
    image = image.resize([max(options.crop, round(side * ratio)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - options.crop) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + options.crop, top + options.crop)), np.float32)
    scaled = pixels.reshape(options.crop, options.crop, channels) / 255
    return np.asarray((scaled - np.float32(options.mean)) / np.float32(options.deviation), np.float32)


def _write_trial(folder: Path, options: argparse.Namespace) -> None:
    """The digits as images in a folder for each class; the network's own settings."""
    for split in (calibration_digits(), held_out_digits()):
        for place, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = folder / "images" / str(label) / f"{len(split.labels)}-{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(path)
    options.model = str(files("streamstats.demo") / "digits.onnx")
    options.images = str(folder / "images")
    options.resize = options.crop = 16
    options.mean, options.deviation = (0.0,), (1.0,)


# Models


@dataclass(frozen=True)
class Case:
    """Weights of `bits` bits in the range `weight_range`, and activations of `activation_bits` unless None.

    `rounding` and `scale` are those of `correct`.
    """

    bits: int
    weight_range: str
    activation_bits: int | None = None
    rounding: str = "nearest"
    scale: bool = False

    @property
    def words(self) -> list[str]:
        """What is done, one word each."""
        found = [self.weight_range, *([self.rounding] if self.rounding != "nearest" else [])]
        found += ["scaled"] if self.scale else []
        return found + ([f"activations {self.activation_bits} bits"] if self.activation_bits else [])


def _cases(options: argparse.Namespace) -> list[Case | None]:
    """The cases to judge; None stands for onnxruntime's quantiser."""
    if options.quantizer:
        return [None]
    activations = [{"activation_bits": options.activation_bits}] if options.activation_bits else []
    scaled = [{"rounding": "gram", "scale": True}] if options.per_channel else []
    more: list[dict[str, Any]] = [{}, *activations, {"rounding": "gram"}, *scaled]
    return [
        case for bits in options.bits for case in (Case(bits, "minmax"), *(Case(bits, "mse", **each) for each in more))
    ]


def _title(case: Case | None, options: argparse.Namespace) -> str:
    """What a case is called."""
    kind = "per channel" if options.per_channel else "per tensor"
    if case is None:
        return f"onnxruntime, 8 bits {kind}, activations too"
    return f"{case.bits} bits {kind}, {', '.join(case.words)}"


def _suffix(case: Case | None) -> str:
    """What tells the files of a case apart."""
    if case is None:
        return ""
    return "-".join(["", f"{case.bits}-bits", *(word.split()[0] for word in case.words)])


def _accuracies(case: Case | None, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Top-1 of every model of a case."""
    print(f"{_title(case, options)} …", file=sys.stderr)
    held_out = HeldOut(folder / "held-out.npy", folder / "labels.npy", batch_size=options.batch_size)
    iterative = Iterative(folder / "calibration.npy", folder / "work", batch_size=options.batch_size)
    how = How(iterative, held_out)
    target = folder / f"corrected{_suffix(case)}.onnx"
    if case is None:
        quantized = _quantized(model, folder, options)
        done = correct_quantized(model, quantized, folder / "out", target, how=how)
    else:
        done = correct(
            model,
            folder / "out",
            target,
            bits=case.bits,
            per_channel=options.per_channel,
            weight_range=case.weight_range,
            rounding=case.rounding,
            scale=case.scale,
            activation_bits=case.activation_bits,
            activation_range="mse",
            how=how,
        )
    page.write(target.with_suffix(page.REPORT), page.document(folder / "out", done))
    assert done.judgement is not None
    return {**done.judgement.accuracy}


def _quantized(model: Path, folder: Path, options: argparse.Namespace) -> Path:
    """What onnxruntime's quantiser makes of the model, with its own calibration on the same images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = np.load(folder / "calibration.npy", mmap_mode="r")
    (name,) = [node.name for node in onnxruntime.InferenceSession(str(model)).get_inputs()]

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Any] = (
                {name: np.ascontiguousarray(images[start : start + options.batch_size])}
                for start in range(0, len(images), options.batch_size)
            )

        def get_next(self) -> Any:
            return next(self._batches, None)

    prepared, target = folder / "prepared.onnx", folder / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quant_pre_process(str(model), str(prepared))
        quantize_static(prepared, target, Batches(), quant_format=QuantFormat.QDQ, per_channel=options.per_channel)
    onnx.checker.check_model(str(target))
    return target


def _table(found: dict[str, dict[str, float]], options: argparse.Namespace) -> Table:
    columns = ["weights", "float", "quantised", "one pass", "iterative"]
    names = ("float", "quantised", "one pass", "corrected")
    rows = [[case, *(f"{accuracies[name]:.1%}" for name in names)] for case, accuracies in found.items()]
    return Table(f"Top-1 accuracy of {Path(options.model).name}, biases corrected", columns, rows)


if __name__ == "__main__":
    main()
