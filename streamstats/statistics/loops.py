"""Choosing and loading the compiled loop for a dtype, and the arguments it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.cache import POINTER, SIZE, load
from .exact import digit_count

ARGUMENTS = (POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, POINTER, POINTER)
"""data, outer, channels, inner, sums, low, high, room: arrays as `kernels` describes them, C-contiguous."""
MODULES = tuple(f"{__package__}.{name}" for name in ("kernels", "loops", "exact"))

ROOM, TILE_BYTES = 7, 4096
"""A loop's working memory: ROOM accumulators for each channel of a tile, which is TILE_BYTES of a row of a block."""

INTEGER_OF_FLOAT = {np.dtype(np.float16): np.int16, np.dtype(np.float32): np.int32, np.dtype(np.float64): np.int64}
"""Float → the signed integer of the same width, as which its bit patterns are read."""
TWICE_AS_WIDE = {1: np.int16, 2: np.int32, 4: np.int64}
"""Bytes of an integer → the dtype of its accumulators."""


def room() -> npt.NDArray[np.float64]:
    """A loop's working memory, which serves one call at a time."""
    return np.empty(ROOM * TILE_BYTES)  # enough for float16, whose accumulators have 64 bits each


def bound_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the loops hold extrema of `dtype`."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype == np.float16 else dtype


@cache
def loop(dtype: np.dtype[Any], *, runs: bool) -> Callable[..., None]:
    """The loop over rows, or over runs, of native `dtype`; it takes ARGUMENTS: addresses and extents."""
    name = f"{'runs' if runs else 'rows'}-{dtype.name}"
    return load(name, ARGUMENTS, lambda: _definition(dtype, runs), MODULES)


def _definition(dtype: np.dtype[Any], runs: bool) -> Callable[..., None]:
    """The function to compile: it views the addresses as arrays and calls the loop."""
    import numba

    from . import kernels

    chosen = kernels.LOOPS[_kind(dtype)][runs]
    compiled = numba.njit(fastmath={"reassoc"} if chosen in kernels.REORDERED else False)(chosen)
    carray = numba.carray
    values = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    bits = np.dtype(INTEGER_OF_FLOAT.get(dtype, np.int64 if dtype.itemsize == 8 else values))
    if dtype == np.float16:
        values = bits  # compiled code has no float16
    bound = bound_dtype(dtype)
    accumulators = np.dtype(np.float64 if dtype.kind == "f" else TWICE_AS_WIDE.get(dtype.itemsize, np.int64))
    digits, tile = digit_count(dtype), TILE_BYTES // dtype.itemsize

    def over_rows(data, outer, channels, inner, sums, low, high, space):  # type: ignore[no-untyped-def]
        compiled(
            carray(data, (outer, channels), values),
            carray(data, (outer, channels), bits),
            carray(sums, (digits + 2, channels), np.int64),
            carray(low, (channels,), bound),
            carray(high, (channels,), bound),
            carray(space, (ROOM, tile), accumulators),
        )

    def over_runs(data, outer, channels, inner, sums, low, high, space):  # type: ignore[no-untyped-def]
        compiled(
            carray(data, (outer, channels, inner), values),
            carray(data, (outer, channels, inner), bits),
            carray(sums, (digits + 2, channels), np.int64),
            carray(low, (channels,), bound),
            carray(high, (channels,), bound),
            carray(space, (ROOM, tile), accumulators),
        )

    return over_runs if runs else over_rows


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return dtype.name
    return "wide" if dtype.itemsize == 8 else "narrow"
