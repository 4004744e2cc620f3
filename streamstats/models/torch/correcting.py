"""Correcting the biases of a quantised copy of a torch model.

Each layer ends as one of four: corrected, unchanged (its quantised weight is exact), never quantised, or refused, with
the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...correction import BiasCorrector, TapBiasCorrector
from ...errors import MismatchError, UsageError, listed
from ...layouts import TRANSPOSED, Geometry
from ...outputs.results import Results, open_results
from ..advice import IN_TORCH
from ..fingerprints import check_recorded, recorded_in
from ..linear import (
    EXACT,
    NEVER_QUANTISED,
    NO_CORRECTOR,
    UNCHANGED,
    LayerCorrection,
    LinearLayer,
    load_corrector,
    planned_correction,
)
from .account import Account
from .fingerprint import fingerprints
from .folding import Folded, folded_weight
from .layers import MATRICES, ModelLayer, geometry_of, layers_of
from .library import Array, reals
from .loose import LooseParameters
from .parameters import loose_parameters
from .places import Copy, MissingPlaceError, ModulePlace, Place
from .planned import Planned, Rounding, Twin

if TYPE_CHECKING:
    import torch

    from .weights import ComputedWeight

MARK = "_streamstats_corrected"
"""The attribute of a model whose biases are corrected."""
REASONS = {
    UNCHANGED: EXACT,
    NEVER_QUANTISED: "its weight in the quantised model is the float one",
}
FOLDING = 1e-6
"""How far apart, as a share of the norm, two ways of folding a norm into a weight in float32 may be."""
CLOSE = 0.5
"""The distance between weights, as a share of their norm, below which weights alone tell that a layer is the same."""
IN_PARTS = "it multiplied one input in some calls and several in others, recorded apart: neither mean is that of all"


def apply_correctors(
    model: torch.nn.Module,
    quantized: torch.nn.Module,
    correctors: str | Path,
    *,
    account: Account | None = None,
    other_weights: bool = False,
) -> list[LayerCorrection]:
    """Add to the biases of `quantized`, in place, the terms that undo the shift of each layer's mean output.

    `model` is the float model that was recorded. `quantized` is a copy of it with quantised weights: fake-quantised,
    of `torch.ao` (prepared, trained with quantisation, or converted), of torchao, or with modules that quantise while
    they run. Modules have the same names in both, or those that fusing gives them; batch normalisation may have been
    folded. `correctors` is the folder that `streamstats run` left. A module without a bias gets one. `account`, what
    the recording yielded, knows the biases of parameters that belong to no linear module. With `other_weights`,
    correctors count although they were recorded from a model with another fingerprint. A model can be corrected only
    once.

    Returns what was done for each layer: its `outcome` is corrected, unchanged, never quantised, or refused. Raises
    `UsageError` if no layer has a corrector, `MismatchError` for correctors of another model or of other channels, and
    if all layers are refused or were never quantised, `DataError` for a damaged corrector.
    """
    twin = planned(model, quantized, correctors, account, other_weights=other_weights)
    done = twin.add({})
    mark(quantized, done)
    return done


def planned(
    model: torch.nn.Module,
    quantized: torch.nn.Module,
    correctors: str | Path,
    account: Account | None,
    *,
    other_weights: bool,
) -> Twin:
    """`quantized`, not changed yet, and what is planned for each layer. Arguments, errors as `apply_correctors`."""
    if not callable(getattr(quantized, "named_modules", None)):
        raise UsageError(
            f"the quantised model is a {type(quantized).__name__}; expected a torch module; of an exported program, "
            "keep and give what `.module()` returns: each call returns another copy"
        )
    if getattr(quantized, MARK, False):
        raise UsageError("the quantised model has already been corrected; give it as its quantiser left it")
    results, layers = open_results(Path(correctors)), layers_of(model)
    loose = loose_parameters(model, layers)
    own = {*(each.name for each in layers), *(each.name for each in loose)}
    differs = check_recorded(
        correctors,
        recorded_in(Path(correctors)),
        fingerprints(model),
        f"the {type(model).__name__} that is given",
        IN_TORCH.other_weights,
        layers=[name for name in results.layers if name in own],
        other_weights=other_weights,
    )
    if own.isdisjoint(results.layers):
        names = [layer.name for layer in layers]
        raise UsageError(f"{correctors} holds no layer of the model; its layers are: {listed(names)}")
    correcting = _Correcting(model, Copy(quantized), layers, results)
    plan = [correcting.planned(layer) for layer in _wanted(layers, results)]
    plan += LooseParameters(model, quantized, loose, layers, account).planned(results)
    found = [each.correction for each in plan]
    if not any(each.term is not None or each.uncorrected == UNCHANGED for each in found):
        raise MismatchError(f"no module was corrected; the first, {found[0].layer}: {found[0].reason}")
    return Twin(quantized, plan, differs)


def mark(quantized: torch.nn.Module, done: Sequence[LayerCorrection]) -> None:
    """Mark `quantized` as corrected, if anything was: correcting it again would spoil it."""
    if any(each.corrected for each in done):
        setattr(quantized, MARK, True)


def _wanted(layers: list[ModelLayer], results: Results) -> Iterator[ModelLayer]:
    """The layers to correct: of a projection that may run whole or in parts, what the results have."""
    in_parts = {layer.whole for layer in layers if layer.whole and layer.name in results.layers}
    for layer in layers:
        whole_only = layer.name in in_parts and layer.name not in results.layers
        if not whole_only and (not layer.whole or layer.name in results.layers):
            yield layer


class _RefusedError(Exception):
    """A layer that is not corrected, and why."""


class _Correcting:
    """One correction of a copy of a model."""

    def __init__(self, model: torch.nn.Module, copied: Copy, layers: list[ModelLayer], results: Results) -> None:
        self._model, self._copied, self._results = model, copied, results
        self._layers = set(results.layers)
        self._unnamed = copied.unnamed(layers)

    def planned(self, layer: ModelLayer) -> Planned:
        """What is planned for `layer`."""
        path = self._results.corrector_path(layer.name) if layer.name in self._layers else None
        corrector = load_corrector(path, layer.name)
        if corrector is None:
            return Planned(LayerCorrection(layer.name, layer.op, reason=NO_CORRECTOR))
        if (layer.whole and layer.whole in self._layers) or self._is_also_in_parts(layer):
            return Planned(LayerCorrection(layer.name, layer.op, reason=IN_PARTS))
        try:
            found = self._planned(layer, corrector)
        except _RefusedError as refused:
            return Planned(LayerCorrection(layer.name, layer.op, reason=str(refused)))
        return replace(found, correction=replace(found.correction, op=layer.op))

    def _is_also_in_parts(self, layer: ModelLayer) -> bool:
        parts = (layer.name.removesuffix("in_proj") + part for part in ("q_proj", "k_proj", "v_proj"))
        return layer.weight == "in_proj_weight" and not layer.whole and not self._layers.isdisjoint(parts)

    def _planned(self, layer: ModelLayer, corrector: BiasCorrector) -> Planned:
        try:
            own = _computed(layer)
            place, found, folded = self._found(layer, own)
        except MismatchError as error:
            raise _RefusedError(str(error)) from error
        if _is_same(own, folded.weight, found.values):
            outcome = UNCHANGED if found.quantises else NEVER_QUANTISED
            reason = REASONS[outcome]
            return Planned(LayerCorrection(layer.name, quantized=found.quantises, uncorrected=outcome, reason=reason))
        linear = _linear(layer, folded.weight, corrector)
        rounding = Rounding(layer, linear, found.values, corrector, folded.norm)
        return Planned(planned_correction(linear, corrector, folded.weight, found.values), place, rounding)

    def _found(self, layer: ModelLayer, own: Array) -> tuple[Place, ComputedWeight, Folded]:
        """The place of `layer` in the copy, what it computes with, and the float weight that this is rounded from."""
        try:
            place = self._copied.place(layer)
        except MissingPlaceError as missing:
            return self._by_weight(layer, own, str(missing))
        return self._explained(layer, own, place)

    def _explained(self, layer: ModelLayer, own: Array, place: Place) -> tuple[Place, ComputedWeight, Folded]:
        found = place.weight()
        if isinstance(place, ModulePlace) and type(place.module) is type(layer.module):
            found = replace(found, origin=None)  # what it does to its weight, the float model does, too
        return place, found, folded_weight(layer, own, found, self._model, self._copied)

    def _by_weight(self, layer: ModelLayer, own: Array, missing: str) -> tuple[Place, ComputedWeight, Folded]:
        """The only place that no layer's name leads to and whose weight is rounded from that of `layer`."""
        fitting = []
        for place in self._unnamed:
            with suppress(MismatchError):
                fitting.append(self._explained(layer, own, place))
        if len(fitting) != 1:
            found = (
                f"{len(fitting)} of other names have its weight" if fitting else "none of another name has its weight"
            )
            raise MismatchError(f"{missing}, and {found}")
        return fitting[0]


def _is_same(own: Array, float_weight: Array, stored: Array) -> bool:
    """Whether `stored` is not rounded: the float weight itself or, if it was folded, within errors of float32."""
    if float_weight is own:
        return bool((own == stored).all())
    return bool(np.linalg.norm(stored - float_weight) <= FOLDING * np.linalg.norm(float_weight))


def _computed(layer: ModelLayer) -> Array:
    """The float weight that `layer` computes with, float64. Raises `MismatchError` if it is unknown."""
    if layer.is_projection:
        return reals(getattr(layer.module, layer.weight))[layer.rows or slice(None)]
    return ModulePlace(layer.module).weight().values


def _linear(layer: ModelLayer, weight: Array, corrector: BiasCorrector) -> LinearLayer:
    """`layer` with the float `weight`; taps of a transposed one move as its calls said, which the corrector knows."""
    if layer.layout in MATRICES:
        return LinearLayer(name=layer.name, weight=weight, layout=layer.layout, geometry=Geometry())
    as_recorded = layer.layout in TRANSPOSED and isinstance(corrector, TapBiasCorrector)
    geometry = None if as_recorded else geometry_of(layer.module)
    return LinearLayer(
        name=layer.name, weight=weight, layout=layer.layout, groups=int(layer.module.groups), geometry=geometry
    )
