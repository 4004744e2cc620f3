"""Fake-quantising: an ONNX model whose weights are real numbers, rounded to the levels that N bits represent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ...quantization import check_bits
from .edit import GraphEdit
from .layers import OnnxLayer
from .pairs import Pair

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Levels:
    """How weights are fake-quantised: to `2^bits` levels per tensor, or per output channel.

    Raises `UsageError` for bits outside 2…16.
    """

    bits: int
    per_channel: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits)

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
        weights = layer.weight_by_output().astype(np.float64)
        low, high = weights.min(axis=1, initial=0.0), weights.max(axis=1, initial=0.0)
        if not self.per_channel:
            low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        width = 2 * np.maximum(-low, high) if self.symmetric else high - low
        return np.asarray(width / (2**self.bits - (2 if self.symmetric else 1)))

    def _key(self, layer: OnnxLayer) -> tuple[str, int, int]:
        """Layers with equal keys share one weight: the same tensor with the same ranges."""
        return (layer.weight_name, *((layer.output_axis, layer.groups) if self.per_channel else (-1, 1)))

    def _applied(self, layer: OnnxLayer) -> npt.NDArray[Any]:
        try:
            return layer.fake_quantized(self.bits, per_channel=self.per_channel, symmetric=self.symmetric)
        except UsageError as error:
            raise type(error)(f"layer {layer.name}: {error}") from error
