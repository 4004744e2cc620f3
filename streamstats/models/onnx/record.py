"""Recording: the input of every linear layer of an ONNX model, appended to a calibration store.

One batch of activations is alive at a time: each batch is run, appended and dropped within one call. Layers that cannot
be recorded are found with one or two samples, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration.layer import Layer
from ...calibration.recorder import Recorder, stored_layer
from ...errors import MismatchError, NonFiniteError, UsageError, counted, listed, require
from ...jobs.meter import Meter, check_output
from ...layouts import Kernel
from ...outputs.layer_statistics import LayerStatistics
from ...progress import QUIET, Progress, Stage
from ...quantization import Quantization
from ...statistics.extrema import ChannelExtrema
from ...storage.files import file_digest, remove_folder
from .graph import load_model
from .layers import LeftOut, OnnxLayer, survey
from .run import ModelRun, load_samples, open_session

STORAGES = ("float", "int8")
Visit = Callable[["_Target", npt.NDArray[Any], slice], None]
CODES = np.iinfo(np.int8)


@dataclass(frozen=True)
class RecordedLayer:
    """What was recorded for one linear layer: `samples` appended, or none and the `reason`.

    `shape` and `dtype` are those of one stored sample, `channel_axis` counts the sample axis too, and `quantization`
    maps the stored codes to reals (None for reals).
    """

    layer: str
    op: str
    samples: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    channel_axis: int = 0
    quantization: Quantization | None = None
    reason: str = ""

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "operator": self.op,
            "samples": self.samples,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "channel_axis": self.channel_axis,
            "quantization": self.quantization.to_metadata() if self.quantization else None,
            "reason": self.reason,
        }


@dataclass(frozen=True, eq=False)
class _Target:
    """A layer to record: the layer of the model, the shape and dtype of its input, the layer in the store if any."""

    source: OnnxLayer
    sample_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: Layer | None = None
    quantization: Quantization | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def channel_axis(self) -> int:
        return self.source.channel_axis % (len(self.sample_shape) + 1)

    @property
    def kernel(self) -> Kernel:
        extents = [extent for axis, extent in enumerate(self.sample_shape, start=1) if axis != self.channel_axis]
        return self.source.kernel_over(extents)


def record(
    model_path: str | Path,
    samples: str | Path,
    store: str | Path,
    *,
    batch_size: int = 16,
    storage: str = "float",
    layers: Sequence[str] | None = None,
    append: bool = False,
    progress: Progress = QUIET,
) -> list[RecordedLayer]:
    """Run the model over `samples` and append the input of every linear layer to the zarr group `store`.

    `samples` is a `.npy` or `.npz` (see `load_samples`). `layers` are globs on layer names; default all. `storage`
    "float" keeps the activations as they are; "int8" runs the model twice, first to measure the range of each layer,
    then to store codes with a step and a zero point per tensor. A layer whose input does not have the samples on axis 0
    is skipped with a reason. If the recording fails or is interrupted, a new store is removed; rows that were appended
    to an older store stay in it.

    Raises `UsageError` and `MismatchError` for a request that cannot be met (such as a layer that is in the store
    already, unless `append`), `NonFiniteError` for NaN or infinities that would be quantised, `OutputError` if the
    store cannot be written.
    """
    if storage not in STORAGES:
        raise UsageError(f"storage is {storage!r}; expected one of {', '.join(STORAGES)}")
    run, targets, left_out = _prepared(model_path, samples, batch_size, layers)
    targets = [_with_stored(target, stored_layer(store, target.name), append, storage) for target in targets]
    if storage == "int8":
        progress.begin(_stage("measuring the ranges of", run, targets))
        targets = _quantized(run, targets, progress)
    progress.begin(_stage("recording", run, targets))
    _write_samples(run, targets, Path(store), progress)
    return _outcomes(run, targets, left_out)


def measure(
    model_path: str | Path,
    samples: str | Path,
    output: str | Path,
    *,
    statistics: Collection[str] = (),
    batch_size: int = 16,
    layers: Sequence[str] | None = None,
    nonfinite: str = "error",
    progress: Progress = QUIET,
) -> tuple[list[RecordedLayer], dict[str, LayerStatistics]]:
    """Run the model over `samples`, and write to the folder `output` the statistics of the input of every linear layer.

    No activations are stored: the statistics are, to the bit, those of a run over what `record` would store. Samples
    and layers are those of `record`, `statistics` and `nonfinite` those of `Meter`. Returns what was measured of each
    layer, and the statistics. The samples are identified by their SHA-256, so that merging never counts them twice.
    Raises as `record`, and as `Meter` does.
    """
    check_output(output)
    run, targets, left_out = _prepared(model_path, samples, batch_size, layers)
    meter = Meter(statistics, name=f"sha256:{file_digest(Path(samples))}", nonfinite=nonfinite)
    progress.begin(_stage("measuring", run, targets))
    _visit(run, targets, partial(_append, meter), progress)
    meter.save(output)
    return _outcomes(run, targets, left_out), meter.statistics


def _prepared(
    model_path: str | Path, samples: str | Path, batch_size: int, layers: Sequence[str] | None
) -> tuple[ModelRun, list[_Target], list[LeftOut]]:
    """(the run of the model over the samples, the layers to record, those that cannot be)."""
    chosen, skipped = _choose(*survey(load_model(model_path)), layers)
    session = open_session(*_with_outputs(Path(model_path), [layer.input for layer in chosen]))
    run = ModelRun.prepare(session, load_samples(samples, session), batch_size, str(samples))
    targets, unfit = _probe(run, chosen)
    return run, targets, [*unfit, *skipped]


def record_layers(run: ModelRun, layers: Sequence[OnnxLayer], store: Path, progress: Progress) -> list[RecordedLayer]:
    """Append the inputs of `layers`, tensors of the model in `run`, to a new `store`. Errors as `record`."""
    targets, unfit = _probe(run, layers)
    _write_samples(run, targets, store, progress)
    return _outcomes(run, targets, unfit)


def _stage(what: str, run: ModelRun, targets: Sequence[_Target]) -> Stage:
    return Stage(f"{what} {counted(len(targets), 'layer')}", run.samples, layers=len(targets))


def _outcomes(run: ModelRun, targets: Sequence[_Target], left_out: Sequence[LeftOut]) -> list[RecordedLayer]:
    recorded = [_recorded(target, run.samples) for target in targets]
    return [*recorded, *(RecordedLayer(left.name, left.op, reason=left.reason) for left in left_out)]


def _write_samples(run: ModelRun, targets: Sequence[_Target], store: Path, progress: Progress) -> None:
    """Run the model and append its activations; a new store is removed if it cannot be finished."""
    is_new = not store.exists()
    try:
        with Recorder(store) as recorder:
            _visit(run, targets, partial(_append, recorder), progress)
    except BaseException:
        if is_new:
            remove_folder(store)
        raise


def _choose(
    layers: Sequence[OnnxLayer], skipped: Sequence[LeftOut], globs: Sequence[str] | None
) -> tuple[list[OnnxLayer], list[LeftOut]]:
    def matches(layer: OnnxLayer | LeftOut) -> bool:
        return globs is None or any(fnmatchcase(layer.name, glob) for glob in globs)

    chosen = list(filter(matches, layers))
    if not chosen:
        names = listed(layer.name for layer in layers)
        wanted = "" if globs is None else f" that match {', '.join(globs)}"
        raise UsageError(f"the model has no linear layers to record{wanted}; its layers are: {names}")
    return chosen, list(filter(matches, skipped))


def _with_outputs(path: Path, tensors: Sequence[str]) -> tuple[bytes, Path]:
    """(the model with `tensors` among its outputs, the folder of its external data)."""
    onnx = require("onnx", "onnx")
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    present = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(tensors) if name not in present]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return model.SerializeToString(), path.parent


def _probe(run: ModelRun, layers: Sequence[OnnxLayer]) -> tuple[list[_Target], list[LeftOut]]:
    """Run one sample, then two: an extent that happens to equal one batch size does not equal both.

    Raises `UsageError` if no layer is left.
    """
    sizes = (run.batch,) if run.is_fixed else sorted({1, min(2, run.batch, run.samples)})
    probes = {size: run.outputs(_tensors(layers), slice(0, size)) for size in sizes}
    targets, unfit = [], []
    for layer in layers:
        blocks = {size: probe[layer.input] for size, probe in probes.items()}
        reason = _unfit(layer, {size: block.shape for size, block in blocks.items()})
        if reason:
            unfit.append(LeftOut(layer.name, layer.op, reason))
        else:
            targets.append(_Target(layer, blocks[sizes[-1]].shape[1:], blocks[sizes[-1]].dtype))
    if not targets:
        raise UsageError(f"nothing to record: layer {unfit[0].name}: {unfit[0].reason}")
    return targets, unfit


def _tensors(layers: Iterable[OnnxLayer]) -> list[str]:
    return list(dict.fromkeys(layer.input for layer in layers))


def _unfit(layer: OnnxLayer, shapes: Mapping[int, tuple[int, ...]]) -> str:
    """Why an input with these `shapes` (by number of samples) cannot be recorded, or nothing."""
    for size, shape in shapes.items():
        if len(shape) < 2 or shape[0] != size:
            found = f"its input {layer.input} has the shape {shape} for {counted(size, 'sample')}"
            return f"{found}; expected samples on axis 0 and channels on another"
    if len({shape[1:] for shape in shapes.values()}) > 1:
        return f"its input {layer.input} changes its shape with the number of samples: {list(shapes.values())}"
    return ""


def _with_stored(target: _Target, stored: Layer | None, append: bool, storage: str) -> _Target:
    """Raises `UsageError` for a layer in the store, unless `append`; `MismatchError` for one that does not fit."""
    if stored is None:
        return target
    if not append:
        raise UsageError(
            f"{stored.store} already holds {stored.rows} samples of layer {target.name}; record into another store, or "
            "append to this one"
        )
    expected = (target.sample_shape, "int8" if storage == "int8" else target.dtype.name, target.channel_axis)
    found = (stored.shape[1:], stored.dtype.name, stored.channel_axis)
    if found != expected or (stored.quantization is None) != (storage == "float"):
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds (sample shape, dtype, channel axis) {found}, but the samples "
            f"to append are {expected}; record into another store"
        )
    if stored.kernel is not None and stored.kernel != target.kernel:
        raise MismatchError(
            f"layer {target.name}: {stored.store} was recorded with the kernel {stored.kernel.to_metadata()}, but the "
            f"model's is {target.kernel.to_metadata()}; record into another store"
        )
    return replace(target, stored=stored)


def _visit(run: ModelRun, targets: Sequence[_Target], visit: Visit, progress: Progress) -> None:
    """Call `visit(target, block, rows)` for every layer and batch."""
    for rows in run.batches():
        _visit_batch(run, targets, visit, rows)
        progress.advance(rows.stop - rows.start)


def _visit_batch(run: ModelRun, targets: Sequence[_Target], visit: Visit, rows: slice) -> None:
    """The activations of a batch live as long as this call."""
    blocks = run.outputs(_tensors(target.source for target in targets), rows)
    for target in targets:
        found, expected = blocks[target.source.input].shape, (rows.stop - rows.start, *target.sample_shape)
        if found != expected:
            raise MismatchError(
                f"layer {target.name}: its input for the samples {rows.start}:{rows.stop} has the shape "
                f"{found}; expected {expected} as for the first samples"
            )
    for target in targets:
        visit(target, blocks[target.source.input], rows)


def _append(recorder: Recorder | Meter, target: _Target, block: npt.NDArray[Any], rows: slice) -> None:  # noqa: ARG001
    if target.quantization is not None:
        block = target.quantization.quantize(block, np.int8, target.channel_axis)
    recorder.append(
        target.name,
        block,
        channel_axis=target.channel_axis,
        quantization=target.quantization,
        kernel=target.kernel,
    )


def _quantized(run: ModelRun, targets: Sequence[_Target], progress: Progress) -> list[_Target]:
    """Measure the range of every layer over all samples, and give each target its quantisation."""
    ranges: dict[str, ChannelExtrema] = {}

    def measure(target: _Target, block: npt.NDArray[Any], rows: slice) -> None:
        if not np.isfinite(block).all():
            raise NonFiniteError(
                f"layer {target.name}: its input for the samples {rows.start}:{rows.stop} holds NaN or "
                'infinities, which have no code; repair the samples, or record with storage "float"'
            )
        extrema = ChannelExtrema.measure(block, target.channel_axis)
        ranges[target.name] = ranges[target.name].merge(extrema) if target.name in ranges else extrema

    _visit(run, targets, measure, progress)
    return [replace(target, quantization=_fitting(target, ranges[target.name])) for target in targets]


def _fitting(target: _Target, extrema: ChannelExtrema) -> Quantization:
    """A quantisation whose codes cover `extrema`: a new one, or the store's if it is wide enough."""
    low, high = float(extrema.minimum.min()), float(extrema.maximum.max())
    if target.stored is None or target.stored.quantization is None:
        return tensor_quantization(low, high)
    stored = target.stored.quantization
    codes = np.array([CODES.min - 0.5, CODES.max + 0.5])
    held = ((codes - np.max(stored.zero_point)) * np.max(stored.step)).tolist()
    if stored.channels is not None or not held[0] <= low <= high <= held[1]:
        raise MismatchError(
            f"layer {target.name}: the samples to append range over [{low:g}, {high:g}], but the codes of "
            f"{target.stored.store} over {held}; record into another store"
        )
    return stored


def tensor_quantization(low: float, high: float) -> Quantization:
    """The int8 codes of the range [low, high], widened to include zero, which has a code of its own.

    >>> tensor_quantization(0.5, 127.5).to_metadata()
    {'step': 0.5, 'zero_point': -128}
    """
    low, high = min(low, 0.0), max(high, 0.0)
    codes = CODES.max - CODES.min
    step = high / codes - low / codes or 1.0
    return Quantization(step, CODES.min - round(low / step))


def _recorded(target: _Target, samples: int) -> RecordedLayer:
    return RecordedLayer(
        layer=target.name,
        op=target.source.op,
        samples=samples,
        shape=target.sample_shape,
        dtype="int8" if target.quantization else target.dtype.name,
        channel_axis=target.channel_axis,
        quantization=target.quantization,
    )
