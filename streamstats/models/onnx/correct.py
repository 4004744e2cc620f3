"""Correcting a quantised ONNX model: the term of each layer, found once or layer after layer, added to its bias.

Everything is computed before anything is written. What else uses a weight or a bias keeps the value it had. The same
models and correctors give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, first_line, require
from ...storage.files import remove_folder
from .files import check_targets, fits_one_file, write_models
from .graph import LeftOut, LinearLayer, copied, load_model, survey
from .iterative import Iterative, iterative_repairs
from .judge import HeldOut, Judge, Judgement
from .levels import Levels
from .quantized import Pair, is_quantized, pairs, quantized_layers, weight_steps
from .repair import LayerCorrection, apply_repairs
from .run import Watch
from .terms import Repair, find_correctors, repairs_of, strays

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 7
MARK = "streamstats.corrected"
"""The key in the metadata of a model that is corrected."""
HARMFUL = "it would make the layer worse on the samples held out"
UNCORRECTED, ONE_PASS, CORRECTED = "quantised", "one pass", "corrected"
"""What models are called in a judgement, beside `float`."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A float model and what was made of it: the layers of both in `pairs`, others in `left_out`; their names."""

    name: str
    quantized_name: str
    original: onnx.ModelProto
    quantized: onnx.ModelProto
    layers: Sequence[LinearLayer]
    pairs: Sequence[Pair]
    left_out: Sequence[LeftOut]


@dataclass(frozen=True)
class How:
    """How to correct beyond one pass: `iterative`; judged on samples `held_out`; layers that get worse left alone."""

    iterative: Iterative | None = None
    held_out: HeldOut | None = None
    do_no_harm: bool = False

    def __post_init__(self) -> None:
        if (
            self.iterative
            and self.held_out
            and Path(self.iterative.samples).resolve() == Path(self.held_out.samples).resolve()
        ):
            raise UsageError(f"{self.held_out.samples} was recorded; to judge by, give samples that were not")
        if self.do_no_harm and self.held_out is None:
            raise UsageError("to do no harm takes samples held out from the calibration; give some")


@dataclass(frozen=True, eq=False)
class Correction:
    """The outcome for each linear layer of `subject`, `how` it came about, and how good the models are on samples held
    out, if there were any.
    """

    layers: Sequence[LayerCorrection]
    subject: Subject
    how: How
    judgement: Judgement | None = None

    def provenance(self) -> dict[str, Any]:
        """What it is about, JSON-ready."""
        iterative, held_out = self.how.iterative, self.how.held_out
        return {
            "model": self.subject.name,
            "quantized": self.subject.quantized_name,
            "iterative": iterative and iterative.form,
            "samples": iterative and str(iterative.samples),
            "held_out": held_out and str(held_out.samples),
            "do_no_harm": self.how.do_no_harm,
        }


def fake_quantized(model_path: str | Path, levels: Levels) -> Subject:
    """The model at `model_path`, and the same with its weights on `levels`. Raises `UsageError`."""
    original = load_model(model_path)
    _check_opset(original, model_path)
    _check_uncorrected(original, model_path)
    layers, left_out = survey(original)
    on_levels = levels.pairs(layers)
    said = f"weights of {levels.bits} bits {'per channel' if levels.per_channel else 'per tensor'}"
    return Subject(
        str(model_path), said, original, levels.put_into(copied(original), on_levels), layers, on_levels, left_out
    )


def quantized_by_others(original_path: str | Path, quantized_path: str | Path) -> Subject:
    """The float model that was recorded, and what a quantiser made of it. Raises `UsageError`."""
    original, quantized = load_model(original_path), load_model(quantized_path)
    _check_valid(quantized, quantized_path)
    _check_uncorrected(quantized, quantized_path)
    if is_quantized(original):
        raise UsageError(f"{original_path} is quantised; expected the float model first, then the quantised one")
    layers, _ = survey(original)
    stored, left_out = quantized_layers(quantized)
    matched, without = pairs(original, layers, stored, weight_steps(quantized, stored))
    if not matched:
        raise UsageError(
            f"no layer of {quantized_path} has a weight near to one of {original_path}; expected models of one network"
        )
    unmatched = [
        LeftOut(layer.name, layer.op, "no layer of the float model has a weight that is near to its own")
        for layer in without
    ]
    return Subject(
        str(original_path), str(quantized_path), original, quantized, layers, matched, [*left_out, *unmatched]
    )


def correct(
    model_path: str | Path,
    correctors: str | Path,
    output: str | Path | None,
    *,
    bits: int,
    per_channel: bool = False,
    symmetric: bool = False,
    uncorrected: str | Path | None = None,
    how: How | None = None,
    watch: Watch | None = None,
) -> Correction:
    """Fake-quantise the weights of the model, and write it to `output` with corrected biases.

    `correctors` is the folder that `streamstats run` leaves. `uncorrected` is where to write the model with
    fake-quantised weights alone, for comparison. A layer without a corrector is quantised and not corrected. Without
    an `output`, nothing is written, and the outcome is what it would be. A model of more than 2 GB gets its tensors in
    a file beside it, of the same name with `.data` behind it. `watch` is told of what takes long.

    Raises `UsageError` for bits outside 2…16, a model or a folder that is not usable; `MismatchError` for a corrector
    whose channels are not the layer's; `DataError` for one that is damaged, or not that of the manifest; `OutputError`.
    """
    levels = Levels(bits, per_channel, symmetric)
    check_targets([model_path], [output, uncorrected])
    subject = fake_quantized(model_path, levels)
    return _correct(subject, Path(correctors), output, uncorrected, how or How(), watch)


def correct_quantized(
    original: str | Path,
    quantized: str | Path,
    correctors: str | Path,
    output: str | Path | None,
    *,
    how: How | None = None,
    watch: Watch | None = None,
) -> Correction:
    """Write to `output` the model at `quantized` with corrected biases.

    `original` is the float model that was recorded. A layer that has no counterpart in it, or no corrector, is left as
    it is and says so. Other arguments and errors as `correct`.
    """
    check_targets([original, quantized], [output])
    subject = quantized_by_others(original, quantized)
    return _correct(subject, Path(correctors), output, None, how or How(), watch)


def _correct(
    subject: Subject,
    correctors: Path,
    output: str | Path | None,
    uncorrected: str | Path | None,
    how: How,
    watch: Watch | None,
) -> Correction:
    found = find_correctors(correctors, subject.layers)
    once = repairs_of(subject.pairs, found)
    if how.held_out is None:
        model, outcomes = _repaired(subject, _repairs(subject, found, once, how, watch))
        judgement = None
    else:
        with Judge(subject.original, subject.pairs, how.held_out, watch) as judge:  # whose samples are checked first
            repairs = _repairs(subject, found, once, how, watch)
            judge.add(UNCORRECTED, subject.quantized)
            judge.score(UNCORRECTED, subject.quantized)
            if how.iterative is not None:
                judge.add(ONE_PASS, (in_one_pass := _repaired(subject, once)[0]))
                judge.score(ONE_PASS, in_one_pass)
            model, outcomes = _helpful(subject, repairs, judge, harm_allowed=not how.do_no_harm)
            judge.score(CORRECTED, model)
            judgement = judge.finish()
    write_models([(subject.quantized, uncorrected), (model, output)])
    if how.iterative is not None:
        remove_folder(Path(how.iterative.work))
    others = [*subject.left_out, *strays(correctors, subject.layers)]
    passed_over = [LayerCorrection(left.name, left.op, reason=left.reason) for left in others]
    return Correction([*outcomes, *passed_over], subject, how, judgement)


def _repairs(
    subject: Subject, correctors: Mapping[str, Path], once: Sequence[Repair], how: How, watch: Watch | None
) -> Sequence[Repair]:
    """Those of one pass, or those found layer after layer."""
    if how.iterative is None:
        return once
    return iterative_repairs(subject.quantized, subject.pairs, correctors, how.iterative, watch)


def _helpful(
    subject: Subject, repairs: Sequence[Repair], judge: Judge, *, harm_allowed: bool
) -> tuple[onnx.ModelProto, list[LayerCorrection]]:
    """The corrected model; without the corrections that do harm, unless it is allowed.

    Leaving one out changes what later layers get, so it is judged again until none does harm.
    """
    while True:
        model, outcomes = _repaired(subject, repairs)
        terms = {each.layer: each.term for each in outcomes if each.corrected and each.term is not None}
        harmful = judge.add(CORRECTED, model, terms)
        if harm_allowed or not harmful:
            return model, outcomes
        repairs = [
            replace(each, term=None, reason=HARMFUL) if each.pair.original.name in harmful else each for each in repairs
        ]


def _repaired(subject: Subject, repairs: Sequence[Repair]) -> tuple[onnx.ModelProto, list[LayerCorrection]]:
    model = copied(subject.quantized)
    return _marked(model), apply_repairs(model, repairs)


def _is_same(one: str | Path, other: str | Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _marked(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place, which says that it is corrected: to correct it again would spoil it."""
    model.metadata_props.add(key=MARK, value="biases")
    return model


def _check_uncorrected(model: onnx.ModelProto, path: str | Path) -> None:
    if any(entry.key == MARK for entry in model.metadata_props):
        raise UsageError(f"{path} has been corrected already; give the model as its quantiser left it")


def _check_valid(model: onnx.ModelProto, path: str | Path) -> None:
    """Raise `UsageError` for what no runtime takes; quantisers write it where the operator set is too old for them."""
    if not fits_one_file(model):
        return
    try:
        require("onnx", "onnx").checker.check_model(model)
    except Exception as error:
        raise UsageError(
            f"{path} is not a valid ONNX model: {first_line(error)}; convert the float model to operator set 13 or "
            "later (onnx.version_converter), and quantise it again"
        ) from error


def _check_opset(model: onnx.ModelProto, path: str | Path) -> None:
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), OLDEST_OPSET)
    if version < OLDEST_OPSET:
        raise UsageError(
            f"{path} has the operator set {version}; expected {OLDEST_OPSET} or later: convert it with "
            "onnx.version_converter"
        )
