"""What is planned for each layer of a quantised model, before anything is added: in the model, or in copies of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...correction import BiasCorrector
from ...errors import UsageError, first_line
from ..linear import LayerCorrection, LinearLayer
from .layers import ModelLayer
from .library import Array
from .places import Place

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a `layer` was rounded: the float weight in `linear`, with what was folded into it, became `stored`.

    `original` is the layer's corrector, from the float model. `norm` is the batch normalisation of the float model that
    was folded into it, None for none.
    """

    layer: ModelLayer
    linear: LinearLayer
    stored: Array
    original: BiasCorrector
    norm: torch.nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Planned:
    """What is planned for a layer: a `correction`, whose term, if it has one, belongs at `place`.

    Layers with a module of their own have a `rounding`, too.
    """

    correction: LayerCorrection
    place: Place | None = None
    rounding: Rounding | None = None

    @property
    def name(self) -> str:
        """The layer's name in the float model."""
        return self.correction.layer

    def added(self, term: Array | None) -> LayerCorrection:
        """What is done for the layer when `term` is added at its place, or nothing if it is None."""
        if self.place is None or term is None:
            return self.correction
        return replace(self.correction, term=term, quantized=True, corrected=True, change=self.place.add(term))


@dataclass(frozen=True, eq=False)
class Twin:
    """A quantised `model` and its layers in `plan`, whose places are in it.

    `differs` says how the float model that was recorded differs from the one that is given, if it does.
    """

    model: torch.nn.Module
    plan: Sequence[Planned]
    differs: str = ""

    def copied(self) -> Twin:
        """A copy that shares nothing with the model, for inference. Raises `UsageError` if torch cannot copy it."""
        memo: dict[int, Any] = {}
        try:
            model = copy.deepcopy(self.model, memo)
            plan = [replace(each, place=copy.deepcopy(each.place, memo)) for each in self.plan]
        except Exception as error:
            raise UsageError(
                f"the quantised model cannot be copied ({first_line(error)}), and judging or correcting layer by layer "
                "changes copies of it; correct it in one pass, without held-out samples"
            ) from error
        with suppress(NotImplementedError):  # of exported programs, which have no modes
            model.eval()
        return Twin(model, plan)

    def add(self, corrections: Mapping[str, LayerCorrection]) -> list[LayerCorrection]:
        """Add the term of each of the `corrections`, by layer; what was done for each layer of the plan."""
        found = []
        for each in self.plan:
            wanted = corrections.get(each.name, each.correction)
            found.append(wanted if wanted.term is None else each.added(wanted.term))
        return found
