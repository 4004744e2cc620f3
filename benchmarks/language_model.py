"""What rounding by second moments is worth for a small language model: its perplexity, float and at a few bits.

    pip install torch        # trains the model, and is needed for nothing else
    python benchmarks/language_model.py FOLDER --bits 4 3

A transformer of 3.8 million weights is trained on the sources of Python's standard library, which took 42
minutes on a busy machine, and written to FOLDER, where later runs find it; `--steps` then has no effect. Its inputs are
recorded over windows of the text that it was trained with, and counted; every figure is of windows of other files.
Weights are rounded to each of `--bits`: to the nearest code, or by second moments (gram, as GPTQ does), and then with
steps scaled to the variance of outputs; biases are corrected. `--quick` trains a tiny model for a moment, without a
folder, and only checks that everything works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from language_network import Network, train, write_onnx
from language_text import Vocabulary, ngram_perplexity, standard_library, windows
from measuring import machine
from stores import working_folder
from tables import Table, show, show_json

from streamstats.calibration.selection import select_layers
from streamstats.config import JobConfig
from streamstats.jobs.run import run
from streamstats.models.onnx.by_moments import GRAM, NEAREST
from streamstats.models.onnx.correct import correct
from streamstats.models.onnx.record import record
from streamstats.storage.files import remove_folder

Tokens = npt.NDArray[np.int64]
VOCABULARY, ORDERS, BATCH = 1024, (3, 5), 8
COLUMNS = ("nearest", "nearest, bias corrected", "gram, bias corrected", "gram, scaled, bias corrected")


def main() -> None:
    """Train unless it is done, record, count, round, correct, and print the perplexities."""
    parser = _parser()
    options = parser.parse_args()
    if options.folder is None and not options.quick:
        parser.error("give a folder for the text and the trained model; or --quick")
    with ExitStack() as stack:
        folder = stack.enter_context(working_folder(None)) if options.quick else Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = _text(folder)
        network = Network(VOCABULARY, blocks=1, width=64) if options.quick else Network(VOCABULARY)
        model = _trained(network, text, folder, options)
        held_out = windows(text["held_out"], network.window, options.held_out, options.seed)
        baselines = _baselines(text, held_out)
        shared = _count(model, windows(text["training"], network.window, options.calibration, options.seed), folder)
        found = {case.title: _perplexities(case, model, folder, held_out) for case in _cases(options)}
        baselines["float"] = perplexity(model, held_out)
    about, notes = machine(), [shared, _said(baselines)]
    if options.json:
        show_json({"machine": about, "baselines": baselines, "perplexity": found, "notes": notes})
    else:
        show([_table(found)], about, notes, markdown=options.markdown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("folder", nargs="?", help="where the text, the trained model, the store and the models go")
    parser.add_argument("--quick", action="store_true", help="a tiny model, trained for a moment")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], help="of weights")
    parser.add_argument("--per-tensor", action="store_true", help="also one range for each tensor")
    parser.add_argument("--ranges", nargs="+", default=["minmax", "mse"], help="how weight ranges are found")
    parser.add_argument("--calibration", type=int, default=128, help="windows to count over")
    parser.add_argument("--held-out", type=int, default=256, help="windows to judge by")
    parser.add_argument("--steps", type=int, default=3000, help="of training, with 2,048 tokens each")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of training, and of the drawing of windows")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and defaults."""


# The text and the model


def _text(folder: Path) -> Mapping[str, Tokens]:
    """`training` and `held_out`, the tokens of the texts."""
    path = folder / "text.npz"
    if not path.exists():
        print("reading the standard library …", file=sys.stderr)
        text = standard_library()
        vocabulary = Vocabulary.of(text.training, VOCABULARY)
        np.savez(path, training=vocabulary.tokens(text.training), held_out=vocabulary.tokens(text.held_out))
    with np.load(path) as stored:
        return dict(stored)


def _trained(network: Network, text: Mapping[str, Tokens], folder: Path, options: argparse.Namespace) -> Path:
    """The path of the float model, trained unless the folder has it."""
    path = folder / "model.onnx"
    if not path.exists():
        steps = 20 if options.quick else options.steps
        print(f"training {network.weights:,} weights in {steps} steps …", file=sys.stderr)
        weights = train(network, text["training"], steps=steps, batch=BATCH, seed=options.seed, threads=options.threads)
        write_onnx(network, weights, path)
    return path


def _baselines(text: Mapping[str, Tokens], held_out: Tokens) -> dict[str, float]:
    """The perplexity of n-grams of the text that the model was trained with."""
    found = {order: ngram_perplexity(text["training"], held_out, VOCABULARY, order) for order in ORDERS}
    return {f"{order}-gram": each for order, each in found.items()}


def perplexity(model: Path, tokens: Tokens) -> float:
    """Of all tokens after the first of each window; float64 from the logits on."""
    session = onnxruntime.InferenceSession(str(model))
    (node,) = session.get_inputs()
    total = 0.0
    for start in range(0, len(tokens), BATCH):
        batch = tokens[start : start + BATCH]
        logits = session.run(None, {node.name: batch})[0][:, :-1].astype(np.float64)
        top = logits.max(axis=-1, keepdims=True)
        sums = np.log(np.exp(logits - top).sum(axis=-1)) + top[..., 0]
        total += (sums - np.take_along_axis(logits, batch[:, 1:, np.newaxis], -1)[..., 0]).sum()
    return float(np.exp(total / tokens[:, 1:].size))


# Counting, rounding, correcting


def _count(model: Path, samples: Tokens, folder: Path) -> str:
    """Record the float model and count; what layers share."""
    print("recording and counting the float model …", file=sys.stderr)
    store = folder / "calibration.zarr"
    remove_folder(store)
    np.save(folder / "calibration.npy", samples)
    record(model, folder / "calibration.npy", store, batch_size=BATCH)
    settings = {"source": str(store), "output": str(folder / "out"), "statistics": ["gram", "spread"]}
    run(JobConfig.model_validate(settings).job(), restart=True)
    layers = select_layers(store).layers
    readers = sum(len(layer.names) for layer in layers)
    return f"{readers} layers read {len(layers)} tensors, of which each was counted once"


@dataclass(frozen=True)
class Case:
    """Weights of `bits` bits, in ranges found by `weight_range`, for each output channel or each tensor."""

    bits: int
    per_channel: bool
    weight_range: str

    @property
    def title(self) -> str:
        """What the case is called."""
        return f"{self.bits} bits per {'channel' if self.per_channel else 'tensor'}, {self.weight_range}"


def _cases(options: argparse.Namespace) -> list[Case]:
    kinds = [True, False] if options.per_tensor else [True]
    return [Case(bits, kind, each) for bits in options.bits for kind in kinds for each in options.ranges]


def _perplexities(case: Case, model: Path, folder: Path, held_out: Tokens) -> dict[str, float]:
    """The perplexity of every model of a case, by its column."""
    print(f"{case.title} …", file=sys.stderr)
    plain, fixed = folder / "rounded.onnx", folder / "corrected.onnx"
    options = {"bits": case.bits, "per_channel": case.per_channel, "weight_range": case.weight_range}
    found = []
    for rounding, scale in ((NEAREST, False), (GRAM, False), (GRAM, True)):
        correct(model, folder / "out", fixed, rounding=rounding, scale=scale, uncorrected=plain, **options)
        found.append(perplexity(fixed, held_out))
    return dict(zip(COLUMNS, [perplexity(plain, held_out), *found], strict=True))


def _table(found: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [[case, *(f"{each[name]:.2f}" for name in COLUMNS)] for case, each in found.items()]
    return Table("Perplexity of a token, held-out text", ["weights", *COLUMNS], rows)


def _said(baselines: Mapping[str, float]) -> str:
    return "perplexity of others: " + ", ".join(f"{name} {each:.2f}" for name, each in baselines.items())


if __name__ == "__main__":
    main()
