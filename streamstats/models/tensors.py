"""Plain tensors: the corrections of weights in safetensors files, for any other tool chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..correction import BiasCorrector, MeanBiasCorrector, PositionBiasCorrector
from ..errors import MismatchError, UsageError
from ..layouts import BY_GROUP, TRANSPOSED, input_channels
from ..outputs.results import open_results
from ..storage.files import check_apart, write_bytes
from ..storage.tensors import read_plain_tensors, tensors_bytes

FORMAT = "streamstats.corrections/1"
WEIGHT, FAKE_QUANTIZED = ".weight", ".fake_quantized"
"""What may stand behind a layer's name in the files."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorCorrection:
    """The outcome for a layer: the `largest` magnitude of its correction over `outputs` channels, or the `reason` why
    there is none.
    """

    layer: str
    corrected: bool = False
    reason: str = ""
    largest: float = 0.0
    outputs: int = 0

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "corrected": self.corrected,
            "reason": self.reason,
            "largest_term": self.largest,
            "outputs": self.outputs,
        }


def correct_tensors(
    weights: str | Path,
    fake_quantized: str | Path,
    correctors: str | Path,
    output: str | Path,
    *,
    layouts: Sequence[str],
) -> list[TensorCorrection]:
    """Write to `output`, safetensors, what to add to the bias of each layer: its name → float64[outputs].

    `weights` and `fake_quantized` are safetensors files (they may be the same) with a tensor for each layer, called as
    the layer is, or with `.weight` and `.fake_quantized` behind it. `layouts` are words of
    `MeanBiasCorrector.calculate`, each for all layers or, as `GLOB=LAYOUT`, for some; of several that fit the number of
    axes, the first counts. Groups follow from the channels, but
    for transposed convolutions, which are refused. As nothing here tells padding and strides, correctors
    with positions are used with their channel means.

    Raises `UsageError` for a layout that is not known, files without common tensors, tensors of dtypes without numpy,
    `MismatchError` for shapes that do not fit, `DataError` for files that are damaged, `OutputError`.
    """
    check_apart([weights, fake_quantized], output)
    terms, outcomes = tensor_terms(weights, fake_quantized, correctors, layouts=layouts)
    write_bytes(Path(output), terms_bytes(terms))
    return outcomes


def tensor_terms(
    weights: str | Path, fake_quantized: str | Path, correctors: str | Path, *, layouts: Sequence[str]
) -> tuple[dict[str, Array], list[TensorCorrection]]:
    """What to add to the bias of each layer, float64[outputs], and the outcomes. Arguments as `correct_tensors`."""
    rules = [_rule(each) for each in layouts]
    results = open_results(Path(correctors))
    for glob, layout in rules:
        if not any(fnmatchcase(layer, glob) for layer in results.layers):
            raise UsageError(f"--layout {glob}={layout} fits no layer; the layers are {', '.join(results.layers)}")
    mine, theirs = read_plain_tensors(Path(weights)), read_plain_tensors(Path(fake_quantized))
    terms: dict[str, Array] = {}
    outcomes = []
    for layer in results.layers:
        reason, term = _term(layer, results.corrector_path(layer), mine, theirs, rules)
        if term is not None:
            terms[layer] = term
        largest = 0.0 if term is None else float(np.abs(term).max(initial=0.0))
        outcomes.append(TensorCorrection(layer, term is not None, reason, largest, 0 if term is None else term.size))
    if not terms:
        raise UsageError(
            f"{weights} and {fake_quantized} have no weights of a layer that has a corrector; the layers are "
            f"{', '.join(results.layers)}: expected tensors called LAYER, LAYER{WEIGHT}, LAYER{FAKE_QUANTIZED}"
        )
    return terms, outcomes


def terms_bytes(terms: Mapping[str, Array]) -> bytes:
    """The file of `terms`, by layer."""
    return tensors_bytes(terms, {"format": FORMAT})


def _rule(text: str) -> tuple[str, str]:
    """(glob, layout). Raises `UsageError`."""
    glob, separator, layout = text.rpartition("=")
    if layout not in BY_GROUP:
        raise UsageError(f"layout {layout!r} is not known; expected one of {', '.join(BY_GROUP)}, or GLOB=LAYOUT")
    return (glob if separator else "*"), layout


def _term(
    layer: str,
    path: Path | None,
    weights: Mapping[str, Array],
    fake_quantized: Mapping[str, Array],
    rules: Sequence[tuple[str, str]],
) -> tuple[str, Array | None]:
    """(why there is nothing to add, None), or ("", the term)."""
    weight = _first(weights, layer, layer + WEIGHT)
    quantized = _first(fake_quantized, layer + FAKE_QUANTIZED, layer, layer + WEIGHT)
    if path is None:
        return "no corrector: the run found no mean", None
    if weight is None or quantized is None:
        return f"no tensor {layer} or {layer}{WEIGHT if weight is None else FAKE_QUANTIZED}", None
    corrector = BiasCorrector.load(path)
    if not isinstance(corrector, MeanBiasCorrector | PositionBiasCorrector):
        return "its corrector is null", None
    fitting = [layout for glob, layout in rules if fnmatchcase(layer, glob) and len(layout) == weight.ndim]
    if not fitting:
        raise UsageError(
            f"layer {layer}: its weight has the shape {weight.shape}, which none of the layouts given fits; add one of "
            f"{weight.ndim} letters, as in --layout '{layer}=…'"
        )
    if fitting[0] in TRANSPOSED:
        raise UsageError(
            f"layer {layer}: layout {fitting[0]} is of a transposed convolution, whose weight does not tell groups "
            "and strides; use MeanBiasCorrector.calculate for it, and leave its tensors out"
        )
    channels = len(corrector.input_mean)
    try:
        groups = max(1, channels // max(1, input_channels(weight.shape, fitting[0])))
        means = MeanBiasCorrector(corrector.input_mean)
        return "", means.calculate(weight, quantized, layout=fitting[0], groups=_said(groups, fitting[0]))
    except (MismatchError, UsageError) as error:
        raise type(error)(f"layer {layer}: {error}") from error


def _said(groups: int, layout: str) -> int | None:
    """Groups where a layout leaves them open."""
    return None if "C" in layout else groups


def _first(tensors: Mapping[str, Array], *names: str) -> Array | None:
    return next((tensors[name] for name in names if name in tensors), None)
