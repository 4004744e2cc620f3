"""Judging quantised torch models on held-out batches: the quality of layers and outputs, effects, accuracy.

A layer's outputs are heard where its product is, in both models, behind the norm that was folded into it. The models
are not changed: what is judged are copies of the quantised one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import MismatchError, UsageError
from ...progress import QUIET, Progress, Stage
from ...statistics.masks import Mask
from ..effects import Effect, EffectSums
from ..findings import Findings, Measured
from ..judgement import FLOAT, KEPT_BYTES, NO_FLOATS, TRIAL_SAMPLES, Judgement
from ..positions import fits
from ..quality import Sums
from .batches import Batches, HeldOut, outputs_of, right
from .folding import norm_scale
from .layers import MATRICES
from .library import Array, library, reals, to_numpy
from .masks import BatchMask
from .planned import Planned, Rounding, Twin

if TYPE_CHECKING:
    import torch

Float64Array = npt.NDArray[np.float64]
UNHEARD = (
    "its product is inside attention, a fused module or a function, where its outputs cannot be compared with those of "
    "the float model"
)
UNLIKE = (
    "its outputs differ in number or shape between the networks, as those of the experts of a mixture do, so that they "
    "cannot be compared one by one"
)
OTHER_BIAS = "its bias in the quantised model is not that of the float model, so its outputs stand for none of its own"
BIAS_APART = 1e-3
"""How far biases may be apart, as a share of the largest, to be the same."""


class Judge(Findings):
    """Judges copies of a quantised model, one after the other, beside the float `model`, on the same batches.

    `plan` says which layers there are. Raises `UsageError` for a float model in training mode, and for batches that
    cannot be gone through again.
    """

    def __init__(
        self, model: torch.nn.Module, plan: Sequence[Planned], held_out: HeldOut, progress: Progress = QUIET
    ) -> None:
        if model.training:
            raise UsageError("the float model is in training mode, so its outputs depend on chance; call its `eval()`")
        super().__init__()
        self._model, self._held_out, self._progress = model, held_out, progress
        self._batches = Batches.of(held_out.batches)
        self._unjudged = {each.name: why for each in plan if each.correction.term is not None and (why := _deaf(each))}
        self._roundings = {
            each.name: each.rounding
            for each in plan
            if each.rounding is not None and each.correction.term is not None and each.name not in self._unjudged
        }
        self._kept: dict[int, tuple[dict[str, Array], Mask | None]] = {}
        self._kept_bytes = 0

    def add(self, name: str, twin: Twin, terms: Mapping[str, Float64Array] | None = None, note: str = "") -> list[str]:
        """Judge `twin`, whose biases contain the `terms`: the layers in which these do harm.

        `note` follows the name of the model in the progress. A second model of the same name replaces the first. Raises
        `MismatchError` for a model of another network.
        """
        found = self._measured(name, twin, note)
        found.layers = {layer: sums for layer, sums in found.layers.items() if layer not in self._unjudged}
        return self._take(name, found, terms)

    def effect(self, model: Twin, *, trial: bool = False) -> Effect:
        """What `model` does to the outputs of the network; a `trial` runs the first samples only, at least a batch.

        Progress advances by the samples. Raises as `add`, and `UsageError` if no output is of floats.
        """
        sums, seen = EffectSums(), 0
        for number, batch, samples in self._batches:
            if trial and seen >= TRIAL_SAMPLES:
                break
            wanted, mask = self._float_ends(number, batch)
            sums.add(self._checked(self._run(model.model, batch), wanted), wanted, samples, mask)
            seen += samples
            self._progress.advance(samples)
        found = sums.effect()
        if found is None:
            raise UsageError(NO_FLOATS)
        return found

    @property
    def digests(self) -> list[bytes]:
        """The SHA-256 of each held-out batch."""
        return self._batches.digests

    @property
    def samples(self) -> int:
        """The number of held-out samples."""
        return self._batches.samples

    @property
    def trial_samples(self) -> int:
        """How many samples a trial runs, about."""
        return min(self.samples, TRIAL_SAMPLES)

    def finish(self) -> Judgement:
        """The judgement on all models."""
        return self._judgement(self.samples, self._unjudged, {})

    def _measured(self, name: str, twin: Twin, note: str) -> _Measured:
        found = _Measured()
        places = [each for each in twin.plan if each.name in self._roundings]
        self._progress.begin(
            Stage(f"judging the {name.replace(' ', '-')} model{note}", self.samples, layers=len(places))
        )
        with ExitStack() as stack:
            mine, theirs = _Heard(), _Heard()
            stack.enter_context(mine.listening(places))
            stack.enter_context(theirs.hooked(self._roundings))
            for _, batch, samples in self._batches:
                wanted, mask = self._masked(batch)
                own = self._checked(self._run(twin.model, batch), wanted)
                self._unjudged |= found.add_layers(self._roundings, mine.taken(), theirs.taken(), mask)
                found.add_outputs(own, wanted, samples, mask)
                if self._held_out.labels is not None:
                    labels = self._held_out.labels(batch)
                    found.add_right(name, right(own, labels))
                    found.add_right(FLOAT, right(wanted, labels))
                self._progress.advance(samples)
        return found

    def _run(self, model: Any, batch: Any) -> dict[str, Array]:
        with library().no_grad():
            return outputs_of(self._held_out.call(model, batch))

    def _masked(self, batch: Any) -> tuple[dict[str, Array], Mask | None]:
        """(the outputs of the float model, the mask of the batch)."""
        masks = BatchMask(self._model, self._held_out.mask, to_numpy)
        hook = self._model.register_forward_pre_hook(masks, with_kwargs=True)
        try:
            return self._run(self._model, batch), masks.current
        finally:
            hook.remove()

    def _float_ends(self, number: int, batch: Any) -> tuple[dict[str, Array], Mask | None]:
        """As `_masked`, which is kept for later trials while there is room."""
        if number in self._kept:
            return self._kept[number]
        found = self._masked(batch)
        size = sum(each.nbytes for each in found[0].values())
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[number] = found
            self._kept_bytes += size
        return found

    @staticmethod
    def _checked(mine: dict[str, Array], theirs: Mapping[str, Array]) -> dict[str, Array]:
        """`mine`, under the names of `theirs`. Raises `MismatchError` if they are not as many."""
        if len(mine) != len(theirs):
            raise MismatchError(
                f"the quantised model returns {len(mine)} tensors, the float model {len(theirs)}; expected models of "
                "the same network"
            )
        return dict(zip(theirs, mine.values(), strict=True))


def _deaf(planned: Planned) -> str:
    """Why the outputs of a layer cannot be compared; empty if they can."""
    rounding = planned.rounding
    found = None if planned.place is None or rounding is None or rounding.layer.is_projection else planned.place.bias()
    if found is None or rounding is None:
        return UNHEARD
    wanted = _float_bias(rounding)
    close = np.allclose(found, wanted, rtol=0, atol=BIAS_APART * float(np.abs(wanted).max(initial=0.0)))
    return "" if close else OTHER_BIAS


def _float_bias(rounding: Rounding) -> Array:
    """The bias of the float layer, with what was folded into it."""
    bias, norm = getattr(rounding.layer.module, "bias", None), rounding.norm
    own = np.zeros(1) if bias is None else reals(bias)
    if norm is None:
        return own
    shift: Array = (own - reals(norm.running_mean)) * norm_scale(norm)
    return shift if norm.bias is None else shift + reals(norm.bias)


@dataclass(eq=False)
class _Heard:
    """The outputs of layers since the last batch, by layer, in the order of the calls."""

    outputs: dict[str, list[Array]] = field(default_factory=dict)

    def taken(self) -> dict[str, list[Array]]:
        """What was heard, which is then forgotten."""
        found, self.outputs = self.outputs, {}
        return found

    def _ear(self, layer: str) -> Callable[[Any], None]:
        return lambda output: self.outputs.setdefault(layer, []).append(reals(output))

    @contextmanager
    def listening(self, plan: Sequence[Planned]) -> Iterator[None]:
        """Hear the layers of a quantised model while the block runs."""
        ends = [each.place.listen(self._ear(each.name)) for each in plan if each.place is not None]
        try:
            yield
        finally:
            for end in ends:
                end()

    @contextmanager
    def hooked(self, roundings: Mapping[str, Rounding]) -> Iterator[None]:
        """Hear the layers of the float model while the block runs, behind the norms that were folded into them."""
        hooks = []
        for name, each in roundings.items():
            module, ear = each.norm or each.layer.module, self._ear(name)
            hooks.append(module.register_forward_hook(lambda _module, _given, output, ear=ear: ear(output)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(eq=False)
class _Measured(Measured):
    """What a run of a model gave, of layers that are heard."""

    def add_layers(
        self,
        roundings: Mapping[str, Rounding],
        mine: Mapping[str, list[Array]],
        theirs: Mapping[str, list[Array]],
        mask: Mask | None,
    ) -> dict[str, str]:
        """Add what was heard; the layers that cannot be compared → why."""
        wrong = {}
        for layer in {**mine, **theirs}:
            own, wanted = mine.get(layer, []), theirs.get(layer, [])
            if [each.shape for each in own] != [each.shape for each in wanted]:
                wrong[layer] = UNLIKE
                continue
            for one, other in zip(own, wanted, strict=True):
                axis = _channels(roundings[layer], other)
                self.layers.setdefault(layer, Sums()).add(layer, one, other, axis, mask)
        return wrong

    def add_outputs(
        self, mine: Mapping[str, Array], theirs: Mapping[str, Array], samples: int, mask: Mask | None
    ) -> None:
        """Add the outputs of the network."""
        for end, wanted in theirs.items():
            if wanted.dtype.kind == "f":
                masked = mask is not None and fits(mask.shape, wanted.shape, -1)
                axis = -1 if masked or wanted.ndim < 2 else 1
                sums = self.outputs.setdefault(end, Sums())
                sums.add(end, np.atleast_1d(mine[end]), np.atleast_1d(wanted), axis, mask)
        self.effect.add(mine, theirs, samples, mask)


def _channels(rounding: Rounding, output: Array) -> int:
    """The axis of the channels of an `output` of a layer."""
    return -1 if rounding.layer.layout in MATRICES else output.ndim - len(rounding.layer.layout) + 1
