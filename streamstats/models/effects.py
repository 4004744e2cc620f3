"""What a model does to the network's outputs: their squared error, sample by sample, and whether another model differs.

The error of a sample is the squared difference between the outputs of a model and those of the float model; each output
counts relative to its own signal, so that a large one does not hide a small one. Two models see the same samples.
Their difference is therefore known with its standard error, and chance is not taken for an effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError
from ..statistics.masks import Mask
from .positions import fits

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
CLEAR = 2.0
"""From how many standard errors on a difference is not chance."""
FEWEST = 8
"""From fewer samples, no standard error is trusted."""
DECIBELS = 10 / math.log(10)


@dataclass(frozen=True)
class Gain:
    """By how many `decibels` the outputs of a model are nearer to the float model's than those of another.

    `error` is the standard error over the `samples`: NaN if it is not known.
    """

    decibels: float
    error: float
    samples: int

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than chance."""
        return self.exceeds(CLEAR)

    @property
    def is_better(self) -> bool:
        """Whether the model is nearer to the float model, and by more than chance."""
        return self.decibels > 0 and self.is_clear

    @property
    def is_worse(self) -> bool:
        """Whether the model is farther from the float model, even if that may be chance."""
        return self.decibels < 0

    @property
    def samples_needed(self) -> int | None:
        """About how many samples would make this difference clear; None if no number is known to.

        It is never less than the number from which standard errors are trusted.
        """
        if not math.isfinite(self.decibels) or self.decibels == 0:
            return None
        error = self.error if math.isfinite(self.error) else 0.0
        return max(FEWEST, math.ceil(self.samples * (CLEAR * error / self.decibels) ** 2))

    def exceeds(self, errors: float) -> bool:
        """Whether the difference is more than this many standard `errors`, known from enough samples."""
        return self.samples >= FEWEST and abs(self.decibels) > errors * self.error

    def document(self) -> dict[str, Any]:
        """JSON-ready; None for numbers that are not finite."""
        found = {"gain_db": self.decibels, "standard_error_db": self.error}
        return {name: each if math.isfinite(each) else None for name, each in found.items()}

    def __str__(self) -> str:
        known = f" ± {self.error:.2f}" if math.isfinite(self.error) else ""
        return f"{self.decibels:+.2f}{known} dB"


@dataclass(frozen=True, eq=False)
class Effect:
    """The squared errors of the outputs `names` of a model, and the signals, float64[outputs, samples].

    The signal is the squared output of the float model. A batch is one sample where an output does not have the samples
    on axis 0.
    """

    names: tuple[str, ...]
    noise: Float64Array
    signal: Float64Array

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.noise[0])

    @property
    def relative(self) -> Float64Array:
        """The error of each sample, float64[samples]: the mean over outputs of noise over mean signal."""
        signal = self.signal.mean(axis=1, keepdims=True)
        each: Float64Array = (self.noise / np.where(signal > 0, signal, 1.0)).mean(axis=0)
        return each

    @property
    def sqnr(self) -> float:
        """The ratio of signal to noise of the outputs in dB, each weighed by its signal: infinite without noise."""
        return _decibels(1.0, _size(self.relative))

    def of(self, name: str) -> Effect:
        """The effect on the output `name` alone."""
        place = [self.names.index(name)]
        return Effect((name,), self.noise[place], self.signal[place])

    def first(self, samples: int) -> Effect:
        """The effect on the first `samples`."""
        return Effect(self.names, self.noise[:, :samples], self.signal[:, :samples])

    def gain_over(self, other: Effect) -> Gain:
        """How much nearer to the float model these outputs are than those of the `other` model, on the same samples.

        The standard error is that of the logarithm of a ratio of sums, to first order: samples are paired.
        """
        mine, theirs = self.relative, other.relative
        samples = len(mine)
        decibels = _decibels(_size(theirs), _size(mine))
        if not math.isfinite(decibels) or not mine.any():  # one of the models, or both, have no error at all
            return Gain(decibels, 0.0, samples)
        error = np.std(theirs / theirs.mean() - mine / mine.mean(), ddof=1) if samples > 1 else math.nan
        return Gain(decibels, DECIBELS * float(error) / math.sqrt(samples), samples)


def _size(errors: Float64Array) -> float:
    """The mean of the `errors` of samples; infinite where outputs are not finite."""
    mean = float(errors.mean())
    return mean if math.isfinite(mean) else math.inf


def _decibels(above: float, below: float) -> float:
    """10·log10 of a ratio of squares; 0 for equals, even if both are 0 or infinite."""
    if above == below:
        return 0.0
    if 0.0 in (above, below) or math.inf in (above, below):
        return math.copysign(math.inf, above - below)
    return DECIBELS * math.log(above / below)


@dataclass
class EffectSums:
    """Adds up an `Effect`, batch by batch."""

    noise: list[dict[str, Float64Array]] = field(default_factory=list)
    signal: list[dict[str, Float64Array]] = field(default_factory=list)

    def add(self, mine: Mapping[str, Array], theirs: Mapping[str, Array], samples: int, mask: Mask | None) -> None:
        """Add a batch of outputs, and those of the float model. Raises `MismatchError` for other shapes.

        Outputs of other types than floats say nothing about distances; positions that a mask leaves out do not count.
        """
        noise, signal = {}, {}
        for name, wanted in theirs.items():
            if wanted.dtype.kind != "f":
                continue
            if mine[name].shape != wanted.shape:
                raise MismatchError(
                    f"the output {name} has the shape {mine[name].shape}, in the float model {wanted.shape}; expected "
                    "models of the same network"
                )
            real = wanted.astype(np.float64)
            noise[name] = _by_sample(mine[name] - real, samples, mask)
            signal[name] = _by_sample(real, samples, mask)
        self.noise.append(noise)
        self.signal.append(signal)

    def effect(self) -> Effect | None:
        """The effect on what was added; None if no output is of floats."""
        names = tuple(self.noise[0]) if self.noise else ()
        if not names:
            return None
        whole = all(len(each) == 1 for batch in self.noise for each in batch.values())
        per_batch = whole or any(len({len(each) for each in batch.values()}) > 1 for batch in self.noise)
        return Effect(names, *(_joined(names, batches, per_batch) for batches in (self.noise, self.signal)))


def _by_sample(values: Array, samples: int, mask: Mask | None) -> Float64Array:
    """The sum of the squares of `values` for each sample, or in all if axis 0 is not that of the `samples`."""
    squares = np.square(values)
    if mask is not None and fits(mask.shape, squares.shape, -1):
        squares = np.where(np.broadcast_to(mask, squares.shape[:-1])[..., None], squares, 0.0)
    if values.ndim == 0 or len(values) != samples:
        return np.atleast_1d(squares.sum())
    each: Float64Array = squares.reshape(samples, -1).sum(axis=1)
    return each


def _joined(names: Sequence[str], batches: Sequence[Mapping[str, Float64Array]], per_batch: bool) -> Float64Array:
    """float64[outputs, samples], or [outputs, batches]."""
    return np.stack(
        [
            np.concatenate([np.atleast_1d(batch[name].sum()) if per_batch else batch[name] for batch in batches])
            for name in names
        ]
    )
