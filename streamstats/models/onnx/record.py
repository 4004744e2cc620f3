"""Recording: the input of every linear layer of an ONNX model, appended to a calibration store.

One batch of activations is alive at a time: each batch is run, appended and dropped within one call. What
cannot be recorded is found on one or two samples, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibration.layer import Layer
from ...calibration.recorder import Recorder, stored_layer
from ...errors import MismatchError, NonFiniteError, UsageError, require
from ...quantization import Quantization
from ...statistics.extrema import ChannelExtrema
from ...storage.files import remove_folder
from .graph import LeftOut, LinearLayer, load_model, survey
from .run import ModelRun, load_samples, open_session

OnProgress = Callable[[int, int], None]
"""Called with the samples that a batch adds, and the bytes of a reduction, which are 0 here."""

STORAGES = ("float", "int8")
Visit = Callable[["_Target", npt.NDArray[Any], slice], None]
CODES = np.iinfo(np.int8)


@dataclass(frozen=True)
class RecordedLayer:
    """What was done for one linear layer: `samples` appended, or none and the `reason`.

    `shape` and `dtype` are those of one stored sample, `channel_axis` counts the sample axis, and
    `quantization` maps the stored codes (None for real values).
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
    """A layer to record: where it comes from, the shape and dtype of its input, what the store has of it."""

    source: LinearLayer
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


def record(
    model_path: str | Path,
    samples: str | Path,
    store: str | Path,
    *,
    batch_size: int = 16,
    storage: str = "float",
    layers: Sequence[str] | None = None,
    append: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[RecordedLayer]:
    """Run the model over `samples` and append the input of every linear layer to the zarr group `store`.

    `samples` is a `.npy` or `.npz` (see `load_samples`). `layers` are globs on layer names; default all.
    `storage` "float" keeps the activations as they are; "int8" runs the model twice, first for the range of
    each layer, then to store codes with a step and a zero point for the tensor. A layer whose input does not
    have the samples on axis 0 is left out and says why. If it fails or is stopped, a store that is new
    is removed; what was appended to an older one stays in it.

    `on_start` is told, before the model runs, the number of samples over all passes; `on_progress` is told
    the samples that each batch adds, and 0 bytes. Raises `UsageError` and `MismatchError` for a request that
    cannot be met (a layer that is in the store already, unless `append`), `NonFiniteError` for NaN or
    infinities that would have to be quantised, `OutputError` where the store cannot be written.
    """
    if storage not in STORAGES:
        raise UsageError(f"storage is {storage!r}; expected one of {', '.join(STORAGES)}")
    chosen, skipped = _choose(*survey(load_model(model_path)), layers)
    session = open_session(*_with_outputs(Path(model_path), [layer.input for layer in chosen]))
    run = ModelRun.prepare(session, load_samples(samples, session), batch_size, str(samples))
    if on_start:
        on_start(run.samples * (1 + (storage == "int8")))
    targets, unfit = _probe(run, chosen)
    targets = [_with_stored(target, stored_layer(store, target.name), append, storage) for target in targets]
    if storage == "int8":
        targets = _quantized(run, targets, on_progress)
    _write_samples(run, targets, Path(store), on_progress)
    recorded = [_recorded(target, run.samples) for target in targets]
    return [
        *recorded,
        *(RecordedLayer(left.name, left.op, reason=left.reason) for left in [*unfit, *skipped]),
    ]


def record_layers(
    run: ModelRun, layers: Sequence[LinearLayer], store: Path, on_progress: OnProgress
) -> list[RecordedLayer]:
    """Append the inputs of `layers`, tensors of the model that is run, to a new `store`. Errors as `record`."""
    targets, unfit = _probe(run, layers)
    _write_samples(run, targets, store, on_progress)
    return [
        *(_recorded(target, run.samples) for target in targets),
        *(RecordedLayer(left.name, left.op, reason=left.reason) for left in unfit),
    ]


def _write_samples(run: ModelRun, targets: Sequence[_Target], store: Path, on_progress: OnProgress | None) -> None:
    """Run the model and append; a new store that cannot be finished is no store."""
    is_new = not store.exists()
    try:
        with Recorder(store) as recorder:
            _visit(run, targets, partial(_append, recorder), on_progress)
    except BaseException:
        if is_new:
            remove_folder(store)
        raise


def _choose(
    layers: Sequence[LinearLayer], skipped: Sequence[LeftOut], globs: Sequence[str] | None
) -> tuple[list[LinearLayer], list[LeftOut]]:
    def matches(layer: LinearLayer | LeftOut) -> bool:
        return globs is None or any(fnmatchcase(layer.name, glob) for glob in globs)

    chosen = list(filter(matches, layers))
    if not chosen:
        names = ", ".join(layer.name for layer in layers) or "none"
        wanted = "" if globs is None else f" that match {', '.join(globs)}"
        raise UsageError(f"the model has no linear layers{wanted} to record; its layers are: {names}")
    return chosen, list(filter(matches, skipped))


def _with_outputs(path: Path, tensors: Sequence[str]) -> tuple[bytes, Path]:
    """(the model with `tensors` among its outputs, the folder of its external data)."""
    onnx = require("onnx", "onnx")
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    present = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(tensors) if name not in present]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return model.SerializeToString(), path.parent


def _probe(run: ModelRun, layers: Sequence[LinearLayer]) -> tuple[list[_Target], list[LeftOut]]:
    """Run one sample, then two: an extent that happens to equal one batch size does not equal both.

    Raises `UsageError` where no layer is left.
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


def _tensors(layers: Iterable[LinearLayer]) -> list[str]:
    return list(dict.fromkeys(layer.input for layer in layers))


def _unfit(layer: LinearLayer, shapes: Mapping[int, tuple[int, ...]]) -> str:
    """Why an input that has `shapes` (by number of samples) cannot be recorded, or nothing."""
    for size, shape in shapes.items():
        if len(shape) < 2 or shape[0] != size:
            found = f"its input {layer.input} has the shape {shape} for {size} sample(s)"
            return f"{found}; expected samples on axis 0 and channels on another"
    if len({shape[1:] for shape in shapes.values()}) > 1:
        return f"its input {layer.input} changes its shape with the number of samples: {list(shapes.values())}"
    return ""


def _with_stored(target: _Target, stored: Layer | None, append: bool, storage: str) -> _Target:
    """Raises `UsageError` for a layer that is there unasked, `MismatchError` for one that does not fit."""
    if stored is None:
        return target
    if not append:
        raise UsageError(
            f"{stored.store} holds {stored.rows} samples of layer {target.name} already; record into another "
            "store, or ask to append"
        )
    expected = (target.sample_shape, "int8" if storage == "int8" else target.dtype.name, target.channel_axis)
    found = (stored.shape[1:], stored.dtype.name, stored.channel_axis)
    if found != expected or (stored.quantization is None) != (storage == "float"):
        raise MismatchError(
            f"layer {target.name}: {stored.store} holds (sample shape, dtype, channel axis) {found}, to "
            f"append are {expected}; record into another store"
        )
    return replace(target, stored=stored)


def _visit(run: ModelRun, targets: Sequence[_Target], visit: Visit, on_progress: OnProgress | None) -> None:
    """Call `visit(target, block, rows)` for every layer and batch."""
    for rows in run.batches():
        _visit_batch(run, targets, visit, rows)
        if on_progress:
            on_progress(rows.stop - rows.start, 0)


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


def _append(recorder: Recorder, target: _Target, block: npt.NDArray[Any], rows: slice) -> None:  # noqa: ARG001
    if target.quantization is not None:
        block = target.quantization.quantize(block, np.int8, target.channel_axis)
    recorder.append(target.name, block, channel_axis=target.channel_axis, quantization=target.quantization)


def _quantized(run: ModelRun, targets: Sequence[_Target], on_progress: OnProgress | None) -> list[_Target]:
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

    _visit(run, targets, measure, on_progress)
    return [replace(target, quantization=_fitting(target, ranges[target.name])) for target in targets]


def _fitting(target: _Target, extrema: ChannelExtrema) -> Quantization:
    """The quantisation that holds `extrema`: a new one, or that of the store if it is wide enough."""
    low, high = float(extrema.minimum.min()), float(extrema.maximum.max())
    if target.stored is None or target.stored.quantization is None:
        return tensor_quantization(low, high)
    stored = target.stored.quantization
    codes = np.array([CODES.min - 0.5, CODES.max + 0.5])
    held = ((codes - np.max(stored.zero_point)) * np.max(stored.step)).tolist()
    if stored.channels is not None or not held[0] <= low <= high <= held[1]:
        raise MismatchError(
            f"layer {target.name}: the samples to append range over [{low:g}, {high:g}], the codes of "
            f"{target.stored.store} over {held}; record into another store"
        )
    return stored


def tensor_quantization(low: float, high: float) -> Quantization:
    """The int8 codes of the range [low, high], widened to hold zero: zero has a code of its own.

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
