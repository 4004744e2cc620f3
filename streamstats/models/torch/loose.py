"""Parameters that a model multiplies by without a linear module: their terms, and the bias beside them.

Only the recording sees which parameter a call adds as a bias; its account says so. Nothing is told from names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...correction import BiasCorrector
from ...errors import MismatchError
from ...layouts import Geometry
from ...outputs.results import Results
from ..linear import (
    NEVER_QUANTISED,
    NO_CORRECTOR,
    LayerCorrection,
    LinearLayer,
    load_corrector,
    planned_correction,
)
from .account import Account
from .folding import check_rounded
from .layers import MATRICES, ModelLayer, plain_path
from .library import reals
from .parameters import LooseParameter, Use
from .places import ParameterPlace
from .planned import Planned

if TYPE_CHECKING:
    import torch

WITHOUT_ACCOUNT = (
    "a parameter of no module, whose bias is not known; give `account`, what the recording yielded, or add the term "
    "that its corrector's `calculate` gives"
)
NO_BIAS = "no one parameter is added as the bias of all its products; its corrector's `calculate` gives the term"
SHARED = "the bias {} is added behind other weights, too; its corrector's `calculate` gives the term"
SAME = "the parameter of the quantised model is the float one"


class LooseParameters:
    """The loose parameters of a model while the biases of its `quantized` copy are corrected.

    `layers` are the other layers of the model, whose biases are their own.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        quantized: torch.nn.Module,
        loose: Sequence[LooseParameter],
        layers: Sequence[ModelLayer],
        account: Account | None,
    ) -> None:
        self._loose, self._account = loose, account
        self._copies = {plain_path(path): each for path, each in quantized.named_parameters()}
        mine = {id(each): plain_path(path) for path, each in model.named_parameters()}
        owned = {id(layer.module._parameters.get(layer.bias)) for layer in layers} & set(mine)
        uses = [each.use.bias for each in (account or {}).values() if each.use is not None]
        self._times = Counter([*uses, *(mine[at] for at in owned)])

    def planned(self, results: Results) -> Iterator[Planned]:
        """What is planned for each that the results have, and for each part of one."""
        for each in self._loose:
            if each.name in results.layers:
                yield self._whole(each, results)
            for part in (name for name in results.layers if name.startswith(f"{each.name}/")):
                yield Planned(self._never_quantised(each, part) or LayerCorrection(part, reason=NO_BIAS))

    def _whole(self, each: LooseParameter, results: Results) -> Planned:
        op = type(each.module).__name__
        if same := self._never_quantised(each, each.name):
            return Planned(same)
        corrector = load_corrector(results.corrector_path(each.name), each.name)
        if corrector is None:
            return Planned(LayerCorrection(each.name, op, reason=NO_CORRECTOR))
        try:
            found = self._planned(each, corrector)
        except MismatchError as refused:
            return Planned(LayerCorrection(each.name, op, reason=str(refused)))
        return replace(found, correction=replace(found.correction, op=op))

    def _never_quantised(self, each: LooseParameter, name: str) -> LayerCorrection | None:
        """What became of the layer `name`, `each` or a part of it, if the copy has the float parameter."""
        stored = self._copies.get(each.path)
        if stored is None or not np.array_equal(reals(each.parameter), reals(stored)):
            return None
        return LayerCorrection(name, type(each.module).__name__, uncorrected=NEVER_QUANTISED, reason=SAME)

    def _planned(self, each: LooseParameter, corrector: BiasCorrector) -> Planned:
        use = self._use(each)
        weight, stored = reals(each.parameter), reals(self._copy(each.path))
        check_rounded(weight, stored, use.layout)
        geometry = Geometry() if use.layout in MATRICES else None
        layer = LinearLayer(name=each.name, weight=weight, layout=use.layout, groups=use.groups, geometry=geometry)
        place = ParameterPlace(self._copy(each.path), self._copy(use.bias))
        return Planned(planned_correction(layer, corrector, weight, stored), place)

    def _use(self, each: LooseParameter) -> Use:
        """How the parameter is used, with a bias of its own. Raises `MismatchError` with the reason if it has none."""
        if self._account is None:
            raise MismatchError(WITHOUT_ACCOUNT)
        record = self._account.get(each.name)
        use = None if record is None else record.use
        if use is None or not use.bias:
            raise MismatchError(NO_BIAS)
        if self._times[use.bias] > 1:
            raise MismatchError(SHARED.format(use.bias))
        return use

    def _copy(self, path: str) -> Any:
        if path not in self._copies:
            raise MismatchError(f"the quantised model has no parameter {path}")
        return self._copies[path]
