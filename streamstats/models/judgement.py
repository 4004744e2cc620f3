"""What judging models gave: quality of layers and outputs, effects on the network, accuracy and scores, by model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .accuracy import AccuracyGain, BoolArray, interval
from .effects import Effect, Gain
from .quality import Quality

FLOAT, UNCORRECTED = "float", "quantised"
REFERENCES = (FLOAT, UNCORRECTED)
"""The models that others are compared with."""
BY_MOMENTS = "by moments"
"""The quantised model with weights rounded or scaled by second moments, before its biases are corrected."""
ONE_PASS, CORRECTED = "one pass", "corrected"
"""The models that are compared with them."""
CALIBRATED = "their figures do not hold for new samples; judge with samples that were not recorded"
"""What is wrong with held-out samples that calibrated."""
TRIAL_SAMPLES = 256
"""How many samples a trial runs, at least one batch."""
KEPT_BYTES = 2**28
"""How many bytes of the float model's outputs are kept, so that trials need not compute them again."""
ROUTED = (
    "how many positions reach it depends on values, as for the experts of a mixture, and differs between the networks, "
    "so that its outputs cannot be compared one by one"
)
NO_FLOATS = (
    "no output of the network is of floats, so its error has no size; judge a model that ends before such outputs are "
    "computed, or leave out --do-no-harm (`do_no_harm` in Python and in jobs)"
)
IN_FLOATS = (
    "these figures are those of products computed in floats; onnxruntime's kernels for 8-bit codes saturate on x86 "
    "processors without VNNI, which costs accuracy there and which no bias undoes"
)
"""The caveat on the figures of a model on codes."""
BY_BATCH = (
    "the quantised model finds the steps of its activations in each batch, so figures depend on the batch size: these "
    "are for batches of {}"
)
"""The note on the figures of such a model."""
UNKNOWN = "the operators that compute it in the quantised model are not known as a layer, so only the network is judged"
"""Why a corrected layer is not judged by its own outputs."""


@dataclass(frozen=True)
class Judgement:
    """What judging on `samples` samples gave, by model name: the quality of each layer and of all outputs together, the
    samples that a classifier got `right`, bool[samples], and the score. `effects` are those on the network's outputs,
    `gains` by how much each model is better than the quantised one there. `harmful` are the layers whose own outputs
    would be closer to the float model's without their correction, `unjudged` those whose outputs stand for no tensor of
    the float model, and why. `caveat` is what to know of all figures, if anything; `batches` of which batches they are,
    if that matters.
    """

    samples: int
    layers: Mapping[str, Mapping[str, Quality]]
    outputs: Mapping[str, Quality]
    right: Mapping[str, BoolArray] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    harmful: Sequence[str] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)
    effects: Mapping[str, Effect] = field(default_factory=dict)
    caveat: str = ""
    batches: str = ""

    @property
    def accuracy(self) -> dict[str, float]:
        """Model → the share of samples that it classifies correctly, if there are labels."""
        return {name: float(each.mean()) for name, each in self.right.items()}

    @property
    def accuracy_intervals(self) -> dict[str, tuple[float, float]]:
        """Model → the 95 % confidence interval of its accuracy."""
        return {name: interval(int(each.sum()), len(each)) for name, each in self.right.items()}

    @property
    def accuracy_gains(self) -> dict[str, AccuracyGain]:
        """Model → by how much it is more accurate than the quantised model."""
        before = self.right.get(UNCORRECTED)
        if before is None:
            return {}
        others = {name: each for name, each in self.right.items() if name not in REFERENCES}
        return {name: AccuracyGain.between(before, each) for name, each in others.items()}

    @property
    def gains(self) -> dict[str, Gain]:
        """Model → by how much its outputs are nearer to the float model's than the quantised model's."""
        before = self.effects.get(UNCORRECTED)
        if before is None:
            return {}
        return {name: each.gain_over(before) for name, each in self.effects.items() if name != UNCORRECTED}

    def gains_by_output(self, model: str) -> dict[str, Gain]:
        """Output → the gain of `model` there; empty if there is one output only."""
        before, found = self.effects.get(UNCORRECTED), self.effects.get(model)
        if before is None or found is None or len(found.names) < 2:
            return {}
        return {name: found.of(name).gain_over(before.of(name)) for name in found.names}

    def worse(self, model: str) -> list[str]:
        """In what `model` is worse than the quantised one: its outputs, or its accuracy by more than chance."""
        gain = self.gains.get(model)
        reasons = [str(gain)] if gain is not None and gain.is_worse else []
        found = self.accuracy_gains.get(model)
        if found is not None and found.difference < 0 and found.is_clear:
            reasons.append(f"accuracy {self.accuracy[UNCORRECTED]:.1%} → {self.accuracy[model]:.1%}")
        return reasons

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "samples": self.samples,
            "layers": {
                layer: {model: found.document() for model, found in models.items()}
                for layer, models in self.layers.items()
            },
            "outputs": {model: found.document() for model, found in self.outputs.items()},
            "accuracy": self.accuracy,
            "accuracy_interval": {name: [*each] for name, each in self.accuracy_intervals.items()},
            "accuracy_gain": {name: each.document() for name, each in self.accuracy_gains.items()},
            "scores": dict(self.scores),
            "harmful": list(self.harmful),
            "unjudged": dict(self.unjudged),
            "worse": {model: self.worse(model) for model in self.outputs if model not in REFERENCES},
            "caveat": self.caveat,
            "batches": self.batches,
            "network": {name: self._network(name) for name in self.effects},
        }

    def _network(self, model: str) -> dict[str, Any]:
        """What `model` does to the outputs, JSON-ready: in all, and output by output."""
        effect, gain = self.effects[model], self.gains.get(model)
        by_output = self.gains_by_output(model)
        return {
            "sqnr_db": effect.sqnr if math.isfinite(effect.sqnr) else None,
            **(gain.document() if gain else {}),
            "outputs": {name: each.document() for name, each in by_output.items()} if gain else {},
        }
