"""Judging quantised models on samples held out from the calibration: quality of layers and outputs, accuracy, score."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ...errors import MismatchError, NonFiniteError, UsageError, counted
from ...outputs.layer_statistics import LayerStatistics
from ...progress import QUIET, Progress, Stage
from ...statistics.masks import Mask
from ..effects import Effect, EffectSums
from ..findings import Findings, Measured
from ..judgement import BY_BATCH, FLOAT, IN_FLOATS, KEPT_BYTES, NO_FLOATS, ROUTED, TRIAL_SAMPLES, UNKNOWN, Judgement
from ..quality import Sums
from .comparing import Places
from .files import write_models
from .graph import copied
from .layers import OnnxLayer
from .masking import check_mask, mask_rows
from .pairs import SCALED, Pair
from .plain import PlainModel, only, plainly
from .quantized import multiplies_codes, rounds_by_batch
from .record import measure_layers
from .run import ModelRun, open_session
from .samples import Array, Axes, Samples, load_samples
from .scoring import Labels, check_command, scored

if TYPE_CHECKING:
    import onnx

Float64Array = npt.NDArray[np.float64]
REDUCED = 64
"""The largest code of weights of a reduced range: 2·255·64 < 2^15."""
CANDIDATE = "candidate"
"""What a model on trial is called in messages and files."""


@dataclass(frozen=True)
class HeldOut:
    """What models are judged by: `samples`, a `.npy` or `.npz` like the recorded samples, with other contents.

    `labels`, a `.npy` of integers, one per sample, give the accuracy of a classifier: how often the greatest value of
    its first output is at the label. `score` is a command in which `{model}` stands for a model's file; the last number
    on the last line that it prints is the model's score. `batch_size` samples are run at a time. `mask` is an input of
    the model; positions where it is 0 are not judged. `batch_axes` names the axis of the samples of the inputs where it
    is not 0.
    """

    samples: str | Path
    labels: str | Path | None = None
    score: str | None = None
    batch_size: int = 8
    mask: str | None = None
    batch_axes: Axes | None = None

    def __post_init__(self) -> None:
        if self.score is not None:
            check_command(self.score)


class Judge(Findings):
    """Judges models, one after the other, on the same samples; a context manager, which holds temporary files."""

    def __init__(
        self, original: onnx.ModelProto, pairs: Sequence[Pair], held_out: HeldOut, progress: Progress = QUIET
    ) -> None:
        super().__init__()
        self._original, self._pairs, self._held_out = original, pairs, held_out
        self._progress = progress
        self._scores: dict[str, float] = {}
        self._kept: dict[int, dict[str, Array]] = {}
        self._kept_bytes = 0
        self._samples = 0
        self._routed = set[str]()
        self._on_codes = self._by_batch = False

    def __enter__(self) -> Self:
        """Open the float model. Raises `UsageError`, `MismatchError` for samples that do not fit it."""
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamstats-")))
            self._open()
            self._stack = stack.pop_all()
        return self

    def _open(self) -> None:
        names = [pair.output for pair in self._pairs if pair.output]
        self._ends = [output.name for output in self._original.graph.output]
        session = self._session(copied(self._original), [*self._ends, *names], FLOAT)
        self.given = load_samples(self._held_out.samples, session, self._held_out.batch_axes)
        self._float = ModelRun.prepare(session, self.given, self._held_out.batch_size, str(self._held_out.samples))
        check_mask(self._float, self._held_out.mask)
        self._samples = self._float.samples
        matrices = [pair.output for pair in self._pairs if pair.output and pair.quantized.weight.ndim <= 2]
        self._places = Places.of(self._float, self._ends, matrices, self._held_out.mask)
        self._check_finite()
        labels = self._held_out.labels
        self._labels = None if labels is None else Labels.load(labels, self._samples)
        self.score(FLOAT, self._original)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(
        self, name: str, model: onnx.ModelProto, terms: Mapping[str, Float64Array] | None = None, note: str = ""
    ) -> list[str]:
        """Judge `model`, whose biases contain the `terms`: the layers in which these do harm.

        `note` follows the name of the model in the progress. A second model of the same name replaces the first. Raises
        `MismatchError` for a model of another network, `UsageError` for a model that onnxruntime does not run.
        """
        return self._take(name, self._measured(name, model, note), terms)

    def effect(self, model: onnx.ModelProto, *, trial: bool = False) -> Effect:
        """What `model` does to the outputs of the network; a `trial` runs the first samples only, at least a batch.

        Progress advances by the samples. Raises as `add`, and `UsageError` if no output is of floats.
        """
        session = self._session(plainly(model).model, self._ends, CANDIDATE)
        run = ModelRun.prepare(session, self.given, self._held_out.batch_size, str(self._held_out.samples))
        sums = EffectSums()
        for rows in run.batches():
            if trial and rows.start >= TRIAL_SAMPLES:
                break
            mask = mask_rows(self._float, self._held_out.mask, rows)
            samples = rows.stop - rows.start
            mine, theirs = run.outputs(self._ends, rows), self._float_ends(rows)
            own, wanted = (self._places.all_placed(self._ends, each, samples) for each in (mine, theirs))
            sums.add(own, wanted, samples, mask)
            self._progress.advance(samples)
        found = sums.effect()
        if found is None:
            raise UsageError(NO_FLOATS)
        return found

    def loaded(self, samples: str | Path, axes: Axes | None) -> Samples:
        """Other `samples` of the float model, with these `axes`."""
        return load_samples(samples, self._float.session, axes)

    def inputs_of(self, layers: Sequence[OnnxLayer], given: Samples | None = None) -> dict[str, LayerStatistics]:
        """The statistics of the inputs of these `layers` of the float model, over the samples `given`, or held out."""
        if not layers:
            return {}
        session = self._session(copied(self._original), [each.input for each in layers], "cut float")
        source = str(self._held_out.samples)
        run = ModelRun.prepare(session, self.given if given is None else given, self._held_out.batch_size, source)
        return measure_layers(run, layers, self._held_out.mask)

    @property
    def samples(self) -> int:
        """The number of held-out samples."""
        return self._samples

    @property
    def trial_samples(self) -> int:
        """How many samples a trial runs, about."""
        return min(self._samples, TRIAL_SAMPLES)

    def _float_ends(self, rows: slice) -> dict[str, Array]:
        """The outputs of the float model for the samples `rows`."""
        if rows.start in self._kept:
            return self._kept[rows.start]
        found = self._float.outputs(self._ends, rows)
        size = sum(each.nbytes for each in found.values())
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[rows.start] = found
            self._kept_bytes += size
        return found

    def score(self, name: str, model: onnx.ModelProto) -> None:
        """Let the user's command, if there is one, score `model`. Raises `UsageError` if it fails."""
        if self._held_out.score is None:
            return
        path = self._folder / f"{name}.onnx"
        write_models([(model, path)])
        self._scores[name] = scored(self._held_out.score, path)

    def _measured(self, name: str, model: onnx.ModelProto, note: str) -> _Measured:
        """Run `model` beside the float model, and sum up their errors."""
        self._check_outputs(name, [output.name for output in model.graph.output])
        self._on_codes |= multiplies_codes(model)
        self._by_batch |= rounds_by_batch(model)
        plain = plainly(model)
        judged = self._judged(plain)
        mine_wanted = _unique([*self._ends, *(tensor for _, tensor in judged)])
        theirs_wanted = _unique([*self._ends, *(pair.output for pair, _ in judged)])
        session = self._session(plain.model, mine_wanted, name)
        run = ModelRun.prepare(session, self.given, self._held_out.batch_size, str(self._held_out.samples))
        sums = ({pair.name: Sums() for pair, _ in judged}, {end: Sums() for end in self._ends})
        found = _Measured(*sums, ends=self._ends, places=self._places)
        what = f"judging the {name.replace(' ', '-')} model{note}"
        self._progress.begin(Stage(what, run.samples, layers=len(judged)))
        for rows in run.batches():
            mine, theirs = run.outputs(mine_wanted, rows), self._float.outputs(theirs_wanted, rows)
            mask = mask_rows(self._float, self._held_out.mask, rows)
            found.add(judged, mine, theirs, rows.stop - rows.start, mask)
            if self._labels is not None:
                for model_name, outputs in ((name, mine), (FLOAT, theirs)):
                    found.add_right(model_name, self._labels.right(outputs[self._ends[0]], rows))
            self._progress.advance(rows.stop - rows.start)
        self._routed |= found.routed
        found.layers = {layer: sums for layer, sums in found.layers.items() if layer not in self._routed}
        return found

    def _judged(self, plain: PlainModel) -> list[tuple[Pair, str]]:
        """The pairs whose outputs `plain` has, each with the tensor of its unrounded outputs."""
        judged = [pair for pair in self._pairs if pair.output]
        tensors = [(pair, plain.outputs.get(pair.quantized.node.output[0])) for pair in judged]
        return [(pair, tensor) for pair, tensor in tensors if tensor]

    def _check_outputs(self, name: str, ends: Sequence[str]) -> None:
        missing = [end for end in self._ends if end not in ends]
        if missing:
            raise MismatchError(
                f"the {name} model has the outputs {', '.join(ends)}, but not {', '.join(missing)} of the float "
                "model; expected models of the same network"
            )

    @property
    def unjudged(self) -> dict[str, str]:
        """The layers that cannot be judged, as far as models that were added show it → why."""
        return {**unjudged(self._pairs), **dict.fromkeys(sorted(self._routed), ROUTED)}

    def finish(self, corrected: Iterable[str] = ()) -> Judgement:
        """The judgement on all models; `corrected` layers that no model shows are among those that are not judged."""
        found = self._judgement(self._samples, self.unjudged, self._scores)
        unseen = {layer: UNKNOWN for layer in corrected if layer not in found.layers}
        doubtful = self._on_codes and not self._scores and any(map(_may_saturate, self._pairs))
        return replace(
            found,
            unjudged={**unseen, **found.unjudged},
            caveat=IN_FLOATS if doubtful else "",
            batches=BY_BATCH.format(self._batch) if self._by_batch else "",
        )

    @property
    def _batch(self) -> str:
        """How many samples are run at once, as text."""
        size = self._float.batch
        return "one file of samples" if size is None else counted(min(size, self._samples), "sample")

    def _session(self, model: onnx.ModelProto, tensors: Sequence[str], name: str) -> Any:
        path = self._folder / f"{name} judged.onnx"
        write_models([(only(model, tensors), path)])
        return open_session(str(path), self._folder, optimized=name == FLOAT, name=f"the {name} model")

    def _check_finite(self) -> None:
        for name, axis in self.given.axes.items():
            for rows in self._float.batches():
                part = self.given.part(name, rows)
                first = part[np.newaxis] if axis is None else np.moveaxis(part, axis, 0)
                wrong = np.flatnonzero(~np.isfinite(first).reshape(len(first), -1).all(axis=1))
                if wrong.size:
                    raise NonFiniteError(
                        f"{self._held_out.samples}: sample {rows.start + wrong[0]} of the input {name} has NaN or "
                        "infinities; remove this sample"
                    )


@dataclass
class _Measured(Measured):
    """What a run gave of the outputs `ends`, whose samples lie at `places`; `routed` are layers to leave out."""

    ends: Sequence[str] = ()
    places: Places = field(default_factory=Places)
    routed: set[str] = field(default_factory=set)

    def add(
        self,
        judged: Sequence[tuple[Pair, str]],
        mine: Mapping[str, Array],
        theirs: Mapping[str, Array],
        samples: int,
        mask: Mask | None,
    ) -> None:
        """Add the tensors of a batch, those of the model and those of the float model, where `mask` is true."""
        for pair, tensor in judged:
            axis = 1 if pair.quantized.weight.ndim > 2 else -1
            wanted = theirs[pair.output]
            both = _alike(mine[tensor], wanted, axis), wanted
            own, wanted = (self.places.placed(str(pair.output), values, samples) for values in both)
            if axis == -1 and own.shape[1:] == wanted.shape[1:] and len(own) != len(wanted):
                self.routed.add(pair.name)
                continue
            self.layers[pair.name].add(pair.name, own, wanted, axis, mask)
        for end, sums in self.outputs.items():
            if theirs[end].dtype.kind == "f":
                wanted, axis = self.places.of_output(end, theirs[end], samples, mask)
                sums.add(end, self.places.of_output(end, mine[end], samples, mask)[0], wanted, axis, mask)
        ends = [self.places.all_placed(self.ends, outputs, samples) for outputs in (mine, theirs)]
        self.effect.add(ends[0], ends[1], samples, mask)


def unjudged(pairs: Sequence[Pair]) -> dict[str, str]:
    """The layers that cannot be judged → why."""
    return {pair.name: SCALED for pair in pairs if not pair.output}


def _may_saturate(pair: Pair) -> bool:
    """Whether products of the weight's codes and codes of 8 bits may not fit into 16 bits, two at a time."""
    if pair.weight_step is None:
        return False
    step = pair.weight_step[pair.quantized.channels().output]
    return bool((np.abs(pair.quantized.weight) > (REDUCED + 0.5) * step).any())


def _alike(mine: Array, theirs: Array, axis: int) -> Array:
    """The outputs of a matrix in the shape of `theirs`: optimisers merge the axes of their rows."""
    if axis != -1 or mine.size != theirs.size or mine.shape[-1:] != theirs.shape[-1:]:
        return mine
    return mine.reshape(theirs.shape)


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
