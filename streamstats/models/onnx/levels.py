"""Fake-quantising: an ONNX model whose weights are real numbers, rounded to the levels that N bits represent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import UsageError, one_of
from ...quantization import WEIGHT_RANGES, check_bits
from .by_moments import GRAM, ByMoments, Rounded
from .edit import GraphEdit
from .layers import OnnxLayer
from .pairs import Pair

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Levels:
    """How weights are fake-quantised: to `2^bits` levels per tensor, or per output channel.

    `weight_range` chooses the range, as `fake_quantize` explains. `by_moments` rounds and scales by the second moments
    of inputs; without it, each weight is rounded to nearest. Raises `UsageError` for bits outside 2…16, and for factors
    of output channels per tensor.
    """

    bits: int
    per_channel: bool = False
    symmetric: bool = False
    weight_range: str = "minmax"
    by_moments: ByMoments | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.weight_range not in WEIGHT_RANGES:
            raise UsageError(f"weight_range is {self.weight_range!r}; {one_of(self.weight_range, WEIGHT_RANGES)}")
        if self.by_moments and self.by_moments.scale and not self.per_channel:
            raise UsageError(
                "scaling needs a step for each output channel, but the weights have one per tensor; choose levels per "
                "channel (--per-channel), or leave out --scale"
            )

    def plainer(self) -> list[Levels]:
        """The same levels with less done by moments: without scales, then without rounding by them."""
        if self.by_moments is None:
            return []
        unscaled = self.by_moments.scale and self.by_moments.rounding == GRAM
        fewer = [replace(self.by_moments, scale=False)] if unscaled else []
        return [replace(self, by_moments=each) for each in (*fewer, None)]

    @property
    def named(self) -> str:
        """What weights on these levels are called in reports."""
        name = f"weights of {self.bits} bits {'per channel' if self.per_channel else 'per tensor'}"
        if self.by_moments is None:
            return name
        rounded = ", rounded by second moments" if self.by_moments.rounding == GRAM else ""
        return f"{name}{rounded}{', scaled' if self.by_moments.scale else ''}"

    def pairs(self, layers: Sequence[OnnxLayer]) -> list[Pair]:
        """Each layer with its version on the levels. Raises `UsageError` that names the layer, `DataError`."""
        sharing: dict[tuple[str, int, int], list[OnnxLayer]] = {}
        for layer in layers:
            sharing.setdefault(self._key(layer), []).append(layer)
        rounded = self._rounded(sharing, layers)
        return [self._pair(layer, rounded[self._key(layer)]) for layer in layers]

    def _pair(self, layer: OnnxLayer, made: Rounded) -> Pair:
        quantized, output = layer.with_weight(made.weight), layer.node.output[0]
        return Pair(quantized, layer, layer.weight, output, made.step, explained=made.how)

    def _rounded(
        self, sharing: Mapping[tuple[str, int, int], Sequence[OnnxLayer]], layers: Sequence[OnnxLayer]
    ) -> dict[tuple[str, int, int], Rounded]:
        """The weight of each group of layers that share one."""
        found = {key: Rounded(self._applied(alike[0]), self.step(alike[0])) for key, alike in sharing.items()}
        by_moments = self.by_moments
        if by_moments is None:
            return found
        results = by_moments.opened(layers)
        return {
            key: by_moments.applied(results, alike, found[key], self._codes(alike[0])) for key, alike in sharing.items()
        }

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
        """Layers with equal keys share one weight: the same tensor, with the same ranges and columns."""
        alone = self.per_channel or self.by_moments is not None
        return (layer.weight_name, *((layer.output_axis, layer.groups) if alone else (-1, 1)))

    def _codes(self, layer: OnnxLayer) -> tuple[npt.NDArray[Any], ...]:
        try:
            return layer.weight_codes(self.bits, **self._how)
        except UsageError as error:
            raise type(error)(f"layer {layer.name}: {error}") from error

    def _applied(self, layer: OnnxLayer) -> npt.NDArray[Any]:
        try:
            return layer.fake_quantized(self.bits, **self._how)
        except UsageError as error:
            raise type(error)(f"layer {layer.name}: {error}") from error
