"""Judging: how near the layers of quantised models come to those of the float model, on samples held out.

A layer's output is compared before it is rounded to codes: its error e = ŷ − y over samples and positions has a mean,
the shift, for each channel, and a mean square, the noise; the signal is the mean square of y. SQNR is their ratio in
decibels. Without its term t a layer would have the errors e − t, and their mean square would be E[e²] − 2·t·E[e] + t²,
which tells without another run whether the term helps.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ...errors import MismatchError, NonFiniteError, UsageError, first_line
from .files import write_models
from .graph import copied
from .plain import only, plainly
from .quantized import Pair
from .run import ModelRun, Watch, load_samples, open_session

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
FLOAT = "float"
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
PLACE = "{model}"


@dataclass(frozen=True)
class HeldOut:
    """What models are judged by: `samples`, a `.npy` or `.npz` as they were recorded from, but others.

    `labels`, a `.npy` of integers, one a sample, give the accuracy of a classifier: how often the greatest of its first
    output is the label. `score` is a command in which `{model}` stands for a model's file; the last number that it
    prints is the model's score. `batch_size` samples are run at a time.
    """

    samples: str | Path
    labels: str | Path | None = None
    score: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.score is not None and PLACE not in self.score:
            raise UsageError(f"the command {self.score!r} has no {PLACE}; expected it where the model's file goes")
        try:
            shlex.split(self.score or "")
        except ValueError as error:
            raise UsageError(f"the command {self.score!r} cannot be read: {first_line(error)}") from error


@dataclass(frozen=True, eq=False)
class Quality:
    """How near outputs come to those of the float model: `shift` float64[C], mean squares `signal` and `noise`."""

    shift: Float64Array
    signal: float
    noise: float

    @property
    def sqnr(self) -> float:
        """The ratio of signal to quantisation noise in dB: infinite without noise, NaN without either."""
        if self.noise == 0 or self.signal == 0:
            return math.nan if self.noise == self.signal else math.copysign(math.inf, self.signal - self.noise)
        return 10 * math.log10(self.signal / self.noise)

    @property
    def size(self) -> float:
        """The root mean square of the shift over channels."""
        return float(np.sqrt(np.mean(self.shift**2))) if self.shift.size else 0.0


@dataclass(frozen=True)
class Judgement:
    """What was found on `samples` samples, by the name of the model: of each layer, of the model's outputs together,
    its accuracy and its score. Layers whose correction does more harm than good are `harmful`.
    """

    samples: int
    layers: Mapping[str, Mapping[str, Quality]]
    outputs: Mapping[str, Quality]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    harmful: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "samples": self.samples,
            "layers": {
                layer: {model: _document(found) for model, found in models.items()}
                for layer, models in self.layers.items()
            },
            "outputs": {model: _document(found) for model, found in self.outputs.items()},
            "accuracy": dict(self.accuracy),
            "scores": dict(self.scores),
            "harmful": list(self.harmful),
        }


def _document(quality: Quality) -> dict[str, Any]:
    return {
        "rms_shift": _finite(quality.size),
        "sqnr_db": _finite(quality.sqnr),
        "signal": _finite(quality.signal),
        "noise": _finite(quality.noise),
        "shift": [_finite(each) for each in quality.shift.tolist()],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Judge:
    """Judges one model after the other on the same samples; a context manager, for its files."""

    def __init__(
        self, original: onnx.ModelProto, pairs: Sequence[Pair], held_out: HeldOut, watch: Watch | None = None
    ) -> None:
        self._original, self._pairs, self._held_out = original, pairs, held_out
        self._watch = watch
        self._layers: dict[str, dict[str, Quality]] = {}
        self._outputs: dict[str, Quality] = {}
        self._accuracy: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._harmful: list[str] = []
        self._samples = 0

    def __enter__(self) -> Self:
        """Open the float model. Raises `UsageError`, `MismatchError` for samples that do not fit it."""
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamstats-")))
            self._open()
            self._stack = stack.pop_all()
        return self

    def _open(self) -> None:
        names = [pair.output for pair in self._pairs]
        self._ends = [output.name for output in self._original.graph.output]
        session = self._session(copied(self._original), [*self._ends, *names], FLOAT)
        self._arrays = load_samples(self._held_out.samples, session)
        self._float = ModelRun.prepare(session, self._arrays, self._held_out.batch_size, str(self._held_out.samples))
        self._samples = self._float.samples
        self._check_finite()
        self._labels = self._loaded_labels()
        self.score(FLOAT, self._original)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, name: str, model: onnx.ModelProto, terms: Mapping[str, Float64Array] | None = None) -> list[str]:
        """Judge `model`, whose layers have the `terms` in their biases: the layers in which they do harm.

        A model of a name that was judged takes its place. Raises `MismatchError` for one of another network,
        `UsageError` for one that onnxruntime does not run.
        """
        found = self._measured(name, model)
        for layer, sums in found.layers.items():
            self._layers.setdefault(layer, {})[name] = sums.quality()
        self._outputs[name] = _together([sums.quality() for sums in found.outputs.values() if sums.values])
        if self._labels is not None:
            self._accuracy |= {each: count / self._samples for each, count in sorted(found.right.items())}
        self._harmful = [
            layer
            for layer, term in (terms or {}).items()
            if layer in found.layers and _harms(term, self._layers[layer][name])
        ]
        return self._harmful

    def score(self, name: str, model: onnx.ModelProto) -> None:
        """Have the user's command score `model`, if there is one. Raises `UsageError` where it fails."""
        if self._held_out.score is None:
            return
        path = self._folder / f"{name}.onnx"
        write_models([(model, path)])
        self._scores[name] = _scored(self._held_out.score, path)

    def _measured(self, name: str, model: onnx.ModelProto) -> _Measured:
        plain = plainly(model)
        self._check_outputs(name, [output.name for output in model.graph.output])
        tensors = {pair.original.name: plain.outputs.get(pair.quantized.node.output[0]) for pair in self._pairs}
        judged = [(pair, tensor) for pair in self._pairs if (tensor := tensors[pair.original.name])]
        mine_wanted = _unique([*self._ends, *(tensor for _, tensor in judged)])
        theirs_wanted = _unique([*self._ends, *(pair.output for pair, _ in judged)])
        session = self._session(plain.model, mine_wanted, name)
        run = ModelRun.prepare(session, self._arrays, self._held_out.batch_size, str(self._held_out.samples))
        found = _Measured({pair.original.name: _Sums() for pair, _ in judged}, {end: _Sums() for end in self._ends})
        if self._watch:
            self._watch.begin(f"judging the {name} model", run.samples)
        for rows in run.batches():
            mine, theirs = run.outputs(mine_wanted, rows), self._float.outputs(theirs_wanted, rows)
            for pair, tensor in judged:
                axis = 1 if pair.quantized.weight.ndim > 2 else -1
                found.layers[pair.original.name].add(pair.original.name, mine[tensor], theirs[pair.output], axis)
            for end, sums in found.outputs.items():
                if theirs[end].dtype.kind == "f":
                    sums.add(end, mine[end], theirs[end], min(1, theirs[end].ndim - 1))
            for model_name, logits in ((name, mine[self._ends[0]]), (FLOAT, theirs[self._ends[0]])):
                found.right[model_name] = found.right.get(model_name, 0) + self._right(logits, rows)
            if self._watch:
                self._watch.advance(rows.stop - rows.start)
        return found

    def _check_outputs(self, name: str, ends: Sequence[str]) -> None:
        missing = [end for end in self._ends if end not in ends]
        if missing:
            raise MismatchError(
                f"the {name} model has the outputs {', '.join(ends)}, without {', '.join(missing)} of the float model; "
                "expected models of one network"
            )

    def finish(self) -> Judgement:
        """What was found."""
        return Judgement(self._samples, self._layers, self._outputs, self._accuracy, self._scores, tuple(self._harmful))

    def _session(self, model: onnx.ModelProto, tensors: Sequence[str], name: str) -> Any:
        path = self._folder / f"{name} judged.onnx"
        write_models([(only(model, tensors), path)])
        try:
            return open_session(str(path), self._folder, optimized=name == FLOAT)
        except UsageError as error:
            raise UsageError(f"the {name} model: {error}") from error

    def _check_finite(self) -> None:
        for name, array in self._arrays.items():
            for rows in self._float.batches() if array.dtype.kind == "f" else ():
                wrong = np.flatnonzero(~np.isfinite(array[rows]).reshape(rows.stop - rows.start, -1).all(axis=1))
                if wrong.size:
                    raise NonFiniteError(
                        f"{self._held_out.samples}: sample {rows.start + wrong[0]} of the input {name} has NaN or "
                        "infinities; leave it out"
                    )

    def _loaded_labels(self) -> Array | None:
        path = self._held_out.labels
        if path is None:
            return None
        try:
            labels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"the labels {path} are not a .npy file of integers: {first_line(error)}") from error
        if not isinstance(labels, np.ndarray) or labels.shape != (self._samples,) or labels.dtype.kind not in "iu":
            found = f"{labels.dtype}{labels.shape}" if isinstance(labels, np.ndarray) else "several arrays"
            raise MismatchError(f"the labels {path} are {found}; expected {self._samples} integers, one a sample")
        return labels

    def _right(self, logits: Array, rows: slice) -> int:
        """How many of the samples `rows` are labelled right."""
        if self._labels is None:
            return 0
        if logits.ndim != 2 or len(logits) != rows.stop - rows.start:
            raise MismatchError(
                f"the model's first output has the shape {logits.shape}; expected (samples, classes) for labels"
            )
        if self._labels[rows].min() < 0 or self._labels[rows].max() >= logits.shape[1]:
            raise MismatchError(
                f"the labels {self._held_out.labels} reach from {self._labels.min()} to {self._labels.max()}; expected "
                f"0 to {logits.shape[1] - 1}, as many as the model has classes"
            )
        return int((logits.argmax(axis=1) == self._labels[rows]).sum())


@dataclass
class _Sums:
    """Over all batches: of errors by channel, of their squares, of the squares of the float model's values."""

    values: int = 0
    errors: Float64Array | float = 0.0
    noise: float = 0.0
    signal: float = 0.0

    def add(self, layer: str, mine: Array, theirs: Array, axis: int) -> None:
        if mine.shape != theirs.shape:
            raise MismatchError(
                f"layer {layer}: its outputs have the shape {mine.shape}, in the float model {theirs.shape}; expected "
                "models of the same network"
            )
        wanted = np.moveaxis(theirs, axis, -1).reshape(-1, theirs.shape[axis]).astype(np.float64)
        error = np.moveaxis(mine, axis, -1).reshape(wanted.shape) - wanted
        self.values += len(wanted)
        self.errors = self.errors + error.sum(axis=0)
        self.noise += float(np.square(error).sum())
        self.signal += float(np.square(wanted).sum())

    def quality(self) -> Quality:
        shift = np.atleast_1d(np.asarray(self.errors, np.float64)) / max(self.values, 1)
        elements = max(self.values, 1) * shift.size
        return Quality(shift, self.signal / elements, self.noise / elements)


@dataclass
class _Measured:
    """Of a model: sums by layer and by output, and how many samples it and the float model label right."""

    layers: dict[str, _Sums]
    outputs: dict[str, _Sums]
    right: dict[str, int] = field(default_factory=dict)


def _together(qualities: Sequence[Quality]) -> Quality:
    """Of several outputs: their shifts behind each other, and the mean squares over all values of all channels."""
    shift = np.concatenate([np.empty(0), *(each.shift for each in qualities)])
    shares = [each.shift.size / max(shift.size, 1) for each in qualities]
    signal, noise = (
        float(np.dot(shares, values))
        for values in ([each.signal for each in qualities], [each.noise for each in qualities])
    )
    return Quality(shift, signal, noise)


def _harms(term: Float64Array, quality: Quality) -> bool:
    """Whether the errors would be smaller without the `term` that is in the layer's bias."""
    return bool((term**2 - 2 * term * quality.shift).sum() < 0)


def _scored(command: str, model: Path) -> float:
    """The last number that `command` prints for `model`. Raises `UsageError`."""
    words = [word.replace(PLACE, str(model)) for word in shlex.split(command)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {words[0]}: {error.strerror or first_line(error)}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UsageError(f"{words[0]} ended with status {done.returncode}; it said: {said}")
    numbers = NUMBER.findall(done.stdout)
    if not numbers:
        raise UsageError(f"{words[0]} printed no number; expected the model's score as the last")
    return float(numbers[-1])


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
