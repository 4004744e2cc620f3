"""The compiled loops for magnitudes and squares: the exact sums of |x| and x² per channel, in one pass over a part.

Parts, digits and rules are those of `kernels`. `magnitudes` int64[D, channels] holds raw digits in the units of the
sums, `squares` int64[D', channels] those in the square of that unit. NaN and infinities are left out; the loops of
`kernels` count them.

A float32 term has 24 bits and its square 48, so float64 sums of a strip are exact only if the exponents of its terms
are close. A strip is therefore taken in windows of exponents, the highest first: within one, the magnitudes of 2^8
terms fit the 53 bits of one sum, and their squares those of two, which add up the parts of each square above and below
a power of two. One window nearly always suffices. A bfloat16 is widened to a float32 as it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from .kernels import (
    F16_INFINITY,
    F16_MAGNITUDE,
    F32_INFINITY,
    F32_MAGNITUDE,
    F64_INFINITY,
    F64_MAGNITUDE,
    LOW,
    _deposit,
    _greater,
    _lesser,
    _magnitude_below,
    _power_of_two,
    _scaled_from_half,
    _single_bits,
    _spare_of_single,
)

Array = npt.NDArray[Any]
Scalar = Any

compiled: Any = numba.njit
reordered: Any = numba.njit(fastmath={"reassoc"})
"""For float sums that are exact in any order."""

STRIP = 256
"""Terms of a strip of float32."""
SPAN = 21
"""Exponents of a window are at most so far apart: 24 bits + 8 for 2^8 terms + 21 are 53."""
HALF_STRIP = 4096
"""float16 terms in a strip: their magnitudes span 40 bits, and the two parts of their squares 41 and 38."""
HALF_SPLITTER = 1.5 * 2.0**43
"""It rounds the square of a float16 to a multiple of 2^−9."""
LOWER_HALF = 27
"""A mantissa of 53 bits is squared in two parts, the lower of so many bits."""


# Integers


def rows_short(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int16 or uint16 [rows, channels]."""
    for row in range(values.shape[0]):
        line = values[row]
        for c in range(line.size):
            value = np.int64(line[c])
            magnitudes[0, c] += abs(value)
        for c in range(line.size):
            value = np.int64(line[c])
            squares[0, c] += value * value


def runs_short(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int16 or uint16 [outer, channels, inner]."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            total, squared = np.int64(0), np.int64(0)
            for i in range(inner):
                value = np.int64(values[o, c, i])
                total += abs(value)
                squared += value * value
            magnitudes[0, c] += total
            squares[0, c] += squared


def rows_int(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int32 or uint32 [rows, channels]."""
    for row in range(values.shape[0]):
        line = values[row]
        for c in range(line.size):
            magnitude = np.uint64(abs(np.int64(line[c])))
            square = magnitude * magnitude
            magnitudes[0, c] += np.int64(magnitude)
            squares[0, c] += np.int64(square & np.uint64(LOW))
            squares[1, c] += np.int64(square >> np.uint64(32))


def runs_int(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int32 or uint32 [outer, channels, inner]."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            total, lower, upper = np.int64(0), np.int64(0), np.int64(0)
            for i in range(inner):
                magnitude = np.uint64(abs(np.int64(values[o, c, i])))
                square = magnitude * magnitude
                total += np.int64(magnitude)
                lower += np.int64(square & np.uint64(LOW))
                upper += np.int64(square >> np.uint64(32))
            magnitudes[0, c] += total
            squares[0, c] += lower
            squares[1, c] += upper


@compiled
def _deposit_wide(value: Scalar, magnitudes: Array, squares: Array, channel: Scalar) -> None:
    """Add an int64 or uint64 and its square, in parts of 32 bits."""
    magnitude = np.uint64(-np.int64(value)) if value < 0 else np.uint64(value)
    low, high = magnitude & np.uint64(LOW), magnitude >> np.uint64(32)
    magnitudes[0, channel] += np.int64(low)
    magnitudes[1, channel] += np.int64(high)
    for product, place in ((low * low, 0), (high * high, 2)):
        squares[place, channel] += np.int64(product & np.uint64(LOW))
        squares[place + 1, channel] += np.int64(product >> np.uint64(32))
    middle = low * high  # counts twice
    squares[1, channel] += np.int64(middle << np.uint64(1) & np.uint64(LOW))
    squares[2, channel] += np.int64(middle >> np.uint64(31) & np.uint64(LOW))
    squares[3, channel] += np.int64(middle >> np.uint64(63))


def rows_wide(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int64 or uint64 [rows, channels]."""
    for row in range(values.shape[0]):
        for c in range(values.shape[1]):
            _deposit_wide(values[row, c], magnitudes, squares, c)


def runs_wide(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """values int64 or uint64 [outer, channels, inner]."""
    for o in range(values.shape[0]):
        for c in range(values.shape[1]):
            for i in range(values.shape[2]):
                _deposit_wide(values[o, c, i], magnitudes, squares, c)


# float16: two float64 sums hold the squares of a strip, whatever their exponents


@compiled
def _half(bits: Scalar) -> Scalar:
    """The magnitude of a float16, as float64; 0 for NaN and infinities."""
    magnitude = bits & F16_MAGNITUDE
    return np.float64(_scaled_from_half(magnitude)) * _power_of_two(112) if magnitude < F16_INFINITY else 0.0


@compiled
def _settle_half(
    total: Scalar, upper: Scalar, lower: Scalar, magnitudes: Array, squares: Array, channel: Scalar
) -> None:
    """Deposit the three sums of a strip."""
    _deposit(magnitudes, channel, np.int64(total * _power_of_two(24)), 0)
    _deposit(squares, channel, np.int64(upper * _power_of_two(9)), 48 - 9)
    _deposit(squares, channel, np.int64(lower * _power_of_two(48)), 0)


def rows_float16(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int16 [rows, channels]."""
    rows, channels = bits.shape
    total, upper, lower = room[0], room[1], room[2]
    for first in range(0, channels, room.shape[1]):
        last = min(first + room.shape[1], channels)
        for start in range(0, rows, HALF_STRIP):
            stop = min(start + HALF_STRIP, rows)
            total[:] = 0.0
            upper[:] = 0.0
            lower[:] = 0.0
            for row in range(start, stop):
                line = bits[row, first:last]
                for c in range(line.size):
                    magnitude = _half(line[c])
                    square = magnitude * magnitude
                    rounded = (square + HALF_SPLITTER) - HALF_SPLITTER
                    total[c] += magnitude
                    upper[c] += rounded
                    lower[c] += square - rounded
            for c in range(last - first):
                _settle_half(total[c], upper[c], lower[c], magnitudes, squares, first + c)


def runs_float16(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int16 [outer, channels, inner]."""
    outer, channels, inner = bits.shape
    term, upper, lower = room[0], room[1], room[2]
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, term.size):
                strip = bits[o, c, start : min(start + term.size, inner)]
                for i in range(strip.size):
                    magnitude = _half(strip[i])
                    square = magnitude * magnitude
                    rounded = (square + HALF_SPLITTER) - HALF_SPLITTER
                    term[i] = magnitude
                    upper[i] = rounded
                    lower[i] = square - rounded
                sums = _sum(term[: strip.size]), _sum(upper[: strip.size]), _sum(lower[: strip.size])
                _settle_half(sums[0], sums[1], sums[2], magnitudes, squares, c)


@reordered
def _sum(terms: Array) -> Scalar:
    """The sum of terms that is exact in any order."""
    total = 0.0
    for i in range(terms.size):
        total += terms[i]
    return total


# float32, and bfloat16 as its upper half


@compiled
def _single(bits: Scalar) -> Scalar:
    """The float32 with this bit pattern, as float64."""
    return np.float64(np.int32(bits).view(np.float32))


@compiled
def _splitter(highest: Scalar, spare: Scalar) -> Scalar:
    """What rounds squares below 2^(2·highest − 252) to multiples of 2^(2·highest − 297 + 2·spare)."""
    return 1.5 * _power_of_two(2 * highest - 245 + 2 * spare)


@compiled
def _settle_window(
    highest: Scalar,
    total: Scalar,
    upper: Scalar,
    lower: Scalar,
    spare: Scalar,
    magnitudes: Array,
    squares: Array,
    channel: Scalar,
) -> None:
    """Deposit the three sums of a window whose highest biased exponent is `highest`."""
    lowest = max(highest - SPAN, 1)
    _deposit(magnitudes, channel, np.int64(total * _power_of_two(150 - spare - lowest)), lowest - 1)
    _deposit(squares, channel, np.int64(upper * _power_of_two(297 - 2 * spare - 2 * highest)), 2 * highest + 1)
    _deposit(squares, channel, np.int64(lower * _power_of_two(300 - 2 * spare - 2 * lowest)), 2 * lowest - 2)


@compiled
def _window(highest: Scalar) -> Scalar:
    """The bit patterns (from, before) of the magnitudes in the window below and with the exponent `highest`."""
    return np.int32(max(highest - SPAN, 1) << 23 if highest > SPAN + 1 else 1), np.int32((highest + 1) << 23)


def rows_float32(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int32, or int16 for bfloat16, [rows, channels]."""
    rows, channels = bits.shape
    spare = _spare_of_single(bits)
    total, upper, lower, splitter = room[0], room[1], room[2], room[3]
    below = room[4].view(np.uint32)
    largest = room[4].view(np.int32)[room.shape[1] :]
    least, beyond = room[5].view(np.int32), room[5].view(np.int32)[room.shape[1] :]
    for start in range(0, rows, STRIP):
        stop = min(start + STRIP, rows)
        for first in range(0, channels, room.shape[1]):
            last = min(first + room.shape[1], channels)
            width = last - first
            for c in range(width):
                below[c] = LOW
                largest[c] = 0
            for row in range(start, stop):
                line = bits[row, first:last]
                for c in range(width):
                    pattern = _single_bits(line[c])
                    magnitude = np.int32(pattern & F32_MAGNITUDE)
                    below[c] = _lesser(_magnitude_below(pattern), below[c])
                    largest[c] = _greater(np.int32(magnitude if magnitude < F32_INFINITY else 0), largest[c])
            unseen = 1
            while unseen:
                for c in range(width):
                    highest = max(np.int64(largest[c]) >> 23, 1)
                    splitter[c] = _splitter(highest, spare)
                    least[c], beyond[c] = _window(highest)
                    total[c] = 0.0
                    upper[c] = 0.0
                    lower[c] = 0.0
                for row in range(start, stop - 1, 2):
                    _two_rows(bits, row, first, last, least, beyond, splitter, total, upper, lower)
                if (stop - start) % 2:
                    _one_row(bits, stop - 1, first, last, least, beyond, splitter, total, upper, lower)
                unseen = 0
                for c in range(width):
                    if largest[c] == 0:
                        continue
                    highest = max(np.int64(largest[c]) >> 23, 1)
                    _settle_window(highest, total[c], upper[c], lower[c], spare, magnitudes, squares, first + c)
                    left = np.int64(below[c]) + 1 < np.int64(least[c])
                    largest[c] = least[c] - 1 if left else 0
                    unseen = max(unseen, int(left))


@compiled
def _one_row(
    bits: Array,
    row: Scalar,
    first: Scalar,
    last: Scalar,
    least: Array,
    beyond: Array,
    splitter: Array,
    total: Array,
    upper: Array,
    lower: Array,
) -> None:
    line = bits[row, first:last]
    for c in range(line.size):
        magnitude = _single_bits(line[c]) & F32_MAGNITUDE
        inside = (magnitude >= least[c]) & (magnitude < beyond[c])
        term = _single(magnitude if inside else 0)
        square = term * term
        rounded = (square + splitter[c]) - splitter[c]
        total[c] += term
        upper[c] += rounded
        lower[c] += square - rounded


@compiled
def _two_rows(
    bits: Array,
    row: Scalar,
    first: Scalar,
    last: Scalar,
    least: Array,
    beyond: Array,
    splitter: Array,
    total: Array,
    upper: Array,
    lower: Array,
) -> None:
    """Take two rows at a time, so that the accumulators are loaded and stored only once for both."""
    one, two = bits[row, first:last], bits[row + 1, first:last]
    for c in range(one.size):
        magnitude, other = _single_bits(one[c]) & F32_MAGNITUDE, _single_bits(two[c]) & F32_MAGNITUDE
        inside = (magnitude >= least[c]) & (magnitude < beyond[c])
        beside = (other >= least[c]) & (other < beyond[c])
        term = _single(magnitude if inside else 0)
        next_term = _single(other if beside else 0)
        square, next_square = term * term, next_term * next_term
        rounded = (square + splitter[c]) - splitter[c]
        next_rounded = (next_square + splitter[c]) - splitter[c]
        total[c] += term + next_term
        upper[c] += rounded + next_rounded
        lower[c] += (square - rounded) + (next_square - next_rounded)


def runs_float32(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int32, or int16 for bfloat16, [outer, channels, inner]."""
    outer, channels, inner = bits.shape
    spare = _spare_of_single(bits)
    term, upper, lower = room[0], room[1], room[2]
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, STRIP):
                stop = min(start + STRIP, inner)
                strip = bits[o, c, start:stop]
                below, largest = np.uint32(LOW), np.int32(0)
                for i in range(strip.size):
                    pattern = _single_bits(strip[i])
                    magnitude = np.int32(pattern & F32_MAGNITUDE)
                    below = _lesser(_magnitude_below(pattern), below)
                    largest = _greater(np.int32(magnitude if magnitude < F32_INFINITY else 0), largest)
                while largest:
                    highest = max(np.int64(largest) >> 23, 1)
                    splitter, (least, beyond) = _splitter(highest, spare), _window(highest)
                    for i in range(strip.size):
                        magnitude = np.int32(_single_bits(strip[i]) & F32_MAGNITUDE)
                        inside = (magnitude >= least) & (magnitude < beyond)
                        term[i] = _single(magnitude if inside else 0)
                        square = term[i] * term[i]
                        upper[i] = (square + splitter) - splitter
                        lower[i] = square - upper[i]
                    sums = _sum(term[: strip.size]), _sum(upper[: strip.size]), _sum(lower[: strip.size])
                    _settle_window(highest, sums[0], sums[1], sums[2], spare, magnitudes, squares, c)
                    largest = np.int32(least - 1 if np.int64(below) + 1 < np.int64(least) else 0)


# float64: term by term


@compiled
def _deposit_double(bits: Scalar, magnitudes: Array, squares: Array, channel: Scalar) -> None:
    """Add the float64 with the bit pattern `bits`, and its square in units of 2^−2148."""
    magnitude = bits & F64_MAGNITUDE
    if magnitude >= F64_INFINITY or magnitude == 0:
        return
    exponent, mantissa = magnitude >> 52, magnitude & ((1 << 52) - 1)
    if exponent:
        mantissa |= 1 << 52
        exponent -= 1
    low, high = mantissa & ((1 << LOWER_HALF) - 1), mantissa >> LOWER_HALF
    _deposit(magnitudes, channel, mantissa, exponent)
    _deposit(squares, channel, low * low, 2 * exponent)
    _deposit(squares, channel, low * high, 2 * exponent + LOWER_HALF + 1)
    _deposit(squares, channel, high * high, 2 * exponent + 2 * LOWER_HALF)


def rows_float64(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int64 [rows, channels]."""
    for row in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            _deposit_double(bits[row, c], magnitudes, squares, c)


def runs_float64(values: Array, bits: Array, magnitudes: Array, squares: Array, room: Array) -> None:
    """bits int64 [outer, channels, inner]."""
    for o in range(bits.shape[0]):
        for c in range(bits.shape[1]):
            for i in range(bits.shape[2]):
                _deposit_double(bits[o, c, i], magnitudes, squares, c)


LOOPS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    **dict.fromkeys(("int16", "uint16"), (rows_short, runs_short)),
    **dict.fromkeys(("int32", "uint32"), (rows_int, runs_int)),
    **dict.fromkeys(("int64", "uint64"), (rows_wide, runs_wide)),
    "float16": (rows_float16, runs_float16),
    **dict.fromkeys(("float32", "bfloat16"), (rows_float32, runs_float32)),
    "float64": (rows_float64, runs_float64),
}
"""dtype → the loop over rows, the loop over runs."""
