"""Masks of layers: arrays of ones and zeros beside a layer, which say which of its positions count.

A mask has the shape of its layer without the channel axis; an axis of extent 1 stands for all positions along it. What
it leaves out is in no statistic. Its chunks belong to what identifies the layer: if they change, so has the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MismatchError, UsageError
from ..statistics.masks import Mask
from .layer import Layer, Selection

USUAL = "attention_mask"
"""What transformers call the input that tells tokens from padding."""
MASK_SUFFIX = ".mask"
"""What a recorder appends to the name of a layer to name its mask."""
EXPECTED = "expected 1 for positions that count, 0 for others"
AMBIGUOUS_ZEROS = (
    "holds floats that are all 0: it may be an additive mask, in which 0 counts, or a mask of 0 and 1, in which 0 does "
    "not; give a mask of booleans or integers"
)


def given_mask(layer: Layer, extents: Sequence[int], mask: npt.ArrayLike | None) -> tuple[Layer, Mask | None]:
    """(`layer`, without rows, with an empty mask like `mask`; `mask` as booleans), for samples of shape `extents`.

    Without a mask, `layer` as it is, and None. Raises `MismatchError` for another shape than that of the samples'
    positions, `UsageError` for values other than 0 and 1, and for floats that may mean either.
    """
    if mask is None:
        return layer, None
    array, positions = np.asarray(mask), positions_of(layer, extents)
    if array.shape[:1] != positions[:1] or not broadcasts_to(array.shape[1:], positions[1:]):
        raise MismatchError(
            f"layer {layer.name}: its mask has the shape {array.shape}; expected {positions}, the shape of the samples "
            "without the channel axis, or 1 in place of an extent after the first"
        )
    if array.dtype.kind == "f" and array.size and not array.any():
        raise UsageError(f"layer {layer.name}: its mask {AMBIGUOUS_ZEROS}")
    values = mask_values(f"layer {layer.name}: its mask", array)
    name, shape = f"{layer.name}{MASK_SUFFIX}", (0, *values.shape[1:])
    return replace(layer, mask=Layer(layer.store, name, shape, values.dtype, (), (), len(shape) - 1)), values


def mask_values(what: str, array: npt.NDArray[Any]) -> Mask:
    """`array` as booleans. Raises `UsageError`, beginning with `what`, for values other than 0 and 1."""
    _check_dtype(what, array.dtype)
    other = array[(array != 0) & (array != 1)]
    if other.size:
        raise UsageError(f"{what} holds {other[0]}; {EXPECTED}{mistaken_for(other[0])}")
    counts: Mask = array != 0
    return counts


def mistaken_for(value: float) -> str:
    """What a mask that holds `value` may be, to append to a message; "" if nothing is known."""
    if value < 0:
        return " (added to scores of attention? then `mask == 0` says which positions count)"
    return " (probabilities? then `mask > 0.5`, or the like, says which positions count)" if 0 < value < 1 else ""


def looks_like_mask(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether the array `name` may be a mask: its values are boolean, or it is called one."""
    return dtype.kind == "b" or "mask" in name.rpartition("/")[2].lower()


def has_positions(shape: Sequence[int], layer: Layer) -> bool:
    """Whether an array of `shape` has the positions of `layer`, or the first of them, as one value per sample.

    Axes of extent 1 may come between, as in masks of scores.
    """
    positions = positions_of(layer, layer.shape)
    return tuple(shape) == positions[: len(shape)] or _long(shape) == _long(positions)


def _long(shape: Sequence[int]) -> list[int]:
    """`shape` without the extents of 1 after the first."""
    return [*shape[:1], *(extent for extent in shape[1:] if extent != 1)]


def with_mask(layer: Layer, mask: Layer) -> Layer:
    """`layer` with `mask`. Raises `UsageError` for a dtype that no mask has, `MismatchError` for another shape."""
    _check_dtype(f"layer {layer.name}: its mask {mask.name}", mask.dtype)
    positions = positions_of(layer, layer.shape)
    rows_fit = mask.rows >= layer.rows if layer.recorded else mask.rows == layer.rows
    if not rows_fit or not broadcasts_to(mask.shape[1:], positions[1:]):
        raise MismatchError(
            f"layer {layer.name}: its mask {mask.name} has the shape {mask.shape}; expected {positions}, the shape of "
            "the layer without its channel axis, or 1 in place of an extent after the first; correct the mask, or "
            "name another one under `mask`"
        )
    return replace(layer, mask=mask)


def positions_of(layer: Layer, extents: Sequence[int]) -> tuple[int, ...]:
    """`extents` of the array of `layer` without that of the channel axis."""
    return positions_of_axis(extents, layer.channel_axis)


def positions_of_axis(extents: Sequence[int], axis: int) -> tuple[int, ...]:
    """`extents` without that of the `axis` of channels, which may count from the end."""
    return tuple(extent for place, extent in enumerate(extents) if place != axis % len(extents))


def mask_selection(layer: Layer, selection: Selection) -> Selection:
    """The part of the mask of `layer` for the part `selection` of the layer."""
    assert layer.mask is not None
    parts = [part for axis, part in enumerate(selection) if axis != layer.channel_axis]
    extents = layer.mask.shape[1:]
    return (parts[0], *(slice(0, 1) if n == 1 else part for part, n in zip(parts[1:], extents, strict=True)))


def _check_dtype(what: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise UsageError(f"{what} holds values of {dtype}; expected booleans, or the numbers 0 and 1")


def broadcasts_to(extents: Sequence[int], positions: Sequence[int]) -> bool:
    """Whether a mask of shape `extents` is one for `positions`: an extent of 1 stands for any."""
    pairs = zip(extents, positions, strict=False)
    return len(extents) == len(positions) and all(n in (1, position) for n, position in pairs)
