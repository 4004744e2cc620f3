"""Counting: the rider that counts how often each value occurs, and its loops.

Values of 8 bits are counted one by one for each channel, wider ones by their upper 16 bits over all channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled import foreign
from ..compiled.cache import POINTER, SIZE, load
from ..floats import fraction_bits, is_float, unit_exponent_of, widen
from .loops import ARGUMENTS
from .riders import COPIES, CountingRider, Tally

Array = npt.NDArray[Any]

BINS = 2**16
"""The bins of wide values: one for each pattern of their upper 16 bits."""
TABLES, ZEROS = 4, 8
"""Tables per channel for 8-bit values, and places that share the zeros of wider values."""
COUNT_MODULES = (f"{__package__}.count_kernels", __name__, foreign.__name__)


def is_counted_by_channel(dtype: np.dtype[Any]) -> bool:
    """Whether `Counting` counts each value of each channel: those of 8 bits."""
    return dtype.itemsize == 1


def is_counted_by_value(dtype: np.dtype[Any]) -> bool:
    """Whether each value of `dtype` has a bin of its own: those of 8 and 16 bits."""
    return dtype.itemsize <= 2


class Counting(CountingRider):
    """A `Rider`: how often each value of 8 bits occurs per channel, or each bin of wider values over all channels."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int) -> None:
        super().__init__(dtype, shape, axis)
        narrow = is_counted_by_channel(dtype)
        self._counts = np.zeros((self.channels, 256) if narrow else BINS + ZEROS, np.int64)
        self._tables = np.zeros((TABLES, self.channels, 256) if narrow else 0, np.uint16)
        self._taken = np.zeros(1, np.int64)

    def _loop(self) -> Callable[..., None]:
        return _counting(self.dtype)

    def _arguments(self, inner: int) -> tuple[int, int, int, int, int, int]:
        arrays = [each.ctypes.data for each in (self._counts, self._tables, self._taken)]
        return self.channels, inner, arrays[0], arrays[1], arrays[2], 0

    def found(self) -> Tally:
        """`counts` of finite values, ascending by value: int64[256, C] for 8 bits, else int64[BINS]."""
        if is_counted_by_channel(self.dtype):
            _flushing()(*self._arguments(0)[2:5], self.channels)
            counts = self._counts[:, _order(self.dtype, 8)].T.copy()
            counts[~np.isfinite(codes(self.dtype))] = 0
            return Tally({"counts": counts})
        counts = self._counts[:BINS].copy()
        counts[0] += self._counts[BINS:].sum()
        found = counts[patterns(self.dtype)]
        if is_float(self.dtype):
            beyond = _beyond(self.dtype)
            found[:beyond] = found[BINS - beyond :] = 0  # NaN and infinities
        return Tally({"counts": found}, by_channel=False)

    @classmethod
    def working_bytes(cls, dtype: np.dtype[Any], shape: Sequence[int], axis: int) -> int:
        """As `RiderKind.working_bytes`."""
        narrow, wide = 256 * shape[axis] * (COPIES * 8 + 2 * TABLES), COPIES * 8 * (BINS + ZEROS)
        return narrow if is_counted_by_channel(dtype) else wide


def codes(dtype: np.dtype[Any]) -> Array:
    """The 256 values of an 8-bit `dtype`, ascending: int64[256], or float32[256] with NaN and infinities at both ends.

    Values of bool above 1 never occur.
    """
    if is_float(dtype):
        return widen(_order(dtype, 8).astype(np.uint8).view(dtype))
    return np.arange(256) - (128 if dtype.kind == "i" else 0)


def code_units(dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """The same in the unit of their sums, int64[256]; 0 for NaN and infinities, which are not counted."""
    if not is_float(dtype):
        return codes(dtype)
    values = codes(dtype).astype(np.float64)
    return (np.where(np.isfinite(values), values, 0.0) * 2.0 ** -unit_exponent_of(dtype)).astype(np.int64)


def bins(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """(least, greatest) value of each bin of `dtype`, ascending: [BINS] each, or [256] as `codes` for 8 bits.

    They have this dtype, or float32 for bfloat16. The outermost bins of floats hold NaN and infinities; their counts
    are always 0.
    """
    if is_counted_by_channel(dtype):
        return codes(dtype), codes(dtype)
    shift = 8 * dtype.itemsize - 16
    upper = patterns(dtype).astype(np.uint64) << np.uint64(shift)
    lower = np.uint64((1 << shift) - 1)
    ends = [widen(each.astype(f"u{dtype.itemsize}").view(dtype)) for each in (upper, upper | lower)]
    if is_float(dtype):  # a negative float grows towards zero as its bits fall
        negative = upper >> np.uint64(8 * dtype.itemsize - 1) == 1
        return np.where(negative, ends[1], ends[0]), np.where(negative, ends[0], ends[1])
    return ends[0], ends[1]


def patterns(dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """The upper 16 bits of the values in each bin of a wider `dtype`, ascending, int64[BINS]."""
    return _order(dtype, 16)


def _order(dtype: np.dtype[Any], bits: int) -> npt.NDArray[np.int64]:
    """The upper `bits` of the bit patterns, in the order of the values: negative floats descend."""
    sign, patterns = 1 << (bits - 1), np.arange(1 << bits)
    if dtype.kind == "i":
        return patterns ^ sign
    if is_float(dtype):
        return np.where(patterns < sign, 2 * sign - 1 - patterns, patterns ^ sign)
    return patterns


def _beyond(dtype: np.dtype[Any]) -> int:
    """How many bins at each end hold NaN and infinities."""
    return 1 << max(0, fraction_bits(dtype) - 8 * dtype.itemsize + 16)


@cache
def _counting(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop over rows; of the arguments of `loops`, sums are the counts, low the tables, high how full these are."""
    return load(f"counts-{8 * dtype.itemsize}", ARGUMENTS, lambda: _definition(dtype.itemsize), COUNT_MODULES)


@cache
def _flushing() -> Callable[..., None]:
    """The function that adds tables to counts: (counts, tables, taken, channels)."""
    return load("flush-counts", (POINTER, POINTER, POINTER, SIZE), _flush_definition, COUNT_MODULES)


def _definition(itemsize: int) -> Callable[..., None]:
    import numba

    from .count_kernels import count_rows, count_runs, count_wide

    carray, bits, shift = numba.carray, np.dtype(f"u{itemsize}"), 8 * itemsize - 16

    def count_narrow(data, outer, channels, inner, counts, tables, taken, unused):  # type: ignore[no-untyped-def]
        found, full = carray(counts, (channels, 256), np.int64), carray(taken, (1,), np.int64)
        small = carray(tables, (TABLES, channels, 256), np.uint16)
        if inner == 1:
            eighths = channels >> 3 if channels & 7 == 0 else 0
            words = carray(data, (outer, eighths), np.uint64)
            flat = carray(tables, (TABLES * channels * 256,), np.uint16)
            count_rows(carray(data, (outer, channels), np.uint8), words, found, small, flat, full)
        else:
            count_runs(carray(data, (outer, channels, inner), np.uint8), found, small, full)

    def count_all(data, outer, channels, inner, counts, tables, taken, unused):  # type: ignore[no-untyped-def]
        count_wide(carray(data, (outer * channels * inner,), bits), shift, carray(counts, (BINS + ZEROS,), np.int64))

    return count_narrow if itemsize == 1 else count_all


def _flush_definition() -> Callable[..., None]:
    import numba

    from .count_kernels import flush

    carray = numba.carray

    def flush_all(counts, tables, taken, channels):  # type: ignore[no-untyped-def]
        small = carray(tables, (TABLES, channels, 256), np.uint16)
        flush(small, carray(counts, (channels, 256), np.int64), carray(taken, (1,), np.int64))

    return flush_all
