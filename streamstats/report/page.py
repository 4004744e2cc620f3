"""The report: what was counted, how well corrections are known, and what they do, as JSON and as a page of HTML.

The page is self-contained: it loads no script, style or picture from elsewhere. It shows what is in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import counted, require
from ..models.judgement import ADVICE, BY_MOMENTS, CORRECTED, ONE_PASS, UNCORRECTED, Judgement
from ..models.linear import WEIGHTLESS, LayerCorrection
from ..models.precision import Precision
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.manifest import MANIFEST
from ..outputs.results import open_results
from ..storage.files import write_bytes, write_json
from . import pictures

Float64Array = npt.NDArray[np.float64]
FORMAT = "streamstats.report/1"
MOST_RANKED, MOST_DRAWN = 60, 24
"""How many layers a ranking has, and how many have their channels drawn, at most: those with the largest shift."""
NAMED = 20
"""How many channels, or layers, a sentence names at most."""
HALF = 0.5
"""Of a step: rounding to steps discards that much anyway."""
REPORT = ".report.html"
"""The suffix of a report, in place of the corrected model's own."""


class Correction(Protocol):
    """What the report needs of a correction, in any format of models.

    `advice` says what to do about a worse model (`worse`) and about harmful corrections (`harm`), and how to know the
    precision of corrections (`precision`).
    """

    @property
    def layers(self) -> Sequence[LayerCorrection]:
        """The outcome for each layer."""

    @property
    def judgement(self) -> Judgement | None:
        """What judging it gave, if it was judged."""

    @property
    def advice(self) -> Mapping[str, str]:
        """What to do, in the words of the format."""

    def provenance(self) -> dict[str, Any]:
        """The models, samples and options it was made with, JSON-ready."""

    def precisions(self, statistics: Mapping[str, LayerStatistics]) -> dict[str, Precision]:
        """Layer → how well its correction is known from its statistics."""


def document(output: Path | None, correction: Correction | None = None) -> dict[str, Any]:
    """The report on the results in `output`, and on a `correction` with its correctors, JSON-ready.

    A correction from mean outputs has no correctors, and no `output`. Correctors without a manifest have no statistics.
    Raises `UsageError`, `DataError` for `output`.
    """
    statistics: dict[str, LayerStatistics] = {}
    if output is not None and (correction is None or (output / MANIFEST).exists()):
        results = open_results(output)
        statistics = {layer: results.statistics(layer) for layer in results.layers}
    known = {} if correction is None else correction.precisions(statistics)
    terms = {} if correction is None else {each.layer: each.term for each in correction.layers}
    return {
        "format": FORMAT,
        "output": None if output is None else str(output),
        "streamstats": __version__,
        "about": None if correction is None else correction.provenance(),
        "layers": {name: _layer(found) for name, found in statistics.items()},
        "precision": {name: _precision(found, terms.get(name)) for name, found in known.items()},
        "correction": None if correction is None else {each.layer: each.document() for each in correction.layers},
        "judgement": correction.judgement.document() if correction and correction.judgement else None,
        "advice": dict(ADVICE if correction is None else correction.advice),
    }


def _layer(found: LayerStatistics) -> dict[str, Any]:
    never = np.flatnonzero((found.minimum == 0) & (found.maximum == 0))
    without = np.flatnonzero(np.isnan(found.mean))
    error = None if found.standard_error is None else float(np.nanmax(found.standard_error, initial=0.0))
    return {
        "rows": found.rows,
        "rows_are": found.rows_are or "samples",
        "units": found.units or None,
        "notes": found.notes,
        "channels": found.channels,
        "never_active": never.tolist(),
        "without_values": without.tolist(),
        "largest_standard_error": error if error is None or math.isfinite(error) else None,
    }


def _precision(found: Precision, term: Float64Array | None) -> dict[str, Any]:
    known = math.isfinite(found.in_steps)
    return {
        "rows": found.rows,
        "correction_in_steps": None if term is None else found.in_its_steps(np.abs(term)),
        "least_step": float(found.step.min(initial=math.inf)),
        "largest_step": float(found.step.max(initial=0.0)),
        "error_in_steps": found.in_steps if known else None,
        "rows_for_half_a_step": math.ceil(found.rows_for(HALF)) if known else None,
    }


def write(path: Path, report: Mapping[str, Any]) -> Path:
    """Write the JSON beside `path`, under the same name with `.json`, then the page to `path`; return the JSON's path.

    Raises `OutputError`, and `MissingDependencyError` once the JSON is written.
    """
    beside = path.with_suffix(".json")
    write_json(beside, report)
    write_bytes(path, page(report).encode())
    return beside


def page(report: Mapping[str, Any]) -> str:
    """The page of HTML. Raises `MissingDependencyError`."""
    environment = require("jinja2", "plot").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "percent": _percent, "channels": _channels}
    judged = report["judgement"]
    template = environment.from_string(files(__package__).joinpath("page.html").read_text())
    return str(
        template.render(
            report=report,
            judged=judged,
            models=_models(judged),
            layers=_rows(report),
            verdicts=_verdicts(report),
            pictures=_pictures(judged) if judged and any(judged["layers"].values()) else {},
            skipped=_skipped(report["correction"] or {}),
            before=UNCORRECTED,
            after=CORRECTED,
        )
    )


def _skipped(corrections: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(outcome, reason) → the operators with weights that were not corrected for it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, each in corrections.items():
        if not each["corrected"]:
            operator = f" ({each['operator']})" if each["operator"] else ""
            found.setdefault((each["outcome"], each["reason"]), []).append(name + operator)
    return found


def _models(judged: Mapping[str, Any] | None) -> list[str]:
    names = (UNCORRECTED, BY_MOMENTS, ONE_PASS, CORRECTED)
    return [] if judged is None else [name for name in names if name in judged["outputs"]]


def _rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of layers."""
    corrections, judged = report["correction"] or {}, report["judgement"] or {"layers": {}, "harmful": []}
    layers = [name for name, each in corrections.items() if each["outcome"] != WEIGHTLESS]
    names = dict.fromkeys([*layers, *report["layers"]])
    return [
        {
            "layer": name,
            "correction": corrections.get(name),
            "statistics": report["layers"].get(name),
            "precision": report["precision"].get(name),
            "quality": judged["layers"].get(name),
            "harmful": name in judged["harmful"],
        }
        for name in names
    ]


def _verdicts(report: Mapping[str, Any]) -> list[str]:
    """The sentences at the top: what a person wants to know first."""
    judged, advice, found = report["judgement"], report["advice"], list[str]()
    worse = (judged or {}).get("worse", {}).get(CORRECTED, [])
    if worse:
        found.append(f"The corrected model is worse than the quantised one: {', '.join(worse)}; {advice['worse']}.")
    if judged:
        found += [_of_outputs(judged), _of_harm(judged["harmful"], advice["harm"])]
    unjudged = (judged or {}).get("unjudged", {})
    found += [f"Not judged: {layer}. {reason[0].upper()}{reason[1:]}." for layer, reason in unjudged.items()]
    found.append(_of_samples(report))
    idle = sum(len(each["never_active"]) for each in report["layers"].values())
    if idle:
        found.append(f"{counted(idle, 'channel')} {'is' if idle == 1 else 'are'} never active: zero in every sample.")
    return found


def _of_outputs(judged: Mapping[str, Any]) -> str:
    before, after = (judged["outputs"][name]["sqnr_db"] for name in (UNCORRECTED, CORRECTED))
    gain, error = (judged["network"].get(CORRECTED, {}).get(key) for key in ("gain_db", "standard_error_db"))
    known = "" if gain is None or error is None else f" ({gain:+.2f} ± {error:.2f} dB, paired over samples)"
    shifted, corrected = (_median_shift(judged, name) for name in (UNCORRECTED, CORRECTED))
    return (
        f"On {judged['samples']:,} held-out samples, the signal-to-quantisation-noise ratio of the outputs changes "
        f"from {_number(before)} to {_number(after)} dB{known}, and the mean shift of the median layer from "
        f"{_number(shifted)} to {_number(corrected)}."
    )


def _median_shift(judged: Mapping[str, Any], model: str) -> float:
    found = [_nan(models[model]["rms_shift"]) for models in judged["layers"].values() if model in models]
    return float(np.median(found or [np.nan]))


def _of_harm(harmful: Sequence[str], advice: str) -> str:
    if not harmful:
        return "No layer's own outputs would be closer to the float model without its correction."
    names = ", ".join(harmful[:NAMED]) + (", …" if len(harmful) > NAMED else "")
    return (
        f"Their own outputs would be closer to the float model without their correction: {names}. {advice} tries what "
        "that does to the network."
    )


def _of_samples(report: Mapping[str, Any]) -> str:
    known = {name: each for name, each in report["precision"].items() if each["error_in_steps"] is not None}
    if not known:
        return f"The precision of the corrections is unknown{report['advice']['precision']}."
    name, worst = max(known.items(), key=lambda each: float(each[1]["error_in_steps"]))
    steps = _number(worst["error_in_steps"])
    known_to = (
        f"From {worst['rows']:,} samples, the corrections are known to {steps} steps of the bias (standard error of "
        f"the worst layer, {name}, with its input channels treated as independent)"
    )
    if worst["error_in_steps"] <= HALF:
        return f"{known_to}; more samples would change next to nothing."
    needed = f"{worst['rows_for_half_a_step']:,}"
    return f"{known_to}; more samples would still change biases, and about {needed} would reduce it to half a step."


Ranked = list[tuple[str, Mapping[str, Mapping[str, Any]]]]
"""(layer, model → quality), the layer with the largest shift first."""


def _pictures(judged: Mapping[str, Any]) -> dict[str, Any]:
    ranked = _ranked(judged)
    shifts, ratios = (_values(ranked[:MOST_RANKED], quality) for quality in ("rms_shift", "sqnr_db"))
    return {
        "shift": pictures.plot_ranking(shifts, "mean shift (root mean square)", logarithmic=True),
        "sqnr": pictures.plot_ranking(ratios, "signal-to-quantisation-noise ratio (dB)"),
        "channels": {name: _drawn(found) for name, found in ranked[:MOST_DRAWN] if found},
        "left_out": max(0, len(ranked) - MOST_RANKED),
        "not_drawn": max(0, len(ranked) - MOST_DRAWN),
    }


def _ranked(judged: Mapping[str, Any]) -> Ranked:
    def shift(layer: tuple[str, Mapping[str, Mapping[str, Any]]]) -> float:
        return _nan(layer[1].get(UNCORRECTED, {}).get("rms_shift"), 0.0)

    return sorted(judged["layers"].items(), key=shift, reverse=True)


def _values(ranked: Ranked, quality: str) -> list[tuple[str, dict[str, float]]]:
    return [(name, {model: _nan(each[quality]) for model, each in found.items()}) for name, found in ranked]


def _drawn(found: Mapping[str, Mapping[str, Any]]) -> str:
    return pictures.plot_shifts({model: np.array(list(map(_nan, each["shift"]))) for model, each in found.items()})


def _nan(value: float | None, instead: float = math.nan) -> float:
    return instead if value is None else value


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _channels(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more
