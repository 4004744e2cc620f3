"""Iterative correction: a layer's input is that of the quantised network in which all earlier layers are corrected.

Layers that do not depend on each other form a stage. The inputs of a stage are recorded into a calibration store and
reduced like any other store; then the store is dropped. The terms that follow are saved in the work folder, so an
interrupted correction resumes at the stage where it stopped.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...calibration.selection import LayerRule
from ...correction import BiasCorrector, MeanBiasCorrector, TapBiasCorrector
from ...errors import UsageError, one_of
from ...jobs.job import Job
from ...jobs.run import run as run_job
from ...outputs.results import open_results
from ...progress import QUIET, Progress, Stage
from ...statistics.taps import TapSums
from ...storage.files import file_digest, remove_folder
from ..linear import (
    NO_CORRECTOR,
    NULL_CORRECTOR,
    SAME_WEIGHT,
    LayerCorrection,
    correction_term,
    load_corrector,
    of_one_kind,
    planned_correction,
)
from .biases import add_to_biases
from .files import write_models
from .graph import copied, subgraphs
from .layers import OnnxLayer
from .pairs import Pair
from .plain import only, plainly
from .record import record_layers
from .run import ModelRun, open_session
from .samples import Axes, load_samples, samples_digest
from .stages import save_stage, saved_stage, work_folder

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")
FORMS = ("full", "change")
NO_MEAN = "it has no mean in the quantised network"
PADDED_APART = (
    "its padding is a node of its own in one of the models, so the means of its input are of different positions; "
    "count with `statistics: [taps]`, or use the form change"
)
NAMED = 3
"""How many layers of a stage are named."""
Means = MeanBiasCorrector | TapBiasCorrector
FARTHEST_MEANS = 0.2
"""How far apart the means of first inputs may be, as a share of their norm: rounding to 4 bits moves them less."""


@dataclass(frozen=True)
class Iterative:
    """How to correct layer by layer.

    `samples` are those that the float model was recorded from. With x̂ the input of a layer in the quantised network
    corrected so far, the `form` "change" adds (W − Ŵ)·E[x̂], and "full" adds W·E[x] − Ŵ·E[x̂], which also undoes the
    shift that earlier layers left. `work` is a folder for intermediate results; the caller of `iterative_corrections`
    removes it. `mask`, `batch_axes` and `positions_as_rows` are those that the float model was recorded with.
    """

    samples: str | Path
    work: str | Path
    form: str = "full"
    batch_size: int = 16
    mask: str | None = None
    batch_axes: Axes | None = None
    positions_as_rows: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"the form is {self.form!r}; {one_of(self.form, FORMS)}")


def iterative_corrections(
    quantized: onnx.ModelProto,
    pairs: Sequence[Pair],
    correctors: Mapping[str, Path],
    how: Iterative,
    progress: Progress = QUIET,
    *,
    moves: Mapping[str, float] = MappingProxyType({}),
) -> list[LayerCorrection]:
    """The term of each of `pairs`, found stage by stage and not added to `quantized`.

    `moves` says how far rounding may move the means of a layer's input, as `Subject.moves` does.
    Raises `UsageError`, `MismatchError`, `DataError`, `OutputError`, and what a reduction raises; the stages that are
    done by then stay in the work folder.
    """
    by_depth = stages(quantized, [pair for pair in pairs if pair.name in correctors])
    with work_folder(Path(how.work), _plan(quantized, by_depth, correctors, how)):
        found = _Staged(copied(quantized), correctors, how, progress, moves).corrections(by_depth)
    return [found.get(pair.name) or LayerCorrection(pair.name, reason=NO_CORRECTOR) for pair in pairs]


def stages(model: onnx.ModelProto, pairs: Sequence[Pair]) -> list[list[Pair]]:
    """`pairs` by how many of them precede each on the longest path from the model's inputs."""
    return by_depth(model, {pair.quantized.node.output[0]: pair for pair in pairs})


def by_depth(model: onnx.ModelProto, by_output: Mapping[str, T]) -> list[list[T]]:
    """What belongs to the tensors `by_output`, by how many of these precede each on the longest path to it."""
    depth: dict[str, int] = {}
    found: dict[int, list[T]] = {}
    for node in model.graph.node:
        read = [*node.input, *(each for _, inner in subgraphs([node]) for one in inner.node for each in one.input)]
        here = max((depth.get(name, 0) for name in read), default=0)
        name = next((name for name in node.output if name in by_output), None)
        if name is not None:
            found.setdefault(here, []).append(by_output[name])
        depth |= dict.fromkeys(node.output, here + (name is not None))
    return [found[each] for each in sorted(found)]


@dataclass(frozen=True, eq=False)
class _Staged:
    """An iterative correction: `model` is the quantised network, corrected up to the stage at hand."""

    model: onnx.ModelProto
    correctors: Mapping[str, Path]
    how: Iterative
    progress: Progress
    moves: Mapping[str, float]

    def corrections(self, by_depth: Sequence[Sequence[Pair]]) -> dict[str, LayerCorrection]:
        """Layer → its term, stage by stage; stages that are done are not measured again."""
        found: dict[str, LayerCorrection] = {}
        work = Path(self.how.work)
        for number, stage in enumerate(by_depth):
            names = [pair.name for pair in stage]
            done = saved_stage(work, number, names)
            if done is None:
                named = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
                done = self._stage(number, stage, f"stage {number + 1} of {len(by_depth)}: {named}")
                save_stage(work, number, done)
            add_to_biases(self.model, stage, done)
            found |= {each.layer: each for each in done}
        return found

    def _stage(self, number: int, stage: Sequence[Pair], what: str) -> list[LayerCorrection]:
        """The terms of a `stage`, from the inputs that its layers get in the model corrected so far."""
        floats = {pair.name: _loaded(self.correctors[pair.name], pair.name) for pair in stage}
        plain = plainly(self.model)
        inputs = {pair.name: plain.inputs.get(pair.quantized.node.output[0]) for pair in stage}
        layers = [replace(pair.quantized, name=pair.name, input=name) for pair in stage if (name := inputs[pair.name])]
        seen: dict[str, BiasCorrector | str] = {}
        if layers:
            seen = self._measured(only(plain.model, [layer.input for layer in layers]), layers, floats, what)
        if number == 0:
            _check_same_samples(self.how, [pair for pair in stage if not pair.padded_apart], floats, seen, self.moves)
        return [_correction(pair, floats[pair.name], seen, self.how.form) for pair in stage]

    def _measured(
        self, model: onnx.ModelProto, layers: Sequence[OnnxLayer], floats: Mapping[str, BiasCorrector], what: str
    ) -> dict[str, BiasCorrector | str]:
        """Layer → the corrector of its input in `model`, recorded and reduced, or why there is none."""
        work = Path(self.how.work)
        store, output = work / "stage.zarr", work / "out"
        _removed(store, output)
        run = self._opened(model, work)
        self.progress.begin(Stage(what, run.samples, layers=len(layers)))
        recorded = record_layers(
            run, layers, store, self.how.mask, self.progress, positions_as_rows=self.how.positions_as_rows
        )
        found: dict[str, BiasCorrector | str] = {each.layer: each.reason or NO_MEAN for each in recorded}
        kept = {each.layer: floats[each.layer] for each in recorded if not each.reason}
        if kept:
            found |= _reduced(store, output, kept)
            _removed(store, output)
        return found

    def _opened(self, model: onnx.ModelProto, work: Path) -> ModelRun:
        """`model` in a session, with the samples that were recorded."""
        path, samples = work / "stage.onnx", self.how.samples
        write_models([(model, path)])
        session = open_session(str(path), work, optimized=False, name="the quantised model")
        return ModelRun.prepare(
            session, load_samples(samples, session, self.how.batch_axes), self.how.batch_size, str(samples)
        )


def _loaded(path: Path, layer: str) -> BiasCorrector:
    corrector = load_corrector(path, layer)
    assert corrector is not None
    return corrector


def _reduced(store: Path, output: Path, floats: Mapping[str, BiasCorrector]) -> dict[str, BiasCorrector]:
    """Layer → the corrector of what `store` holds, of the kind that the float layer has."""
    rules = [
        LayerRule(glob.escape(layer), statistics=_statistics_for(corrector)) for layer, corrector in floats.items()
    ]
    run_job(Job(str(store), str(output), tuple(rules)))
    results = open_results(output)
    paths = {layer: results.corrector_path(layer) for layer in results.layers}
    return {layer: BiasCorrector.load(path) for layer, path in paths.items() if path is not None}


def _statistics_for(corrector: BiasCorrector) -> tuple[str, ...]:
    """What a corrector of the same kind is made from, besides what is always counted."""
    return (TapSums.name,) if isinstance(corrector, TapBiasCorrector) else ()


def _removed(*folders: Path) -> None:
    for folder in folders:
        remove_folder(folder)


def _check_same_samples(
    how: Iterative,
    stage: Sequence[Pair],
    floats: Mapping[str, BiasCorrector],
    seen: Mapping[str, BiasCorrector | str],
    moves: Mapping[str, float],
) -> None:
    """Raise `UsageError` unless the first layers have the same inputs in both networks, up to rounding."""
    for pair in stage:
        name, original, corrector = pair.name, floats[pair.name], seen.get(pair.name)
        if not isinstance(original, Means) or not isinstance(corrector, Means):
            continue
        counts = original.provenance.get("count"), corrector.provenance.get("count")
        if all(each and each.isdigit() for each in counts) and counts[0] != counts[1]:
            raise UsageError(
                f"{how.samples} are not the samples that were recorded: they give {counts[1]} values per channel of "
                f"layer {name}, but {counts[0]} were counted; give the samples that the correctors were made from"
            )
        factors = 1.0 if pair.input_factors is None else pair.input_factors
        apart = np.linalg.norm(corrector.input_mean * factors - original.input_mean)
        if apart > FARTHEST_MEANS * np.linalg.norm(original.input_mean) + moves.get(name, 0.0):
            raise UsageError(
                f"{how.samples} are not the samples that were recorded: the mean input of layer {name} is off by "
                f"{apart:.3g}, where its norm is {np.linalg.norm(original.input_mean):.3g}; give the samples that the "
                "correctors were made from"
            )


def _correction(
    pair: Pair, original: BiasCorrector, seen: Mapping[str, BiasCorrector | str], form: str
) -> LayerCorrection:
    corrector = seen.get(pair.name, "its input in the quantised network was not found")
    if isinstance(corrector, str):
        return LayerCorrection(pair.name, reason=corrector)
    layer, stored = pair.layer, pair.quantized.weight
    if form == "full" and pair.padded_apart and isinstance(original, MeanBiasCorrector):
        return LayerCorrection(pair.name, reason=PADDED_APART)
    if form == "change" and pair.same_weight:
        return LayerCorrection(pair.name, reason=SAME_WEIGHT)
    if form == "change":
        return planned_correction(layer, corrector, pair.weight, stored)
    wanted = correction_term(pair.recorded_layer, original, pair.for_recorded(pair.weight), np.zeros_like(stored))
    given = correction_term(layer, of_one_kind(original, corrector), stored, np.zeros_like(stored))
    if wanted is None or given is None:
        return LayerCorrection(pair.name, reason=NULL_CORRECTOR)
    return LayerCorrection(pair.name, term=wanted - given)


def update_digest(digest: hashlib._Hash, model: onnx.ModelProto) -> None:
    """Add the operators and initialisers of `model` to `digest`; the whole may be too large for one message."""
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        _update(digest, tensor)


def _update(digest: hashlib._Hash, tensor: onnx.TensorProto) -> None:
    """Add `tensor` to `digest`; its values apart, which may be more than a message can hold."""
    if not tensor.raw_data:
        digest.update(tensor.SerializeToString(deterministic=True))
        return
    digest.update(repr((tensor.name, tensor.data_type, [*tensor.dims])).encode())
    digest.update(tensor.raw_data)


def _plan(
    quantized: onnx.ModelProto, by_depth: Sequence[Sequence[Pair]], correctors: Mapping[str, Path], how: Iterative
) -> dict[str, Any]:
    """All that determines the terms of the stages: the results for one plan are not used for another."""
    digest = hashlib.sha256()
    update_digest(digest, quantized)
    for pair in (pair for stage in by_depth for pair in stage):
        digest.update(pair.name.encode())
        digest.update(np.ascontiguousarray(pair.weight).tobytes())
        digest.update(file_digest(correctors[pair.name]).encode())
    return {
        "models": digest.hexdigest(),
        "samples": samples_digest(how.samples),
        "batch_size": how.batch_size,
        "axes": dict(how.batch_axes or {}),
        "form": how.form,
        "mask": how.mask,
        "stages": [[pair.name for pair in stage] for stage in by_depth],
    }
