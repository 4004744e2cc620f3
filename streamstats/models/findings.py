"""What a judge has found so far: what it keeps of each model is the same whatever runs the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .accuracy import BoolArray
from .effects import Effect, EffectSums
from .judgement import NO_FLOATS, Judgement
from .quality import Quality, Sums, together


@dataclass
class Measured:
    """What a run of a model gave: sums per layer and per output, and which samples each model classifies correctly."""

    layers: dict[str, Sums] = field(default_factory=dict)
    outputs: dict[str, Sums] = field(default_factory=dict)
    effect: EffectSums = field(default_factory=EffectSums)
    right: dict[str, list[BoolArray]] = field(default_factory=dict)

    def add_right(self, name: str, right: BoolArray) -> None:
        """Add which samples of a batch the model of this `name` classifies correctly."""
        self.right.setdefault(name, []).append(right)


class Findings:
    """The findings on models, by name, which a judge adds; a second model of the same name replaces the first."""

    def __init__(self) -> None:
        self._layers: dict[str, dict[str, Quality]] = {}
        self._outputs: dict[str, Quality] = {}
        self._right: dict[str, BoolArray] = {}
        self._effects: dict[str, Effect] = {}
        self._harmful: list[str] = []

    def known_effect(self, name: str) -> Effect:
        """What the model of this `name`, which was judged, does to the outputs.

        Raises `UsageError` if no output is of floats.
        """
        if name not in self._effects:
            raise UsageError(NO_FLOATS)
        return self._effects[name]

    def local(self, layer: str, name: str) -> Quality | None:
        """How near the outputs of `layer` come to the float model's in the model of this `name`, if known."""
        return self._layers.get(layer, {}).get(name)

    def _take(self, name: str, found: Measured, terms: Mapping[str, npt.NDArray[np.float64]] | None) -> list[str]:
        """Add what the model of this `name`, whose biases contain the `terms`, gave: the layers that these harm."""
        for layer, sums in found.layers.items():
            self._layers.setdefault(layer, {})[name] = sums.quality()
        self._outputs[name] = together([sums.quality() for sums in found.outputs.values() if sums.values])
        if (effect := found.effect.effect()) is not None:
            self._effects[name] = effect
        self._right |= {each: np.concatenate(batches) for each, batches in sorted(found.right.items())}
        self._harmful = [
            layer
            for layer, term in (terms or {}).items()
            if layer in found.layers and self._layers[layer][name].harmed_by(term)
        ]
        return self._harmful

    def _judgement(self, samples: int, unjudged: Mapping[str, str], scores: Mapping[str, float]) -> Judgement:
        """The judgement on all models; layers that are `unjudged` are left out of the others."""
        layers = {name: found for name, found in self._layers.items() if name not in unjudged}
        harmful = tuple(each for each in self._harmful if each in layers)
        return Judgement(samples, layers, self._outputs, self._right, scores, harmful, unjudged, self._effects)
