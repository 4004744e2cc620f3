"""The report: what was counted, how well corrections are known, and what they do, as JSON and as a page of HTML.

The page needs nothing but itself: no script, style or picture comes from elsewhere. It shows what is in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import counted, require
from ..models.onnx.correct import CORRECTED, ONE_PASS, UNCORRECTED, Correction
from ..models.onnx.precision import Precision, bias_steps, precision
from ..outputs.layer_statistics import LayerStatistics
from ..outputs.manifest import MANIFEST
from ..outputs.results import open_results
from ..storage.files import write_bytes, write_json
from . import pictures

Float64Array = npt.NDArray[np.float64]
FORMAT = "streamstats.report/1"
MOST_RANKED, MOST_DRAWN = 60, 24
"""Layers in a ranking, and layers whose channels are drawn, those with the largest shift first."""
NAMED = 20
"""Channels that are named."""
ERROR = "(standard error, the channels of an input taken for independent; of the worst layer,"
HALF = 0.5
"""Of a step: what rounding to steps takes away anyway."""


REPORT = ".report.html"
"""What is behind the name of a corrected model in that of its report."""


def document(output: Path, correction: Correction | None = None) -> dict[str, Any]:
    """The report, JSON-ready: of the results in `output`, and of a `correction` with their correctors.

    Correctors that came without a manifest have no statistics. Raises `UsageError`, `DataError` for `output`.
    """
    statistics: dict[str, LayerStatistics] = {}
    if correction is None or (output / MANIFEST).exists():
        results = open_results(output)
        statistics = {layer: results.statistics(layer) for layer in results.layers}
    known = {} if correction is None else _precisions(statistics, correction)
    terms = {} if correction is None else {each.layer: each.term for each in correction.layers}
    return {
        "format": FORMAT,
        "output": str(output),
        "streamstats": __version__,
        "about": None if correction is None else correction.provenance(),
        "layers": {name: _layer(found) for name, found in statistics.items()},
        "precision": {name: _precision(found, terms.get(name)) for name, found in known.items()},
        "correction": None if correction is None else {each.layer: each.document() for each in correction.layers},
        "judgement": correction.judgement.document() if correction and correction.judgement else None,
    }


def _layer(found: LayerStatistics) -> dict[str, Any]:
    never = np.flatnonzero((found.minimum == 0) & (found.maximum == 0))
    without = np.flatnonzero(np.isnan(found.mean))
    error = None if found.standard_error is None else float(np.nanmax(found.standard_error, initial=0.0))
    return {
        "rows": found.rows,
        "channels": found.channels,
        "never_active": never.tolist(),
        "without_values": without.tolist(),
        "largest_standard_error": error if error is None or math.isfinite(error) else None,
    }


def _precisions(statistics: Mapping[str, LayerStatistics], correction: Correction) -> dict[str, Precision]:
    subject = correction.subject
    steps = bias_steps(subject.quantized, subject.pairs)
    found = {
        pair.original.name: precision(pair, statistics[pair.original.name], steps.get(pair.original.name))
        for pair in subject.pairs
        if pair.original.name in statistics
    }
    return {name: each for name, each in found.items() if each is not None}


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
    """Write the page to `path` and the JSON beside it, the same name with `.json`; the path of that.

    Raises `OutputError`, `MissingDependencyError`: the JSON is there by then.
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
            pictures=_pictures(judged) if judged else {},
            skipped=[each for each in (report["correction"] or {}).values() if not each["corrected"]],
            before=UNCORRECTED,
            after=CORRECTED,
        )
    )


def _models(judged: Mapping[str, Any] | None) -> list[str]:
    return [] if judged is None else [name for name in (UNCORRECTED, ONE_PASS, CORRECTED) if name in judged["outputs"]]


def _rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the table of layers says, layer by layer."""
    corrections, judged = report["correction"] or {}, report["judgement"] or {"layers": {}, "harmful": []}
    names = dict.fromkeys([*corrections, *report["layers"]])
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
    """What a person wants to know first, in sentences."""
    found = [_of_outputs(report["judgement"])] if report["judgement"] else []
    found += [_of_harm(report["judgement"]["harmful"])] if report["judgement"] else []
    found.append(_of_samples(report))
    idle = sum(len(each["never_active"]) for each in report["layers"].values())
    if idle:
        found.append(f"{counted(idle, 'channel')} {'is' if idle == 1 else 'are'} never active: zero in all samples.")
    return found


def _of_outputs(judged: Mapping[str, Any]) -> str:
    before, after = (judged["outputs"][name]["sqnr_db"] for name in (UNCORRECTED, CORRECTED))
    shifts = [
        np.median(
            [_nan(models[name]["rms_shift"]) for models in judged["layers"].values() if name in models] or [np.nan]
        )
        for name in (UNCORRECTED, CORRECTED)
    ]
    return (
        f"On {judged['samples']:,} samples held out, the signal-to-quantisation-noise ratio of the outputs goes from "
        f"{_number(before)} to {_number(after)} dB, the mean shift of the median layer from {_number(shifts[0])} to "
        f"{_number(shifts[1])}."
    )


def _of_harm(harmful: Sequence[str]) -> str:
    if not harmful:
        return "No layer would be nearer to the float model without its correction."
    names = ", ".join(harmful[:NAMED]) + (", …" if len(harmful) > NAMED else "")
    return f"Nearer to the float model without their correction: {names}. --do-no-harm leaves such layers uncorrected."


def _of_samples(report: Mapping[str, Any]) -> str:
    known = {name: each for name, each in report["precision"].items() if each["error_in_steps"] is not None}
    if not known:
        return (
            "How well the corrections are known is not known: it takes `statistics: [spread]` in the configuration of "
            "the run, and a model to correct."
        )
    name, worst = max(known.items(), key=lambda each: float(each[1]["error_in_steps"]))
    steps = _number(worst["error_in_steps"])
    said = f"From {worst['rows']:,} samples, corrections are known to {steps} steps of the bias"
    if worst["error_in_steps"] <= HALF:
        return f"{said} {ERROR} {name}): more samples would change next to nothing."
    return (
        f"{said} {ERROR} {name}): more samples would still change biases; about "
        f"{worst['rows_for_half_a_step']:,} would bring that to half a step."
    )


def _pictures(judged: Mapping[str, Any]) -> dict[str, Any]:
    ranked = sorted(
        judged["layers"].items(), key=lambda each: -_nan(each[1].get(UNCORRECTED, {}).get("rms_shift"), 0.0)
    )
    shifts = [(name, {model: _nan(q["rms_shift"]) for model, q in found.items()}) for name, found in ranked]
    ratios = [(name, {model: _nan(q["sqnr_db"]) for model, q in found.items()}) for name, found in ranked]
    drawn = {
        name: pictures.plot_shifts({model: np.array([_nan(each) for each in q["shift"]]) for model, q in found.items()})
        for name, found in ranked[:MOST_DRAWN]
        if found
    }
    return {
        "shift": pictures.plot_ranking(shifts[:MOST_RANKED], "mean shift (root mean square)", logarithmic=True),
        "sqnr": pictures.plot_ranking(ratios[:MOST_RANKED], "signal-to-quantisation-noise ratio (dB)"),
        "channels": drawn,
        "left_out": max(0, len(ranked) - MOST_RANKED),
        "not_drawn": max(0, len(ranked) - MOST_DRAWN),
    }


def _nan(value: float | None, instead: float = math.nan) -> float:
    return instead if value is None else value


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _channels(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return ", ".join(map(str, numbers[:NAMED])) + more
