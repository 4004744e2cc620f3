"""Correcting a quantised ONNX model: the term of each layer, from one pass or layer by layer, added to its bias.

Everything is computed before anything is written. Other users of a weight or a bias keep the value they read. Equal
models and correctors give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, counted, listed
from ...outputs.layer_statistics import LayerStatistics
from ...progress import QUIET, Progress, Stage
from ...ranges.finding import MINMAX
from ...storage.files import remove_folder, write_bytes
from ..advice import ON_COMMAND_LINE, Advice
from ..fingerprints import check_recorded, recorded_in
from ..harm import TRIALS, WORSE, Trials, tell, without
from ..judgement import BY_MOMENTS, CALIBRATED, CORRECTED, ONE_PASS, UNCORRECTED, Judgement
from ..linear import LayerCorrection, tell_approximate
from ..precision import Precision
from ..tensors import terms_bytes
from .accounts import as_correction
from .activations import Activations
from .biases import add_to_biases
from .by_moments import NEAREST, ByMoments
from .by_outputs import FORM, OutputCorrection, Outputs
from .correctors import check_masks, find_correctors, one_pass, strays
from .doubts import unsure
from .files import check_targets, write_models
from .fingerprint import fingerprints
from .graph import copied
from .iterative import Iterative, by_depth, iterative_corrections
from .judge import HeldOut, Judge
from .layers import LeftOut
from .levels import Levels
from .overlap import counted_as, counted_inputs, farthest_apart, shared
from .pairs import kept_factors
from .precision import bias_steps, precision
from .subject import Subject, check_rounded, fake_quantized, marked, quantized_by_others, two_models

if TYPE_CHECKING:
    import onnx

TERMS = ".terms.safetensors"
"""The suffix of the file of terms, in place of the corrected model's own."""


@dataclass(frozen=True)
class How:
    """How to correct beyond one pass.

    `iterative` corrects layer by layer; `outputs` does so from mean outputs, for `correct_outputs` alone. `held_out`
    judges the models on samples that were not recorded. `do_no_harm` leaves out the corrections without which the
    network's outputs are nearer to the float model's on these samples, of which at most `trials` are tried one by one;
    those for which too few samples were counted, unless they clearly help; and all of them if the network is worse with
    them. `fail_if_worse` raises `HarmError` instead of writing a model that is worse than the quantised one. With
    `other_weights`, correctors count although they were recorded from a model with other weights. `advice` is what
    messages and the report say to do. Raises `UsageError` for options that cannot be combined.
    """

    iterative: Iterative | None = None
    held_out: HeldOut | None = None
    do_no_harm: bool = False
    fail_if_worse: bool = False
    trials: int = TRIALS
    outputs: Outputs | None = None
    other_weights: bool = False
    advice: Advice = ON_COMMAND_LINE

    def __post_init__(self) -> None:
        recorded = self.layer_by_layer and self.layer_by_layer.samples
        held_out = self.held_out and self.held_out.samples
        if recorded and held_out and Path(recorded).resolve() == Path(held_out).resolve():
            raise UsageError(f"{held_out} was recorded; judge with samples that were not recorded")
        if self.do_no_harm and self.held_out is None:
            raise UsageError("do_no_harm judges on samples that were not recorded; give held-out samples, `held_out`")
        if self.fail_if_worse and self.held_out is None:
            raise UsageError(
                "fail_if_worse judges on samples that were not recorded; give held-out samples, `held_out`"
            )
        if self.trials < 0:
            raise UsageError(f"trials is {self.trials}; expected 0 or more")
        if self.iterative and self.outputs:
            raise UsageError("outputs correct layer by layer already; leave out iterative")

    @property
    def layer_by_layer(self) -> Iterative | Outputs | None:
        """How to find terms layer by layer; None for one pass."""
        return self.iterative or self.outputs


@dataclass(frozen=True, eq=False)
class Correction:
    """What the correction of `subject` came to: the outcome for every operator with weights, and a `judgement` if there
    are held-out samples. `how` says how it was made, and `differs` how the model that was counted differs from that of
    the subject, if it does.
    """

    layers: Sequence[LayerCorrection]
    subject: Subject
    how: How
    judgement: Judgement | None = None
    differs: str = ""

    @property
    def advice(self) -> Advice:
        """What a report says to do."""
        return _advice(self.subject, self.how)

    def precisions(self, statistics: Mapping[str, LayerStatistics]) -> dict[str, Precision]:
        """Layer → how well its correction is known from its statistics, where that can be told."""
        subject = self.subject
        steps = bias_steps(subject.quantized, subject.pairs)
        found = {
            pair.name: precision(pair, statistics[pair.name], steps.get(pair.name))
            for pair in subject.pairs
            if pair.name in statistics
        }
        return {name: each for name, each in found.items() if each is not None}

    def provenance(self) -> dict[str, Any]:
        """The models, samples and options it was made with, JSON-ready."""
        staged, held_out = self.how.layer_by_layer, self.how.held_out
        return {
            "model": self.subject.name,
            "quantized": self.subject.quantized_name,
            "iterative": FORM if self.how.outputs else self.how.iterative and self.how.iterative.form,
            "samples": staged and str(staged.samples),
            "held_out": held_out and str(held_out.samples),
            "mask": (staged and staged.mask) or (held_out and held_out.mask),
            "do_no_harm": self.how.do_no_harm,
            "other_weights": self.differs or None,
        }


def _advice(subject: Subject, how: How) -> Advice:
    """What to do about a correction of `subject`."""
    staged = how.layer_by_layer is not None
    return how.advice.after(staged=staged, harmless=how.do_no_harm, rounded=subject.rounded)


def correct(
    model_path: str | Path,
    correctors: str | Path,
    output: str | Path | None,
    *,
    bits: int,
    per_channel: bool = False,
    symmetric: bool = False,
    weight_range: str = "minmax",
    rounding: str = NEAREST,
    scale: bool = False,
    activation_bits: int | None = None,
    activation_range: str = MINMAX,
    uncorrected: str | Path | None = None,
    how: How | None = None,
    progress: Progress = QUIET,
) -> Correction:
    """Fake-quantise the weights of the model, and write it to `output` with corrected biases.

    `bits`, `per_channel`, `symmetric` and `weight_range` are those of `fake_quantize`. `correctors` is the folder that
    `streamstats run` leaves. With `rounding` "gram", the weights of a layer are rounded together, by the second moments
    of its inputs (`rounded_codes`); `scale` multiplies the steps of its output channels so that the variances of its
    outputs are those of the float model. Both take the statistic `gram` from `correctors`; layers without it are
    rounded to nearest, and say so. With `activation_bits`, the input of every layer is rounded, too, in the range that
    `find_ranges` finds in that folder by the method `activation_range`. The model rounded to nearest, without
    corrections, is written to `uncorrected`, for comparison. A layer without a corrector is quantised and not
    corrected. Without an `output`, nothing is written; the outcome is the same. The tensors of a model of more than
    2 GB go into a second file, whose name has `.data` appended.

    Raises `UsageError` for bits outside 2…16, an unusable model or folder, and activations without a range;
    `MismatchError` for correctors recorded from another model, or of other channels than the layer's; `DataError` for a
    corrector that is damaged or differs from the manifest; `OutputError`.
    """
    by_moments = ByMoments(correctors, rounding, scale) if scale or rounding != NEAREST else None
    levels = Levels(bits, per_channel, symmetric, weight_range, by_moments)
    activations = None if activation_bits is None else Activations(correctors, activation_bits, activation_range)
    check_targets([model_path], [output, uncorrected])
    subject, how = fake_quantized(model_path, levels, activations), how or How()
    compared = levels.plainer() if how.do_no_harm else levels.plainer()[-1:]
    needed = compared if how.held_out is not None or uncorrected is not None else []
    plainer = [fake_quantized(model_path, each, activations) for each in needed]
    return _with_means(subject, correctors, how, progress, plainer).written(output, uncorrected)


def correct_quantized(
    original: str | Path,
    quantized: str | Path,
    correctors: str | Path,
    output: str | Path | None,
    *,
    how: How | None = None,
    progress: Progress = QUIET,
) -> Correction:
    """Write to `output` the model at `quantized` with corrected biases.

    `original` is the float model that was recorded. A layer without a counterpart in it, or without a corrector, stays
    as it is; its outcome says so. Other arguments and errors as `correct`.
    """
    check_targets([original, quantized], [output])
    subject = quantized_by_others(original, quantized)
    check_rounded(subject)
    how = how or How()
    correcting = _with_means(subject, correctors, how, progress)
    _tell_kept_factors(subject, how.advice, progress)
    return correcting.written(output)


def correct_outputs(
    original: str | Path,
    quantized: str | Path,
    output: str | Path | None,
    *,
    how: How,
    progress: Progress = QUIET,
) -> Correction:
    """Write to `output` the model at `quantized` with `E[y] − E[ŷ]` added to the bias of each layer.

    `how.outputs` says which samples both models run on; nothing need be recorded, and weights play no part: y and ŷ are
    the outputs of the layer in both models, matched by name or by order. Beside `output`, a safetensors file
    (`.terms.safetensors` in place of its suffix) holds the term of each layer. Other arguments and errors as `correct`.
    """
    if how.outputs is None:
        raise UsageError("how.outputs is None; expected the samples that both models run on, `Outputs`")
    check_targets([original, quantized], [output])
    models = two_models(original, quantized)
    found = OutputCorrection(models.original, models.quantized, how.outputs, progress)
    subject = replace(models, pairs=found.pairs, left_out=found.left_out)
    method = _Method(found.terms, found.add, Path(how.outputs.work))
    done = _Correcting(subject, method, how, progress).written(output)
    if output is not None:
        terms = {each.layer: each.term for each in done.layers if each.corrected and each.term is not None}
        write_bytes(Path(output).with_suffix(TERMS), terms_bytes(terms))
    return done


@dataclass(frozen=True, eq=False)
class _Method:
    """How terms are found, and added to a copy of the quantised model.

    `work` is the folder to remove in the end, `out` that of what was counted. `once` are terms to compare those
    `planned` with. `reasons` tell the layers for which too few samples were counted, and `strays` what else is left
    out. `differs` says how the model that was counted differs from the one to correct, `approximate` names the layers
    whose terms are.
    """

    planned: Callable[[], Sequence[LayerCorrection]]
    added: Callable[[onnx.ModelProto, Sequence[LayerCorrection]], list[LayerCorrection]]
    work: Path | None = None
    once: Sequence[LayerCorrection] | None = None
    reasons: Callable[[Sequence[LayerCorrection]], Mapping[str, str]] = lambda _: {}
    strays: Sequence[LeftOut] = ()
    out: Path | None = None
    differs: str = ""
    approximate: Sequence[str] = ()


def _from_means(subject: Subject, out: Path, how: How, progress: Progress, differs: str) -> _Method:
    """Terms from the means of inputs, with the correctors in the folder `out`."""
    found, iterative = find_correctors(out, subject.layers), how.iterative
    if how.outputs is not None:
        raise UsageError("outputs need no correctors; call correct_outputs")
    for mask in (each.mask for each in (iterative, how.held_out) if each is not None):
        check_masks(out, subject.layers, mask)
    once = one_pass(subject.pairs, found)

    def planned() -> Sequence[LayerCorrection]:
        if iterative is None:
            return once
        return iterative_corrections(subject.quantized, subject.pairs, found, iterative, progress, moves=subject.moves)

    return _Method(
        planned,
        lambda model, terms: add_to_biases(model, subject.pairs, terms),
        None if iterative is None else Path(iterative.work),
        None if iterative is None else once,
        lambda terms: unsure(out, subject.pairs, terms),
        list(strays(out, subject.layers)),
        out,
        differs,
        [each.layer for each in once if each.approximate],
    )


class _Correcting:
    """One correction of `subject` by a `method`; the corrections in `plainer` are of weights with less done to them."""

    def __init__(
        self,
        subject: Subject,
        method: _Method,
        how: How,
        progress: Progress,
        plainer: Sequence[_Correcting] = (),
    ) -> None:
        self.subject, self.method, self.how, self.progress, self.plainer = subject, method, how, progress, plainer

    @property
    def plain(self) -> onnx.ModelProto:
        """The quantised model whose weights are rounded to nearest, or as its quantiser left them."""
        return (self.plainer[-1] if self.plainer else self).subject.quantized

    def written(self, output: str | Path | None, uncorrected: str | Path | None = None) -> Correction:
        """Correct, write the models, and drop the work folder of a correction layer by layer."""
        tell_approximate(self.method.approximate, self.progress)
        if self.how.held_out is None:
            return self._written(*self._corrected(self._planned()), None, output, uncorrected)
        with Judge(self.subject.original, self.subject.pairs, self.how.held_out, self.progress) as judge:
            self._tell_repeated(judge, self.how.held_out)
            self._tell_apart(judge, self.how.held_out)
            chosen = self._chosen(judge)
            model, outcomes, judgement = chosen._judged(judge)
        remedy = _advice(chosen.subject, self.how).worse
        tell(judgement, CORRECTED, self.progress, fail=self.how.fail_if_worse, remedy=remedy)
        return chosen._written(model, outcomes, judgement, output, uncorrected)

    def _tell_repeated(self, judge: Judge, held_out: HeldOut) -> None:
        """Warn of held-out samples that calibrated."""
        staged = self.how.layer_by_layer
        number = 0 if staged is None else shared(judge.given, judge.loaded(staged.samples, staged.batch_axes))
        if staged is not None and number:
            of = f"{number:,} of {counted(judge.samples, 'held-out sample')}"
            self.progress.say(f"warning: {of} are among those of {staged.samples}; {CALIBRATED}")
        elif self.method.out is not None and (layer := counted_as(judge.given, self.method.out, self.subject.layers)):
            self.progress.say(
                f"warning: the samples of {held_out.samples} are those that {self.method.out} has counted: layer "
                f"{layer} has as many rows with the same means; {CALIBRATED}"
            )

    def _tell_apart(self, judge: Judge, held_out: HeldOut) -> None:
        """Warn if held-out samples are far larger or smaller than those that calibrated.

        The inputs of the layers that no other one precedes show it best.
        """
        outputs, by_output = self.how.outputs, {each.node.output[0]: each for each in self.subject.layers}
        layers = by_depth(self.subject.original, by_output)[0]
        if outputs is not None:
            calibrated = judge.inputs_of(layers, judge.loaded(outputs.samples, outputs.batch_axes))
        else:
            calibrated = counted_inputs(self.method.out, layers)
        found = farthest_apart(calibrated, judge.inputs_of([each for each in layers if each.name in calibrated]))
        if found is not None:
            source = self.method.out if outputs is None else outputs.samples
            self.progress.say(
                f"warning: the inputs of layer {found.layer} differ in size: the largest mean of a channel is "
                f"{found.calibrated:.3g} over {source}, but {found.held_out:.3g} over {held_out.samples}; check the "
                "preprocessing: both need that of the model in use"
            )

    def _written(
        self,
        model: onnx.ModelProto,
        outcomes: Sequence[LayerCorrection],
        judgement: Judgement | None,
        output: str | Path | None,
        uncorrected: str | Path | None,
    ) -> Correction:
        write_models([(self.plain, uncorrected), (model, output)])
        if self.method.work is not None:
            remove_folder(self.method.work)
        skipped = [as_correction(left) for left in (*self.subject.left_out, *self.method.strays)]
        return Correction([*outcomes, *skipped], self.subject, self.how, judgement, self.method.differs)

    def _chosen(self, judge: Judge) -> _Correcting:
        """With `do_no_harm`, the correction of weights with less done to them if the network is better with it."""
        best = self
        if not (self.how.do_no_harm and self.plainer):
            return best
        every = [self, *self.plainer]
        what = "trying weights " + ", ".join(each.subject.quantized_name for each in every)
        self.progress.begin(Stage(what, judge.samples * len(every)))
        least = judge.effect(self._in_one_pass())
        for each in self.plainer:
            effect = judge.effect(each._in_one_pass())
            if least.gain_over(effect).is_worse:
                self.progress.say(
                    f"note: {each.subject.quantized_name}, not {best.subject.quantized_name}: with those, the "
                    "network's outputs are farther from the float model's on the held-out samples"
                )
                best, least = each, effect
        return best

    def _in_one_pass(self) -> onnx.ModelProto:
        once = self.method.once
        return self._corrected(self.method.planned() if once is None else once)[0]

    def _judged(self, judge: Judge) -> tuple[onnx.ModelProto, list[LayerCorrection], Judgement]:
        """Correct, and judge the models on the samples held out."""
        planned, quantized = self._planned(), self.subject.quantized
        judge.add(UNCORRECTED, self.plain)
        judge.score(UNCORRECTED, self.plain)
        if self.plainer:
            judge.add(BY_MOMENTS, quantized)
            judge.score(BY_MOMENTS, quantized)
        if self.method.once is not None:
            judge.add(ONE_PASS, (in_one_pass := self._corrected(self.method.once)[0]))
            judge.score(ONE_PASS, in_one_pass)
        model, outcomes = self._helpful(planned, judge)
        judge.score(CORRECTED, model)
        return model, outcomes, judge.finish(each.layer for each in outcomes if each.corrected)

    def _planned(self) -> Sequence[LayerCorrection]:
        """The terms, once those for which too few samples were counted are told."""
        planned = self.method.planned()
        few = self.method.reasons(planned)
        if few:
            self.progress.say(f"note: too few samples were counted for the size of the corrections of {listed(few)}")
        return planned

    def _helpful(
        self, planned: Sequence[LayerCorrection], judge: Judge
    ) -> tuple[onnx.ModelProto, list[LayerCorrection]]:
        """The corrected model; with `do_no_harm`, without the corrections that do harm to the network's outputs."""
        model, outcomes = self._corrected(planned)
        terms = _added_terms(outcomes)
        judge.add(CORRECTED, model, terms)
        if not self.how.do_no_harm:
            return model, outcomes
        trials = Trials(judge, lambda those: self._corrected(those)[0], self.how.trials, self.progress)
        if left := trials.harmful(planned, terms, CORRECTED, self.method.reasons(planned)):
            planned = without(planned, left)
            model, outcomes = self._again(planned, judge, f"without the corrections of {listed(left)}")
        if judge.known_effect(CORRECTED).gain_over(judge.known_effect(UNCORRECTED)).is_worse:
            planned = without(planned, dict.fromkeys(terms, WORSE))
            nearest = self.plainer[-1] if self.plainer else self
            model, outcomes = nearest._again(planned, judge, "without any correction: with them, it is worse")
        return model, outcomes

    def _again(
        self, planned: Sequence[LayerCorrection], judge: Judge, why: str
    ) -> tuple[onnx.ModelProto, list[LayerCorrection]]:
        """The model with the `planned` terms, judged in place of the corrected one."""
        model, outcomes = self._corrected(planned)
        judge.add(CORRECTED, model, _added_terms(outcomes), f" again, {why}")
        return model, outcomes

    def _corrected(self, planned: Sequence[LayerCorrection]) -> tuple[onnx.ModelProto, list[LayerCorrection]]:
        """A copy of the quantised model with the `planned` terms in its biases, and what was done for each layer."""
        model = copied(self.subject.quantized)
        outcomes = self.method.added(model, planned)
        return marked(model) if any(each.corrected for each in outcomes) else model, outcomes


def _with_means(
    subject: Subject, correctors: str | Path, how: How, progress: Progress, plainer: Sequence[Subject] = ()
) -> _Correcting:
    """The correction of `subject`; each that is plainer has those after it as plainer ones."""
    differs = check_recorded(
        correctors,
        recorded_in(Path(correctors)),
        fingerprints(subject.original),
        subject.name,
        how.advice.other_weights,
        layers=[layer.name for layer in subject.layers],
        other_weights=how.other_weights,
    )
    if differs:
        progress.say(f"warning: {differs}; the recorded means are used nevertheless")
    others: list[_Correcting] = []
    for each in (*reversed(plainer), subject):
        method = _from_means(each, Path(correctors), how, progress, differs)
        others.insert(0, _Correcting(each, method, how, progress, tuple(others)))
    return others[0]


def _tell_kept_factors(subject: Subject, advice: Advice, progress: Progress) -> None:
    """Warn of weights that are multiples of the float model's, if no layer undoes that."""
    found = kept_factors(subject.pairs)
    if found:
        factors = listed(f"{layer} ({factor:.3g} times)" for layer, factor in found.items())
        progress.say(
            f"warning: weights of {subject.quantized_name} are multiples of the float model's, and no corrected layer "
            f"undoes that: {factors}; unless something else does, the outputs are wrong, and no bias corrects them; "
            f"compare the models ({advice.judge}), or quantise the float model again"
        )


def _added_terms(outcomes: Sequence[LayerCorrection]) -> Mapping[str, Any]:
    return {each.layer: each.term for each in outcomes if each.corrected and each.term is not None}
