"""Plain tensors: the corrections of weights in safetensors files, for every other tool chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..correction import BiasCorrector, MeanBiasCorrector, TapBiasCorrector
from ..errors import UsageError, listed, one_of, suggestion
from ..floats import widen
from ..layouts import BY_GROUP, TRANSPOSED, input_channels
from ..outputs.results import Results, open_results
from ..storage.files import check_apart, write_bytes
from ..storage.plain_tensors import read_plain_tensors
from ..storage.tensors import tensors_bytes
from .account import told
from .explaining import explain
from .grids import channels_of
from .linear import NO_CORRECTOR, LayerCorrection, LinearLayer, load_corrector, planned_correction

FORMAT = "streamstats.corrections/1"
WEIGHT, FAKE_QUANTIZED = ".weight", ".fake_quantized"
"""What may follow a layer's name in the files."""
LAYOUTS = tuple(layout for layout in BY_GROUP if layout != "native")
"""The layouts whose letters say what each axis is."""

Array = npt.NDArray[Any]


def correct_tensors(
    weights: str | Path,
    fake_quantized: str | Path,
    correctors: str | Path,
    output: str | Path,
    *,
    layouts: Sequence[str],
) -> list[LayerCorrection]:
    """Write to `output`, safetensors, the term to add to the bias of each layer: its name → float64[outputs].

    `weights` and `fake_quantized` are safetensors files (or one file) with one tensor per layer, named as the layer or
    with `.weight` and `.fake_quantized` appended. `correctors` is the folder that `streamstats run` leaves. `layouts`
    are words of `MeanBiasCorrector.calculate`, each for all layers or, as `GLOB=LAYOUT`, for some; the first that fits
    a layer's name and number of axes counts. Groups follow from the channels, except for transposed convolutions, which
    are refused. A layer is left out, with the reason, unless rounding explains its quantised weight, alone or after a
    scale per output or per input channel. Padding and strides are those of the correctors: only those of kind `taps`
    know them.

    Raises `UsageError` for an unknown layout, files without common tensors or with none that can be corrected,
    tensors of dtypes without numpy,
    `MismatchError` for shapes that do not fit, `DataError` for damaged files, `OutputError`.
    """
    check_apart([weights, fake_quantized], output)
    terms, outcomes = tensor_terms(weights, fake_quantized, correctors, layouts=layouts)
    write_bytes(Path(output), terms_bytes(terms))
    return outcomes


def tensor_terms(
    weights: str | Path, fake_quantized: str | Path, correctors: str | Path, *, layouts: Sequence[str]
) -> tuple[dict[str, Array], list[LayerCorrection]]:
    """The term to add to the bias of each layer, float64[outputs], and all outcomes. Arguments as `correct_tensors`."""
    results = open_results(Path(correctors))
    layers = [layer for layer in results.layers if results.is_read(layer)]
    rules = _rules(layouts, layers)
    tensors = _Tensors(_read(weights), _read(fake_quantized))
    outcomes = [_outcome(layer, results, tensors, rules) for layer in layers]
    terms = {each.layer: each.term for each in outcomes if each.term is not None}
    refused = [each for each in outcomes if each.quantized]
    if not terms and refused:
        raise UsageError(f"no layer can be corrected: {told((each.layer, each.reason) for each in refused)}")
    if not terms:
        raise UsageError(
            f"{weights} and {fake_quantized} have no weights of a layer that has a corrector; the layers are "
            f"{listed(layers)}: expected tensors called LAYER, LAYER{WEIGHT}, LAYER{FAKE_QUANTIZED}"
        )
    return terms, outcomes


def _read(path: str | Path) -> dict[str, Array]:
    """The tensors of a file; bfloat16 and float8 become float32."""
    return {name: widen(tensor) for name, tensor in read_plain_tensors(Path(path)).items()}


def terms_bytes(terms: Mapping[str, Array]) -> bytes:
    """The content of the file with `terms`, layer → term."""
    return tensors_bytes(terms, {"format": FORMAT})


@dataclass(frozen=True)
class _Rule:
    """The `layout` of the weights of layers whose names match `glob`."""

    glob: str
    layout: str

    @classmethod
    def parsed(cls, text: str) -> _Rule:
        """From `GLOB=LAYOUT` or `LAYOUT`. Raises `UsageError`."""
        glob, separator, layout = text.rpartition("=")
        if layout not in LAYOUTS:
            raise UsageError(f"layout {layout!r} is not known; {one_of(layout, LAYOUTS)}")
        return cls(glob if separator else "*", layout)

    def fits(self, layer: str, axes: int) -> bool:
        return fnmatchcase(layer, self.glob) and len(self.layout) == axes


def _rules(layouts: Sequence[str], layers: Iterable[str]) -> list[_Rule]:
    """Raises `UsageError` for a layout that is unknown or matches none of `layers`."""
    rules = [_Rule.parsed(each) for each in layouts]
    for rule in rules:
        if not any(fnmatchcase(layer, rule.glob) for layer in layers):
            has = f"the layers are {listed(layers)}{suggestion(rule.glob, layers)}"
            raise UsageError(f"--layout {rule.glob}={rule.layout} matches no layer; {has}")
    return rules


@dataclass(frozen=True)
class _Tensors:
    """The tensors of the two files."""

    weights: Mapping[str, Array]
    fake_quantized: Mapping[str, Array]

    def weight(self, layer: str) -> Array | None:
        return _first(self.weights, layer, layer + WEIGHT)

    def quantized(self, layer: str) -> Array | None:
        return _first(self.fake_quantized, layer + FAKE_QUANTIZED, layer, layer + WEIGHT)


def _first(tensors: Mapping[str, Array], *names: str) -> Array | None:
    return next((tensors[name] for name in names if name in tensors), None)


def _outcome(name: str, results: Results, tensors: _Tensors, rules: Sequence[_Rule]) -> LayerCorrection:
    corrector = load_corrector(results.corrector_path(name), name)
    weight, quantized = tensors.weight(name), tensors.quantized(name)
    if corrector is None:
        return LayerCorrection(name, reason=NO_CORRECTOR)
    if weight is None or quantized is None:
        missing = WEIGHT if weight is None else FAKE_QUANTIZED
        return LayerCorrection(name, reason=f"no tensor {name} or {name}{missing}")
    layer = _layer(name, weight, rules, corrector)
    planned = planned_correction(layer, corrector, weight, quantized)
    return replace(planned, quantized=True) if planned.term is None else _explained(layer, corrector, quantized)


def _explained(layer: LinearLayer, corrector: BiasCorrector, quantized: Array) -> LayerCorrection:
    """The term for `layer`, if rounding explains its quantised weight, alone or after a scale; else the reason."""
    channels = channels_of(quantized.shape, layer.layout, layer.groups)
    found = explain([layer.weight], quantized, None, channels)
    if found.reason:
        return LayerCorrection(layer.name, quantized=True, reason=found.reason)
    weight, rounded = found.undone(layer.weight, quantized, channels)
    planned = planned_correction(layer, corrector, weight, rounded)
    return replace(planned, quantized=True, corrected=planned.term is not None, difference=found.words)


def _layer(name: str, weight: Array, rules: Sequence[_Rule], corrector: BiasCorrector) -> LinearLayer:
    """The layer of a plain tensor. Raises `UsageError` where the tensor and the `rules` do not tell what it is."""
    layout = next((rule.layout for rule in rules if rule.fits(name, weight.ndim)), None)
    if layout is None:
        raise UsageError(
            f"layer {name}: its weight has the shape {weight.shape}, which fits none of the layouts given; add one of "
            f"{weight.ndim} letters, as in --layout '{name}=…'"
        )
    if layout in TRANSPOSED:
        raise UsageError(
            f"layer {name}: layout {layout} is that of a transposed convolution, whose weight tells neither groups nor "
            "strides; use MeanBiasCorrector.calculate for this layer, and leave its tensors out"
        )
    groups = _groups(weight.shape, layout, corrector)
    return LinearLayer(name=name, weight=weight, layout=layout, groups=groups, geometry=None)


def _groups(shape: tuple[int, ...], layout: str, corrector: BiasCorrector) -> int:
    """How many groups of the weight's input channels make the channels of the corrector."""
    each = input_channels(shape, layout)
    if "C" in layout:
        return each
    if not isinstance(corrector, MeanBiasCorrector | TapBiasCorrector):
        return 1
    return max(1, len(corrector.input_mean) // max(1, each))
