"""What became of a float weight before it was rounded: nothing, or it took the scale of a batch normalisation.

A difference that is not rounding is not corrected. Rounding errors do not follow the weight: if a factor for each
output or input explains most of a difference, the weight was scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MismatchError
from ...layouts import TRANSPOSED
from ..linear import is_near
from .layers import ModelLayer
from .library import Array, reals
from .places import Copy, is_norm

if TYPE_CHECKING:
    import torch

    from .weights import ComputedWeight

ENOUGH = 4
"""The weights from which on a factor for all of them is told from rounding."""
SAME = 1e-5
"""How far apart, as a share of the norm, float weights are that differ by errors of float32 only."""
TRAINED = "it was trained or changed since: record the model whose weights were rounded"
EXPLAINED = 0.5
"""The share of a difference that is left where a factor explains it; of rounding errors, nearly all is left."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A float `weight`, with the scale of `norm` in it; None if no norm was folded."""

    weight: Array
    norm: torch.nn.Module | None = None


def folded_weight(
    layer: ModelLayer, weight: Array, found: ComputedWeight, model: torch.nn.Module, copied: Copy
) -> Folded:
    """The weight that `found` is the rounded one of: `weight`, or what a norm that the copy lacks makes of it.

    Raises `MismatchError` if it is no rounded one of any.
    """
    quantized = found.values
    candidates = [Folded(weight)]
    if weight.shape == quantized.shape:
        candidates += _folded(layer, weight, model, copied)
    nearest = min(candidates, key=lambda each: _distance(each.weight, quantized))
    check_rounded(nearest.weight, quantized, layer.layout)
    _check_not_trained(weight, nearest.weight, found)
    return nearest


def check_rounded(weight: Array, quantized: Array, layout: str) -> None:
    """Raise `MismatchError` if `quantized` is of another layer, or if `weight` was scaled rather than rounded."""
    if weight.shape != quantized.shape:
        raise MismatchError(f"its weight has the shape {weight.shape}, the quantised {quantized.shape}")
    if not is_near(weight, quantized):
        raise MismatchError("the quantised weight is not close to its own: it belongs to another layer, or was changed")
    outputs = output_axis(layout)
    for side, axis in (("output", outputs), ("input", 1 - outputs)):
        _check_not_scaled(side, np.moveaxis(weight, axis, -1), np.moveaxis(quantized, axis, -1))


def _distance(weight: Array, quantized: Array) -> float:
    return float(np.linalg.norm(weight - quantized)) if weight.shape == quantized.shape else np.inf


def _check_not_trained(weight: Array, nearest: Array, found: ComputedWeight) -> None:
    """Raise `MismatchError` if rounding alone cannot have made what was `found` of the float weight."""
    if found.origin is not None and np.linalg.norm(found.origin - weight) > SAME * np.linalg.norm(weight):
        raise MismatchError(f"the float weight that the quantised module rounds is not the model's; {TRAINED}")
    if found.tolerance is None:
        return
    far = np.abs(found.values - nearest) > found.tolerance
    if far.any():
        raise MismatchError(
            f"{far.sum():,} of {far.size:,} quantised weights are further from their own than rounding moves them; "
            f"{TRAINED}"
        )


def _folded(layer: ModelLayer, weight: Array, model: torch.nn.Module, copied: Copy) -> Iterator[Folded]:
    """`weight` with the scale of each batch normalisation that `copied` lacks and that has its outputs."""
    axis = output_axis(layer.layout)
    groups = getattr(layer.module, "groups", 1) if layer.layout in TRANSPOSED else 1
    for path, module in model.named_modules():
        if not is_norm(module) or copied.has_norm(path) or module.num_features != weight.shape[axis] * groups:
            continue
        scale = norm_scale(module)
        if groups > 1:
            rows = scale.reshape(groups, 1, -1)
            inputs = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            yield Folded((inputs * rows[..., None]).reshape(weight.shape), module)
        else:
            others = tuple(other for other in range(weight.ndim) if other != axis)
            yield Folded(weight * np.expand_dims(scale, others), module)


def norm_scale(norm: Any) -> Array:
    """What a batch normalisation multiplies by, float64[features]."""
    scale: Array = 1 / np.sqrt(reals(norm.running_var) + norm.eps)
    return scale if norm.weight is None else scale * reals(norm.weight)


def output_axis(layout: str) -> int:
    """The axis of the output channels of a weight."""
    return 0 if layout.startswith("O") else 1


def _check_not_scaled(side: str, weight: Array, quantized: Array) -> None:
    """Raise `MismatchError` if a factor for each of the last axis explains most of the difference."""
    rows, channels = weight.reshape(-1, weight.shape[-1]), quantized.reshape(-1, weight.shape[-1])
    difference = np.linalg.norm(channels - rows)
    if len(rows) < ENOUGH or difference <= 1e-6 * np.linalg.norm(rows):
        return
    squares = (rows * rows).sum(axis=0)
    factors = (rows * channels).sum(axis=0) / np.where(squares, squares, 1)
    if np.linalg.norm(channels - factors * rows) < EXPLAINED * difference:
        raise MismatchError(
            f"the quantised weight is its own times {factors.min():.3g} to {factors.max():.3g} for each {side}, "
            "which is no rounding: record the model as its quantiser had it, with norms folded or channels scaled"
        )
