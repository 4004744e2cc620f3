"""Fake-quantising activations: rounding the inputs of layers to codes of N bits, in ranges from a run's output.

The rounding is written into the model as operators on floats (Div, Round, Clip, Mul), so any width can be judged.
Zero has a code, so zeros that a layer pads with stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError, listed, one_of
from ...outputs.results import open_results
from ...quantization import check_bits
from ...ranges.codes import Codes
from ...ranges.finding import METHODS, MINMAX, LayerRange, layer_ranges
from .edit import GraphEdit
from .layers import OnnxLayer

if TYPE_CHECKING:
    import onnx

FLOAT, FLOAT16 = 1, 10
"""The ONNX numbers of these tensor types."""


@dataclass(frozen=True)
class Activations:
    """How activations are fake-quantised: to affine codes of `bits` bits, one range for each layer's input.

    `method`, one of `METHODS`, finds the ranges in `output`, what a run over the float model's activations left, as
    `find_ranges` explains. Raises `UsageError` for bits outside 2…16 and unknown methods.
    """

    output: str | Path
    bits: int
    method: str = MINMAX

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.method not in METHODS:
            raise UsageError(f"activation_range is {self.method!r}; {one_of(self.method, METHODS)}")

    def ranges(self, layers: Sequence[OnnxLayer]) -> dict[str, InputRange]:
        """The range of each layer's input.

        Raises `UsageError` if a layer was not counted, or has no finite value, `DataError` for a damaged output.
        """
        results, codes = open_results(self.output), Codes(self.bits)
        missing = [layer.name for layer in layers if layer.name not in results.layers]
        if missing:
            raise UsageError(
                f"{self.output} has no statistics of {listed(missing)}, so their inputs have no range; count "
                "all layers of the model"
            )
        counted = {layer.name: results.statistics(layer.name) for layer in layers}
        empty = [name for name, statistics in counted.items() if not statistics.sums.count.any()]
        if empty:
            raise UsageError(
                f"{self.output} counted no finite value of {listed(empty)}, so their inputs have no range; count rows "
                "of them, or leave activations as they are"
            )
        return {
            name: InputRange(layer_ranges(statistics, [self.method], codes)[0], statistics.channels)
            for name, statistics in counted.items()
        }


@dataclass(frozen=True)
class InputRange:
    """The range of a layer's input, of `channels` channels."""

    found: LayerRange
    channels: int

    @property
    def farthest_move(self) -> float:
        """The most by which rounding moves the means of the counted inputs, as the norm over channels.

        The square of a channel's mean error is at most its mean squared error; all channels have as many values.
        """
        bound = self.found.ranges[0].bound
        return 0.0 if bound is None else math.sqrt(bound.mean_squared_error * self.channels)


def round_inputs(
    model: onnx.ModelProto, layers: Sequence[OnnxLayer], ranges: Mapping[str, InputRange]
) -> onnx.ModelProto:
    """`model`, changed in place: each of `layers` that has one of `ranges` reads its input rounded to the codes.

    Layers that read the same tensor in the same range share the rounding. Raises `UsageError` for steps that the
    model's dtype cannot represent.
    """
    edit = GraphEdit(model)
    rounded: dict[tuple[str, float, int], str] = {}
    for layer in (layer for layer in layers if layer.name in ranges):
        node, found = edit.node(layer.node.output[0]), ranges[layer.name].found
        key = (layer.input, float(found.quantization.step), int(found.quantization.zero_point))
        if key not in rounded:
            rounded[key] = _rounded(edit, node, layer, found)
        edit.rewire(node, 0, rounded[key])
    return edit.finish()


def _rounded(edit: GraphEdit, node: onnx.NodeProto, layer: OnnxLayer, found: LayerRange) -> str:
    """The name of the input of `node`, rounded to the codes of `found`.

    float16 cannot represent the codes of more than 11 bits, so they are computed in float32.
    """
    half, label = layer.weight.dtype == np.float16, f"{layer.name}.input"
    dtype = np.dtype(np.float32) if half else layer.weight.dtype
    step = _step(found, dtype)
    lowest, highest = (np.asarray(end, dtype) for end in found.codes.reach(found.quantization))
    value = node.input[0]
    if half:
        value = edit.insert_before(node, "Cast", [value], f"{label}.wide", to=FLOAT)
    value = edit.insert_before(node, "Div", [value, step], f"{label}.scaled")
    value = edit.insert_before(node, "Round", [value], f"{label}.nearest")
    value = edit.insert_before(node, "Clip", [value, lowest, highest], f"{label}.code")
    value = edit.insert_before(node, "Mul", [value, step], f"{label}.rounded")
    return edit.insert_before(node, "Cast", [value], f"{label}.half", to=FLOAT16) if half else value


def _step(found: LayerRange, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The step in the dtype of the model. Raises `UsageError` if it underflows there."""
    step = np.asarray(found.quantization.step, dtype)
    if not step > 0:
        raise UsageError(
            f"layer {found.layer}: its activations reach from {found.ranges[0].low:g} to {found.ranges[0].high:g}, too "
            f"close to zero for steps of {dtype}; leave activations as they are"
        )
    return step
