"""Choosing and loading the compiled loop for a dtype, and the arguments it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.cache import POINTER, SIZE, load
from ..floats import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, is_float, widened
from .exact import digit_count

ARGUMENTS = (POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, POINTER, POINTER)
"""data, outer, channels, inner, sums, low, high, room: arrays as `kernels` describes them, C-contiguous."""
MODULES = tuple(f"{__package__}.{name}" for name in ("kernels", "loops", "exact"))

ROOM, TILE_BYTES = 7, 4096
"""A loop's working memory: ROOM accumulators for each channel of a tile, which is TILE_BYTES of a row of a block."""

INTEGER_OF_FLOAT = {
    np.dtype(np.float16): np.int16,
    np.dtype(np.float32): np.int32,
    np.dtype(np.float64): np.int64,
    BFLOAT16: np.int16,
    FLOAT8_E5M2: np.int8,
    FLOAT8_E4M3FN: np.uint8,
}
"""Float → the integer of the same width, as which its bit patterns are read; for narrow floats, it tells them apart."""
LOOP_OF_NARROW = {BFLOAT16: "float32", FLOAT8_E5M2: "float16", FLOAT8_E4M3FN: "float16"}
"""Narrow float → the loops that serve it: it is widened to this as it is loaded."""
HALF_SCALE = {np.dtype(np.float16): -112, FLOAT8_E5M2: -112, FLOAT8_E4M3FN: -120}
"""log2 of the scale of extrema in the loops of float16."""
TWICE_AS_WIDE = {1: np.int16, 2: np.int32, 4: np.int64}
"""Bytes of an integer → the dtype of its accumulators."""


def room() -> npt.NDArray[np.float64]:
    """A loop's working memory, which serves one call at a time."""
    return np.empty(ROOM * TILE_BYTES)  # enough for float16, whose accumulators have 64 bits each


def bound_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the loops hold extrema of `dtype`."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype in HALF_SCALE else widened(dtype)


def is_compiled(dtype: np.dtype[Any]) -> bool:
    """Whether compiled code has this dtype: it has no float16, and no narrower floats."""
    return dtype != np.float16 and dtype not in LOOP_OF_NARROW


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
    if not is_compiled(dtype):
        values = bits
    bound = bound_dtype(dtype)
    accumulators = np.dtype(np.float64 if is_float(dtype) else TWICE_AS_WIDE.get(dtype.itemsize, np.int64))
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
    if is_float(dtype):
        return LOOP_OF_NARROW.get(dtype, dtype.name)
    return "wide" if dtype.itemsize == 8 else "narrow"
