"""The ways of quantising a network, by onnxruntime, and correcting what comes of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from streamstats.config import JobConfig
from streamstats.errors import StreamstatsError
from streamstats.jobs.run import run
from streamstats.models.onnx.correct import How, correct_quantized
from streamstats.models.onnx.iterative import Iterative
from streamstats.models.onnx.record import record

from .evaluation import Shift, activations, linear_nodes, shifts

Array = npt.NDArray[Any]
QDQ, OPERATORS = (
    {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8},
    {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8},
)


@dataclass(frozen=True)
class Way:
    """Options of `quantize_static`, whether the model is pre-processed before, and corrected layer by layer."""

    options: Mapping[str, Any]
    preprocessed: bool = False
    layer_by_layer: bool = False


WAYS = {
    f"{form}, {'per channel' if each else 'per tensor'}{', pre-processed' if before else ''}": Way(
        options | {"per_channel": each}, before
    )
    for form, options in (("QDQ", QDQ), ("operators", OPERATORS))
    for each in (False, True)
    for before in (False, True)
} | {"QDQ, per channel, layer by layer": Way(QDQ | {"per_channel": True}, layer_by_layer=True)}


@dataclass(frozen=True)
class Outcome:
    """What became of a layer: the shifts without and with the correction, or the reason why there is none."""

    layer: str
    op: str = ""
    corrected: bool = False
    reason: str = ""
    before: Shift | None = None
    after: Shift | None = None


class Batches(CalibrationDataReader):
    """All samples as one batch."""

    def __init__(self, x: Mapping[str, Array]) -> None:
        self._batches: Iterator[dict[str, Array]] = iter([dict(x)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


@dataclass(frozen=True)
class Recorded:
    """A float model with its samples `x`, its tensors over them, and what a run left for it."""

    path: Path
    x: Mapping[str, Array]
    tensors: Mapping[str, Array]
    out: Path
    reasons: Mapping[str, str]


def recorded(path: Path, x: Mapping[str, Array]) -> Recorded:
    """Record and count the samples `x` through the model at `path`."""
    folder = path.parent
    np.savez(folder / "x.npz", **x)
    done = record(path, folder / "x.npz", folder / "recorded.zarr")
    config = {"source": str(folder / "recorded.zarr"), "output": str(folder / "out"), "statistics": ["taps"]}
    run(JobConfig.model_validate(config).job())
    return Recorded(path, x, activations(path, x), folder / "out", {each.layer: each.reason for each in done})


def outcomes(model: Recorded, way: Way) -> list[Outcome]:
    """What became of every layer of `model` that was quantised in this `way`."""
    source, quantized, fixed = (model.path.parent / f"{name}.onnx" for name in ("source", "quantized", "fixed"))
    _quantize(model, way, source, quantized)
    layers = linear_nodes(model.path)
    try:
        corrected = correct_quantized(model.path, quantized, model.out, fixed, how=_how(model, way))
    except StreamstatsError as error:
        return [Outcome(name, reason=str(error)) for name in layers]
    done = {each.layer: each for each in corrected.layers}
    x = model.x if way.layer_by_layer else None
    before, after = (shifts(model.path, each, model.tensors, x) for each in (quantized, fixed))
    found = []
    for name in layers:
        one = done.get(name.strip("/")) or done.get(f"{name.strip('/')}_quant")  # as the quantiser named it
        if one is None:
            found.append(Outcome(name, before=before.get(name), after=after.get(name)))
            continue
        reason = model.reasons.get(one.layer) or one.reason
        found.append(Outcome(name, one.op, one.corrected, reason, before.get(name), after.get(name)))
    return found


def _how(model: Recorded, way: Way) -> How:
    if not way.layer_by_layer:
        return How()
    return How(iterative=Iterative(model.path.parent / "x.npz", model.path.parent / "work"))


def _quantize(model: Recorded, way: Way, source: Path, target: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way.preprocessed:
            quant_pre_process(model.path, source, skip_symbolic_shape=True)
        quantize_static(source if way.preprocessed else model.path, target, Batches(model.x), **way.options)
