"""The commands and their options. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from ..address import SERVICE_URL, local_path
from ..errors import UsageError
from ..service.retrying import PATIENCE_SECONDS
from . import descriptions

ON_MODELS = "model_commands"
CORRECTING = "correct_commands"
EXPORTING = "export_command"
ON_GRAM = "gram_command"
WITH_SERVICE = "service_commands"
FOR_ADMINS = "admin_commands"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions keep their lines; a default is shown only if it has a meaning."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


class _Once(argparse.Action):
    """Stores a value, and refuses a second one, of which argparse would silently keep the last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"{option_string} is given more than once; it takes one value, so give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def _local(text: str) -> str:
    """`text`, the path of results: refused here, before hours of work, if it is a URL."""
    try:
        local_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. `module` and `command` name the function that does the work."""
    parser = argparse.ArgumentParser(
        prog="streamstats", description=descriptions.DESCRIPTION, epilog=descriptions.EPILOG, formatter_class=_Help
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(_command(commands, "run", descriptions.RUN))
    _add_inspect(_command(commands, "inspect", descriptions.INSPECT))
    _add_ranges(_command(commands, "ranges", descriptions.RANGES))
    _add_gram(_command(commands, "gram", descriptions.GRAM, ON_GRAM))
    _add_export(_command(commands, "export", descriptions.EXPORT, EXPORTING))
    _add_status(_command(commands, "status", descriptions.STATUS))
    _add_verify(_command(commands, "verify", descriptions.VERIFY))
    _add_forget(_command(commands, "forget", descriptions.FORGET))
    _add_merge(_command(commands, "merge", descriptions.MERGE))
    _add_compare(_command(commands, "compare", descriptions.COMPARE))
    _add_record(_command(commands, "record", descriptions.RECORD, ON_MODELS))
    _add_measure(_command(commands, "measure", descriptions.MEASURE, ON_MODELS))
    _add_correct(_command(commands, "correct", descriptions.CORRECT, CORRECTING))
    _add_report(_command(commands, "report", descriptions.REPORT, CORRECTING))
    _add_demo(_command(commands, "demo", descriptions.DEMO, ON_MODELS))
    _add_warm(_command(commands, "warm", descriptions.WARM))
    _add_serve(_command(commands, "serve", descriptions.SERVE, WITH_SERVICE))
    _add_backup(_command(commands, "backup", descriptions.BACKUP, WITH_SERVICE))
    _add_submit(_command(commands, "submit", descriptions.SUBMIT, WITH_SERVICE))
    _add_jobs(_command(commands, "jobs", descriptions.JOBS, WITH_SERVICE))
    _add_watch(_command(commands, "watch", descriptions.WATCH, WITH_SERVICE))
    _add_cancel(_command(commands, "cancel", descriptions.CANCEL, WITH_SERVICE))
    _add_fetch(_command(commands, "fetch", descriptions.FETCH, WITH_SERVICE))
    _add_send(_command(commands, "send", descriptions.SEND, WITH_SERVICE))
    _add_withdraw(_command(commands, "withdraw", descriptions.WITHDRAW, WITH_SERVICE))
    _add_token(_command(commands, "token", descriptions.TOKEN, FOR_ADMINS))
    _add_audit(_command(commands, "audit", descriptions.AUDIT, FOR_ADMINS))
    _add_prune(_command(commands, "prune", descriptions.PRUNE, FOR_ADMINS))
    return parser


def _version() -> str:
    from .. import __version__

    return f"streamstats {__version__}"


def _command(commands: Any, name: str, description: str, module: str = "commands") -> argparse.ArgumentParser:
    """The parser of the command that the function `name` of `module` carries out."""
    parser: argparse.ArgumentParser = commands.add_parser(name, description=description, formatter_class=_Help)
    for action in (None, "store"):
        parser.register("action", action, _Once)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress, only the result, notes and errors")
    parser.add_argument("--timestamps", action="store_true", help="begin each line on stderr with the time, in UTC")
    parser.set_defaults(module=module)
    return parser


def _add_config(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("config", metavar="CONFIG", help=f"{what}; ${{NAME}} in it is taken from the environment")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="use this value in place of the configuration's, as in memory=4GiB or cluster.threads=2; may be repeated",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, "a YAML file")
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
        "the others; reads layers of 32-bit values once more",
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
    _add_levels(parser)


def _add_ranges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=_local, metavar="OUT", help="the output folder of a run")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--method", choices=("minmax", "percentile", "mse", "entropy"), help="how to choose the ranges")
    how.add_argument("--compare", action="store_true", help="show the ranges and errors of all methods")
    parser.add_argument("--bits", metavar="N", type=int, default=8, help="bits of the codes, 2 to 16")
    parser.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    parser.add_argument(
        "--codes",
        choices=("signed", "unsigned"),
        help="whether codes may be negative; default: signed if --symmetric, else unsigned",
    )
    parser.add_argument("--per-channel", action="store_true", help="one range per channel, not per layer")
    parser.add_argument(
        "--percentile",
        metavar="P",
        type=float,
        help="with --method percentile or --compare: the share of values within each end, in %%; default: 99.99",
    )
    parser.add_argument("--layer", metavar="GLOB", default="*", help="only layers whose names match")
    parser.add_argument(
        "--plot",
        type=_local,
        metavar="FILE",
        help="draw the histogram of one layer with the ranges, to a .png or .svg file",
    )


def _add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--plot",
        type=_local,
        metavar="FILE",
        nargs="?",
        const="-",
        help=f"plot {what}, in the terminal or to a .png or .svg file",
    )


def _add_gram(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=_local, metavar="OUT", help="the output folder of a run")
    parser.add_argument("layer", metavar="LAYER", help="a layer with `statistics: [gram]`")
    _add_plot(parser, "the spectrum and the correlations")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=_local, metavar="OUT", help="the output folder of a run")
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
    parser.add_argument("-o", "--file", type=_local, metavar="FILE", required=True, help="the file to write")
    parser.add_argument("--layer", metavar="GLOB", default="*", help="only layers whose names match")
    naming = parser.add_mutually_exclusive_group()
    naming.add_argument("--names", metavar="FILE", help="a YAML or JSON file with names for layers")
    naming.add_argument(
        "--model", metavar="MODEL.onnx", help="the model that was recorded, to find the tensor that each layer reads"
    )
    ranges = parser.add_argument_group("ranges")
    ranges.add_argument("--method", choices=("minmax", "percentile", "mse", "entropy"), help="how to choose the ranges")
    ranges.add_argument("--bits", metavar="N", type=int, help="bits of the codes, 2 to 16; default: 8")
    ranges.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    ranges.add_argument(
        "--codes",
        choices=("signed", "unsigned"),
        help="whether codes may be negative; default: signed if --symmetric, else unsigned",
    )
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
    parser.add_argument("output", type=_local, metavar="OUT", help="the output folder of a run")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, "the YAML file of the job")


def _add_forget(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, "the YAML file of the job")
    parser.add_argument(
        "--rows", metavar="A:B", required=True, action="append", help="rows A to B - 1; the first row is 0; repeatable"
    )
    parser.add_argument("--layers", metavar="GLOB", default="*", help="only layers whose names match")
    parser.add_argument("--source", metavar="STORE", help="rows of this store, one of several that the job names")
    parser.add_argument(
        "--part", metavar="PART", help="rows of this part of a recording; '' for those outside its parts"
    )


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "outputs", type=_local, metavar="OUT", nargs="+", help="the output folders of the runs to merge"
    )
    parser.add_argument(
        "-o", "--output", type=_local, metavar="OUT", required=True, help="the folder for the merged results"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=_local, metavar="OUT1", help="the output folder of a run or a merge")
    parser.add_argument("second", type=_local, metavar="OUT2", help="the output folder to compare with it")
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=float,
        help="exit with status 3 if the means of a layer differ by more than X standard errors (or, without standard "
        "errors, X %% of its range)",
    )
    parser.add_argument("--layer", metavar="GLOB", default="*", help="only layers whose names match")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=_local, metavar="OUT", help="the output folder of a run")
    parser.add_argument("layer", metavar="LAYER", nargs="?", help="show the channels of this layer")
    _add_plot(parser, "the channels")


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
    parser.add_argument(
        "-o", "--output", type=_local, metavar="OUT", required=True, help="a new folder for the results"
    )
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
        "--correctors", type=_local, metavar="OUT", help="the output folder of a run; not with --outputs"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=_local,
        metavar="FIXED",
        required=True,
        help="the file for the corrected model, or for the corrections",
    )
    _add_activations(_add_rounding(_add_levels(parser)))
    parser.add_argument(
        "--uncorrected", type=_local, metavar="FILE", help="with --bits: also write the uncorrected model"
    )
    _add_how(parser).add_argument(
        "--outputs",
        action="store_true",
        help="use mean outputs instead of weights and correctors: add E[y] − E[ŷ] to the bias of each layer, with y "
        "and ŷ its outputs in the float and in the quantised model",
    )
    parser.add_argument(
        "--report", type=_local, metavar="FILE.html", help="the file for the report; default: FIXED with .report.html"
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


def _add_levels(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    levels = parser.add_argument_group("fake-quantise the float model, instead of giving a quantised one")
    levels.add_argument("--bits", metavar="N", type=int, help="bits of the weights, 2 to 16")
    levels.add_argument("--per-channel", action="store_true", help="one range per output channel, not per tensor")
    levels.add_argument("--symmetric", action="store_true", help="ranges that are symmetric about zero")
    levels.add_argument(
        "--weight-range",
        choices=("minmax", "mse"),
        help="the range of the weights: minmax includes all of them (default); mse clips the largest if that reduces "
        "the squared error",
    )
    return levels


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
        choices=("minmax", "percentile", "mse", "entropy"),
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
        type=_local,
        metavar="DIR",
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
        help="a program that prints the score of the model file {model}, such as 'python score.py {model}'",
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
    both = parser.add_argument_group("how samples were recorded, for layer by layer and --held-out")
    both.add_argument("--mask", metavar="INPUT", help="the input of the model that is the mask")
    _add_axes(both)
    return how


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("correctors", type=_local, metavar="OUT", help="the output folder of a run")
    parser.add_argument(
        "-o", "--output", type=_local, metavar="FILE.html", help="the file for the report; default: OUT/report.html"
    )
    parser.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    parser.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same model as another quantiser wrote it")
    _add_activations(_add_rounding(_add_levels(parser)))
    _add_how(parser)
    parser.set_defaults(uncorrected=None, outputs=False)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=_local, metavar="DIR", nargs="?", default="streamstats-demo", help="the folder for its files"
    )


def _add_warm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dtypes", metavar="DTYPE", nargs="*", help="the dtypes of the stores, such as bfloat16; default: float32 int8"
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/service.yaml")


def _add_backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the configuration of the service")
    parser.add_argument("folder", type=_local, metavar="FOLDER", help="a new folder, best on another disk")


def _add_service(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("the service")
    where.add_argument("--url", help=f"default: STREAMSTATS_URL, or {SERVICE_URL}")
    where.add_argument("--token-file", metavar="FILE", help="default: STREAMSTATS_TOKEN_FILE, or STREAMSTATS_TOKEN")
    where.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=PATIENCE_SECONDS,
        help="how long to try again if the service does not respond, for submit, send and watch; default: %(default)s",
    )


def _add_submit(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, "the YAML file of a run")
    parser.add_argument("--watch", action="store_true", help="show the progress until the job ends")
    parser.add_argument("--follow", action="store_true", help="keep counting rows as they are appended, until …")
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has N rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… no rows are appended for this long")
    parser.add_argument("--submitter", metavar="NAME", help="for admins: whose job it is; default: your token's")
    parser.add_argument(
        "--priority",
        metavar="N",
        type=int,
        default=0,
        help="jobs of the same submitter run in order of priority, highest first",
    )
    parser.add_argument("--key", help="submitting again with the same key gives the same job, not a new one")
    parser.add_argument("--name", help="what to call the job")
    parser.add_argument("--tag", action="append", help="a word to find the job by; may be repeated")
    parser.add_argument("--note", metavar="TEXT", help="a note about the job")
    parser.add_argument("--notify", metavar="HOOK", action="append", help="a hook of the service to tell of the end")
    _add_service(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?", help="show this job")
    parser.add_argument("--state", action="append", help="only jobs in this state: queued, running, done, …")
    parser.add_argument("--submitter", metavar="NAME", help="only jobs of this submitter")
    parser.add_argument("--source", help="only jobs that read this source")
    parser.add_argument("--tag", action="append", help="only jobs with this tag; repeated: with all of them")
    parser.add_argument("--text", help="only jobs in whose name, note, source, … this text occurs")
    parser.add_argument("--limit", metavar="N", type=int, default=20, help="show the newest N jobs")
    _add_service(parser)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    _add_service(parser)


def _add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    _add_service(parser)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="the job's identifier, as submit printed it")
    parser.add_argument(
        "-o", "--output", type=_local, metavar="OUT", required=True, help="a folder that is new or empty"
    )
    _add_service(parser)


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a store of the service; created if it does not exist")
    parser.add_argument("layer", metavar="LAYER", help="the layer's name")
    parser.add_argument("files", metavar="FILE", nargs="+", help=".npy, or safetensors with one tensor")
    parser.add_argument("--channel-axis", metavar="N", type=int, default=-1, help="the axis of the channels")
    parser.add_argument(
        "--quantization", metavar="JSON", help='of integer codes: \'{"scale": 0.1, "scale_is": "step"}\''
    )
    parser.add_argument(
        "--geometry",
        metavar="JSON",
        help='the layer\'s kernel, for `taps`: \'{"kernel": [3, 3], "pads": [1, 1, 1, 1]}\'',
    )
    parser.add_argument("--key", help="with a single file: its key; default: the SHA-256 of its content")
    _add_service(parser)


def _add_withdraw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a store of the service")
    parser.add_argument("layer", metavar="LAYER", help="the layer's name")
    parser.add_argument("files", metavar="FILE", nargs="*", help="files that were sent without --key")
    parser.add_argument("--key", help="the key that the activations were sent with")
    parser.add_argument("--forget", action="store_true", help="have jobs that have ended subtract them, too")
    _add_service(parser)


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["new", "list", "rotate", "revoke"], help="what to do")
    parser.add_argument("name", metavar="NAME", nargs="?", help="whose token")
    parser.add_argument("--role", choices=["read", "submit", "admin"], default="submit", help="of a new token")
    parser.add_argument(
        "-o", "--output", type=_local, metavar="FILE", help="write the secret to a new file that only you can read"
    )
    parser.add_argument(
        "--overlap", metavar="SECONDS", type=float, default=0.0, help="with rotate: how long the old secret stays valid"
    )
    _add_service(parser)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--who", metavar="NAME", help="only what this token did")
    parser.add_argument("--limit", metavar="N", type=int, default=100, help="show the newest N entries")
    _add_service(parser)


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; only tell what would be removed")
    parser.add_argument(
        "--keep", metavar="JSON", help='in place of the service\'s `retention`: \'{"jobs": {"age": "90d"}}\''
    )
    _add_service(parser)
