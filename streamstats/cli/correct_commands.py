"""What `correct` and `report` do: check which options go together, call the library, print what became of each layer.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DONE, INCOMPLETE, MissingDependencyError, UsageError, counted, listed
from ..models.account import by_reason
from .model_commands import batch_axes
from .progress import Shown
from .stale import say_if_stale
from .tables import number, print_json, print_table, say

if TYPE_CHECKING:
    from ..models.advice import Advice
    from ..models.judgement import Judgement
    from ..models.linear import LayerCorrection
    from ..models.onnx.correct import Correction, How
    from ..models.onnx.subject import Subject

OF_MODELS = (
    *("bits", "per_channel", "symmetric", "weight_range", "rounding", "scale", "activation_bits", "activation_range"),
    *("iterative", "outputs", "samples", "work", "held_out", "labels", "score", "do_no_harm", "trials"),
    *("fail_if_worse", "batch_size", "other_weights", "mask", "batch_axis", "positions_as_rows"),
)
"""Options that say how a model is quantised, corrected and judged."""


def correct(options: Namespace) -> int:
    """`streamstats correct MODEL.onnx [QUANTIZED.onnx | --bits N] --correctors OUT -o FIXED.onnx`, or `--weights …`."""
    _check_correctors(options)
    if options.correctors is not None:
        say_if_stale(options.correctors)
    if options.weights or options.fake_quantized or options.layout:
        _correct_tensors(options)
        return DONE
    from ..models.linear import corrected_none
    from ..models.onnx.correct import TERMS
    from ..report.page import REPORT

    output = Path(options.output)
    page = _checked_page(options.report, output.with_suffix(REPORT))
    correction = _corrected(options, output)
    terms = output.with_suffix(TERMS) if options.outputs else None
    for path in filter(None, (options.output, options.uncorrected, terms)):
        say(f"wrote {path}")
    if not options.json:
        _print_correction(correction)
    refused = any(each.quantized and not (each.corrected or each.uncorrected) for each in correction.layers)
    if refused and options.quantized and not options.outputs:
        say("if a layer was skipped because of its weight, --outputs can correct it from mean outputs")
    written = _reported(page, options.correctors and Path(options.correctors), correction)
    if options.json:
        layers = {each.layer: each.document() for each in correction.layers}
        print_json({"layers": layers, "judgement": written["judgement"], "precision": written["precision"]})
    if not corrected_none(correction.layers):
        return DONE
    say(f"warning: no layer was corrected, for the reasons given; {output} is the quantised model without corrections")
    return INCOMPLETE


def report(options: Namespace) -> None:
    """`streamstats report OUT [--model MODEL.onnx …]`."""
    output, correction = Path(options.correctors), None
    page = _checked_page(options.output, output / "report.html")
    say_if_stale(output)
    if options.model is not None:
        correction = _corrected(options, None)
        if options.iterative is not None:
            say("the report writes no model; `correct` with the same options does, and corrects layer by layer again")
    elif any(getattr(options, name) for name in (*OF_MODELS, "quantized")):
        raise UsageError(
            "options that correct or judge a model, such as --bits and --held-out, need the float model; give it with "
            "--model"
        )
    if correction is not None and not options.json:
        _print_correction(correction)
    written = _reported(page, output, correction)
    if options.json:
        print_json(written)


def _checked_page(wanted: str | None, default: Path) -> Path:
    """The path of the page. Raises `UsageError` for another suffix, and if its JSON would replace a manifest."""
    from ..outputs.manifest import MANIFEST

    if wanted is not None and Path(wanted).suffix != ".html":
        raise UsageError(f"the report's name is {wanted}; expected one that ends in .html (the JSON goes beside it)")
    page = default if wanted is None else Path(wanted)
    if page.with_suffix(".json").name == MANIFEST:
        raise UsageError(f"the JSON beside {page} would replace the run's {MANIFEST}; choose another name")
    return page


def _check_correctors(options: Namespace) -> None:
    """Raise `UsageError` unless there are either correctors or what mean outputs need."""
    if options.outputs == (options.correctors is not None):
        raise UsageError(
            "expected --correctors with the output folder of a run, or --outputs to correct from mean outputs; give "
            "one of them"
        )
    if options.outputs and options.quantized is None:
        raise UsageError("--outputs corrects a model that a quantiser wrote; give it after the float model")


def _reported(page: Path, output: Path | None, correction: Correction | None) -> Mapping[str, Any]:
    """Write the report to `page`, and as JSON beside it; its content."""
    from ..report import page as pages

    document = pages.document(output, correction)
    try:
        beside = pages.write(page, document)
    except MissingDependencyError as error:
        say(f"wrote {page.with_suffix('.json')}, but no page: {error}")
    else:
        say(f"wrote {page} for a browser, and {beside}")
    return document


def subject_of(options: Namespace) -> Subject:
    """The float model and the quantised model that `options` name. Raises `UsageError`."""
    from ..models.onnx.levels import Levels
    from ..models.onnx.subject import fake_quantized, quantized_by_others

    if options.model is None or (options.quantized is None) == (options.bits is None):
        raise UsageError("expected the float model, and either a quantised one or --bits to quantise its weights")
    if options.quantized is not None:
        return quantized_by_others(options.model, options.quantized)
    levels = Levels(options.bits, options.per_channel, options.symmetric, options.weight_range or "minmax")
    return fake_quantized(options.model, levels)


def _corrected(options: Namespace, output: Path | None) -> Correction:
    from ..models.onnx.correct import correct, correct_outputs, correct_quantized

    _check_models(options)
    how = _how(options, output)
    with Shown(brief=True, quiet=options.quiet) as shown:
        if options.outputs:
            return correct_outputs(options.model, options.quantized, output, how=how, progress=shown)
        if options.quantized is not None:
            models = (options.model, options.quantized)
            return correct_quantized(*models, options.correctors, output, how=how, progress=shown)
        return correct(
            options.model,
            options.correctors,
            output,
            bits=options.bits,
            per_channel=options.per_channel,
            symmetric=options.symmetric,
            weight_range=options.weight_range or "minmax",
            rounding=options.rounding or "nearest",
            scale=options.scale,
            activation_bits=options.activation_bits,
            activation_range=options.activation_range or "minmax",
            uncorrected=options.uncorrected,
            how=how,
            progress=shown,
        )


def _check_models(options: Namespace) -> None:
    """Raise `UsageError` unless there are a float model and one way to quantise it."""
    if options.model is None:
        raise UsageError("give the float model that was recorded, or --weights, --fake-quantized and --layout")
    if options.quantized is None and options.bits is None:
        raise UsageError("give a quantised model after the float one, or --bits to quantise its weights here")
    if options.quantized is not None and options.bits is not None:
        raise UsageError("a quantised model and --bits cannot be combined; leave one out")
    levels = options.per_channel or options.symmetric or options.weight_range or options.activation_bits
    if options.quantized is not None and (options.uncorrected or levels):
        raise UsageError(
            "--uncorrected, --per-channel, --symmetric, --weight-range and --activation-bits go with --bits; leave "
            "them out"
        )
    if options.quantized is not None and (options.rounding or options.scale):
        raise UsageError(
            "--rounding and --scale choose weights, and go with --bits; the weights of a quantised model stay as they "
            "are: leave them out"
        )
    if options.scale and not options.per_channel:
        raise UsageError(
            "--scale needs a step for each output channel, but the weights have one per tensor; add --per-channel, or "
            "leave out --scale"
        )
    if options.activation_range and not options.activation_bits:
        raise UsageError("--activation-range goes with --activation-bits; give both, or leave it out")


def _how(options: Namespace, output: Path | None) -> How:
    from ..models.harm import TRIALS
    from ..models.onnx.by_outputs import Outputs
    from ..models.onnx.correct import How
    from ..models.onnx.iterative import Iterative
    from ..models.onnx.judge import HeldOut

    _check_how(options)
    iterative = outputs = held_out = None
    running: dict[str, Any] = {"mask": options.mask, "batch_axes": batch_axes(options.batch_axis)}
    if options.batch_size is not None:
        running["batch_size"] = options.batch_size
    if options.iterative is not None or options.outputs:
        work = options.work or (output or Path(options.correctors) / "report").with_suffix(".work")
        if options.outputs:
            outputs = Outputs(options.samples, work, **running)
        else:
            as_rows = options.positions_as_rows
            iterative = Iterative(options.samples, work, options.iterative, positions_as_rows=as_rows, **running)
    if options.held_out is not None:
        held_out = HeldOut(options.held_out, options.labels, options.score, **running)
    trials = TRIALS if options.trials is None else options.trials
    return How(iterative, held_out, options.do_no_harm, options.fail_if_worse, trials, outputs, options.other_weights)


def _check_how(options: Namespace) -> None:
    """Raise `UsageError` for options without the one that they go with."""
    staged = options.iterative is not None or options.outputs
    if options.iterative is not None and options.outputs:
        raise UsageError("--outputs corrects layer by layer already; leave out --iterative")
    if options.iterative is not None and options.samples is None:
        raise UsageError("--iterative runs the quantised model on the recorded samples; give them with --samples")
    if options.outputs and options.other_weights:
        raise UsageError("--other-weights goes with --correctors, but --outputs uses nothing recorded; leave it out")
    if options.outputs and options.samples is None:
        raise UsageError("--outputs runs both models on samples; give them with --samples")
    if options.samples is not None and not staged:
        raise UsageError(
            "--samples goes with --iterative or --outputs; leave it out, or correct layer by layer with one of these"
        )
    if options.work and not staged:
        raise UsageError("--work goes with --iterative or --outputs; leave it out")
    if not staged and options.held_out is None:
        _check_no_samples(options)
    if options.positions_as_rows and options.iterative is None:
        raise UsageError("--positions-as-rows goes with --iterative, which records; leave it out")
    if (options.do_no_harm or options.fail_if_worse) and options.held_out is None:
        raise UsageError(
            "--do-no-harm and --fail-if-worse judge on samples that were not recorded; give them with --held-out"
        )
    if options.trials is not None and not options.do_no_harm:
        raise UsageError("--trials goes with --do-no-harm; leave it out")
    if (options.labels or options.score) and options.held_out is None:
        raise UsageError("--labels and --score go with --held-out; give samples that were not recorded")


def _check_no_samples(options: Namespace) -> None:
    """Raise `UsageError` for options that say how samples are run."""
    running = "--iterative, --outputs or --held-out"
    if options.mask:
        raise UsageError(f"--mask goes with {running}; one pass takes it from the statistics")
    if options.batch_axis:
        raise UsageError(f"--batch-axis goes with {running}; leave it out")
    if options.batch_size is not None:
        raise UsageError(f"--batch-size goes with {running}; leave it out")


def _print_correction(correction: Correction) -> None:
    """Print what was done for each layer, and how good it is if it was judged."""
    judged = correction.judgement
    models = [] if judged is None else list(judged.outputs)
    columns = ["layer", "operator", "quantised", "corrected", "note", "largest term"]
    shown = [each for each in correction.layers if each.corrected or (judged and each.layer in judged.layers)]
    rows = [_correction_row(each, judged, models) for each in shown]
    print_table([*columns, *(f"SQNR {model}" for model in models)], rows, left=5)
    quantized = [each.corrected for each in correction.layers if each.quantized]
    in_float = sum(each.corrected and not each.quantized for each in correction.layers)
    more = f", and {in_float:,} whose weights are stored as floats" if in_float else ""
    say(f"corrected {sum(quantized):,} of {counted(len(quantized), 'quantised layer')}{more}")
    _say_uncorrected(correction.layers)
    if judged is not None:
        _say_judgement(judged, correction.advice)


def _say_uncorrected(layers: Sequence[LayerCorrection]) -> None:
    """Say what became of the operators with weights that were not corrected, by outcome and reason."""
    outcomes = dict.fromkeys(each.outcome for each in layers if not each.corrected)
    for outcome in outcomes:
        reasons = by_reason((each.layer, each.reason) for each in layers if each.outcome == outcome)
        for reason, names in reasons.items():
            say(f"{outcome}: {listed(names)}: {reason}")


def _correction_row(one: LayerCorrection, judged: Judgement | None, models: Sequence[str]) -> list[str]:
    found = judged.layers.get(one.layer, {}) if judged else {}
    ratios = [f"{found[model].sqnr:.2f}" if model in found else "-" for model in models]
    note = one.note if one.corrected else one.outcome  # the reason is told once, below the table
    done = [one.layer, one.op, _yes(one.quantized), _yes(one.corrected), note]
    return [*done, number(one.largest), *ratios]


def _say_judgement(judged: Judgement, advice: Advice) -> None:
    gains = judged.gains
    for model, quality in judged.outputs.items():
        effect = judged.effects.get(model)
        gain = f" ({gains[model]})" if model in gains else ""
        ratio = quality.sqnr if effect is None else effect.sqnr
        accuracy = f", accuracy {_accuracy(judged, model)}" if model in judged.right else ""
        score = f", score {judged.scores[model]:g}" if model in judged.scores else ""
        say(f"{model}: SQNR of the outputs {ratio:.2f} dB{gain}, shift {quality.size:.4g}{accuracy}{score}")
        for output, each in judged.gains_by_output(model).items() if gain else ():
            say(f"{model}: output {output}: {each}")
    if judged.accuracy:
        on = f"{judged.samples:,} samples, with 95 % confidence intervals; ± is a standard error"
        say(f"float: accuracy {_accuracy(judged, 'float')} on {on}")
    for model, found in judged.accuracy_gains.items():
        say(f"{model}: accuracy {found.points} over the quantised model, which {found.verdict}: {found.counts}")
    if judged.caveat:
        say(f"note: {judged.caveat}: {advice.caveat}")
    if judged.batches:
        say(f"note: {judged.batches}; choose another with --batch-size")
    for reason, names in by_reason(judged.unjudged.items()).items():
        say(f"not judged by their own outputs: {listed(names)}: {reason}")
    if judged.harmful:
        layers = ", ".join(judged.harmful)
        say(
            f"without their correction, the outputs of these layers themselves would be closer to the float model's: "
            f"{layers}; {advice.harm} tests what leaving each out does to the network"
        )


def _accuracy(judged: Judgement, model: str) -> str:
    low, high = judged.accuracy_intervals[model]
    return f"{judged.accuracy[model]:.2%} ({low:.2%} to {high:.2%})"


def _correct_tensors(options: Namespace) -> None:
    from ..models.tensors import correct_tensors

    _check_tensors(options)
    corrections = correct_tensors(
        options.weights, options.fake_quantized, options.correctors, options.output, layouts=options.layout
    )
    if options.json:
        print_json({"layers": {each.layer: each.document() for each in corrections}})
    else:
        rows = [
            [each.layer, _yes(each.corrected), number(each.largest), f"{each.outputs:,}", each.note]
            for each in corrections
        ]
        print_table(["layer", "corrected", "largest term", "outputs", "note"], rows, left=2, ends_in_text=True)
    say(f"wrote {options.output}")


def _check_tensors(options: Namespace) -> None:
    """Raise `UsageError` unless the options for plain tensors, and no others, are there."""
    if not (options.weights and options.fake_quantized and options.layout):
        raise UsageError("--weights, --fake-quantized and --layout go together; give all three")
    if any(getattr(options, name) for name in (*OF_MODELS, "model", "report", "uncorrected")):
        raise UsageError(
            "--weights corrects plain tensors; leave out models, and options that quantise, run or judge them"
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
