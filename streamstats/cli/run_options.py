"""What `run` takes, and the commands that read what it leaves."""

from __future__ import annotations

import argparse
from typing import Any

from . import descriptions
from .shared_options import (
    METHODS,
    add_codes,
    add_config,
    add_layers,
    add_levels,
    add_output,
    add_service,
    command,
    local,
)

EXPORTING = "export_command"
ON_GRAM = "gram_command"
COMPARING = "compare_command"


def add_commands(commands: Any) -> None:
    """Add `run`, and the commands that read what it leaves."""
    _add_run(command(commands, "run", descriptions.RUN))
    _add_inspect(command(commands, "inspect", descriptions.INSPECT))
    _add_ranges(command(commands, "ranges", descriptions.RANGES))
    _add_gram(command(commands, "gram", descriptions.GRAM, ON_GRAM))
    _add_export(command(commands, "export", descriptions.EXPORT, EXPORTING))
    _add_status(command(commands, "status", descriptions.STATUS))
    _add_verify(command(commands, "verify", descriptions.VERIFY))
    _add_forget(command(commands, "forget", descriptions.FORGET))
    _add_merge(command(commands, "merge", descriptions.MERGE))
    _add_compare(command(commands, "compare", descriptions.COMPARE, COMPARING))


def _add_run(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "a YAML file")
    parser.add_argument("--restart", action="store_true", help="count everything again, except forgotten rows")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="keep what was counted, even if the store has changed since; one that has moved must be a copy",
    )
    parser.add_argument(
        "--follow", action="store_true", help="keep counting rows as they are appended, until a signal or …"
    )
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has N rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… no rows are appended for this long")
    parser.add_argument(
        "--refine",
        metavar="Q",
        nargs="+",
        action="extend",
        type=float,
        help="print these exact quantiles, such as 0.5 0.999, of each layer with `statistics: [histogram]`, and name "
        "the layers without one; reads layers of 32-bit values once more",
    )
    stable = parser.add_argument_group("stop once there are enough samples")
    stable.add_argument(
        "--until-stable",
        metavar="FRACTION",
        nargs="?",
        const=0.5,
        type=float,
        help="count rows from the first on, until every correction is known to this fraction of a step of its bias "
        "(default: 0.5); shuffle the samples beforehand",
    )
    stable.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    stable.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same model as another quantiser wrote it")
    add_levels(parser)


def _add_ranges(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--method", choices=METHODS, help="how to choose the ranges")
    how.add_argument("--compare", action="store_true", help="show the ranges and errors of all methods")
    parser.add_argument("--bits", metavar="N", type=int, default=8, help="bits of the codes, 2 to 16")
    parser.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    add_codes(parser)
    parser.add_argument("--per-channel", action="store_true", help="one range per channel, not per layer")
    parser.add_argument(
        "--percentile",
        metavar="P",
        type=float,
        help="with --method percentile or --compare: the share of values within each end, in %%; default: 99.99",
    )
    add_layers(parser)
    parser.add_argument(
        "--plot",
        type=local,
        metavar="FILE",
        help="draw the histogram of one layer with the ranges, to a .png or .svg file",
    )


def _add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--plot",
        type=local,
        metavar="FILE",
        nargs="?",
        const="-",
        help=f"plot {what}, in the terminal or to a .png or .svg file",
    )


def _add_gram(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("layer", metavar="LAYER", help="a layer with `statistics: [gram]`")
    _add_plot(parser, "the spectrum and the correlations")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    formats = (
        "onnxruntime",
        "tensorrt",
        "aimet",
        "compressed-tensors",
        "imatrix",
        "hessians",
        "json",
        "safetensors",
        "csv",
        "parquet",
    )
    parser.add_argument("--format", choices=formats, required=True, help="the format of the file")
    parser.add_argument(
        "-o", "--output", dest="file", type=local, metavar="FILE", required=True, help="the file to write"
    )
    add_layers(parser)
    naming = parser.add_mutually_exclusive_group()
    naming.add_argument("--names", metavar="FILE", help="a YAML or JSON file with names for layers")
    naming.add_argument(
        "--model", metavar="MODEL.onnx", help="the model that was recorded, to find the tensor that each layer reads"
    )
    ranges = parser.add_argument_group("ranges")
    ranges.add_argument("--method", choices=METHODS, help="how to choose the ranges")
    ranges.add_argument("--bits", metavar="N", type=int, help="bits of the codes, 2 to 16; default: 8")
    ranges.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    add_codes(ranges)
    ranges.add_argument("--percentile", metavar="P", type=float, help="with --method percentile, in %%; default: 99.99")
    ranges.add_argument("--encoding-version", metavar="V", help="for aimet: 0.6.1, 1.0.0 or 2.0.0; default: 1.0.0")
    parser.add_argument("--merge", metavar="FILE", help="for imatrix: an earlier file, whose sums are added")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="for hessians; default: float32")
    parser.add_argument(
        "--damp",
        metavar="SHARE",
        type=float,
        help="for hessians: add this share of the mean of the diagonal to it, such as 0.01; default: 0",
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    add_output(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "the YAML file of the job")


def _add_forget(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "the YAML file of the job")
    parser.add_argument(
        "--rows",
        metavar="A:B",
        required=True,
        action="append",
        help="rows A to B - 1, or A: for row A and all after it that are counted now; the first row is 0; repeatable",
    )
    add_layers(parser)
    parser.add_argument("--source", metavar="STORE", help="rows of this store, one of several that the job names")
    parser.add_argument(
        "--part", metavar="PART", help="rows of this part of a recording; '' for those outside its parts"
    )


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", type=local, metavar="OUT", nargs="+", help="the output folders of the runs to merge")
    parser.add_argument(
        "-o", "--output", type=local, metavar="OUT", required=True, help="the folder for the merged results"
    )
    parser.add_argument(
        "--different-stores",
        action="store_true",
        help="the outputs are of different stores unless the opposite is proved: two sites may have stores of one name",
    )
    parser.add_argument(
        "--other-weights",
        action="store_true",
        help="merge outputs that were recorded from models with other weights",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "first", type=local, metavar="OUT1", help="the output of a run or a merge, or the id of a job of a service"
    )
    parser.add_argument(
        "second", type=local, metavar="OUT2", help="the output, or the id of the job, to compare with it"
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=float,
        help="exit with status 3 if the means of a layer differ by more than X standard errors (or, without standard "
        "errors, X %% of its range)",
    )
    add_layers(parser)
    add_service(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("layer", metavar="LAYER", nargs="?", help="show the channels of this layer")
    _add_plot(parser, "the channels")
