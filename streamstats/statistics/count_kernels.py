"""The compiled loops that count how often each value occurs: a table per channel for 8 bits, one in all for more.

8-bit values are counted in tables of 16-bit numbers, small enough for the processor's first cache; they are added to
the counts before they can overflow. Wider values are counted by the upper 16 bits of their bit patterns.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit(error_model="numpy")

MOST = 2**16 - 1
"""The most values of a channel between two additions of the tables to the counts."""
ROWS, TILE = 256, 64
"""Rows, and channels, that are counted together: their tables fill half of the first cache."""


@compiled
def flush(tables: Array, counts: Array, taken: Array) -> None:
    """Add tables uint16[4, channels, 256] to counts int64[channels, 256], and reset them."""
    for table in range(tables.shape[0]):
        for c in range(counts.shape[0]):
            for value in range(256):
                counts[c, value] += np.int64(tables[table, c, value])
    tables[:] = 0
    taken[0] = 0


@compiled
def count_rows(values: Array, words: Array, counts: Array, tables: Array, flat: Array, taken: Array) -> None:
    """values uint8 [rows, channels]; words uint64 [rows, channels / 8]: the same, eight at a time, if they divide so.

    `flat` is the memory of the tables; taken int64[1] counts the values per channel that they hold.
    """
    rows, channels = values.shape
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        if taken[0] + stop - start > MOST:
            flush(tables, counts, taken)
        taken[0] += stop - start
        for first in range(0, channels, TILE):
            last = min(first + TILE, channels)
            table = flat[256 * first : 256 * last]
            for row in range(start, stop):
                if words.size:
                    _count_words(words[row, first >> 3 : last >> 3], table)
                else:
                    _count_line(values[row, first:last], table)


@compiled
def _count_line(line: Array, flat: Array) -> None:
    """Count one value of each channel; `flat` holds their tables, one after the other."""
    table = np.uint64(0)
    for c in range(line.size):
        flat[table + np.uint64(line[c])] += np.uint16(1)
        table += np.uint64(256)


@compiled
def _count_words(line: Array, flat: Array) -> None:
    """The same, eight channels at a time: one load for eight values."""
    table = np.uint64(0)
    for c in range(line.size):
        word = line[c]
        for place in range(8):
            flat[table + (word >> np.uint64(8 * place) & np.uint64(255))] += np.uint16(1)
            table += np.uint64(256)


@compiled
def count_runs(values: Array, counts: Array, tables: Array, taken: Array) -> None:
    """values uint8 [outer, channels, inner]; neighbours go to different tables, as additions to one count are slow."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for start in range(0, inner, MOST):
            stop = min(start + MOST, inner)
            if taken[0] + stop - start > MOST:
                flush(tables, counts, taken)
            taken[0] += stop - start
            for c in range(channels):
                run = values[o, c, start:stop]
                one, two, three, four = tables[0, c], tables[1, c], tables[2, c], tables[3, c]
                for i in range(0, run.size - 3, 4):
                    one[run[i]] += np.uint16(1)
                    two[run[i + 1]] += np.uint16(1)
                    three[run[i + 2]] += np.uint16(1)
                    four[run[i + 3]] += np.uint16(1)
                for i in range(run.size - run.size % 4, run.size):
                    one[run[i]] += np.uint16(1)


@compiled
def count_wide(bits: Array, shift: Scalar, counts: Array) -> None:
    """bits [values], unsigned; counts int64[2^16 + a power of two] by their upper 16 bits.

    Zeros, which are often every second value, go to the places behind these in turn: see `count_runs`.
    """
    bins = 1 << 16
    turns = counts.size - bins - 1
    for i in range(bits.size):
        place = bins + (i & turns) if bits[i] == 0 else np.int64(bits[i] >> shift)
        counts[place] += 1


@compiled
def count_within(bits: Array, slots: Array, counts: Array) -> None:
    """bits uint32 [values]; counts int64[slots, 2^16] by the lower halves of those whose upper halves have a slot.

    slots int64[2^16] has the slot of each upper half, −1 for none.
    """
    for i in range(bits.size):
        slot = slots[bits[i] >> np.uint32(16)]
        if slot >= 0:
            counts[slot, bits[i] & np.uint32(0xFFFF)] += 1
