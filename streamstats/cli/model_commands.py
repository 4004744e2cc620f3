"""What each command on models does: call the library, print what comes back.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import RowProgress
from .tables import number, print_json, print_table, say

if TYPE_CHECKING:
    from ..models.onnx.correct import Correction, How, Subject


def record(options: Namespace) -> None:
    """`streamstats record MODEL.onnx --samples FILE -o STORE`."""
    from ..models.onnx.record import record

    with ExitStack() as stack:
        watch = _SampleWatch(stack)
        recorded = record(
            options.model,
            options.samples,
            options.output,
            batch_size=options.batch_size,
            storage=options.storage,
            layers=options.layers,
            append=options.append,
            on_start=watch.start,
            on_progress=watch.advance,
        )
    if options.json:
        print_json({"layers": {layer.layer: layer.document() for layer in recorded}})
    else:
        rows = [[one.layer, one.op, str(one.samples), _shape(one.shape), one.dtype, one.reason] for one in recorded]
        print_table(["layer", "operator", "samples", "shape", "dtype", "left out because"], rows, left=2)
    say(f"wrote {options.output}; `streamstats run` reduces it, with `source: {options.output}` in its configuration")


class _SampleWatch:
    """Shows how many samples have been run; the bar is closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, samples: int) -> None:
        self._progress = self._stack.enter_context(RowProgress(samples))

    def advance(self, samples: int, added_bytes: int) -> None:
        self._progress.advance(samples, added_bytes)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def correct(options: Namespace) -> None:
    """`streamstats correct MODEL.onnx [QUANTIZED.onnx | --bits N] --correctors OUT -o FIXED.onnx`, or `--weights …`."""
    if options.weights or options.fake_quantized or options.layout:
        _correct_tensors(options)
        return
    from ..report.page import REPORT

    output = Path(options.output)
    page = _checked_page(options.report, output.with_suffix(REPORT))
    correction = _corrected(options, output)
    for path in filter(None, (options.output, options.uncorrected)):
        say(f"wrote {path}")
    if not options.json:
        _print_correction(correction)
    written = _reported(page, Path(options.correctors), correction)
    if options.json:
        layers = {each.layer: each.document() for each in correction.layers}
        print_json({"layers": layers, "judgement": written["judgement"], "precision": written["precision"]})


def report(options: Namespace) -> None:
    """`streamstats report OUT [--model MODEL.onnx …]`."""
    from ..errors import UsageError

    output, correction = Path(options.correctors), None
    page = _checked_page(options.output, output / "report.html")
    if options.model is not None:
        correction = _corrected(options, None)
        if options.iterative is not None:
            say("this was found out layer after layer, and no model written; `correct` does it again")
    elif options.quantized or options.bits or options.held_out or options.iterative:
        raise UsageError("what the corrections do is found out of the float model; give it with --model")
    if correction is not None and not options.json:
        _print_correction(correction)
    written = _reported(page, output, correction)
    if options.json:
        print_json(written)


def _checked_page(wanted: str | None, default: Path) -> Path:
    """Where the page goes. Raises `UsageError` for another suffix, and where the JSON beside it would be a manifest."""
    from ..errors import UsageError
    from ..outputs.manifest import MANIFEST

    if wanted is not None and Path(wanted).suffix != ".html":
        raise UsageError(f"the report is to be {wanted}; expected a name with .html (the JSON goes beside it)")
    page = default if wanted is None else Path(wanted)
    if page.with_suffix(".json").name == MANIFEST:
        raise UsageError(f"beside {page} goes {MANIFEST}, which is what a run leaves; choose another name")
    return page


def _reported(page: Path, output: Path, correction: Correction | None) -> Mapping[str, Any]:
    """Write the report to `page`, and the same as JSON beside it: what it says."""
    from ..errors import MissingDependencyError
    from ..report import page as pages

    document = pages.document(output, correction)
    try:
        beside = pages.write(page, document)
    except MissingDependencyError as error:
        say(f"wrote {page.with_suffix('.json')}, and no page: {error}")
    else:
        say(f"wrote {page}, to look at in a browser, and {beside}")
    return document


def subject_of(options: Namespace) -> Subject:
    """The float model and the quantised one that `options` name. Raises `UsageError`."""
    from ..errors import UsageError
    from ..models.onnx.correct import fake_quantized, quantized_by_others
    from ..models.onnx.levels import Levels

    if options.model is None or (options.quantized is None) == (options.bits is None):
        raise UsageError("give the float model, and either a quantised one or --bits to quantise its weights")
    if options.quantized is not None:
        return quantized_by_others(options.model, options.quantized)
    return fake_quantized(options.model, Levels(options.bits, options.per_channel, options.symmetric))


def _corrected(options: Namespace, output: Path | None) -> Correction:
    from ..errors import UsageError
    from ..models.onnx.correct import correct, correct_quantized

    if options.model is None:
        raise UsageError("give the float model that was recorded, or --weights, --fake-quantized and --layout")
    if options.quantized is None and options.bits is None:
        raise UsageError("give a quantised model beside the float one, or --bits to quantise its weights here")
    if options.quantized is not None and options.bits is not None:
        raise UsageError("a quantised model and --bits exclude each other; leave one out")
    if options.quantized is not None and (options.uncorrected or options.per_channel or options.symmetric):
        raise UsageError("--uncorrected, --per-channel and --symmetric go with --bits; leave them out")
    how = _how(options, output)
    with ExitStack() as stack:
        watch = _PartWatch(stack)
        if options.quantized is not None:
            return correct_quantized(options.model, options.quantized, options.correctors, output, how=how, watch=watch)
        return correct(
            options.model,
            options.correctors,
            output,
            bits=options.bits,
            per_channel=options.per_channel,
            symmetric=options.symmetric,
            uncorrected=options.uncorrected,
            how=how,
            watch=watch,
        )


class _PartWatch:
    """Shows one part of a long work after the other; the bar is closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def begin(self, what: str, samples: int) -> None:
        self._stack.close()
        say(what)
        self._progress = self._stack.enter_context(RowProgress(samples, brief=True))

    def advance(self, samples: int) -> None:
        self._progress.advance(samples)


def _how(options: Namespace, output: Path | None) -> How:
    from ..errors import UsageError
    from ..models.onnx.correct import How
    from ..models.onnx.iterative import Iterative
    from ..models.onnx.judge import HeldOut

    if options.iterative is not None and options.samples is None:
        raise UsageError("--iterative runs the quantised model on the recorded samples; give them with --samples")
    if options.samples is not None and options.iterative is None:
        raise UsageError("--samples goes with --iterative; leave it out, or correct layer after layer")
    if options.work and options.iterative is None:
        raise UsageError("--work goes with --iterative; leave it out")
    if (options.labels or options.score) and options.held_out is None:
        raise UsageError("--labels and --score go with --held-out; give samples that were not recorded")
    iterative = held_out = None
    if options.iterative is not None:
        work = options.work or (output or Path(options.correctors) / "report").with_suffix(".work")
        iterative = Iterative(options.samples, work, options.iterative)
    if options.held_out is not None:
        held_out = HeldOut(options.held_out, options.labels, options.score)
    return How(iterative, held_out, options.do_no_harm)


def _print_correction(correction: Correction) -> None:
    """What was done for each layer, and what it does where that was judged."""
    judged = correction.judgement
    models = [] if judged is None else list(judged.outputs)
    rows = []
    for one in correction.layers:
        said = [one.layer, one.op, _yes(one.quantized), _yes(one.corrected), one.change + one.reason]
        found = judged.layers.get(one.layer, {}) if judged else {}
        ratios = [f"{found[model].sqnr:.2f}" if model in found else "-" for model in models]
        rows.append([*said, number(one.largest), *ratios])
    columns = ["layer", "operator", "quantised", "corrected", "note", "largest term"]
    print_table([*columns, *(f"SQNR {model}" for model in models)], rows, left=5)
    if judged is None:
        return
    for model, quality in judged.outputs.items():
        accuracy = f", accuracy {judged.accuracy[model]:.2%}" if model in judged.accuracy else ""
        score = f", score {judged.scores[model]:g}" if model in judged.scores else ""
        say(f"{model}: SQNR of the outputs {quality.sqnr:.2f} dB, shift {quality.size:.4g}{accuracy}{score}")
    if judged.accuracy:
        say(f"float: accuracy {judged.accuracy['float']:.2%} on {judged.samples:,} samples")
    if judged.harmful:
        say(f"nearer to the float model without their correction: {', '.join(judged.harmful)}; see --do-no-harm")


def _correct_tensors(options: Namespace) -> None:
    from ..errors import UsageError
    from ..models.tensors import correct_tensors

    others = (options.model, options.bits, options.iterative, options.samples, options.held_out, options.labels)
    if not (options.weights and options.fake_quantized and options.layout):
        raise UsageError("--weights, --fake-quantized and --layout go together; give all three")
    if any(others) or options.score or options.do_no_harm or options.report or options.uncorrected or options.work:
        raise UsageError("--weights corrects plain tensors: leave out models, --bits, and what runs or judges models")
    corrections = correct_tensors(
        options.weights, options.fake_quantized, options.correctors, options.output, layouts=options.layout
    )
    if options.json:
        print_json({"layers": {each.layer: each.document() for each in corrections}})
    else:
        rows = [
            [each.layer, _yes(each.corrected), number(each.largest), f"{each.outputs:,}", each.reason]
            for each in corrections
        ]
        print_table(["layer", "corrected", "largest term", "outputs", "note"], rows, left=2)
    say(f"wrote {options.output}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# demo


def demo(options: Namespace) -> None:
    """`streamstats demo [DIR]`."""
    from ..demo import show

    outcome = show.run(Path(options.folder), say)
    if options.json:
        print_json(outcome.document())
    else:
        print(outcome.text(_own_name()), end="")


def _own_name() -> str:
    """How a person calls this program again from another folder: its name if that is found, else its path."""
    return "streamstats" if shutil.which("streamstats") else str(Path(sys.argv[0]).resolve())
