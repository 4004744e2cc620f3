"""Iterative correction: the input of a layer is that of the quantised network in which all layers before are corrected.

Layers that do not depend on each other are a stage. A stage's inputs are recorded into a calibration store, reduced as
any other store is, and the store is dropped; what follows of it is kept in the work folder, so a correction that was
stopped goes on with the stage it was at.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...calibration.selection import LayerRule
from ...correction import BiasCorrector, MeanBiasCorrector, PositionBiasCorrector
from ...errors import UsageError
from ...jobs.job import Job
from ...jobs.run import run as run_job
from ...outputs.results import open_results
from ...statistics.positions import PositionSums
from ...storage.files import file_digest, make_folders, read_json, remove_folder, write_bytes, write_json
from ...storage.locks import locked
from ...storage.tensors import read_tensors, tensors_bytes
from .files import write_models
from .graph import LinearLayer, copied, subgraphs
from .plain import only, plainly
from .quantized import Pair
from .record import record_layers
from .repair import apply_repairs
from .run import ModelRun, Watch, load_samples, open_session
from .terms import Repair, correction_term, load_corrector, naming

if TYPE_CHECKING:
    import onnx

Float64Array = npt.NDArray[np.float64]
PLAN_FORMAT, STAGE_FORMAT = "streamstats.iterative/1", "streamstats.stage/1"
PLAN, LOCK, STAGES = "iterative.json", ".lock", "stage*.safetensors"
FORMS = ("full", "change")
Means = MeanBiasCorrector | PositionBiasCorrector
FARTHEST_MEANS = 0.2
"""How far the means of first inputs may be apart, as a share of their norm: rounding to 4 bits moves them less."""


@dataclass(frozen=True)
class Iterative:
    """How to correct layer after layer.

    `samples` are those that the float model was recorded from. With x̂ the input of a layer in the quantised network
    corrected so far, the `form` "change" adds (W − Ŵ)·E[x̂], and "full" adds W·E[x] − Ŵ·E[x̂], which undoes what earlier
    layers left over, too. `work` is a folder for what is found on the way, which whoever uses the
    repairs removes.
    """

    samples: str | Path
    work: str | Path
    form: str = "full"
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"the form is {self.form!r}; expected one of {', '.join(FORMS)}")


def iterative_repairs(
    quantized: onnx.ModelProto,
    pairs: Sequence[Pair],
    correctors: Mapping[str, Path],
    how: Iterative,
    watch: Watch | None = None,
) -> list[Repair]:
    """The repair of each of `pairs`, found stage by stage. Raises `UsageError`, `MismatchError`, `DataError`,
    `OutputError`, and what a reduction raises; what is found by then stays in the work folder.
    """
    work = Path(how.work)
    found: dict[str, Repair] = {
        pair.original.name: Repair(pair, None, "no corrector: the run left none for it")
        for pair in pairs
        if pair.original.name not in correctors
    }
    by_depth = stages(quantized, [pair for pair in pairs if pair.original.name in correctors])
    model = copied(quantized)
    with _held(work, _plan(quantized, by_depth, correctors, how)):
        for number, stage in enumerate(by_depth):
            done = _loaded(work, number, stage)
            if done is None:
                layers = ", ".join(pair.original.name for pair in stage[:3]) + (", …" if len(stage) > 3 else "")
                told = _Told(number, f"stage {number + 1} of {len(by_depth)}: {layers}", watch)
                done = _stage(model, stage, correctors, how, told)
                _save(work, number, done)
            apply_repairs(model, done)
            found |= {repair.pair.original.name: repair for repair in done}
    return [found[pair.original.name] for pair in pairs]


def stages(model: onnx.ModelProto, pairs: Sequence[Pair]) -> list[list[Pair]]:
    """`pairs` by the number of layers among them before them on the longest way from the model's inputs."""
    by_output = {pair.quantized.node.output[0]: pair for pair in pairs}
    depth: dict[str, int] = {}
    found: dict[int, list[Pair]] = {}
    for node in model.graph.node:
        read = [*node.input, *(each for _, inner in subgraphs([node]) for one in inner.node for each in one.input)]
        here = max((depth.get(name, 0) for name in read), default=0)
        pair = next((by_output[name] for name in node.output if name in by_output), None)
        if pair is not None:
            found.setdefault(here, []).append(pair)
        depth |= dict.fromkeys(node.output, here + (pair is not None))
    return [found[each] for each in sorted(found)]


@dataclass(frozen=True)
class _Told:
    """What a stage is called, and who is told of it."""

    number: int
    what: str
    watch: Watch | None

    def advance(self, samples: int, _bytes: int) -> None:
        """So many more samples are done."""
        if self.watch:
            self.watch.advance(samples)


def _stage(
    model: onnx.ModelProto, stage: Sequence[Pair], correctors: Mapping[str, Path], how: Iterative, told: _Told
) -> list[Repair]:
    """The repairs of a `stage`, whose layers get what `model`, repaired up to here, gives them."""
    plain = plainly(model)
    floats = {pair.original.name: load_corrector(correctors[pair.original.name], pair.original.name) for pair in stage}
    inputs = {pair.original.name: plain.inputs.get(pair.quantized.node.output[0]) for pair in stage}
    layers = [
        replace(pair.quantized, name=pair.original.name, input=inputs[pair.original.name] or "")
        for pair in stage
        if inputs[pair.original.name]
    ]
    seen = _measured(only(plain.model, [layer.input for layer in layers]), layers, floats, how, told) if layers else {}
    if not told.number:
        _check_same_samples(how, floats, seen)
    return [_repair(pair, floats[pair.original.name], seen, correctors, how.form) for pair in stage]


def _check_same_samples(
    how: Iterative, floats: Mapping[str, BiasCorrector], seen: Mapping[str, BiasCorrector | str]
) -> None:
    """The first layers get the same in both networks, but for the rounding of their inputs. Raises `UsageError`."""
    for name, original in floats.items():
        corrector = seen.get(name)
        if not isinstance(original, Means) or not isinstance(corrector, Means):
            continue
        apart = np.linalg.norm(corrector.input_mean - original.input_mean)
        if apart > FARTHEST_MEANS * np.linalg.norm(original.input_mean):
            raise UsageError(
                f"{how.samples} are not the samples that were recorded: means of the input of layer {name} are apart "
                f"by {apart:.3g}, of {np.linalg.norm(original.input_mean):.3g}; give those that the correctors are from"
            )


def _measured(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    floats: Mapping[str, BiasCorrector],
    how: Iterative,
    told: _Told,
) -> dict[str, BiasCorrector | str]:
    """Layer → the corrector of what it gets in `model`, or why there is none: recorded, and reduced."""
    work = Path(how.work)
    store, output, path = work / "stage.zarr", work / "out", work / "stage.onnx"
    for folder in (store, output):
        remove_folder(folder)
    write_models([(model, path)])
    session = open_session(str(path), work, optimized=False)
    run = ModelRun.prepare(session, load_samples(how.samples, session), how.batch_size, str(how.samples))
    if told.watch:
        told.watch.begin(told.what, run.samples)
    recorded = record_layers(run, layers, store, told.advance)
    reasons: dict[str, BiasCorrector | str] = {each.layer: each.reason for each in recorded if each.reason}
    kept = [each for each in recorded if not each.reason]
    if not kept:
        return reasons
    rules = [LayerRule(glob.escape(each.layer), statistics=_statistics_for(floats[each.layer])) for each in kept]
    run_job(Job(str(store), str(output), tuple(rules)))
    results = open_results(output)
    paths = {layer: results.corrector_path(layer) for layer in results.layers}
    measured = {layer: BiasCorrector.load(path) for layer, path in paths.items() if path is not None}
    for folder in (store, output):
        remove_folder(folder)
    return {**{each.layer: "it has no mean in the quantised network" for each in kept}, **reasons, **measured}


def _statistics_for(corrector: BiasCorrector) -> tuple[str, ...]:
    """What a corrector of the same kind is made from, beside what is always counted."""
    return (PositionSums.name,) if isinstance(corrector, PositionBiasCorrector) else ()


def _repair(
    pair: Pair,
    original: BiasCorrector,
    seen: Mapping[str, BiasCorrector | str],
    correctors: Mapping[str, Path],
    form: str,
) -> Repair:
    name = pair.original.name
    corrector = seen.get(name, "its input in the quantised network was not found")
    if isinstance(corrector, str):
        return Repair(pair, None, corrector)
    layer, stored = pair.quantized, pair.quantized.weight
    with naming(name, correctors[name]):
        if form == "change":
            return Repair(pair, correction_term(layer, corrector, pair.weight, stored))
        wanted = correction_term(layer, original, pair.weight, np.zeros_like(stored))
        given = correction_term(layer, corrector, stored, np.zeros_like(stored))
    if wanted is None or given is None:
        return Repair(pair, None, "its corrector is null")
    return Repair(pair, wanted - given)


# The work folder


def _plan(
    quantized: onnx.ModelProto, by_depth: Sequence[Sequence[Pair]], correctors: Mapping[str, Path], how: Iterative
) -> dict[str, Any]:
    """All that the stages follow from: what was found for one plan is not used for another."""
    digest = hashlib.sha256()
    for each in [*quantized.graph.node, *quantized.graph.initializer]:  # the whole may be too large for one message
        digest.update(each.SerializeToString(deterministic=True))
    for pair in (pair for stage in by_depth for pair in stage):
        digest.update(pair.original.name.encode())
        digest.update(np.ascontiguousarray(pair.weight).tobytes())
        digest.update(file_digest(correctors[pair.original.name]).encode())
    return {
        "models": digest.hexdigest(),
        "samples": file_digest(Path(how.samples)),
        "form": how.form,
        "stages": [[pair.original.name for pair in stage] for stage in by_depth],
    }


@contextmanager
def _held(work: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """The work folder of `plan`, which nobody else works in. Raises `UsageError` for that of another one."""
    if work.exists() and not work.is_dir():
        raise UsageError(f"{work} is a file; expected a folder, or nothing, for what is found on the way")
    if work.exists() and not (work / PLAN).is_file() and any(not each.name.startswith(".") for each in work.iterdir()):
        raise UsageError(f"{work} has files in it that no iterative correction left; name a new or an empty folder")
    make_folders([work])
    with locked(work / LOCK, {"correcting": "layer after layer"}, lambda: True):
        if (work / PLAN).is_file():
            before = read_json(work / PLAN)
            if before != {"format": PLAN_FORMAT, **plan}:
                raise UsageError(
                    f"{work} holds the beginning of another iterative correction, of other models, samples or "
                    "correctors, or another form; delete it, or name another folder with --work"
                )
        else:
            write_json(work / PLAN, {"format": PLAN_FORMAT, **plan})
        try:
            yield
        finally:
            if not any(work.glob(STAGES)):  # nothing to go on from
                remove_folder(work)


def _path(work: Path, number: int) -> Path:
    return work / f"stage{number:04}.safetensors"


def _save(work: Path, number: int, repairs: Sequence[Repair]) -> None:
    terms = {repair.pair.original.name: repair.term for repair in repairs if repair.term is not None}
    reasons = {repair.pair.original.name: repair.reason for repair in repairs if repair.term is None}
    metadata = {"format": STAGE_FORMAT, "reasons": json.dumps(reasons, sort_keys=True)}
    write_bytes(_path(work, number), tensors_bytes(terms, metadata))


def _loaded(work: Path, number: int, stage: Sequence[Pair]) -> list[Repair] | None:
    """The repairs of a stage that is done, None for one that is not. Raises `DataError` for a damaged file."""
    if not _path(work, number).is_file():
        return None
    terms, metadata = read_tensors(_path(work, number), STAGE_FORMAT)
    reasons = json.loads(metadata["reasons"])
    names = [pair.original.name for pair in stage]
    return [Repair(pair, terms.get(name), reasons.get(name, "")) for pair, name in zip(stage, names, strict=True)]
