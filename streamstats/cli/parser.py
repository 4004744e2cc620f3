"""The commands and options, and the help that teaches them. Imports nothing heavy: `--help` answers at once."""

from __future__ import annotations

import argparse
from typing import Any

from ..address import SERVICE_URL

DESCRIPTION = """\
Exact calibration statistics, out of core, and the bias corrections that follow from them.

  record    run a model over samples, and store the input of each layer in a zarr store
  run       reduce a store to exact statistics, and to a corrector for each layer
  measure   compute the same statistics while the model runs, without a store
  inspect   show the results of a run
  ranges    compute quantisation ranges, with steps (scales) and zero points, from the output of a run
  export    write statistics or ranges as a file that another tool loads
  status    show how far a run has come: what is counted, what is missing and why
  verify    read a store once, and report what is wrong with it
  forget    subtract rows from the results, for good
  merge     add up the results of several stores or sites
  compare   compare two outputs: equal to the bit, or how far apart
  correct   correct the biases of a quantised model
  report    write a page on what the corrections do
  demo      do all of this with a small real network

Jobs of a team, on a service:

  serve     start the service: jobs over HTTP, and a page to watch them
  submit    submit a job to a service
  jobs      list the jobs of a service, or show one of them
  watch     follow a job until it ends
  cancel    cancel a job
  fetch     download the results of a job
  send      append activations to a store of the service

Each command explains itself: streamstats COMMAND --help
"""

EPILOG = """\
Exit status: 0 done, 1 failure, 2 usage or configuration, 3 incomplete, 4 corrupt or missing data, 130 interrupted.
Results go to stdout, progress and messages to stderr. Start with: streamstats demo
"""

RUN = """\
Reduce every layer of a zarr calibration store to exact sums, counts and extrema per channel.

  streamstats run run.yaml
  streamstats run run.yaml --follow --idle 60          count rows as they are recorded, until none arrive for 60 s
  streamstats run run.yaml --refine 0.5 0.999          print exact quantiles; needs `statistics: [histogram]`

Before it reads any data, it prints the plan: tasks, bytes, and the peak memory of the run. It writes:

  OUT/correctors/LAYER.safetensors   the mean of each channel, which corrects the layer's bias
  OUT/state/ARRAY.safetensors        exact sums and counts, and the rows that they cover; layers may share an array
  OUT/manifest.json                  every file with its SHA-256

A run saves every few seconds, and when it is interrupted. Kill it at any moment and run it again: it resumes. If rows
were appended since, it reads and counts only these.

A configuration needs two lines; the README and configs/local.yaml explain all other keys:

  source: calibration.zarr
  output: out
"""

INSPECT = """\
Show the results of `streamstats run`: all layers, or the channels of one.

  streamstats inspect out                               layers, rows, coverage, ranges
  streamstats inspect out block1/project               every channel: count, mean, minimum, maximum
  streamstats inspect out block1/project --plot        the channels as a plot in the terminal
  streamstats inspect out block1/project --plot p.svg  as a picture (.png or .svg)
"""

RANGES = """\
Compute quantisation ranges, with their steps (scales) and zero points, from the output of a run. The data is not read
again, so another method or bit width takes seconds.

  streamstats ranges out --method mse --bits 4         one range per layer
  streamstats ranges out --method minmax --per-channel --symmetric
  streamstats ranges out --compare --bits 8            all methods side by side, with the error of each
  streamstats ranges out --compare --layer block1/project --plot p.svg

  minmax       from the least to the greatest value
  percentile   cuts the same share off each end: with --percentile 99.99, at most 0.01 % of the values lie beyond each
  mse          has the least mean squared error, from rounding and clipping together
  entropy      ends at the threshold that loses the least information, as TensorRT defines it

Every method except minmax needs `statistics: [histogram]` in the configuration of the run and, with --per-channel,
layers of 8-bit values. MSE and SQNR are those of the counted values. They are exact for values of 8 and 16 bits; for
wider values, the root of the MSE is off by at most `rms_error_within`, which --json prints.

Real values are (code − zero point) · step. Zero always has a code.
"""

EXPORT = """\
Write what a run has counted as a file that another tool loads. The data is not read again.

  streamstats export out --format onnxruntime --method mse -o cache.json --model model.onnx
  streamstats export out --format imatrix -o imatrix.gguf --names names.yaml
  streamstats export out --format csv -o figures.csv

Ranges, chosen with --method, --bits, --symmetric, --codes and --percentile as in `streamstats ranges`:

  onnxruntime         calibration cache: quantize_static(…, calibration_cache_path="cache.json")
  tensorrt            calibration cache of 8-bit symmetric codes, for IInt8EntropyCalibrator2
  aimet               encodings of activations, version 0.6.1, 1.0.0 or 2.0.0 (--encoding-version)
  compressed-tensors  MODULE.input_scale and MODULE.input_zero_point, signed codes of up to 8 bits

Sums:

  imatrix             llama.cpp's importance matrix; needs `statistics: [squares]`. --merge adds to an earlier file

All figures of all statistics, for analysis:

  json safetensors    with histograms and other tables
  csv parquet         a row for each channel of each layer; figures of the layer in columns layer_…

Names in the file: onnxruntime, tensorrt and aimet name tensors. Stores of `record` know the tensor that each layer
reads; for other stores, --model finds it. compressed-tensors names modules, with "." in place of "/", and imatrix
their weights, MODULE.weight. --names overrides that: a YAML or JSON file with `layer: name`, `layer: [name, name]`, or
`layer: null`, which leaves the layer out. Layers without a finite value are left out, too, except from the formats for
analysis.
"""

STATUS = """\
Show how far a run has come: the rows counted for each layer, what is missing and why, and what to do next.

  streamstats status out                               exit status 0: everything is counted, 3: something is missing

The exit status is also 3 if a layer counted fewer rows than the `min_rows` of the configuration; it names such layers.
"""

VERIFY = """\
Read everything once and report what is wrong: chunks that are missing, truncated or fail their checksum, and rows that
have changed since they were counted. Writes nothing.

  streamstats verify run.yaml                          exit status 0: no problems found, 4: problems found
"""

FORGET = """\
Subtract rows from the results, exactly, and never count them again: the results are as if these rows had never been
there. This reads the rows once more. If it ends with an error, nothing has changed.

  streamstats forget run.yaml --rows 128:192           from all layers
  streamstats forget run.yaml --rows 0:8 --layers 'block1/*'

Layers that read the same array forget together, even if only one of their names matches; all of them are listed.
"""

MERGE = """\
Add up the outputs of several sites: of different stores, or of different rows of one store. Outputs that have counted
the same row are refused.

  streamstats merge site1/out site2/out -o out
"""

COMPARE = """\
Compare the outputs of two runs or merges: whether they are equal to the bit and, if not, what differs. The layers that
differ most come first.

  streamstats compare yesterday/out today/out
  streamstats compare yesterday/out today/out --threshold 5      exit status 3 if the means of a layer have drifted
  streamstats compare yesterday/out today/out --layer 'block1/*'

  rows       the number of rows of each; "(others)" if the numbers are equal, but not the rows
  means      the difference of the means for the worst channel: in standard errors, |m1 - m2| / sqrt(se1² + se2²), if
             both counted `spread`; otherwise as a share of the layer's range over both outputs
  range      how far the range of a channel extends beyond that in the other output, as a share of the layer's range:
             + if the second extends further, - if the first does
  TV, KS     the total variation and Kolmogorov-Smirnov distances of the histograms, 0 to 1, if both counted `histogram`
             with the same bins (values of 8 and 16 bits are compared in real units even if their quantisations differ)
  different  the statistics that are not equal to the bit, and differences in dtype, channels and quantisation

All figures are in real units, so outputs with different quantisations can be compared. Standard errors treat the
samples of the two outputs as independent. If one output contains the rows of the other, the figure in standard errors
is too small, because the shared rows cannot differ.

--threshold X: the exit status is 3 if a layer has drifted. That is, the means of a channel differ by more than X
standard errors or, without standard errors, by more than X % of the layer's range. Layers that cannot be compared have
drifted, too: only one output has the layer, the numbers of channels differ, or a channel has values in only one output.
Without --threshold, the exit status is 0 whether or not the outputs differ.
"""

RECORD = """\
Run an ONNX model over samples, batch by batch, and append the input of every Conv, ConvTranspose, Gemm and MatMul with
constant weights to a zarr store. A tensor that several layers read is stored once.

  streamstats record model.onnx --samples calibration.npy -o calibration.zarr

The samples are a .npy file with samples on axis 0, or a .npz file with one array for each input of the model. In a
folder of such files, each is one run, and shapes may differ from file to file. Where the samples of an input are on
another axis, or where one value serves all samples, say so:

  streamstats record lstm.onnx --samples calibration.npz --batch-axis h0=1 --batch-axis rate=none -o calibration.zarr
  streamstats record bert.onnx --samples sentences/ --mask attention_mask -o calibration.zarr

A row of the store is a sample. If the samples differ in shape, every position (token, pixel) becomes a row.
"""

MEASURE = """\
Run an ONNX model over samples, and compute statistics of the input of every Conv, ConvTranspose, Gemm and MatMul with
constant weights. No activations are stored.

  streamstats measure model.onnx --samples calibration.npy -o out --statistics magnitude histogram

The statistics equal, to the bit, those that `record` and `run` give; correct, report, inspect, ranges, export, merge
and compare accept the output. Forgetting, verifying and appending rows need a store.
"""

CORRECT = """\
Add (W − Ŵ)·E[x] to the bias of each layer of a quantised ONNX model, with E[x] from `streamstats run`.

Repair a model that another quantiser wrote (QDQ or QOperator, 4 to 16 bits) as it is stored. Its layers are matched by
their weights, and the result is listed for each:

  streamstats correct model.onnx quantized.onnx --correctors out -o fixed.onnx

Or fake-quantise the weights of the float model first:

  streamstats correct model.onnx --bits 5 --correctors out -o corrected.onnx --uncorrected quantized.onnx
  streamstats correct model.onnx --bits 4 --weight-range mse --activation-bits 8 --activation-range mse \\
      --correctors out -o corrected.onnx

Correct layer by layer, with the inputs that the quantised network gives each layer; judge the result on samples that
were not recorded; and leave out what does harm. FIXED.report.html and .json show the effect:

  streamstats correct model.onnx quantized.onnx --correctors out -o fixed.onnx --iterative --samples calibration.npy \\
      --held-out held-out.npy --labels labels.npy --do-no-harm

Models are judged by the squared error of the network's outputs against the float model's, in dB of signal to noise; of
several outputs, each counts relative to its signal. Both models see the same samples, so their difference is given with
its standard error. With --do-no-harm, a correction without which this error is smaller, by more than three standard
errors, is left out; one that is smaller than its own standard error (of calibration samples counted with `spread`)
stays only if the outputs are clearly nearer with it; and nothing is corrected if the network would still be worse.

Where weights do not tell (trained further, compensated, unknown operators), correct from mean outputs. Nothing need be
recorded; layers are matched by name, or by order:

  streamstats correct model.onnx quantized.onnx --outputs --samples calibration.npy -o fixed.onnx

For any other tool chain, give the weights as safetensors files (tensors LAYER or LAYER.weight); the result says what to
add to each bias:

  streamstats correct --weights w.safetensors --fake-quantized q.safetensors --layout OIHW --layout 'fc=OI' \\
      --correctors out -o corrections.safetensors
"""

REPORT = """\
Write a page about the results of a run, and the same as JSON: rows, channels that are never active, how precisely the
means are known. Given the models, it also shows what the corrections would do to each layer; it writes no model.

  streamstats report out                               writes OUT/report.html
  streamstats report out --model model.onnx --quantized quantized.onnx --held-out held-out.npy --labels labels.npy
"""

DEMO = """\
Record, reduce and correct a small network trained on handwritten digits, and show the accuracy of the float, the
quantised and the corrected network. The files stay in DIR, to look at and to try the commands on.

  streamstats demo
"""


SERVE = """\
Serve jobs over HTTP, with a page to watch them: one process, with its database in a folder. It needs no other server.

  streamstats serve service.yaml

The service listens on 127.0.0.1. At its first start it creates a token, which every client must send. On a signal it
saves the running jobs; it resumes them at the next start, even after a kill. A configuration needs two lines; the
README and configs/service.yaml explain all other keys:

  data: service-data
  roots: [calibration]
"""

SERVICE_ENVIRONMENT = """
--url and --token-file name the service and its token. By default, the environment does: STREAMSTATS_URL, and
STREAMSTATS_TOKEN_FILE or STREAMSTATS_TOKEN.
"""

SUBMIT = f"""\
Submit a job to a service: the configuration of a run. The service chooses `output` and `cluster`; leave them out.

  streamstats submit job.yaml --watch                  waits for the job; exit status as for `run`
  streamstats submit job.yaml --follow                 counts what is sent to a store, until the job is cancelled
{SERVICE_ENVIRONMENT}"""

JOBS = f"""\
List the jobs of a service, newest first, or show one of them.

  streamstats jobs
  streamstats jobs --state running
  streamstats jobs 0123456789abcdef
{SERVICE_ENVIRONMENT}"""

WATCH = f"""\
Show the progress of a job until it ends. Exit status: 0 done, 3 incomplete, 1 failed or cancelled.

  streamstats watch 0123456789abcdef
{SERVICE_ENVIRONMENT}"""

CANCEL = f"""\
Cancel a job of a service; its results so far are retained.

  streamstats cancel 0123456789abcdef
{SERVICE_ENVIRONMENT}"""

FETCH = f"""\
Download the results of a job into a folder: one consistent set, each file checked against the manifest's SHA-256.

  streamstats fetch 0123456789abcdef -o out            then: streamstats inspect out
{SERVICE_ENVIRONMENT}"""

SEND = f"""\
Append activations to a layer of a store that the service owns: .npy files, or safetensors files with one tensor,
samples on axis 0.

  streamstats send team-a block1/project activations.npy

Each file is counted once, so it is safe to send it again: its key is the SHA-256 of its content, or --key.
{SERVICE_ENVIRONMENT}"""


ON_MODELS = "model_commands"
EXPORTING = "export_command"
WITH_SERVICE = "service_commands"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions keep their lines; a default is shown only if it has a meaning."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. `module` and `command` name the function that does the work."""
    parser = argparse.ArgumentParser(prog="streamstats", description=DESCRIPTION, epilog=EPILOG, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(_command(commands, "run", RUN))
    _add_inspect(_command(commands, "inspect", INSPECT))
    _add_ranges(_command(commands, "ranges", RANGES))
    _add_export(_command(commands, "export", EXPORT, EXPORTING))
    _add_status(_command(commands, "status", STATUS))
    _add_verify(_command(commands, "verify", VERIFY))
    _add_forget(_command(commands, "forget", FORGET))
    _add_merge(_command(commands, "merge", MERGE))
    _add_compare(_command(commands, "compare", COMPARE))
    _add_record(_command(commands, "record", RECORD, ON_MODELS))
    _add_measure(_command(commands, "measure", MEASURE, ON_MODELS))
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
    """The parser of the command that the function `name` of `module` carries out."""
    parser: argparse.ArgumentParser = commands.add_parser(name, description=description, formatter_class=_Help)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(module=module)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument("--restart", action="store_true", help="count everything again, except forgotten rows")
    parser.add_argument(
        "--accept-changes", action="store_true", help="keep what was counted, even if the store has changed since"
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
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")
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
        "--plot", metavar="FILE", help="draw the histogram of one layer with the ranges, to a .png or .svg file"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")
    formats = (
        "onnxruntime",
        "tensorrt",
        "aimet",
        "compressed-tensors",
        "imatrix",
        "json",
        "safetensors",
        "csv",
        "parquet",
    )
    parser.add_argument("--format", choices=formats, required=True, help="the format of the file")
    parser.add_argument("-o", "--file", metavar="FILE", required=True, help="the file to write")
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


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of the job")


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of the job")
    parser.add_argument("--rows", metavar="A:B", required=True, help="rows A to B - 1; the first row is 0")
    parser.add_argument("--layers", metavar="GLOB", default="*", help="only layers whose names match")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", metavar="OUT", nargs="+", help="the output folders of the runs to merge")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder for the merged results")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="OUT1", help="the output folder of a run or a merge")
    parser.add_argument("second", metavar="OUT2", help="the output folder to compare with it")
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=float,
        help="exit with status 3 if the means of a layer differ by more than X standard errors (or, without standard "
        "errors, X %% of its range)",
    )
    parser.add_argument("--layer", metavar="GLOB", default="*", help="only layers whose names match")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="the output folder of a run")
    parser.add_argument("layer", metavar="LAYER", nargs="?", help="show the channels of this layer")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        nargs="?",
        const="-",
        help="plot the channels, in the terminal or to a .png or .svg file",
    )


def _add_record(parser: argparse.ArgumentParser) -> None:
    _add_samples(parser)
    parser.add_argument("-o", "--output", metavar="STORE", required=True, help="the zarr store to append to")
    parser.add_argument(
        "--storage",
        choices=("float", "int8"),
        default="float",
        help="store values unchanged, or as int8 codes (a quarter of the space; runs the model twice)",
    )
    parser.add_argument("--append", action="store_true", help="append to layers that the store already has")


def _add_measure(parser: argparse.ArgumentParser) -> None:
    _add_samples(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="a new folder for the results")
    parser.add_argument(
        "--statistics",
        metavar="NAME",
        nargs="+",
        default=[],
        help="what to count in addition to sums and extrema: magnitude, squares, histogram, spread, taps",
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
        help="a .npy or .npz file, samples on axis 0, or a folder of batches",
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
        help="record every position (token, pixel) as a row; without it, only where samples differ in shape",
    )


def _add_correct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.onnx", nargs="?", help="the float model that was recorded")
    parser.add_argument(
        "quantized", metavar="QUANTIZED.onnx", nargs="?", help="the same model as another quantiser wrote it"
    )
    parser.add_argument("--correctors", metavar="OUT", help="the output folder of a run; not with --outputs")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FIXED",
        required=True,
        help="the file for the corrected model, or for the corrections",
    )
    _add_activations(_add_levels(parser))
    parser.add_argument("--uncorrected", metavar="FILE", help="with --bits: also write the uncorrected model")
    _add_how(parser).add_argument(
        "--outputs",
        action="store_true",
        help="use mean outputs instead of weights and correctors: add E[y] − E[ŷ] to the bias of each layer, with y "
        "and ŷ its outputs in the float and in the quantised model",
    )
    parser.add_argument(
        "--report", metavar="FILE.html", help="the file for the report; default: FIXED with .report.html"
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


def _add_activations(levels: argparse._ArgumentGroup) -> None:
    levels.add_argument(
        "--activation-bits", metavar="N", type=int, help="also round the input of each layer to N bits, 2 to 16"
    )
    levels.add_argument(
        "--activation-range",
        choices=("minmax", "percentile", "mse", "entropy"),
        help="how `ranges` finds the range of each input in OUT (default minmax)",
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
        "--samples", metavar="FILE", help="the samples that were recorded; with --outputs, any: .npy, .npz or a folder"
    )
    how.add_argument(
        "--work", metavar="DIR", help="the folder for intermediate results, to resume from; default: FIXED with .work"
    )
    judging = parser.add_argument_group("judge the result")
    judging.add_argument(
        "--held-out", metavar="FILE", help="samples that were not recorded, to judge by: .npy, .npz or a folder"
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
        help="with --do-no-harm: try at most N corrections one by one, each by a run of the network (default 64)",
    )
    judging.add_argument(
        "--fail-if-worse",
        action="store_true",
        help="exit with status 1, and write nothing, if the corrected model is worse than the quantised one",
    )
    both = parser.add_argument_group("as when the model was recorded, with layer by layer or --held-out")
    both.add_argument("--mask", metavar="INPUT", help="the input of the model that was the mask when it was recorded")
    _add_axes(both)
    return how


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("correctors", metavar="OUT", help="the output folder of a run")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="the file for the report; default: OUT/report.html")
    parser.add_argument("--model", metavar="MODEL.onnx", help="the float model that was recorded")
    parser.add_argument("--quantized", metavar="QUANTIZED.onnx", help="the same model as another quantiser wrote it")
    _add_activations(_add_levels(parser))
    _add_how(parser)
    parser.set_defaults(uncorrected=None, outputs=False)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default="streamstats-demo", help="the folder for its files")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/service.yaml")


def _add_service(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("the service")
    where.add_argument("--url", help=f"default: STREAMSTATS_URL, or {SERVICE_URL}")
    where.add_argument("--token-file", metavar="FILE", help="default: STREAMSTATS_TOKEN_FILE, or STREAMSTATS_TOKEN")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of a run")
    parser.add_argument("--watch", action="store_true", help="show the progress until the job ends")
    parser.add_argument("--follow", action="store_true", help="keep counting rows as they are appended, until …")
    parser.add_argument("--until-rows", metavar="N", type=int, help="… every layer has N rows")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="… no rows are appended for this long")
    parser.add_argument("--submitter", metavar="NAME", help="whose job it is; default: your user name")
    parser.add_argument(
        "--priority",
        metavar="N",
        type=int,
        default=0,
        help="jobs of the same submitter run in order of priority, highest first",
    )
    parser.add_argument("--key", help="submitting again with the same key gives the same job, not a new one")
    _add_service(parser)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?", help="show this job")
    parser.add_argument("--state", help="only jobs in this state: queued, running, done, …")
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
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="a folder that is new or empty")
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
