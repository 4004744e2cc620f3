"""Recording: the input of every linear layer of an ONNX model, appended to a calibration store, each tensor once.

One batch of activations is alive at a time: each batch is run, appended and dropped within one call. Layers that cannot
be recorded are found with one or two samples, before anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration.recorder import Recorder, recorded_at
from ...errors import UsageError, counted, listed, one_of, require
from ...jobs.meter import Meter, check_output
from ...jobs.telling import tell_masked
from ...outputs.layer_statistics import LayerStatistics
from ...progress import QUIET, Progress, Stage
from ...quantization import Quantization
from ...statistics.masks import Mask
from .appending import in_store, tell_unmatched
from .codes import with_quantization
from .layers import LeftOut, OnnxLayer
from .masking import masked_targets, tell_masks
from .run import ModelRun, open_session
from .samples import Axes, SampleSource, load_samples, samples_digest
from .targets import PARTS, POSITIONS, SAMPLES, Target, find_targets, sort_targets
from .visiting import visit_rows
from .wanted import LAYER_INPUTS, Wanted, wanted_of

STORAGES = ("float", "int8")
UNREACHED = "no position of the samples reaches it"


@dataclass(frozen=True)
class RecordedLayer:
    """What became of an operator with weights, or a tensor: `samples` of its input appended, or the `reason` why not.

    `array` is what the store calls the samples, `tensor` what the model calls them; layers may share them. `shape` and
    `dtype` are those of one stored sample, `channel_axis` counts the sample axis too, and `quantization` maps the
    stored codes to reals (None for reals). `mask` is the input of the model that says which positions count, if any.
    `skipped` says that it multiplies something that was asked for and not recorded. `rows_are` says what is stored
    on axis 0: "samples", or "positions" or "parts" of them; then `samples` counts these.
    """

    layer: str
    op: str
    samples: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    channel_axis: int = 0
    quantization: Quantization | None = None
    reason: str = ""
    array: str = ""
    tensor: str = ""
    mask: str = ""
    skipped: bool = False
    rows_are: str = SAMPLES

    @property
    def recorded(self) -> bool:
        """Whether its input was recorded."""
        return not self.reason

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "operator": self.op,
            "recorded": self.recorded,
            "skipped": self.skipped,
            "samples": self.samples,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "channel_axis": self.channel_axis,
            "quantization": self.quantization.to_metadata() if self.quantization else None,
            "reason": self.reason,
            "array": self.array or None,
            "tensor": self.tensor or None,
            "mask": self.mask or None,
            "rows_are": self.rows_are,
        }


def record(
    model_path: str | Path,
    samples: SampleSource,
    store: str | Path,
    *,
    batch_size: int = 16,
    storage: str = "float",
    layers: Sequence[str] | None = None,
    tensors: str = LAYER_INPUTS,
    mask: str | None = None,
    batch_axes: Axes | None = None,
    positions_as_rows: bool = False,
    append: bool = False,
    part: str = "",
    progress: Progress = QUIET,
) -> list[RecordedLayer]:
    """Run the model over `samples` and append the input of every linear layer to the zarr group `store`.

    A tensor that several layers read is stored once. `samples` is a `.npy` or `.npz`, a folder of them or a sequence of
    mappings, of which each is one run (see `load_samples`). `batch_axes` names the axis of the samples of the inputs in
    which it is not 0, None for an input that is the same for all samples. `layers` are globs on layer names; default
    all. `tensors` "quantizable" also stores every other tensor for which onnxruntime's static quantiser needs a range;
    a tensor that is the same for all samples becomes one row. `storage` "float" keeps the activations as they are;
    "int8" runs the model twice, first to measure the range of each layer, then to store codes with a step and a zero
    point per tensor. `mask` is an input of the model, ones for positions that count and zeros for padding; the store
    keeps it beside the layers that have its positions.

    A row is a sample, on whichever axis of a layer's input the samples are, also where positions share it. Where
    samples differ in shape or cannot be told apart, and with `positions_as_rows` everywhere, every position becomes a
    row; a row may also be the part of a sample that a convolution takes as a sample. `RecordedLayer.rows_are` and a
    note to `progress` say so. A layer whose input mixes samples is skipped with a reason. With a `part`, samples go
    into a part of the store; processes that record at once each name their own. If the recording fails or is
    interrupted, a new store is removed; rows that were appended to an older store stay in it.

    Returns an account of every operator that has weights: recorded, or the reason why not.

    Raises `UsageError` and `MismatchError` for a request that cannot be met (such as a layer that is in the store
    already, unless `append`), `NonFiniteError` for NaN or infinities that would be quantised, `OutputError` if the
    store cannot be written.
    """
    if storage not in STORAGES:
        raise UsageError(f"storage is {storage!r}; {one_of(storage, STORAGES)}")
    if storage == "int8" and part:
        raise UsageError(
            "int8 storage finds its ranges in the samples of one process, so parts would have different steps; record "
            "parts with float storage"
        )
    wanted, skipped = wanted_of(model_path, layers, tensors)
    run = _opened(model_path, samples, batch_size, wanted, batch_axes)
    found, unfit = _found(run, wanted, mask, progress, positions_as_rows=positions_as_rows)
    targets = in_store(found, store, wanted, append=append, storage=storage, part=part)
    if append:
        tell_unmatched(targets, store, part, progress)
    if storage == "int8":
        progress.begin(_stage("measuring the ranges of", run, targets))
        targets = with_quantization(run, targets, progress)
    progress.begin(_stage("recording", run, targets))
    rows = _write_samples(run, targets, store, progress, part=part, wanted=wanted)
    return _outcomes(targets, rows, [*unfit, *skipped])


def measure(
    model_path: str | Path,
    samples: SampleSource,
    output: str | Path,
    *,
    statistics: Collection[str] = (),
    batch_size: int = 16,
    layers: Sequence[str] | None = None,
    tensors: str = LAYER_INPUTS,
    mask: str | None = None,
    batch_axes: Axes | None = None,
    positions_as_rows: bool = False,
    nonfinite: str = "error",
    progress: Progress = QUIET,
) -> tuple[list[RecordedLayer], dict[str, LayerStatistics]]:
    """Run the model over `samples`, and write to the folder `output` the statistics of the input of every linear layer.

    No activations are stored: the statistics are, to the bit, those of a run over what `record` would store. Samples,
    layers, tensors, mask and rows are those of `record`, `statistics` and `nonfinite` those of `Meter`. Returns what
    was measured of each layer, and the statistics. The samples are identified by their SHA-256, so that merging never
    counts them twice. Raises as `record`, and as `Meter` does.
    """
    check_output(output)
    wanted, skipped = wanted_of(model_path, layers, tensors)
    run = _opened(model_path, samples, batch_size, wanted, batch_axes)
    targets, unfit = _found(run, wanted, mask, progress, positions_as_rows=positions_as_rows)
    name, rows = f"sha256:{samples_digest(samples)}", Counter[str]()
    meter = Meter(
        statistics,
        name=name,
        nonfinite=nonfinite,
        model_fingerprint=wanted.fingerprints.model,
        weight_fingerprints=wanted.fingerprints.weights,
    )
    progress.begin(_stage("measuring", run, targets))
    visit_rows(run, targets, partial(_append, meter, rows), progress)
    tell_masked(meter.statistics, progress)
    meter.save(output)
    return _outcomes(targets, rows, [*unfit, *skipped]), meter.statistics


def _opened(path: str | Path, samples: SampleSource, batch_size: int, wanted: Wanted, axes: Axes | None) -> ModelRun:
    session = open_session(*_with_outputs(Path(path), wanted.all_tensors), name=str(path))
    given = load_samples(samples, session, axes)
    return ModelRun.prepare(session, given, batch_size, given.source)


def _with_outputs(path: Path, tensors: Sequence[str]) -> tuple[bytes, Path]:
    """(the model with `tensors` among its outputs, the folder of its external data)."""
    onnx = require("onnx", "onnx")
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    present = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(tensors) if name not in present]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return model.SerializeToString(), path.parent


def record_layers(
    run: ModelRun,
    layers: Sequence[OnnxLayer],
    store: Path,
    mask: str | None,
    progress: Progress,
    *,
    positions_as_rows: bool = False,
) -> list[RecordedLayer]:
    """Append the inputs of `layers`, tensors of the model in `run`, to a new `store`. Errors as `record`."""
    wanted = Wanted(layers, {layer.name: layer.input for layer in layers})
    found, unfit = find_targets(run, wanted, positions_as_rows=positions_as_rows)
    targets = masked_targets(run, found, mask, any_fits=False)
    rows = _write_samples(run, targets, store, progress, wanted=wanted)
    return _outcomes(targets, rows, unfit)


def measure_layers(run: ModelRun, layers: Sequence[OnnxLayer], mask: str | None) -> dict[str, LayerStatistics]:
    """The statistics of the inputs of `layers`, tensors of the model in `run`, of those that can be recorded.

    NaN and infinities are skipped.
    """
    found, _ = sort_targets(run, Wanted(layers, {layer.name: layer.input for layer in layers}))
    meter = Meter(nonfinite="skip")
    visit_rows(run, masked_targets(run, found, mask, any_fits=False), partial(_append, meter, Counter[str]()), QUIET)
    return meter.statistics


def _found(
    run: ModelRun, wanted: Wanted, mask: str | None, progress: Progress, *, positions_as_rows: bool
) -> tuple[list[Target], list[LeftOut]]:
    """(the targets of what is `wanted`, which `progress` describes; what cannot be recorded). Errors as `record`."""
    _tell_rounding(wanted, progress)
    found, unfit = find_targets(run, wanted, positions_as_rows=positions_as_rows)
    targets = masked_targets(run, found, mask)
    tell_masks(run, targets, mask, progress)
    _tell_rows(targets, progress)
    return targets, unfit


def _tell_rounding(wanted: Wanted, progress: Progress) -> None:
    """Say that the model rounds its activations: corrections need those of the float model."""
    if wanted.rounding:
        progress.say(
            f"note: {wanted.path} rounds its activations, by {counted(wanted.rounding, 'operator')}; if it is to be "
            "corrected, record the float model that it was made from"
        )


def _tell_rows(targets: Sequence[Target], progress: Progress) -> None:
    """Say where rows are not samples, and what follows."""
    for rows_are, named in (
        (POSITIONS, "single positions"),
        (PARTS, "parts of samples, as the convolution takes them,"),
    ):
        names = [name for target in targets if target.rows_are == rows_are for name in target.readers or [target.name]]
        if names:
            unknown = "standard errors, and `taps` of convolutions," if rows_are == POSITIONS else "standard errors"
            progress.say(
                f"note: the rows of {listed(names)} are {named} and not samples: means and ranges are the same, but "
                f"`spread`, and the rows that a run counts and forgets, are those of {rows_are}; {unknown} are unknown"
            )


def _stage(what: str, run: ModelRun, targets: Sequence[Target]) -> Stage:
    layers = counted(sum(len(target.layers) for target in targets), "layer")
    own = all(len(target.layers) == 1 for target in targets)
    subject = layers if own else f"{counted(len(targets), 'tensor')}, the inputs of {layers}"
    return Stage(f"{what} {subject}", run.samples, layers=len(targets))


def _outcomes(targets: Sequence[Target], rows: Mapping[str, int], left_out: Sequence[LeftOut]) -> list[RecordedLayer]:
    recorded = [each for target in targets for each in _recorded(target, rows[target.name])]
    passed = [RecordedLayer(left.name, left.op, reason=left.reason, skipped=left.multiplies) for left in left_out]
    return [*recorded, *passed]


def _write_samples(
    run: ModelRun,
    targets: Sequence[Target],
    store: str | Path,
    progress: Progress,
    *,
    wanted: Wanted,
    part: str = "",
) -> Counter[str]:
    """Run the model and append its activations; a new store, or part, is removed if it cannot be finished.

    Returns the number of rows that each target now has in addition.
    """
    place, rows, known = recorded_at(store, part), Counter[str](), wanted.fingerprints
    is_new = not place.exists()
    recorder = Recorder(store, part=part, model_fingerprint=known.model, weight_fingerprints=known.weights)
    try:
        with recorder:
            visit_rows(run, targets, partial(_append, recorder, rows), progress)
    except BaseException:
        if is_new:
            place.remove()
        raise
    return rows


def _append(
    recorder: Recorder | Meter,
    rows: Counter[str],
    target: Target,
    block: npt.NDArray[Any],
    mask: Mask | None,
    _: slice,
) -> None:
    if target.quantization is not None:
        if mask is not None:  # whatever lies under the mask needs no code
            block = np.where(np.expand_dims(mask, target.channel_axis), block, block.dtype.type(0))
        block = target.quantization.quantize(block, np.int8, target.channel_axis)
    recorder.append(
        target.name,
        block,
        channel_axis=target.channel_axis,
        quantization=target.quantization,
        layers=target.readers,
        tensor=target.tensor,
        mask=mask,
        rows_are="" if target.rows_are == SAMPLES else target.rows_are,
    )
    rows[target.name] += len(block)


def _recorded(target: Target, samples: int) -> list[RecordedLayer]:
    """What was recorded for each layer of `target`, or for the tensor if none reads it."""
    return [
        RecordedLayer(
            layer=name,
            op=op,
            samples=samples,
            reason="" if samples else UNREACHED,
            shape=target.sample_shape,
            dtype="int8" if target.quantization else target.dtype.name,
            channel_axis=target.channel_axis,
            quantization=target.quantization,
            array=target.name,
            tensor=target.tensor,
            mask=target.mask or "",
            rows_are=target.rows_are,
        )
        for name, op in [(layer.name, layer.op) for layer in target.layers] or [(target.name, "")]
    ]
