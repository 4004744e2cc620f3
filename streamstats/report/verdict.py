"""The verdict of a report: the figure that matters most, warnings, sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import counted
from ..models.account import by_reason
from ..models.accuracy import AccuracyGain
from ..models.judgement import BY_MOMENTS, CORRECTED, FLOAT, ONE_PASS, UNCORRECTED
from ..models.linear import LEFT_OUT, WEIGHTLESS

NAMED = 20
"""How many channels, or layers, a sentence names at most."""
DOUBTFUL = 2.0
"""How many times its standard error a correction is, at least, that single samples do not decide."""
HALF = 0.5
"""Of a step: rounding to steps discards that much anyway."""


def headline(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """(what it is about, the figure that matters most, what the figure is): the first thing that a person reads."""
    judged, corrections, layers = report["judgement"], report["correction"], report["layers"]
    if corrections is None:
        rows = [each["rows"] for each in layers.values()]
        return str(report["output"]), counted(len(layers), "layer"), f"counted, with {_from_to(rows)} rows each"
    about = str(report["about"]["quantized"])
    if judged is None:
        done = sum(each["corrected"] for each in corrections.values())
        return about, f"{done:,} of {counted(len(corrections), 'layer')} corrected", "not judged on held-out samples"
    samples = counted(judged["samples"], "held-out sample")
    if judged["accuracy"]:
        float_model, before, after = (100 * judged["accuracy"][name] for name in (FLOAT, UNCORRECTED, CORRECTED))
        return about, f"{before:.1f} → {after:.1f} %", f"accuracy on {samples}; the float model has {float_model:.1f} %"
    before, after = (figure(judged["outputs"][name]["sqnr_db"]) for name in (UNCORRECTED, CORRECTED))
    return about, f"{before} → {after} dB", f"signal-to-quantisation-noise ratio of the outputs on {samples}"


def _from_to(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What is worse than doing nothing, and what to do instead; and whether another model was counted."""
    worse, found = (report["judgement"] or {}).get("worse", {}), list[str]()
    of = {model: ", ".join(reasons) for model, reasons in worse.items() if reasons}
    if CORRECTED in of:
        advice = report["advice"]["worse"]
        found.append(f"The corrected model is worse than the quantised one: {of[CORRECTED]}; {advice}.")
    elif ONE_PASS in of:
        found.append(
            f"One pass would make the network worse than the quantised one: {of[ONE_PASS]}; correct it layer by layer, "
            "as here."
        )
    if BY_MOMENTS in of:
        found.append(
            "Without corrected biases, rounding by second moments is worse than rounding to nearest: "
            f"{of[BY_MOMENTS]}; use these weights with their correction only."
        )
    if report["about"] and report["about"].get("other_weights"):
        found.append(f"The means are those of another model: {report['about']['other_weights']}.")
    return found


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The sentences below the headline."""
    judged, advice, found = report["judgement"], report["advice"], list[str]()
    corrections = [each for each in (report["correction"] or {}).values() if each["outcome"] != WEIGHTLESS]
    nothing_done = bool(corrections) and not any(each["corrected"] for each in corrections)
    if nothing_done:
        found.append(_of_nothing(corrections))
    elif report["about"] and report["about"]["do_no_harm"]:
        found.append(_of_left_out(corrections))
    if judged and not nothing_done:
        found += [
            _of_outputs(judged),
            *_of_accuracy(judged),
            *_of_caveat(judged["caveat"], advice["caveat"]),
            *([f"{_capital(judged['batches'])}."] if judged["batches"] else []),
            _of_harm(judged["harmful"], advice["harm"]),
        ]
    unjudged = by_reason((judged or {}).get("unjudged", {}).items())
    found += [f"Not judged: {_named(layers)}. {_capital(reason)}." for reason, layers in unjudged.items()]
    if not nothing_done:
        found += [_of_samples(report), *_of_few(report)]
    idle = sum(len(each["never_active"]) for each in report["layers"].values())
    if idle:
        found.append(f"{counted(idle, 'channel')} {'is' if idle == 1 else 'are'} never active: zero in every sample.")
    return found


def _of_nothing(corrections: Sequence[Mapping[str, Any]]) -> str:
    left = sum(each["outcome"] == LEFT_OUT for each in corrections)
    why = f"; {left:,} were left out, because they do harm or may" if left else ""
    return (
        f"None of {counted(len(corrections), 'correction')} was made{why}: the model is the quantised one, and the "
        "list “Not corrected” gives the reasons."
    )


def _of_left_out(corrections: Sequence[Mapping[str, Any]]) -> str:
    left = [each["layer"] for each in corrections if each["outcome"] == LEFT_OUT]
    if not left:
        return "No correction was left out: none did harm to the outputs of the network by more than chance."
    return f"Left out, for the reasons under “Not corrected”: {_named(left)}."


def _named(layers: Sequence[str]) -> str:
    return ", ".join(layers[:NAMED]) + (", …" if len(layers) > NAMED else "")


def _of_outputs(judged: Mapping[str, Any]) -> str:
    before, after = (judged["outputs"][name]["sqnr_db"] for name in (UNCORRECTED, CORRECTED))
    gain, error = (judged["network"].get(CORRECTED, {}).get(key) for key in ("gain_db", "standard_error_db"))
    known = "" if gain is None or error is None else f" ({gain:+.2f} ± {error:.2f} dB, paired over samples)"
    shifted, corrected = (_median_shift(judged, name) for name in (UNCORRECTED, CORRECTED))
    return (
        f"On {judged['samples']:,} held-out samples, the signal-to-quantisation-noise ratio of the outputs changes "
        f"from {figure(before)} to {figure(after)} dB{known}, and the mean shift of the median layer from "
        f"{figure(shifted)} to {figure(corrected)}."
    )


def _of_accuracy(judged: Mapping[str, Any]) -> list[str]:
    """How sure the accuracy is, and whether what it gained or lost is more than chance."""
    gain = judged["accuracy_gain"].get(CORRECTED)
    if gain is None:
        return []
    low, high = (100 * end for end in judged["accuracy_interval"][CORRECTED])
    known = AccuracyGain(gain["gained"], gain["lost"], judged["samples"])
    return [
        f"The accuracy of the corrected model is {100 * judged['accuracy'][CORRECTED]:.1f} % (95 % confidence interval "
        f"{low:.1f} to {high:.1f} %).",
        f"The difference from the quantised model, {known.points}, {known.verdict}: {known.counts}.",
    ]


def _of_caveat(caveat: str, advice: str) -> list[str]:
    """What to know of all figures, and what to do about it."""
    return [f"{_capital(caveat)}: {advice}."] if caveat else []


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _median_shift(judged: Mapping[str, Any], model: str) -> float:
    found = [or_nan(models[model]["rms_shift"]) for models in judged["layers"].values() if model in models]
    return float(np.median(found or [np.nan]))


def _of_harm(harmful: Sequence[str], advice: str) -> str:
    if not harmful:
        return "No layer's own outputs would be closer to the float model without its correction."
    return (
        f"Their own outputs would be closer to the float model without their correction: {_named(harmful)}. {advice} "
        "tries what that does to the network."
    )


def _of_samples(report: Mapping[str, Any]) -> str:
    known = {name: each for name, each in report["precision"].items() if each["error_in_steps"] is not None}
    if report["output"] is None:
        return "The precision of corrections from mean outputs is not estimated."
    if report["correction"] is None:
        return f"The precision of corrections is estimated from the models; {report['advice']['models']}."
    if not known:
        return f"The precision of the corrections is unknown{report['advice']['precision']}."
    name, worst = max(known.items(), key=lambda each: float(each[1]["error_in_steps"]))
    steps = figure(worst["error_in_steps"])
    known_to = (
        f"From {worst['rows']:,} samples, the corrections are known to {steps} steps of the bias (standard error of "
        f"the worst layer, {name}, with its input channels treated as independent)"
    )
    if worst["error_in_steps"] <= HALF:
        return f"{known_to}; more samples would change next to nothing."
    needed = f"{worst['rows_for_half_a_step']:,}"
    return (
        f"{known_to}; more samples would still change biases, and about {needed} would bring the error to half a step."
    )


def _of_few(report: Mapping[str, Any]) -> list[str]:
    """What to ask if corrections are not much larger than their standard errors: few samples decide them."""
    doubtful = [
        name
        for name, each in report["precision"].items()
        if each["error_in_steps"] is not None and (each["correction_in_steps"] or 0) < DOUBTFUL * each["error_in_steps"]
    ]
    if not doubtful:
        return []
    return [
        f"Few samples decide the corrections of {_named(doubtful)}, which are less than twice their standard errors; "
        f"{report['advice']['samples']}."
    ]


def figure(value: float | None) -> str:
    """Three significant digits, without an exponent from 0.0001 to a million; a dash for a value that is unknown.

    >>> figure(0.00123), figure(999.7), figure(1036.0), figure(None)
    ('0.00123', '1000', '1040', '–')
    """
    if value is None or value != value:
        return "–"
    digits = f"{value:.3g}"
    return f"{float(digits):.0f}" if 1000 <= abs(float(digits)) < 1e6 else digits


def or_nan(value: float | None, instead: float = math.nan) -> float:
    """`value`, or `instead` if it is unknown."""
    return instead if value is None else value
