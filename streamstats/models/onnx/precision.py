"""The precision of a correction: its standard error over calibration samples, in steps of the bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...correction import correction_error
from ...errors import UsageError
from ...outputs.layer_statistics import LayerStatistics
from ...quantization import channel_maps
from ..linear import LayerCorrection
from ..precision import Precision
from .biases import add_to_biases
from .codes import tensor_quantization
from .graph import copied
from .pairs import Pair

if TYPE_CHECKING:
    import onnx

Float64Array = npt.NDArray[np.float64]


def bias_steps(model: onnx.ModelProto, pairs: Sequence[Pair]) -> dict[str, Float64Array]:
    """Layer → the step of the bias, float64[outputs], to which a correction would be rounded, if there is one."""
    nothing = [LayerCorrection(pair.name, term=np.zeros(pair.quantized.outputs)) for pair in pairs]
    return {each.layer: each.step for each in add_to_biases(copied(model), pairs, nothing) if each.step is not None}


def precision(pair: Pair, statistics: LayerStatistics, step: Float64Array | None = None) -> Precision | None:
    """The precision of the correction of `pair` from `statistics`; None if no step is known."""
    known, layer = statistics.standard_error, pair.recorded_layer
    if step is None and pair.weight_step is not None:
        low, high = np.nanmin(statistics.minimum, initial=0.0), np.nanmax(statistics.maximum, initial=0.0)
        (input_step, _), *_ = channel_maps(tensor_quantization(float(low), float(high)), 1)
        step = pair.weight_step * float(input_step)
    if step is None:
        return None
    if known is None:
        return Precision(pair.name, statistics.rows, None, np.asarray(step, np.float64))
    weight, quantized = (pair.for_recorded(each) for each in (pair.weight, pair.quantized.weight))
    error = correction_error(
        known, weight, quantized, layout=layer.layout, groups=layer.groups, geometry=layer.geometry
    )
    return Precision(pair.name, statistics.rows, error * abs(layer.factor), np.asarray(step, np.float64))


class KnownTo:
    """True for statistics from which every correction is known to a `fraction` of the step of its bias.

    `judged` holds the latest precisions, by layer. Layers without statistics, and layers whose precision cannot improve
    (their spread is not finite), do not count. `check` raises for statistics of another model.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        pairs: Sequence[Pair],
        fraction: float,
        check: Callable[[Mapping[str, LayerStatistics]], None] = lambda _: None,
    ) -> None:
        self._check = check
        self._pairs, self._fraction, self._steps = pairs, fraction, bias_steps(model, pairs)
        self.judged: dict[str, Precision] = {}

    def __call__(self, statistics: Mapping[str, LayerStatistics]) -> bool:
        """Whether every correction is known that well. Raises `UsageError` if no precision is known, and as `check`."""
        self._check(statistics)
        found = [
            precision(pair, statistics[pair.name], self._steps.get(pair.name))
            for pair in self._pairs
            if pair.name in statistics
        ]
        self.judged = {each.layer: each for each in found if each is not None and math.isfinite(each.in_steps)}
        if not self.judged:
            raise UsageError(
                "the precision of the corrections cannot be estimated; expected the float model that was recorded, the "
                "same model with its weights stored as codes (or --bits for weights of floats), and samples that "
                "differ (rows that are positions do not tell it)"
            )
        return all(each.in_steps <= self._fraction for each in self.judged.values())

    @property
    def worst(self) -> Precision | None:
        """The precision of the layer whose correction is known least well."""
        return max(self.judged.values(), key=lambda each: each.in_steps, default=None)
