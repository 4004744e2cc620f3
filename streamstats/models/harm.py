"""Doing no harm: corrections are judged by what they do to the outputs of the network on held-out samples.

The network is run once without each correction. A correction without which the outputs are nearer to the float model's,
by more than chance, does harm. Harmful corrections are left out, the worst first, while the outputs get nearer; those
for which too few calibration samples were counted, unless the outputs are clearly nearer with them; and all of them, if
the network would still be worse than the quantised one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import HarmError, counted, listed
from ..progress import Progress, Stage
from .effects import Effect, Gain
from .judgement import Judgement
from .linear import LEFT_OUT, LayerCorrection
from .quality import Quality

Model = TypeVar("Model")
Judged = TypeVar("Judged", contravariant=True)
Float64Array = npt.NDArray[np.float64]
HARMFUL = "without it, the network's outputs are nearer to the float model's on the held-out samples"
WORSE = "with the corrections, the network's outputs are farther from the float model's on the held-out samples"
UNWRITTEN = "nothing was written"
UNSURE = "too few samples were counted for its size"
BEYOND_CHANCE = 3.0
"""From how many standard errors on a single correction does harm: one of many that are tried may by chance reach two.
"""
TRIALS = 64
"""How many corrections are tried one by one, unless told otherwise."""


class Judging(Protocol[Judged]):
    """What trials need of a judge of models."""

    @property
    def samples(self) -> int:
        """The number of held-out samples."""

    @property
    def trial_samples(self) -> int:
        """How many samples a trial runs, about."""

    def effect(self, model: Judged, *, trial: bool = False) -> Effect:
        """What `model` does to the outputs of the network; a `trial` runs the first samples only."""

    def known_effect(self, name: str) -> Effect:
        """What the model of this `name`, which was judged, does to the outputs."""

    def local(self, layer: str, name: str) -> Quality | None:
        """How near the outputs of `layer` come to the float model's in the model of this `name`, if known."""


@dataclass(frozen=True, eq=False)
class Trials(Generic[Model]):
    """Tries the network without some corrections: `made` gives the model with those planned, which `judge` judges."""

    judge: Judging[Model]
    made: Callable[[Sequence[LayerCorrection]], Model]
    most: int
    progress: Progress

    def harmful(
        self,
        planned: Sequence[LayerCorrection],
        terms: Mapping[str, Float64Array],
        name: str,
        doubtful: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, str]:
        """The layers whose correction is better left out of those `planned` → why.

        `terms` are those added, in the model that was judged under this `name`. Those that are `doubtful`, for a
        reason, are left out unless the outputs are clearly nearer with them. Raises `UsageError` as `Judge.effect`.
        """
        effect = self.judge.known_effect(name)
        gains = self._gains(planned, self._order(terms, name, doubtful), effect)
        left = {
            layer: why for layer, why in doubtful.items() if layer in terms and not _clearly_helps(gains.get(layer))
        }
        clear = {layer: each for layer, each in gains.items() if layer not in left and _clearly_harms(each)}
        return self._pruned(planned, left, sorted(clear, key=lambda layer: -clear[layer].decibels), effect)

    def _pruned(
        self, planned: Sequence[LayerCorrection], left: Mapping[str, str], suspects: Sequence[str], best: Effect
    ) -> dict[str, str]:
        """`left`, and those of the `suspects`, in order, without which the network gets better still."""
        found = dict(left)
        steps = [*([""] if left else []), *suspects] if suspects else []
        if steps:
            what = f"leaving out what does harm, the worst first: {listed(suspects)}"
            self.progress.begin(Stage(what, self.judge.samples * len(steps), layers=len(suspects)))
        for layer in steps:
            tried = found | ({layer: HARMFUL} if layer else {})
            effect = self.judge.effect(self.made(without(planned, tried)))
            if not layer or effect.gain_over(best).decibels > 0:
                found, best = tried, effect
        return found

    def _gains(self, planned: Sequence[LayerCorrection], order: Sequence[str], best: Effect) -> dict[str, Gain]:
        """What the network gains without each of the first layers in `order`."""
        tried = order[: self.most]
        if len(tried) < len(order):
            self.progress.say(
                f"note: {len(order) - len(tried):,} of {len(order):,} corrections are not tried one by one"
            )
        rows = self.judge.trial_samples * len(tried)
        self.progress.begin(Stage(f"trying the network without each of {counted(len(tried), 'correction')}", rows))
        gains = {}
        for layer in tried:
            effect = self.judge.effect(self.made(without(planned, {layer: HARMFUL})), trial=True)
            gains[layer] = effect.gain_over(best.first(effect.samples))
        return gains

    def _order(self, terms: Mapping[str, Float64Array], name: str, first: Container[str]) -> list[str]:
        """Those to try `first`, those that cannot be judged, then those whose own outputs gain least."""
        return sorted(terms, key=lambda layer: (layer not in first, self._own_gain(layer, terms[layer], name)))

    def _own_gain(self, layer: str, term: Float64Array, name: str) -> float:
        found = self.judge.local(layer, name)
        if found is None:
            return -math.inf
        return found.gained_by(term) / found.noise if found.noise else 0.0


def _clearly_harms(gain_without: Gain) -> bool:
    return gain_without.decibels > 0 and gain_without.exceeds(BEYOND_CHANCE)


def _clearly_helps(gain_without: Gain | None) -> bool:
    return gain_without is not None and gain_without.decibels < 0 and gain_without.is_clear


def without(planned: Sequence[LayerCorrection], reasons: Mapping[str, str]) -> list[LayerCorrection]:
    """What is `planned`, without the terms of the layers in `reasons`, which says why each is left out."""
    return [
        each
        if each.term is None or each.layer not in reasons
        else replace(each, term=None, reason=reasons[each.layer], uncorrected=LEFT_OUT)
        for each in planned
    ]


def doubt(rows: int, error: Float64Array | None, term: Float64Array) -> str:
    """Why a `term` from so many `rows` is likelier to do harm than good; empty if it is not, or if that is not known.

    With the standard error s of a term t over all outputs, the true term has the squared size |t|² − |s|², as estimated
    without bias. Adding t leaves |s|² of it, so it does good from |t|² > 2·|s|² on.
    """
    if error is None or np.square(term).sum() > 2 * np.square(error).sum():
        return ""
    sizes = [float(np.sqrt(np.square(values).mean())) for values in (error, term)]
    return (
        f"{UNSURE}: over {counted(rows, 'row')}, its standard error is {sizes[0]:.2g}, the correction itself "
        f"{sizes[1]:.2g} (root mean squares over outputs); record more samples"
    )


def tell(
    judgement: Judgement, name: str, progress: Progress, *, fail: bool, remedy: str, kept: str = UNWRITTEN
) -> None:
    """Say, before anything is written, whether the model of this `name` is worse than the quantised one, or may be.

    `remedy` says what to do about it, `kept` what has not happened yet. Raises `HarmError` for a worse one if `fail`.
    """
    gain, worse = judgement.gains.get(name), judgement.worse(name)
    on = f"on {counted(judgement.samples, 'held-out sample')}"
    said = f"the corrected model is worse than the quantised one: {', '.join(worse)} {on}"
    if worse and fail:
        raise HarmError(f"{said}; {kept}; {remedy}")
    if worse:
        progress.say(f"warning: {said}; {remedy}")
    elif gain is not None and gain.decibels and not gain.is_clear:
        needed = gain.samples_needed
        more = f"; about {needed:,} samples would tell" if needed else ""
        progress.say(f"note: {on}, the difference from the quantised model, {gain}, may be chance{more}")
    for output, each in judgement.gains_by_output(name).items():
        if each.is_worse and each.is_clear:
            progress.say(f"warning: the output {output} is worse than the quantised model's: {each} {on}")
