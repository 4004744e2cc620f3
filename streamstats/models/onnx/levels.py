"""Fake-quantising: an ONNX model whose weights are real numbers, rounded to the levels that N bits represent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ...quantization import WEIGHT_RANGES, check_bits
from .edit import GraphEdit
from .layers import OnnxLayer
from .pairs import Pair

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Levels:
    """How weights are fake-quantised: to `2^bits` levels per tensor, or per output channel.

    `weight_range` chooses the range, as `fake_quantize` explains. Raises `UsageError` for bits outside 2…16.
    """

    bits: int
    per_channel: bool = False
    symmetric: bool = False
    weight_range: str = "minmax"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.weight_range not in WEIGHT_RANGES:
            raise UsageError(f"weight_range is {self.weight_range!r}; expected one of {', '.join(WEIGHT_RANGES)}")

    def pairs(self, layers: Sequence[OnnxLayer]) -> list[Pair]:
        """Each layer with its version on the levels. Raises `UsageError` that names the layer."""
        weights: dict[tuple[str, int, int], npt.NDArray[Any]] = {}
        found = []
        for layer in layers:
            key = self._key(layer)
            if key not in weights:
                weights[key] = self._applied(layer)
            found.append(
                Pair(layer.with_weight(weights[key]), layer, layer.weight, layer.node.output[0], self.step(layer))
            )
        return found

    def put_into(self, model: onnx.ModelProto, pairs: Sequence[Pair]) -> onnx.ModelProto:
        """`model`, changed in place, with the weights of `pairs`; other nodes keep the weights they read before."""
        edit = GraphEdit(model)
        sharing: dict[tuple[str, int, int], list[Pair]] = {}
        for pair in pairs:
            sharing.setdefault(self._key(pair.original), []).append(pair)
        for alike in sharing.values():
            nodes = [edit.node(pair.original.node.output[0]) for pair in alike]
            edit.replace_input(nodes, 1, alike[0].quantized.weight, alike[0].original.weight_name)
        return edit.finish()

    def step(self, layer: OnnxLayer) -> npt.NDArray[np.float64]:
        """The distance between levels, float64[outputs], which divide the range evenly."""
        return layer.weight_step(self.bits, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        return {"per_channel": self.per_channel, "symmetric": self.symmetric, "weight_range": self.weight_range}

    def _key(self, layer: OnnxLayer) -> tuple[str, int, int]:
        """Layers with equal keys share one weight: the same tensor with the same ranges."""
        return (layer.weight_name, *((layer.output_axis, layer.groups) if self.per_channel else (-1, 1)))

    def _applied(self, layer: OnnxLayer) -> npt.NDArray[Any]:
        try:
            return layer.fake_quantized(self.bits, **self._how)
        except UsageError as error:
            raise type(error)(f"layer {layer.name}: {error}") from error
