"""What the commands that record, correct and report take."""

from __future__ import annotations

import argparse
from typing import Any

from . import descriptions
from .shared_options import METHODS, add_levels, add_output, command, local

ON_MODELS = "model_commands"
CORRECTING = "correct_commands"


def add_commands(commands: Any) -> None:
    """Add the commands that record, correct and report."""
    _add_record(command(commands, "record", descriptions.RECORD, ON_MODELS))
    _add_measure(command(commands, "measure", descriptions.MEASURE, ON_MODELS))
    _add_correct(command(commands, "correct", descriptions.CORRECT, CORRECTING))
    _add_report(command(commands, "report", descriptions.REPORT, CORRECTING))
    _add_demo(command(commands, "demo", descriptions.DEMO, ON_MODELS))


def _add_record(parser: argparse.ArgumentParser) -> None:
    _add_samples(parser)
    parser.add_argument(
        "-o", "--output", metavar="STORE", required=True, help="the zarr store to append to, a folder or a URL"
    )
    parser.add_argument(
        "--storage",
        choices=("float", "int8"),
        default="float",
        help="store values unchanged, or as int8 codes (a quarter of the space; runs the model twice)",
    )
    parser.add_argument("--append", action="store_true", help="append to layers that the store already has")
    parser.add_argument(
        "--part",
        metavar="PART",
        default="",
        help="record into this part of the store, such as rank3; processes that record at once each name their own",
    )


def _add_measure(parser: argparse.ArgumentParser) -> None:
    _add_samples(parser)
    parser.add_argument("-o", "--output", type=local, metavar="OUT", required=True, help="a new folder for the results")
    parser.add_argument(
        "--statistics",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="what to count in addition to sums and extrema: magnitude, squares, histogram, spread, taps, gram",
    )
    parser.add_argument(
        "--nonfinite",
        choices=("error", "skip"),
        default="error",
        help="NaN and infinities: error says where they are; skip only counts them",
    )


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", help="the float model")
    parser.add_argument(
        "--samples",
        metavar="FILE",
        required=True,
        help="a .npy or .npz file, samples on axis 0, or a folder with a file for each run of the model",
    )
    _add_axes(parser)
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="samples per run of the model")
    parser.add_argument("--layers", metavar="GLOB", action="append", help="only layers whose names match; repeatable")
    parser.add_argument(
        "--tensors",
        choices=("layers", "quantizable"),
        default="layers",
        help="layers: their inputs; quantizable: every tensor for which onnxruntime's static quantiser needs a range",
    )
    parser.add_argument(
        "--mask",
        metavar="INPUT",
        help="the input of the model that is 1 at positions that count and 0 at padding, such as attention_mask",
    )


def _add_axes(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--batch-axis",
        metavar="INPUT=AXIS",
        action="append",
        help="the axis of the samples of an input of the model, if it is not 0, as in h0=1; none if the input is the "
        "same for all samples; repeatable",
    )
    parser.add_argument(
        "--positions-as-rows",
        action="store_true",
        help="record every position (token, pixel) as a row; by default, only if samples differ in shape or cannot be "
        "told apart",
    )


def _add_correct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", nargs="?", help="the float model that was recorded")
    parser.add_argument(
        "quantized", metavar="QUANTIZED.onnx", nargs="?", help="the same model as another quantiser wrote it"
    )
    parser.add_argument(
        "--correctors", type=local, metavar="OUT", help="the output folder of a run; not with --outputs"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=local,
        metavar="FIXED",
        required=True,
        help="the file for the corrected model, or for the corrections",
    )
    _add_activations(_add_rounding(add_levels(parser)))
    parser.add_argument(
        "--uncorrected", type=local, metavar="FILE", help="with --bits: also write the uncorrected model"
    )
    _add_how(parser).add_argument(
        "--outputs",
        action="store_true",
        help="use mean outputs instead of weights and correctors: add E[y] − E[ŷ] to the bias of each layer, with y "
        "and ŷ its outputs in the float and in the quantised model",
    )
    parser.add_argument(
        "--report", type=local, metavar="FILE.html", help="the file for the report; default: FIXED with .report.html"
    )
    tensors = parser.add_argument_group("tensors instead of a model")
    tensors.add_argument("--weights", metavar="FILE", help="the float weights, as safetensors")
    tensors.add_argument("--fake-quantized", metavar="FILE", help="the same weights, quantised and dequantised")
    tensors.add_argument(
        "--layout",
        metavar="[GLOB=]LAYOUT",
        action="append",
        help="the layout of those weights: OIHW, HWIO, OI, …; for some layers 'classifier=OI'; repeatable",
    )


def _add_rounding(levels: argparse._ArgumentGroup) -> argparse._ArgumentGroup:
    levels.add_argument(
        "--rounding",
        choices=("nearest", "gram"),
        help="nearest rounds each weight to the nearest level (default); gram rounds those of a layer together, so "
        "that the error of its outputs is small (GPTQ), by the statistic gram in OUT",
    )
    levels.add_argument(
        "--scale",
        action="store_true",
        help="with --per-channel: multiply the step of each output channel so that the variance of its outputs is that "
        "of the float model, by the statistic gram in OUT",
    )
    return levels


def _add_activations(levels: argparse._ArgumentGroup) -> None:
    levels.add_argument(
        "--activation-bits", metavar="N", type=int, help="also round the input of each layer to N bits, 2 to 16"
    )
    levels.add_argument(
        "--activation-range",
        choices=METHODS,
        help="how `ranges` finds the range of each input in OUT (default: minmax)",
    )


def _add_how(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    how = parser.add_argument_group("correct layer by layer")
    how.add_argument(
        "--iterative",
        nargs="?",
        const="full",
        choices=("full", "change"),
        help="use the inputs x̂ that each layer gets once the layers before it are corrected: full (the default) adds "
        "W·E[x] − Ŵ·E[x̂], change adds (W − Ŵ)·E[x̂]",
    )
    how.add_argument(
        "--samples",
        metavar="FILE",
        help="the samples that were recorded, with --outputs any: a .npy or .npz file, or a folder",
    )
    how.add_argument(
        "--work",
        type=local,
        metavar="FOLDER",
        help="the folder for intermediate results, to resume from; default: FIXED with .work",
    )
    judging = parser.add_argument_group("judge the result")
    judging.add_argument(
        "--held-out",
        metavar="FILE",
        help="samples that were not recorded, to judge by: a .npy or .npz file, or a folder",
    )
    judging.add_argument(
        "--labels", metavar="FILE", help="their labels, .npy of integers: also judge the accuracy of a classifier"
    )
    judging.add_argument(
        "--score",
        metavar="COMMAND",
        help="a program that scores the model file {model}, such as 'python score.py {model}': the score is the last "
        "number on the last line that it prints",
    )
    judging.add_argument(
        "--do-no-harm",
        action="store_true",
        help="leave out corrections that make the network's outputs worse, and all if the network would be worse than "
        "the quantised one",
    )
    judging.add_argument(
        "--trials",
        metavar="N",
        type=int,
        help="with --do-no-harm: try at most N corrections one by one, each by a run of the network (default: 64)",
    )
    judging.add_argument(
        "--fail-if-worse",
        action="store_true",
        help="exit with status 1, and write nothing, if the corrected model is worse than the quantised one",
    )
    how.add_argument(
        "--other-weights",
        action="store_true",
        help="use what was recorded although the float model has other weights than the one recorded; the report says "
        "so",
    )
    both = parser.add_argument_group("how samples are run, for layer by layer and --held-out")
    both.add_argument("--mask", metavar="INPUT", help="the input of the model that is the mask")
    both.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="samples per run of the model (default: 16, and 8 for --held-out); figures depend on it only if the "
        "quantised model finds steps in each batch, as models of quantize_dynamic do",
    )
    _add_axes(both)
    return how


def _add_report(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "correctors")
    parser.add_argument(
        "-o", "--output", type=local, metavar="FILE.html", help="the file for the report; default: OUT/report.html"
    )
    parser.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    parser.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same model as another quantiser wrote it")
    _add_activations(_add_rounding(add_levels(parser)))
    _add_how(parser)
    parser.set_defaults(uncorrected=None, outputs=False)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=local, metavar="FOLDER", nargs="?", default="streamstats-demo", help="the folder for its files"
    )
