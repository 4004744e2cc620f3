"""The exact means, found without streamstats: what the error of every method is measured against.

Blocks are read with plain zarr. Integers are summed in numpy's int64. Floats are taken apart into mantissa
and exponent, and the mantissas summed by exponent and channel, which float64 holds exactly for 2^29 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from stores import LayerSource, Source

Array = npt.NDArray[Any]

READ_BYTES = 32 * 2**20
MANTISSA_BITS = 24
LEAST_EXPONENT = -148
"""numpy.frexp of the smallest float32; float16 lies within."""
EXPONENTS = 128 - LEAST_EXPONENT + 1


def exact_means(source: Source, rows: Mapping[str, int]) -> dict[str, Array]:
    """Layer → the float64 nearest to the exact mean of its first `rows[layer]` rows, real units, [C]."""
    group = zarr.open_group(source.path, mode="r")
    return {layer.name: _layer_means(group[layer.name], layer, rows[layer.name]) for layer in source.layers}


def _layer_means(array: Any, layer: LayerSource, rows: int) -> Array:
    sums = _exact_sums(array, layer.channel_axis, rows)
    terms = rows * array.size // (array.shape[0] * len(sums))
    step = Fraction(1 if layer.step is None else layer.step)
    return np.array([float((total - terms * layer.zero_point) * step / terms) for total in sums])


def _exact_sums(array: Any, channel_axis: int, rows: int) -> list[Fraction]:
    """The exact sum of each channel."""
    height = array.shards[0] if array.shards else array.chunks[0]
    height *= max(1, READ_BYTES * array.shape[0] // (array.nbytes * height))
    add = _integer_sums if array.dtype.kind in "iu" else _mantissas_by_exponent
    total: Any = 0
    for start in range(0, rows, height):
        block = array[start : min(start + height, rows)]
        total = total + add(np.moveaxis(block, channel_axis, -1).reshape(-1, array.shape[channel_axis]))
    if array.dtype.kind in "iu":
        return [Fraction(int(value)) for value in total]
    return [_weighted_by_exponent(channel) for channel in total.T]


def _integer_sums(terms: Array) -> Array:
    return np.asarray(terms.sum(axis=0, dtype=np.int64))


def _mantissas_by_exponent(terms: Array) -> Array:
    """int64[EXPONENTS, C]: the sum of the 24-bit mantissas of the terms (float16 or float32 [n, C])."""
    if terms.dtype.itemsize > 4:
        raise TypeError(f"the exact reference takes float16 and float32, not {terms.dtype}")
    channels = terms.shape[1]
    fraction, exponent = np.frexp(terms.astype(np.float32, copy=False))
    place = (exponent - LEAST_EXPONENT) * channels + np.arange(channels)
    weights = np.ldexp(fraction.astype(np.float64), MANTISSA_BITS)
    sums = np.bincount(place.ravel(), weights=weights.ravel(), minlength=EXPONENTS * channels)
    return sums.astype(np.int64).reshape(EXPONENTS, channels)


def _weighted_by_exponent(mantissas: Array) -> Fraction:
    return sum(
        (
            Fraction(int(value)) * Fraction(2) ** (index + LEAST_EXPONENT - MANTISSA_BITS)
            for index, value in enumerate(mantissas)
            if value
        ),
        Fraction(0),
    )


def largest_error(found: Mapping[str, Array], exact: Mapping[str, Array]) -> float:
    """The largest error of a channel, as a share of the largest mean of its layer; 0.0: the same bits."""
    return max(float(np.max(np.abs(found[name] - exact[name])) / np.max(np.abs(exact[name]))) for name in exact)
