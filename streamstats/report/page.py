"""The report: what was counted, how well corrections are known, and what they do, as JSON and as a page of HTML.

The page is self-contained: it loads no script, style or picture from elsewhere. It shows what is in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import require
from ..models.advice import ON_COMMAND_LINE, Advice
from ..models.judgement import BY_MOMENTS, CORRECTED, ONE_PASS, UNCORRECTED, Judgement
from ..models.linear import WEIGHTLESS, LayerCorrection
from ..models.precision import Precision
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.manifest import MANIFEST
from ..outputs.results import open_results
from ..storage.files import write_bytes, write_json
from . import pictures, verdict
from .axis import Axis
from .verdict import HALF, NAMED, figure, or_nan

Float64Array = npt.NDArray[np.float64]
FORMAT = "streamstats.report/1"
MOST_RANKED, MOST_DRAWN = 60, 24
"""How many layers a ranking has, and how many have their channels drawn, at most: those with the largest shift."""
MODELS = (UNCORRECTED, BY_MOMENTS, ONE_PASS, CORRECTED)
"""What is compared with the float model, in this order."""
TERMS = {
    "quantised": "the model with rounded weights, before its biases are corrected",
    "by moments": "the model whose weights are rounded or scaled by the second moments of their inputs, not corrected",
    "one pass": "all layers corrected at once, from the means of the float model",
    "corrected": "the model that was written, or would be",
    "shift": (
        "how far the mean of a layer's outputs is from the float model's, in the whole network: the root of the mean "
        "square over its channels"
    ),
    "SQNR": (
        "signal-to-quantisation-noise ratio: the mean square of the float model's outputs, divided by that of the "
        "error, in decibels; with 10 dB more, the squared error is a tenth"
    ),
    "correction": "what is added to the bias of a channel; figures are those of the channel where they are largest",
    "step": "what one code of the bias is worth; for a bias of floats, what 8-bit inputs would make it",
    "standard error": (
        "how far the correction may be off because only these samples were counted, in steps of the bias; known if the "
        "run counted statistics: [spread]"
    ),
    "never active": "channels of the layer's input that are zero in every sample",
}
"""The words of the page, explained at its end and over the headings of the table."""
REPORT = ".report.html"
"""The suffix of a report, in place of the corrected model's own."""


class Correction(Protocol):
    """What the report needs of a correction, in any format of models."""

    @property
    def layers(self) -> Sequence[LayerCorrection]:
        """The outcome for each layer."""

    @property
    def judgement(self) -> Judgement | None:
        """What judging it gave, if it was judged."""

    @property
    def advice(self) -> Advice:
        """What to do, in the words of the place where it was made."""

    def provenance(self) -> dict[str, Any]:
        """The models, samples and options it was made with, JSON-ready."""

    def precisions(self, statistics: Mapping[str, LayerStatistics]) -> dict[str, Precision]:
        """Layer → how well its correction is known from its statistics."""


def document(
    output: Path | None, correction: Correction | None = None, *, advice: Advice = ON_COMMAND_LINE
) -> dict[str, Any]:
    """The report on the results in `output`, and on a `correction` with its correctors, JSON-ready.

    `advice` is what to do if there is no correction, which has its own.
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
        "advice": asdict(advice if correction is None else correction.advice),
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
    environment.filters |= {"number": figure, "percent": _percent, "channels": _channels}
    judged = report["judgement"]
    template = environment.from_string(files(__package__).joinpath("page.html").read_text())
    return str(
        template.render(
            report=report,
            judged=judged,
            models=_models(judged),
            layers=_rows(report),
            headline=verdict.headline(report),
            warnings=verdict.warnings(report),
            verdicts=verdict.sentences(report),
            pictures=_pictures(judged) if judged and any(judged["layers"].values()) else {},
            terms=TERMS,
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
    return [] if judged is None else [name for name in MODELS if name in judged["outputs"]]


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


Ranked = list[tuple[str, Mapping[str, Mapping[str, Any]]]]
"""(layer, model → quality), the layer with the largest shift first."""


def _pictures(judged: Mapping[str, Any]) -> dict[str, Any]:
    ranked = _ranked(judged)
    return {
        "rankings": {
            "shift": _ranking(ranked[:MOST_RANKED], "rms_shift", logarithmic=True),
            "SQNR": _ranking(ranked[:MOST_RANKED], "sqnr_db"),
        },
        "channels": {name: _drawn(found) for name, found in ranked[:MOST_DRAWN] if found},
        "left_out": max(0, len(ranked) - MOST_RANKED),
        "not_drawn": max(0, len(ranked) - MOST_DRAWN),
    }


def _ranked(judged: Mapping[str, Any]) -> Ranked:
    def shift(layer: tuple[str, Mapping[str, Mapping[str, Any]]]) -> float:
        return or_nan(layer[1].get(UNCORRECTED, {}).get("rms_shift"), 0.0)

    return sorted(judged["layers"].items(), key=shift, reverse=True)


def _ranking(ranked: Ranked, quality: str, *, logarithmic: bool = False) -> dict[str, Any]:
    """An axis with a line for each layer, in the order of `ranked`, and on it a dot for each model that has a place."""
    rows = [(name, {model: or_nan(each[quality]) for model, each in _in_order(found)}) for name, found in ranked]
    axis = Axis.over((value for _, values in rows for value in values.values()), logarithmic=logarithmic)
    lines = []
    for name, values in rows:
        places = {model: place for model, value in values.items() if (place := axis.place(value)) is not None}
        low, high = min(places.values(), default=0.0), max(places.values(), default=0.0)
        dots = [(model, place, values[model]) for model, place in places.items()]
        lines.append({"layer": name, "dots": dots, "low": low, "extent": high - low})
    return {"ticks": axis.ticks, "lines": lines}


def _drawn(found: Mapping[str, Mapping[str, Any]]) -> str:
    return pictures.plot_shifts({model: np.array(list(map(or_nan, each["shift"]))) for model, each in _in_order(found)})


def _in_order(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """(model, quality), from the quantised to the corrected one: the latter is drawn last, so on top."""
    return [(model, found[model]) for model in MODELS if model in found]


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _channels(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more
