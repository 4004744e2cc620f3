"""Correcting a quantised torch model and judging what came of it: before anything in the model is changed.

All candidates are copies of the model. What is added to its biases in the end is what was judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...correction import correction_error
from ...errors import UsageError, counted, listed
from ...outputs.layer_statistics import LayerStatistics
from ...outputs.manifest import MANIFEST
from ...outputs.results import open_results
from ...progress import QUIET, Progress
from ..advice import IN_TORCH, Advice
from ..harm import TRIALS, WORSE, Trials, doubt, tell, without
from ..judgement import CALIBRATED, CORRECTED, ONE_PASS, UNCORRECTED, Judgement
from ..linear import LayerCorrection, tell_approximate
from ..precision import Precision
from .account import Account
from .batches import Batches, HeldOut
from .correcting import mark, planned
from .iterating import Iterative, iterative_corrections
from .judging import Judge
from .planned import Planned, Twin

if TYPE_CHECKING:
    import torch

KEPT = "the quantised model was not changed"


@dataclass(frozen=True, eq=False)
class Correction:
    """What the correction of a torch model came to: the outcome of each layer, and the `judgement`, if any.

    `advice` is what to do, in the words of Python.
    """

    layers: Sequence[LayerCorrection]
    judgement: Judgement | None
    about: Mapping[str, Any]
    advice: Advice

    def precisions(self, statistics: Mapping[str, LayerStatistics]) -> dict[str, Precision]:  # noqa: ARG002
        """None: the steps of biases are those of the engine that will run the model."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """The models and options it was made with, JSON-ready."""
        return dict(self.about)


def correct(
    model: torch.nn.Module,
    quantized: torch.nn.Module,
    correctors: str | Path,
    held_out: HeldOut | None = None,
    *,
    iterative: Iterative | None = None,
    account: Account | None = None,
    other_weights: bool = False,
    do_no_harm: bool = False,
    fail_if_worse: bool = False,
    trials: int = TRIALS,
    progress: Progress = QUIET,
) -> Correction:
    """Correct the biases of `quantized`, in place, as `apply_correctors` does, and judge it on `held_out` batches.

    Without `held_out`, nothing is judged. `iterative` corrects layer by layer instead of in one pass, `account` and
    `other_weights` are those of `apply_correctors`.

    `do_no_harm` leaves out the corrections without which the network's outputs are nearer to the float model's on these
    batches, of which at most `trials` are tried one by one; those for which too few samples were counted, unless they
    clearly help; and all of them if the network is worse with them. `fail_if_worse` raises `HarmError`, and changes
    nothing, if the corrected model is worse than the quantised one; otherwise `progress` says so.

    Raises what `apply_correctors` raises, `UsageError` for batches that cannot be used or a model that cannot be
    copied, and `MismatchError` if the two models return other outputs.
    """
    _check(held_out, iterative, trials, judges=do_no_harm or fail_if_worse)
    own = planned(model, quantized, correctors, account, other_weights=other_weights)
    if own.differs:
        progress.say(f"warning: {own.differs}; the recorded means are used nevertheless")
    judge = None if held_out is None else Judge(model, own.plan, held_out, progress)
    if judge is not None and iterative is not None:
        _tell_repeated(judge, iterative, progress)
    once = [each.correction for each in own.plan]
    tell_approximate([each.layer for each in once if each.approximate], progress)
    plan = once if iterative is None else iterative_corrections(own, iterative, progress)
    advice, judgement = IN_TORCH.after(staged=iterative is not None, harmless=do_no_harm, rounded=True), None
    if judge is not None:
        doubtful = _doubts(Path(correctors), own.plan)
        method = _Judged(own, plan, None if iterative is None else once, judge, trials, doubtful, progress)
        plan = method.chosen(do_no_harm)
        judgement = judge.finish()
        tell(judgement, CORRECTED, progress, fail=fail_if_worse, remedy=advice.worse, kept=KEPT)
    done = own.add({each.layer: each for each in plan})
    mark(quantized, done)
    about = {
        "model": type(model).__name__,
        "quantized": type(quantized).__name__,
        "iterative": iterative and iterative.form,
        "samples": iterative and "the recorded batches",
        "held_out": judge and f"{judge.samples} samples",
        "mask": held_out.mask if held_out is not None and isinstance(held_out.mask, str) else None,
        "do_no_harm": do_no_harm,
        "other_weights": own.differs or None,
    }
    return Correction(done, judgement, about, advice)


def _check(held_out: HeldOut | None, iterative: Iterative | None, trials: int, *, judges: bool) -> None:
    """Raise `UsageError` for options that cannot be combined."""
    if trials < 0:
        raise UsageError(f"trials is {trials}; expected 0 or more")
    if judges and held_out is None:
        raise UsageError("do_no_harm and fail_if_worse judge on samples that were not recorded; give them, `held_out`")
    if held_out is not None and iterative is not None and held_out.batches is iterative.batches:
        raise UsageError("the held-out batches are the recorded ones; judge with samples that were not recorded")


def _tell_repeated(judge: Judge, iterative: Iterative, progress: Progress) -> None:
    """Warn of held-out batches that are among the recorded ones."""
    recorded = set(Batches.of(iterative.batches, "recorded").digests)
    number = sum(digest in recorded for digest in judge.digests)
    if number:
        of = f"{number:,} of {counted(len(judge.digests), 'held-out batch', 'held-out batches')}"
        progress.say(f"warning: {of} are among the recorded ones; {CALIBRATED}")


@dataclass(frozen=True, eq=False)
class _Judged:
    """One correction that is judged: `own` is the quantised model, which stays as it is.

    `planned` are the corrections, `once` those of one pass to compare them with, if they are others.
    """

    own: Twin
    planned: Sequence[LayerCorrection]
    once: Sequence[LayerCorrection] | None
    judge: Judge
    trials: int
    doubtful: Mapping[str, str]
    progress: Progress

    def chosen(self, do_no_harm: bool) -> list[LayerCorrection]:
        """What to add, after judging it; with `do_no_harm`, without the corrections that do harm."""
        plan = [*self.planned]
        if self.doubtful:
            self.progress.say(
                f"note: too few samples were counted for the size of the corrections of {listed(self.doubtful)}"
            )
        self.judge.add(UNCORRECTED, self.own.copied())
        if self.once is not None:
            self.judge.add(ONE_PASS, self._made(self.once))
        self._add(plan, "")
        if not do_no_harm:
            return plan
        terms = {each.layer: each.term for each in plan if each.term is not None}
        trials = Trials(self.judge, self._made, self.trials, self.progress)
        if left := trials.harmful(plan, terms, CORRECTED, self.doubtful):
            plan = without(plan, left)
            self._add(plan, f" again, without the corrections of {listed(left)}")
        if self.judge.known_effect(CORRECTED).gain_over(self.judge.known_effect(UNCORRECTED)).is_worse:
            plan = without(plan, dict.fromkeys(terms, WORSE))
            self._add(plan, " again, without any correction: with them, it is worse")
        return plan

    def _add(self, plan: Sequence[LayerCorrection], note: str) -> None:
        terms = {each.layer: each.term for each in plan if each.term is not None}
        self.judge.add(CORRECTED, self._made(plan), terms, note)

    def _made(self, plan: Sequence[LayerCorrection]) -> Twin:
        """A copy of the quantised model with the terms of the `plan` in its biases."""
        twin = self.own.copied()
        twin.add({each.layer: each for each in plan})
        return twin


def _doubts(out: Path, plan: Sequence[Planned]) -> dict[str, str]:
    """The layers whose correction is likelier to do harm than good, for too few samples were counted → why."""
    if not (out / MANIFEST).exists():
        return {}
    results = open_results(out)
    found = {each.name: _doubt(each, results.statistics(each.name)) for each in plan if each.rounding is not None}
    return {name: reason for name, reason in found.items() if reason}


def _doubt(planned: Planned, statistics: LayerStatistics) -> str:
    rounding, term = planned.rounding, planned.correction.term
    if rounding is None or term is None or statistics.standard_error is None:
        return ""
    layer = rounding.linear
    error = correction_error(
        statistics.standard_error,
        layer.weight,
        rounding.stored,
        layout=layer.layout,
        groups=layer.groups,
        geometry=layer.geometry,
    )
    return doubt(statistics.rows, error, term)
