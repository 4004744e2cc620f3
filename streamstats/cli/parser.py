"""The commands and options, and the help that teaches them. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from ..address import SERVICE_URL

DESCRIPTION = """\
Exact calibration statistics, out of core, and the bias corrections that follow from them.

  record    run a model over samples and keep the input of each of its layers in a zarr store
  run       reduce a store to exact per-channel statistics and a corrector for each layer
  inspect   look at what a run left
  status    how far a run is: what is counted, what is missing and why
  verify    read a store once and tell what is wrong with it
  forget    take rows out of the sums again
  merge     add up the results of several stores or sites
  correct   correct the biases of a quantised model
  report    what the corrections do, as a page to look at
  demo      all of it, on a small real network

A team's jobs in one place:

  serve     start the service: jobs over HTTP, and a page to watch them
  submit    give a job to a service; jobs, watch, cancel, fetch, send: what goes on there

"""

EPILOG = """\
Exit status: 0 done, 1 failure, 2 usage or configuration, 3 incomplete, 4 corrupt or missing data, 130 interrupted.
Results go to stdout, progress and messages to stderr. Start with: streamstats demo
"""

RUN = """\
Reduce every layer of a zarr calibration store to exact sums, counts and extrema of each channel.

The plan is printed before any data is read: tasks, bytes, and the most memory the run will take. What it leaves:

  OUT/correctors/LAYER.safetensors   the mean of each channel, for correcting the layer's bias
  OUT/state/LAYER.safetensors        exact sums, counts and the rows behind them
  OUT/manifest.json                  every file with its SHA-256

It goes on from what was counted before, and saves every few seconds and when it is stopped, so it may be killed at any
moment and run again. Rows that were appended are counted by the next run, and only they are read.

A configuration needs two lines; the README explains the rest:

  source: calibration.zarr
  output: out
"""

INSPECT = """\
Show what `streamstats run` left: its layers, or the channels of one of them.

  streamstats inspect out                               layers, rows, coverage, ranges
  streamstats inspect out block1/project               every channel: count, mean, minimum, maximum
  streamstats inspect out block1/project --plot        the channels as a plot in the terminal
  streamstats inspect out block1/project --plot p.svg  as a picture (.png or .svg)
"""

STATUS = """\
Tell how far the job of an output folder is: rows counted by layer, what is missing, why, and what to do next.

  streamstats status out                               exit status 0: everything is counted, 3: something is missing
"""

VERIFY = """\
Read everything once and tell what is wrong with it: chunks that are missing, cut off, or do not have their checksum,
and what was counted and is not as it was. Nothing is written.

  streamstats verify job.yaml                          exit status 0: nothing is wrong, 4: something is
"""

FORGET = """\
Take rows out of the sums again, exactly, and never count them: the result is as if they had not been there. The rows
are read once more for it. All or nothing: where it ends with an error, nothing was taken out.

  streamstats forget job.yaml --rows 128:192           of all layers
  streamstats forget job.yaml --rows 0:8 --layers 'block1/*'
"""

MERGE = """\
Add up the outputs of several sites: of different stores, or of different rows of one store. A row that two of them
have counted is refused.

  streamstats merge site1/out site2/out -o out
"""

RECORD = """\
Run an ONNX model over samples and append the input of every Conv, ConvTranspose, Gemm and MatMul with constant
weights to a zarr store, a batch at a time.

  streamstats record model.onnx --samples calibration.npy -o calibration.zarr

Samples are a .npy file with samples on axis 0, or a .npz file with one array for each input of the model.
"""

CORRECT = """\
Add (W − Ŵ)·E[x] to the bias of each layer of a quantised ONNX model, E[x] from `streamstats run`.

A model that a quantiser wrote (QDQ or QOperator, 4 or 8 bits) is repaired as it is stored; its layers are found by
their weights, and what was done for each is listed:

  streamstats correct model.onnx quantized.onnx --correctors out -o fixed.onnx

Without one, the weights are fake-quantised here first:

  streamstats correct model.onnx --bits 5 --correctors out -o corrected.onnx --uncorrected quantized.onnx

Correct layer after layer, with the inputs that the quantised network gives each of them; judge all of it on samples
that were not recorded, and leave alone what would get worse. What comes out is in FIXED.report.html and .json:

  streamstats correct model.onnx quantized.onnx --correctors out -o fixed.onnx --iterative --samples calibration.npy \\
      --held-out held-out.npy --labels labels.npy --do-no-harm

For any other tool chain, weights in safetensors files (LAYER or LAYER.weight) give what to add to each bias:

  streamstats correct --weights w.safetensors --fake-quantized q.safetensors --layout OIHW --layout 'fc=OI' \\
      --correctors out -o corrections.safetensors
"""

REPORT = """\
Write a page about the results of a run, and the same as JSON: rows, channels that are never active, how well means are
known. With the models, also what the corrections would do, layer by layer; no model is written:

  streamstats report out                               OUT/report.html
  streamstats report out --model model.onnx --quantized quantized.onnx --held-out held-out.npy --labels labels.npy
"""

DEMO = """\
Record, reduce and correct a small network trained on handwritten digits, and show its accuracy as a float network,
quantised, and corrected. Its files stay in DIR, to look at and to try the commands on.
"""


SERVE = """\
Serve jobs over HTTP, with a page to watch them: one process, its database in a folder, no other server.

  streamstats serve service.yaml

It listens on 127.0.0.1, and makes a token at its first start that every client has to send. A signal has it save what
runs; after any end, also a kill, it goes on where it was. A configuration needs two lines, the README explains more:

  data: service-data
  roots: [calibration]
"""

SUBMIT = """\
Give a job to a service: the configuration of a run, whose `output` and `cluster` are the service's own affair.

  streamstats submit job.yaml --watch                  exit status as that of `run`
  streamstats submit job.yaml --follow                 counts what is sent to a store, until it is cancelled

The service and its token come from --url and --token-file, or STREAMSTATS_URL, and STREAMSTATS_TOKEN_FILE or
STREAMSTATS_TOKEN.
"""

JOBS = """\
List the jobs of a service, the newest first, or show one of them.
"""

WATCH = """\
Show how far a job of a service is until it ends. Exit status: 0 done, 3 incomplete, 1 failed or cancelled.
"""

CANCEL = """\
Stop a job of a service. Results that it has stay.
"""

FETCH = """\
Fetch the results of a job into a folder, all of one moment, each file checked against the manifest's SHA-256.

  streamstats fetch 0123456789abcdef -o out            then: streamstats inspect out
"""

SEND = """\
Append activations to a layer of a store that a service owns: .npy, or safetensors with one tensor, samples on axis 0.

  streamstats send team-a block1/project activations.npy

Each file is counted once: its key is the SHA-256 of its content, unless --key says otherwise.
"""


ON_MODELS = "model_commands"
WITH_SERVICE = "service_commands"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they are written, and defaults that mean something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` names the function that does the work."""
    parser = argparse.ArgumentParser(prog="streamstats", description=DESCRIPTION, epilog=EPILOG, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(_command(commands, "run", RUN))
    _add_inspect(_command(commands, "inspect", INSPECT))
    _add_status(_command(commands, "status", STATUS))
    _add_verify(_command(commands, "verify", VERIFY))
    _add_forget(_command(commands, "forget", FORGET))
    _add_merge(_command(commands, "merge", MERGE))
    _add_record(_command(commands, "record", RECORD, ON_MODELS))
    _add_correct(_command(commands, "correct", CORRECT, ON_MODELS))
    _add_report(_command(commands, "report", REPORT, ON_MODELS))
    _add_demo(_command(commands, "demo", DEMO, ON_MODELS))
    _add_serve(_command(commands, "serve", SERVE, WITH_SERVICE))
    _add_submit(_command(commands, "submit", SUBMIT, WITH_SERVICE))
    _add_jobs(_command(commands, "jobs", JOBS, WITH_SERVICE))
    _add_watch(_command(commands, "watch", WATCH, WITH_SERVICE))
    _add_cancel(_command(commands, "cancel", CANCEL, WITH_SERVICE))
    _add_fetch(_command(commands, "fetch", FETCH, WITH_SERVICE))
    _add_send(_command(commands, "send", SEND, WITH_SERVICE))
    return parser


def _version() -> str:
    from .. import __version__

    return f"streamstats {__version__}"


def _command(commands: Any, name: str, description: str, module: str = "commands") -> argparse.ArgumentParser:
    """The parser of a command, which is the function `name` of `module`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, description=description, formatter_class=_Help)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(module=module)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("--restart", action="store_true", help="count everything again, but for forgotten rows")
    parser.add_argument(
        "--accept-changes", action="store_true", help="keep what was counted though the store has changed since"
    )
    parser.add_argument("--follow", action="store_true", help="go on with rows that are appended, until a signal or …")
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has so many rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… nothing was appended for so long")
    stable = parser.add_argument_group("how many samples are enough?")
    stable.add_argument(
        "--until-stable",
        metavar="FRACTION",
        nargs="?",
        const=0.5,
        type=float,
        help="count the first rows only, as many as it takes to know every correction to this fraction of a step of "
        "its bias (0.5 if left out); samples must be in no order",
    )
    stable.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    stable.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same, quantised by somebody else")
    _add_levels(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of the job")


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of the job")
    parser.add_argument("--rows", metavar="A:B", required=True, help="the first row and the one after the last")
    parser.add_argument("--layers", metavar="GLOB", default="*", help="only the layers whose names match")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", metavar="OUT", nargs="+", help="the output folder of a run")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder for the merged results")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")
    parser.add_argument("layer", metavar="LAYER", nargs="?", help="show the channels of this layer")
    parser.add_argument(
        "--plot", metavar="FILE", nargs="?", const="-", help="plot the channels: in the terminal, or to a .png or .svg"
    )


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", help="the float model")
    parser.add_argument("--samples", metavar="FILE", required=True, help="a .npy or .npz file, samples on axis 0")
    parser.add_argument("-o", "--output", metavar="STORE", required=True, help="the zarr store to append to")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="samples run at a time")
    parser.add_argument(
        "--storage",
        choices=("float", "int8"),
        default="float",
        help="keep values as they are, or as int8 codes (a quarter of the space; runs the model twice)",
    )
    parser.add_argument(
        "--layers",
        metavar="GLOB",
        action="append",
        help="only the layers whose names match; may be given several times",
    )
    parser.add_argument("--append", action="store_true", help="add to layers that the store already has")


def _add_correct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", nargs="?", help="the float model that was recorded")
    parser.add_argument("quantized", metavar="QUANTIZED.onnx", nargs="?", help="the same, quantised by somebody else")
    parser.add_argument("--correctors", metavar="OUT", required=True, help="the output folder of a run")
    parser.add_argument(
        "-o", "--output", metavar="FIXED", required=True, help="the corrected model, or the corrections"
    )
    _add_levels(parser)
    parser.add_argument("--uncorrected", metavar="FILE", help="with --bits: also write the model that is not corrected")
    _add_how(parser)
    parser.add_argument(
        "--report", metavar="FILE.html", help="where to write the report; default: FIXED with .report.html"
    )
    tensors = parser.add_argument_group("instead of a model")
    tensors.add_argument("--weights", metavar="FILE", help="safetensors with the float weights")
    tensors.add_argument("--fake-quantized", metavar="FILE", help="the same weights quantised and taken back to reals")
    tensors.add_argument(
        "--layout",
        metavar="[GLOB=]LAYOUT",
        action="append",
        help="of those weights, as OIHW, HWIO, OI; for some layers as 'classifier=OI'; may be given several times",
    )


def _add_levels(parser: argparse.ArgumentParser) -> None:
    levels = parser.add_argument_group("quantising here, instead of a quantised model")
    levels.add_argument("--bits", metavar="N", type=int, help="fake-quantise the weights of the model: bits, 2 to 16")
    levels.add_argument("--per-channel", action="store_true", help="one range an output channel, not one a tensor")
    levels.add_argument("--symmetric", action="store_true", help="ranges symmetric about zero")


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("layer after layer")
    how.add_argument(
        "--iterative",
        nargs="?",
        const="full",
        choices=("full", "change"),
        help="take the inputs x̂ that each layer gets in the quantised network corrected so far: full (the default) "
        "adds W·E[x] − Ŵ·E[x̂], change adds (W − Ŵ)·E[x̂]",
    )
    how.add_argument("--samples", metavar="FILE", help="for it: the samples that were recorded, .npy or .npz")
    how.add_argument("--work", metavar="DIR", help="what is found on the way, to go on from; default: FIXED with .work")
    judging = parser.add_argument_group("does it help?")
    judging.add_argument("--held-out", metavar="FILE", help="samples to judge by, .npy or .npz, that were not recorded")
    judging.add_argument("--labels", metavar="FILE", help="their labels, .npy of integers: accuracy of a classifier")
    judging.add_argument(
        "--score", metavar="COMMAND", help="prints a score for the file {model}, as in 'python score.py {model}'"
    )
    judging.add_argument("--do-no-harm", action="store_true", help="leave layers alone that would get worse")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("correctors", metavar="OUT", help="the output folder of a run")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="where to write it; default OUT/report.html")
    parser.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    parser.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same, quantised by somebody else")
    _add_levels(parser)
    _add_how(parser)
    parser.set_defaults(uncorrected=None)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default="streamstats-demo", help="where its files go")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/service.yaml")


def _add_service(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("the service")
    where.add_argument("--url", help=f"default: STREAMSTATS_URL, or {SERVICE_URL}")
    where.add_argument("--token-file", metavar="FILE", help="default: STREAMSTATS_TOKEN_FILE, or STREAMSTATS_TOKEN")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of a run")
    parser.add_argument("--watch", action="store_true", help="show how far it is until it ends")
    parser.add_argument("--follow", action="store_true", help="go on with rows that are added, until …")
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has so many rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… nothing was added for so long")
    parser.add_argument("--submitter", metavar="NAME", help="whose job it is; default: the user")
    parser.add_argument("--priority", metavar="N", type=int, default=0, help="among jobs of the same submitter")
    parser.add_argument("--key", help="submitted again with the same key, it is the same job")
    _add_service(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?", help="show this job")
    parser.add_argument("--state", help="only those that are queued, running, done, …")
    parser.add_argument("--limit", metavar="N", type=int, default=20, help="so many of the newest")
    _add_service(parser)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="what submit printed")
    _add_service(parser)


def _add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="what submit printed")
    _add_service(parser)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="what submit printed")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="a folder that is new or empty")
    _add_service(parser)


def _add_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a store of the service, made if it is not there")
    parser.add_argument("layer", metavar="LAYER", help="the layer's name")
    parser.add_argument("files", metavar="FILE", nargs="+", help=".npy, or safetensors with one tensor")
    parser.add_argument("--channel-axis", metavar="N", type=int, default=-1, help="the axis of the channels")
    parser.add_argument("--quantization", metavar="JSON", help='as in \'{"scale": 0.1, "scale_is": "step"}\'')
    parser.add_argument("--key", help="of a single file; default the SHA-256 of its content")
    _add_service(parser)
