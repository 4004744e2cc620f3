"""A linear layer as its correction sees it: what ONNX, torch and plain tensors share.

A layer, its corrector, its weight and its quantised weight determine one term to add to its bias. Each layer ends with
one `LayerCorrection`: what was added, or why nothing was. A model format contributes the layers of a model, their
inputs over samples, and a way to add a term to a bias: `survey`, `record` and `add_to_biases` for ONNX;
`linear_modules`, `recording` and `add_to_bias` for torch. Plain tensors have layers only; their terms are the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..correction import BiasCorrector, MeanBiasCorrector, TapBiasCorrector
from ..errors import DataError, UsageError, listed
from ..layouts import Geometry, spatial_axes
from ..progress import Progress
from ..statistics.spread import SampleSpread
from .explaining import ROUNDING

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

NO_CORRECTOR = "no corrector: the run left none for it"
NULL_CORRECTOR = "its corrector is null"
UNCHANGED, NEVER_QUANTISED, WEIGHTLESS = "unchanged", "never quantised", "nothing to correct"
"""Outcomes without a correction: the quantised weight is exact, it is the float one, or nothing is multiplied by it."""
LEFT_OUT = "left out"
"""The outcome where a correction does harm, or may."""
CORRECTED, REFUSED = "corrected", "refused"
"""The outcomes of all other layers."""
SAME_WEIGHT = "the quantiser left its weight in float: there is nothing to correct"
EXACT = "the quantised weight equals its own: nothing to correct"
FARTHEST = 1.0
"""The distance between weights, as a share of their norm, from which they belong to different layers; unrelated weights
are 1.4 apart."""
PRECISION_STATISTICS = (SampleSpread.name,)
"""What the precision of a correction is estimated from, besides what is always counted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearLayer:
    """A layer that multiplies the channels of its input by `weight`, floating-point.

    `name` is the layer's name in stores, results and reports. `layout`, `groups` and `geometry` are those of
    `MeanBiasCorrector.calculate`; without a geometry, that of the corrector is right. `factor` multiplies the product
    of input and weight, as alpha does in a Gemm.
    """

    name: str
    weight: Array
    layout: str
    geometry: Geometry | None
    groups: int = 1
    factor: float = 1.0

    @property
    def has_several_taps(self) -> bool:
        """Whether its kernel has more than one tap."""
        spatial = spatial_axes(self.layout, self.weight.ndim)
        return prod(int(self.weight.shape[axis]) for axis in spatial) > 1

    @property
    def known_geometry(self) -> Geometry | None:
        """The geometry over any input; None if it is unknown, or depends on the extents of the input."""
        return self.geometry


@dataclass(frozen=True, eq=False)
class LayerCorrection:
    """What the correction of one layer came to.

    `term`, float64[outputs], undoes the shift of its mean outputs. `corrected` says whether the term was added;
    `change` then says what changed in the model, and otherwise `reason` says why nothing did; `uncorrected` is one of
    the outcomes without a correction, or empty. `op` is the operator, `quantized` says whether the model at hand stores
    a quantised weight for the layer. `step`, float64[outputs], is the step of a bias of codes, None for floats.
    `difference` says what explains the difference between the weights, if that was checked. A term is `approximate` if
    it takes the mean of all positions for that of the positions that each tap sees.
    """

    layer: str
    op: str = ""
    quantized: bool = False
    corrected: bool = False
    change: str = ""
    reason: str = ""
    uncorrected: str = ""
    outputs: int = 0
    term: Float64Array | None = None
    step: Float64Array | None = None
    difference: str = ""
    approximate: bool = False

    @property
    def note(self) -> str:
        """What a person should know: what changed or why nothing did, and more than rounding between the weights."""
        known = f"; weight: {self.difference}" if self.corrected and self.difference not in ("", ROUNDING) else ""
        return self.change + self.reason + known

    @property
    def outcome(self) -> str:
        """What became of the layer: corrected, unchanged, never quantised, nothing to correct, left out, or refused."""
        return CORRECTED if self.corrected else self.uncorrected or REFUSED

    @property
    def largest(self) -> float:
        """The largest magnitude of the term."""
        return 0.0 if self.term is None else float(np.abs(self.term).max(initial=0.0))

    def document(self) -> dict[str, Any]:
        """Its fields, JSON-ready."""
        return {
            "layer": self.layer,
            "operator": self.op,
            "quantized": self.quantized,
            "corrected": self.corrected,
            "outcome": self.outcome,
            "change": self.change,
            "reason": self.reason,
            "difference": self.difference,
            "largest_term": self.largest,
            "outputs": self.outputs,
            "largest_bias_step": None if self.step is None else float(self.step.max(initial=0.0)),
        }


def corrected_none(layers: Iterable[LayerCorrection]) -> bool:
    """Whether no layer was corrected although one was to be: each was refused or left out."""
    outcomes = {each.outcome for each in layers}
    return CORRECTED not in outcomes and not outcomes.isdisjoint((REFUSED, LEFT_OUT))


def load_corrector(path: Path | None, layer: str) -> BiasCorrector | None:
    """The corrector of `layer` at `path`, None if the run left none.

    Raises `DataError` for a damaged file and for the corrector of another layer.
    """
    if path is None:
        return None
    corrector = BiasCorrector.load(path)
    made_for = corrector.provenance.get("layer", layer)
    if made_for != layer:
        raise DataError(f"{path} was made for layer {made_for}, not for {layer}; run the job again")
    return corrector


def planned_correction(
    layer: LinearLayer, corrector: BiasCorrector | None, weight: Array, quantized: Array
) -> LayerCorrection:
    """The term for `layer`, not added yet, or the reason why there is none. Arguments, errors as `correction_term`."""
    if corrector is None:
        return LayerCorrection(layer.name, reason=NO_CORRECTOR)
    term = correction_term(layer, corrector, weight, quantized)
    if term is None:
        return LayerCorrection(layer.name, reason=NULL_CORRECTOR)
    approximate = isinstance(corrector, MeanBiasCorrector) and layer.has_several_taps
    return LayerCorrection(layer.name, outputs=term.size, term=term, approximate=approximate)


def tell_approximate(names: Sequence[str], progress: Progress) -> None:
    """Say that the terms of the layers called `names` are approximate, if there are any."""
    if names:
        progress.say(
            f"note: the means of {listed(names)} are of all positions, but each tap of a kernel sees only some, so the "
            "corrections are approximate; `statistics: [taps]` in the run's configuration counts what each tap sees"
        )


def correction_term(
    layer: LinearLayer, corrector: BiasCorrector, weight: Array, quantized: Array
) -> Float64Array | None:
    """What to add to the outputs of `layer` when `quantized` replaces `weight`: float64[outputs], None for nothing.

    Both weights are in the layer's layout. Raises `MismatchError` and `UsageError`, which name the layer, for shapes,
    channels or values that do not fit.
    """
    geometry = layer.known_geometry if isinstance(corrector, TapBiasCorrector) else layer.geometry
    try:
        term = corrector.calculate(weight, quantized, layout=layer.layout, groups=layer.groups, geometry=geometry)
    except UsageError as error:
        raise type(error)(f"layer {layer.name}: {error}") from error
    return None if term is None else term * layer.factor


def of_one_kind(original: BiasCorrector, seen: BiasCorrector) -> BiasCorrector:
    """`seen`, with the means of whole channels alone if `original` has no others: both must be of the same positions.

    Older outputs have such means of layers whose kernels miss positions.
    """
    if isinstance(original, MeanBiasCorrector) and isinstance(seen, TapBiasCorrector):
        return MeanBiasCorrector(seen.input_mean, seen.provenance)
    return seen


def is_near(weight: Array, quantized: Array, farthest: float = FARTHEST) -> bool:
    """Whether `quantized` can stand for `weight`, of the same shape: at most `farthest` times its norm away."""
    return not np.linalg.norm(quantized - weight) >= farthest * np.linalg.norm(weight) > 0
