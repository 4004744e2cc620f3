"""What each command says of itself with `--help`: what it does, examples, and what it leaves."""

from __future__ import annotations

COMMANDS = {
    "Getting statistics": {
        "record": "run a model over samples, and store the input of each layer in a zarr store",
        "run": "reduce a store to exact statistics, and to a corrector for each layer",
        "measure": "compute the same statistics while the model runs, without a store",
        "status": "show how far a run has come: what is counted, what is missing and why",
        "verify": "read a store once, and report what is wrong with it",
    },
    "Looking at results": {
        "inspect": "show the results of a run",
        "ranges": "compute quantisation ranges, with steps (scales) and zero points, from the output of a run",
        "gram": "show the spectrum of a layer's inputs, and its dead and duplicate channels",
        "compare": "compare two outputs, or jobs of a service: equal to the bit, or how far apart",
        "export": "write statistics or ranges as a file that another tool loads",
    },
    "Changing results": {
        "forget": "subtract rows from the results, for good",
        "merge": "add up the results of several stores or sites",
    },
    "Correcting models": {
        "correct": "correct the biases of a quantised model",
        "report": "write a page on what the corrections do",
        "demo": "record, reduce and correct a small real network, and show its accuracy",
    },
    "Jobs of a team, on a service": {
        "serve": "start the service: jobs over HTTP, and a page to watch them",
        "backup": "copy the data of a service, while it runs",
        "submit": "submit a job to a service",
        "jobs": "list the jobs of a service, or show one of them",
        "watch": "follow a job until it ends",
        "cancel": "cancel a job",
        "fetch": "download the results of a job",
        "send": "append activations to a store of the service",
        "withdraw": "take back activations that were sent",
        "stores": "list the stores of a service, or show the layers of one",
        "delete": "delete jobs with their results, or a store or layer of a service",
        "token": "make, list, rotate and revoke the tokens of a service",
        "audit": "show who changed what on a service",
        "prune": "remove what a service does not keep, or show what that is",
    },
    "This machine": {
        "doctor": "report what streamstats finds here, what is slow or broken, and what to do about it",
        "warm": "compile the loops now that runs would compile when they first need them",
        "completion": "print a script with which a shell completes commands, options and files",
    },
}
"""Group → command → what it does in a line."""
SUMMARIES = {name: summary for group in COMMANDS.values() for name, summary in group.items()}
DESCRIPTION = "\n\n".join(
    (
        "Exact calibration statistics, out of core, and the bias corrections that follow from them.",
        *(
            "\n".join([f"{group}:", *(f"  {name:10}  {summary}" for name, summary in commands.items())])
            for group, commands in COMMANDS.items()
        ),
        "Each command explains itself: streamstats COMMAND --help",
    )
)

EPILOG = """\
Exit status: 0 done, 1 failure, 2 usage or configuration, 3 incomplete, 4 corrupt or missing data, 130 interrupted.
Results go to stdout, progress and messages to stderr. Start with: streamstats demo
"""

RUN = """\
Reduce every layer of a zarr calibration store to exact sums, counts and extrema per channel.

  streamstats run run.yaml
  streamstats run run.yaml --follow --idle 60          count rows as they are written, until none arrive for 60 s
  streamstats run run.yaml --refine 0.5 0.999          print exact quantiles; needs `statistics: [histogram]`

Before it reads any data, it prints the plan: tasks, bytes, and the peak memory of the run. It writes:

  OUT/correctors/LAYER.safetensors   the mean of each channel, which corrects the layer's bias
  OUT/state/ARRAY.safetensors        exact sums and counts, and the rows that they cover; layers may share an array
  OUT/manifest.json                  every file with its SHA-256

A run saves every few seconds, and when it is interrupted. Kill it at any moment and run it again: it resumes. If rows
were appended since, it reads and counts only these; in stores that no recorder wrote, also those of a last chunk that
was not full.

--follow polls the store every second. Rows of a recorder are counted when it has committed them; others once their
chunks exist and have not changed from one poll to the next and, for a last chunk that is not full, the array has not
grown. Rows that are not settled wait until nothing has changed for 10 polls, or until --idle ends the run.

A configuration needs two lines; docs/reference/configuration.md and configs/local.yaml explain all other keys:

  source: calibration.zarr
  output: out
"""

INSPECT = """\
Show the results of `streamstats run`: all layers, or the channels of one.

  streamstats inspect out                               layers, rows, coverage, ranges
  streamstats inspect out block1/project               every channel: count, mean, minimum, maximum
  streamstats inspect out block1/project --plot        the channels as a plot in the terminal
  streamstats inspect out block1/project --plot p.svg  as a picture (.png or .svg)
  streamstats inspect out --json                       every channel of every layer
"""

RANGES = """\
Compute quantisation ranges, with their steps (scales) and zero points, from the output of a run. The data is not read
again, so another method or bit width takes seconds.

  streamstats ranges out --method mse --bits 4         one range per layer
  streamstats ranges out --method minmax --per-channel --symmetric
  streamstats ranges out --compare --bits 8            all methods side by side, with the error of each
  streamstats ranges out --compare --layers block1/project --plot p.svg

  minmax       from the least to the greatest value
  percentile   cuts the same share off each end: with --percentile 99.99, at most 0.01 % of the values lie beyond each
  mse          has the least mean squared error, from rounding and clipping together
  entropy      ends at the threshold that loses the least information, as TensorRT defines it

Every method except minmax needs `statistics: [histogram]` in the configuration of the run and, with --per-channel,
layers of 8-bit values. MSE and SQNR are those of the counted values. They are exact for values of 8 and 16 bits; for
wider values, the root of the MSE is off by at most `rms_error_within`, which --json prints.

Real values are (code − zero point) · step. Zero always has a code.
"""

GRAM = """\
Show what the exact second moments of a layer's inputs say about its channels: the eigenvalues of their covariance,
channels that are dead (always the same value), and channels that duplicate another one. Needs `statistics: [gram]`.

  streamstats gram out block1/project                  a line for each group of the layer, the worst first
  streamstats gram out block1/project --plot           the spectrum and the correlations in the terminal
  streamstats gram out block1/project --plot p.png     as a picture (.png or .svg)
  streamstats gram out block1/project --json           every eigenvalue of every group

  rank            eigenvalues that can be told from zero: above n·2^-52 of the greatest, for n columns
  effective rank  the exponential of the entropy of the eigenvalues: n if all are equal, 1 if one has all
  99% in          how many of the greatest eigenvalues hold 99 % of the sum of all
  condition       the greatest eigenvalue divided by the least, without dead columns; "≥" if the least cannot be told
                  from zero
  dead            columns whose variance is exactly zero
  duplicates      columns whose correlation with an earlier one is 1 or -1, as far as float64 can tell

The columns are the input channels of a group, with each tap of the layer's kernel. If the covariance is unknown, the
figures describe the second moments XᵀX/n, and the command says why; "dead" then means always zero, and correlations
are about zero instead of the mean.
"""

EXPORT = """\
Write what a run has counted as a file that another tool loads. The data is not read again.

  streamstats export out --format onnxruntime --method mse -o cache.json --model model.onnx
  streamstats export out --format imatrix -o imatrix.gguf --names names.yaml
  streamstats export out --format hessians --damp 0.01 -o hessians.safetensors
  streamstats export out --format csv -o figures.csv

Ranges, chosen with --method, --bits, --symmetric, --codes and --percentile as in `streamstats ranges`:

  onnxruntime         calibration cache: quantize_static(…, calibration_cache_path="cache.json")
  tensorrt            calibration cache of 8-bit symmetric codes, for IInt8EntropyCalibrator2
  aimet               encodings of activations, version 0.6.1, 1.0.0 or 2.0.0 (--encoding-version)
  compressed-tensors  MODULE.input_scale and MODULE.input_zero_point, signed codes of up to 8 bits

Sums:

  imatrix             llama.cpp's importance matrix; needs `statistics: [squares]`. --merge adds to an earlier file
  hessians            MODULE.hessian, 2·XᵀX/n for implementations of GPTQ, as safetensors; needs `statistics: [gram]`.
                      --damp 0.01 adds 1 % of the mean of the diagonal to it, --dtype float64 keeps all digits

All figures of all statistics, for analysis:

  json safetensors    with histograms and other tables
  csv parquet         a row for each channel of each layer; figures of the layer in columns layer_…

Names in the file: onnxruntime, tensorrt and aimet name tensors. Stores of `record` know the tensor that each layer
reads; for other stores, --model finds it. compressed-tensors and hessians name modules, with "." in place of "/", and
imatrix their weights, MODULE.weight. --names overrides that: a YAML or JSON file with `layer: name`, `layer: [name,
name]`, or `layer: null`, which leaves the layer out. Layers without a finite value are left out, too, except from the
formats for analysis; so are layers without `gram` from hessians.
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
  streamstats forget run.yaml --rows 0:8 --rows 64:72
  streamstats forget run.yaml --rows 990:              row 990 and all after it that the job counts now
  streamstats forget run.yaml --rows 0:8 --layers 'block1/*'
  streamstats forget run.yaml --rows 0:8 --source tuesday.zarr   rows of one of several stores
  streamstats forget run.yaml --rows 0:8 --part rank3            rows of this part of the store

Layers that read the same array forget together, even if only one of their names matches; all of them are listed.

Forgetting cannot be undone in this output, not even with `run --restart`. To get the rows back, run into another
output, which counts all rows of the store, or append them to the store again, as new rows. If in doubt, copy the output
first.
"""

MERGE = """\
Add up the outputs of several sites: of different stores, or of different rows of one store.

  streamstats merge site1/out site2/out -o out
  streamstats merge site1/out site2/out -o out --different-stores

Outputs that have counted the same row are refused, even if one of them read it from a copy of the store. Outputs whose
rows have the same numbers are refused, too, if their stores may be one that has grown in between; if they are two, add
--different-stores. Outputs that were recorded from models with other weights need --other-weights.
"""

SERVICE_ENVIRONMENT = """
--url and --token-file name the service and its token. By default, the environment does: STREAMSTATS_URL, and
STREAMSTATS_TOKEN_FILE or STREAMSTATS_TOKEN.
"""

COMPARE = f"""\
Compare the outputs of two runs or merges: whether they are equal to the bit and, if not, what differs. The layers that
differ most come first.

  streamstats compare yesterday/out today/out
  streamstats compare yesterday/out today/out --threshold 5      exit status 3 if the means of a layer have drifted
  streamstats compare yesterday/out today/out --layers 'block1/*'
  streamstats compare 0123456789abcdef fedcba9876543210          two jobs of a service, or a job and an output

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
drifted, too: only one output has the layer, or counted `spread`; the numbers of channels differ; or a channel has
values in only one output.
Without --threshold, the exit status is 0 whether or not the outputs differ.

The results of jobs are downloaded to a temporary folder first.{SERVICE_ENVIRONMENT}"""

RECORD = """\
Run an ONNX model over samples, batch by batch, and append the input of every Conv, ConvTranspose, Gemm and MatMul with
constant weights to a zarr store. A tensor that several layers read is stored once.

  streamstats record model.onnx --samples calibration.npy -o calibration.zarr

The samples are a .npy file with samples on axis 0, or a .npz file with one array for each input of the model. In a
folder of such files, each is one run of the model, and shapes may differ from file to file. If an input has its samples
on another axis, or is the same for all samples, say so:

  streamstats record lstm.onnx --samples calibration.npz --batch-axis h0=1 --batch-axis rate=none -o calibration.zarr
  streamstats record bert.onnx --samples sentences/ --mask attention_mask -o calibration.zarr

The store is a folder, or a URL such as s3://bucket/calibration.zarr. It has one writer at a time. If processes
record at once, each its share of the samples, each names a part of its own; `run` counts all parts as one layer:

  streamstats record model.onnx --samples share3.npy -o calibration.zarr --part rank3

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

Round the weights of a layer together, so that the error of its outputs is small (GPTQ), by the second moments of its
inputs, which the run counts with `statistics: [gram]`; add taps for kernels of several taps, and spread for few
samples. --scale also gives each output the variance that it has in the float model:

  streamstats correct model.onnx --bits 3 --per-channel --weight-range mse --rounding gram --scale \\
      --correctors out -o corrected.onnx

Correct layer by layer, with the inputs that the quantised network gives each layer; judge the result on samples that
were not recorded; and leave out what does harm. FIXED.report.html and .json show the effect:

  streamstats correct model.onnx quantized.onnx --correctors out -o fixed.onnx --iterative --samples calibration.npy \\
      --held-out held-out.npy --labels labels.npy --do-no-harm

Models are judged by the squared error of the network's outputs against the float model's, in dB of signal to noise; of
several outputs, each counts relative to its signal. Both models see the same samples, so their difference is given with
its standard error. With --do-no-harm, a correction without which this error is smaller, by more than three standard
errors, is left out; one that is smaller than its own standard error (of calibration samples counted with `spread`)
stays only if the outputs are clearly nearer to the float model's with it; and nothing is corrected if the network would
still be worse. Weights are rounded and scaled by second moments only if that brings the outputs nearer, too.

If no layer could be corrected, or every correction was left out, the exit status is 3, and FIXED.onnx is the quantised
model without corrections.

If the weights do not tell (trained further, compensated, unknown operators), correct from mean outputs. This needs no
recording; layers are matched by name, or by order:

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
quantised and the corrected network. The files stay in FOLDER, to look at and to try the commands on.

  streamstats demo
"""

WARM = """\
Compile the loops now that count values of these dtypes, with every statistic, and cache them in ~/.cache/streamstats.
Without it, the first run on a machine compiles those that it needs, and says so. Loops that are cached already are not
compiled again; a new version of streamstats or of a library has other loops.

  streamstats warm                 float32 and int8
  streamstats warm bfloat16 uint8

Loops that few stores need, such as those for masks and missing values, are left to the first run that needs them.
"""

DOCTOR = """\
Report what streamstats finds on this machine, and then what is slow or broken and what to do about it: versions,
extras, cores, memory, compiled loops, folders, and how fast it decodes and counts 64 MB of float32, compressed and not.
It takes a few seconds, and changes nothing except the cache of compiled loops.

  streamstats doctor                 exit status 0: everything works, 1: something is broken
  streamstats doctor --json

Rates are those of a store in the temporary folder, read from memory: what the processor can do, not the disk. Limits of
containers (cgroups) are read on Linux.
"""

COMPLETION = """\
Print a script with which a shell completes commands, options, choices, files and folders.

  streamstats completion bash > ~/.local/share/bash-completion/completions/streamstats
  streamstats completion zsh > ~/.zfunc/_streamstats
  streamstats completion fish > ~/.config/fish/completions/streamstats.fish

zsh needs `fpath+=~/.zfunc` before `compinit` in ~/.zshrc. Shells that start afterwards complete; write the script again
after an update of streamstats.
"""

SERVE = """\
Serve jobs over HTTP, with a page to watch them: one process, with its database in a folder. It needs no other server.

  streamstats serve service.yaml

The service listens on 127.0.0.1. At its first start it creates a token, which every client must send. On a signal it
saves the running jobs; it resumes them at the next start, even after a kill. A configuration needs two lines;
docs/how-to/service-run.md and configs/service.yaml explain the other keys:

  data: service-data
  roots: [calibration]
"""

BACKUP = """\
Copy the data of a service to a new folder, while the service runs: its database, token, jobs, uploads and stores.

  streamstats backup service.yaml /backups/monday

To restore it, stop the service, put the folder in place of its `data`, and start the service. Activations that were
acknowledged before the backup began are in it; those that are sent again with their keys count once. Jobs resume.
"""

SUBMIT = f"""\
Submit a job to a service: the configuration of a run. The service chooses `output` and `cluster`; leave them out.
With `kind: onnx`, it names a model to record and correct, and the command uploads its files; see
docs/how-to/service-use.md.

  streamstats submit job.yaml --watch                  waits for the job; exit status as for `run`
  streamstats submit job.yaml --follow                 counts what is sent to a store, until the job is cancelled
  streamstats submit job.yaml --name nightly --tag ci  to find the job by
{SERVICE_ENVIRONMENT}"""

JOBS = f"""\
List the jobs of a service, newest first, or show one of them.

  streamstats jobs
  streamstats jobs --state running --submitter ann     --source, --tag and --text restrict the list, too
  streamstats jobs 0123456789abcdef
{SERVICE_ENVIRONMENT}"""

WATCH = f"""\
Show the progress of a job until it ends. The exit status is that of `streamstats run` with the same outcome: 0 done, 3
incomplete, 2 a request at fault, 4 damaged data, 1 another failure; and 1 if the job was cancelled.

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

WITHDRAW = f"""\
Take back activations that were sent: the results of jobs that run now or later are as if they had never been sent.
Jobs that have ended keep what they counted; with --forget, those that are yours subtract it, as a new result set.

  streamstats withdraw team-a block1/project activations.npy
  streamstats withdraw team-a block1/project --key batch-17 --forget

Name what was sent by the files, unchanged, or by its key. The rows stay in the store, which can be deleted. A
withdrawal cannot be undone: to have the activations counted after all, send them again with a new --key.
{SERVICE_ENVIRONMENT}"""

STORES = f"""\
List the stores that a service owns, or show the layers of one of them. A store belongs to whoever was the first to send
to it.

  streamstats stores
  streamstats stores team-a
{SERVICE_ENVIRONMENT}"""

DELETE = f"""\
Delete jobs that have ended, with their results, or a store of the service, or one of its layers. Only their owners and
admins may. Deleting cannot be undone.

  streamstats delete 0123456789abcdef 123456789abcdef0
  streamstats delete --store team-a
  streamstats delete --store team-a --layer block1/project

A store that a job reads is not deleted: wait for the job, or cancel it first. Jobs that have ended keep what they
counted of a store.
{SERVICE_ENVIRONMENT}"""

TOKEN = f"""\
Make, list, rotate and revoke tokens, while the service runs. Only admins may. A token's name owns what is made with it.

  streamstats token new ann -o ann.token               role submit: makes jobs, stores, uploads, and changes its own
  streamstats token new grafana --role read            sees everything, changes nothing; the secret goes to stdout
  streamstats token rotate ann --overlap 3600          a new secret; the old one is valid for another hour
  streamstats token revoke ann
  streamstats token list

The service stores no secret, so none can be shown again. The token of the first start is named admin.
{SERVICE_ENVIRONMENT}"""

AUDIT = f"""\
Show who changed what on a service, and who was refused, newest first. Only admins may.

  streamstats audit --who ann
{SERVICE_ENVIRONMENT}"""

PRUNE = f"""\
Remove the jobs, result sets, stores, uploads and messages that a service does not keep, as it does from time to time by
itself, or show what that is. Only admins may. `retention` in the service's configuration says what is kept.

  streamstats prune --dry-run
  streamstats prune --dry-run --keep '{{"jobs": {{"age": "90d"}}}}'       limits to try before they are configured
{SERVICE_ENVIRONMENT}"""
