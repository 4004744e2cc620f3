"""The compiled loops: exact sum and extrema, per channel, of one contiguous part of a block, in one pass.

A part is either *rows* [rows, channels], taken row by row with one accumulator a channel, or *runs* [outer, channels,
inner], each run reduced by itself. Sums go into raw base-2^32 digits, `int64[digits, channels]`; one deposit adds less
than 2^32 to a digit, so 2^31 deposits fit before carrying. `low` and `high` [channels] are narrowed and widened.

Floats are exact at speed by one observation: a float64 sum is exact, in any order, while every partial sum fits 53
bits. The least and the greatest magnitude of a strip of terms tell how far their exponents are apart. Close ones are
just added. Wider ones are first split in two at a power of two (add and subtract a large number; both parts are exact)
and summed apart. What is wider still, or not finite, goes term by term. Extrema of floats are found on keys, integers
whose order is theirs; NaN and infinities have keys too, so their channels have to be looked at again.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scalar = Any
"""A compiled integer or float: its type is numba's to find."""

compiled: Any = numba.njit

LOW = (1 << 32) - 1
TILE = 1024
"""Channels taken together, so that their accumulators stay in the first-level cache."""
LANES = 64
"""Neighbours of a run that are accumulated side by side."""

F16_STRIP = 8192
"""Terms of float16: 40 bits each, so 2^13 of them fit the 53 bits of a float64 sum whatever their exponents."""
F32_ROWS_LOG, F32_RUNS_LOG = 5, 8
"""log2 of the float32 terms in a strip of rows, of a run: 2^n terms of 24 bits fit 53 if within 29 − n exponents."""
F64_LOG = 5
F64_SPAN = 44
"""float64 terms are split at 2^(e−1070), e the greatest exponent; both parts of 2^5 terms fit 53 bits up to here."""
F64_LOWEST, F64_HIGHEST = 64, 2000
"""Biased exponents between which the powers of two that the split needs are ordinary float64 numbers."""

F16_INFINITY, F32_INFINITY, F64_INFINITY = 0x7C00, 0x7F800000, 0x7FF0000000000000
F16_MAGNITUDE, F32_MAGNITUDE, F64_MAGNITUDE = 0x7FFF, 0x7FFFFFFF, 0x7FFFFFFFFFFFFFFF


# Digits


@compiled
def _deposit(digits: Array, channel: Scalar, mantissa: Scalar, position: Scalar) -> None:
    """Add mantissa·2^position, |mantissa| at most 2^53, to the digits of `channel`."""
    k = position >> 5
    shift = position & 31
    low = (mantissa & LOW) << shift
    high = (low >> 32) + ((mantissa >> 32) << shift)
    digits[k, channel] += low & LOW
    digits[k + 1, channel] += high & LOW
    digits[k + 2, channel] += high >> 32


@compiled
def _power_of_two(exponent: Scalar) -> Scalar:
    """2^exponent for −1022 ≤ exponent ≤ 1023, made from its bits."""
    return np.int64((exponent + 1023) << 52).view(np.float64)


@compiled
def _deposit_term(
    bits: Scalar, fraction_bits: Scalar, infinity: Scalar, digits: Array, nan: Array, infinite: Array, channel: Scalar
) -> None:
    """Add the float with the bit pattern `bits` to the digits, or count it as NaN or infinite."""
    magnitude = bits & (infinity | ((1 << fraction_bits) - 1))
    if magnitude >= infinity:
        if magnitude == infinity:
            infinite[channel] += 1
        else:
            nan[channel] += 1
        return
    exponent = magnitude >> fraction_bits
    mantissa = magnitude & ((1 << fraction_bits) - 1)
    if exponent:
        mantissa |= 1 << fraction_bits
        exponent -= 1
    if mantissa:
        _deposit(digits, channel, -mantissa if bits < 0 else mantissa, exponent)


# Integers of up to 32 bits: `longest` terms fit the narrow accumulator


def rows_narrow(data: Array, accumulator: Array, longest: Scalar, digits: Array, low: Array, high: Array) -> None:
    """data [rows, channels]; accumulator [TILE], of a wider integer type."""
    rows, channels = data.shape
    for first in range(0, channels, TILE):
        width = min(TILE, channels - first)
        least, greatest = low[first : first + width], high[first : first + width]
        for start in range(0, rows, longest):
            accumulator[:] = 0
            for row in range(start, min(start + longest, rows)):
                line = data[row, first : first + width]
                for c in range(width):
                    term, small, large = line[c], least[c], greatest[c]
                    accumulator[c] += term
                    least[c] = term if term < small else small
                    greatest[c] = term if term > large else large
            for c in range(width):
                digits[0, first + c] += accumulator[c]


def runs_narrow(data: Array, accumulator: Array, longest: Scalar, digits: Array, low: Array, high: Array) -> None:
    """data [outer, channels, inner]: each run in lanes of the accumulator."""
    outer, channels, inner = data.shape
    whole = inner - inner % LANES
    for o in range(outer):
        for c in range(channels):
            total = np.int64(0)
            least, greatest = low[c], high[c]
            for i in range(inner):
                term = data[o, c, i]
                least = term if term < least else least
                greatest = term if term > greatest else greatest
            for start in range(0, whole, longest * LANES):
                accumulator[:LANES] = 0
                for i in range(start, min(start + longest * LANES, whole), LANES):
                    for lane in range(LANES):
                        accumulator[lane] += data[o, c, i + lane]
                for lane in range(LANES):
                    total += accumulator[lane]
            for i in range(whole, inner):
                total += data[o, c, i]
            digits[0, c] += total
            low[c] = least
            high[c] = greatest


# Integers of 64 bits: the halves of each term go into two digits


def rows_wide(data: Array, bits: Array, upper_mask: Scalar, digits: Array, low: Array, high: Array) -> None:
    """data int64 or uint64 [rows, channels]; bits the same memory as int64."""
    rows, channels = data.shape
    lower, upper = digits[0], digits[1]
    for row in range(rows):
        line, line_bits = data[row], bits[row]
        for c in range(channels):
            term, small, large = line[c], low[c], high[c]
            lower[c] += line_bits[c] & LOW
            upper[c] += (line_bits[c] >> 32) & upper_mask
            low[c] = term if term < small else small
            high[c] = term if term > large else large


def runs_wide(data: Array, bits: Array, upper_mask: Scalar, digits: Array, low: Array, high: Array) -> None:
    """data int64 or uint64 [outer, channels, inner]; bits the same memory as int64."""
    outer, channels, inner = data.shape
    for o in range(outer):
        for c in range(channels):
            lower = np.int64(0)
            upper = np.int64(0)
            least, greatest = low[c], high[c]
            for i in range(inner):
                term = data[o, c, i]
                lower += bits[o, c, i] & LOW
                upper += (bits[o, c, i] >> 32) & upper_mask
                least = term if term < least else least
                greatest = term if term > greatest else greatest
            digits[0, c] += lower
            digits[1, c] += upper
            low[c] = least
            high[c] = greatest


# float16: moving the bits makes a float32 that is 2^−112 times the value; a strip's float64 sum is always exact


@compiled
def _scaled_from_half(bits: Scalar) -> Scalar:
    """2^−112 times the float16 with the bit pattern `bits`, as float32."""
    return np.int32(((bits & 0x8000) << 16) | ((bits & F16_MAGNITUDE) << 13)).view(np.float32)


@compiled
def _half_key(bits: Scalar) -> Scalar:
    return np.int16(bits ^ ((bits >> 15) & F16_MAGNITUDE))


@compiled
def _deposit_half_sum(digits: Array, channel: Scalar, total: Scalar) -> None:
    _deposit(digits, channel, np.int64(total * _power_of_two(68) * _power_of_two(68)), 0)


@compiled
def _half_terms(terms: Array, digits: Array, nan: Array, infinite: Array, channel: Scalar) -> None:
    for term in terms:
        _deposit_term(np.int64(term), 10, F16_INFINITY, digits, nan, infinite, channel)


def rows_float16(bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array) -> None:
    """bits int16[rows, channels]; low and high int16, keys."""
    rows, channels = bits.shape
    total = np.empty(TILE, np.float64)
    largest = np.empty(TILE, np.int16)
    for first in range(0, channels, TILE):
        width = min(TILE, channels - first)
        least, greatest = low[first : first + width], high[first : first + width]
        for start in range(0, rows, F16_STRIP):
            stop = min(start + F16_STRIP, rows)
            total[:] = 0.0
            largest[:] = 0
            for row in range(start, stop):
                line = bits[row, first : first + width]
                for c in range(width):
                    total[c] += _scaled_from_half(line[c])
                for c in range(width):
                    key, small, large, far = _half_key(line[c]), least[c], greatest[c], largest[c]
                    magnitude = np.int16(line[c] & F16_MAGNITUDE)
                    least[c] = key if key < small else small
                    greatest[c] = key if key > large else large
                    largest[c] = magnitude if magnitude > far else far
            for c in range(width):
                if largest[c] < F16_INFINITY:
                    _deposit_half_sum(digits, first + c, total[c])
                else:
                    _half_terms(bits[start:stop, first + c], digits, nan, infinite, first + c)


def runs_float16(bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array) -> None:
    """bits int16[outer, channels, inner]; low and high int16, keys."""
    outer, channels, inner = bits.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, F16_STRIP):
                stop = min(start + F16_STRIP, inner)
                total = 0.0
                least, greatest, largest = low[c], high[c], np.int16(0)
                for i in range(start, stop):
                    total += _scaled_from_half(bits[o, c, i])
                for i in range(start, stop):
                    key = _half_key(bits[o, c, i])
                    magnitude = np.int16(bits[o, c, i] & F16_MAGNITUDE)
                    least = key if key < least else least
                    greatest = key if key > greatest else greatest
                    largest = magnitude if magnitude > largest else largest
                low[c], high[c] = least, greatest
                if largest < F16_INFINITY:
                    _deposit_half_sum(digits, c, total)
                else:
                    _half_terms(bits[o, c, start:stop], digits, nan, infinite, c)


# float32


@compiled
def _single_key(bits: Scalar) -> Scalar:
    return np.int32(bits ^ ((bits >> 31) & F32_MAGNITUDE))


@compiled
def _lowest_single(below: Scalar) -> Scalar:
    """The biased exponent (1 for denormals) of the least nonzero magnitude, given less one as uint32."""
    return max((np.int64(below) + 1) >> 23, 1)


@compiled
def _settle_single(
    terms_log: Scalar, total: Scalar, below: Scalar, largest: Scalar, digits: Array, channel: Scalar
) -> bool:
    """Deposit the float64 sum of at most 2^terms_log terms where it is exact; whether it was.

    `below` is their least nonzero magnitude less one, `largest` the greatest magnitude, bit patterns as uint32.
    """
    lowest = _lowest_single(below)
    if largest == 0:
        return True
    if largest >= F32_INFINITY or (np.int64(largest) >> 23) - lowest > 29 - terms_log:
        return False
    _deposit(digits, channel, np.int64(total * _power_of_two(150 - lowest)), lowest - 1)
    return True


@compiled
def _single_terms(
    values: Array,
    bits: Array,
    terms_log: Scalar,
    below: Scalar,
    largest: Scalar,
    digits: Array,
    nan: Array,
    infinite: Array,
    channel: Scalar,
) -> None:
    """Deposit a strip that `_settle_single` refused: split in two where that is exact, else term by term."""
    highest = np.int64(largest) >> 23
    lowest = _lowest_single(below)
    if largest < F32_INFINITY and highest - lowest <= 83 - 2 * terms_log:
        split = 179 - terms_log - highest
        splitter = 1.5 * _power_of_two(52 - split)
        upper = 0.0
        lower = 0.0
        for i in range(values.size):
            term = np.float64(values[i])
            rounded = (term + splitter) - splitter
            upper += rounded
            lower += term - rounded
        _deposit(digits, channel, np.int64(upper * _power_of_two(split)), 149 - split)
        _deposit(digits, channel, np.int64(lower * _power_of_two(150 - lowest)), lowest - 1)
        return
    for i in range(bits.size):
        _deposit_term(np.int64(bits[i]), 23, F32_INFINITY, digits, nan, infinite, channel)


def rows_float32(
    values: Array, bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array
) -> None:
    """values float32[rows, channels], bits the same memory as int32; low and high int32, keys."""
    rows, channels = values.shape
    total = np.empty(TILE, np.float64)
    below = np.empty(TILE, np.uint32)
    largest = np.empty(TILE, np.uint32)
    for start in range(0, rows, 1 << F32_ROWS_LOG):
        stop = min(start + (1 << F32_ROWS_LOG), rows)
        for first in range(0, channels, TILE):
            width = min(TILE, channels - first)
            least, greatest = low[first : first + width], high[first : first + width]
            total[:] = 0.0
            below[:] = 0xFFFFFFFF
            largest[:] = 0
            for row in range(start, stop):
                line = values[row, first : first + width]
                line_bits = bits[row, first : first + width]
                for c in range(width):
                    near, far = below[c], largest[c]
                    magnitude = np.uint32(line_bits[c] & F32_MAGNITUDE)
                    less = np.uint32(magnitude - np.uint32(1))
                    below[c] = less if less < near else near
                    largest[c] = magnitude if magnitude > far else far
                    total[c] += line[c]
                for c in range(width):
                    key, small, large = _single_key(line_bits[c]), least[c], greatest[c]
                    least[c] = key if key < small else small
                    greatest[c] = key if key > large else large
            for c in range(width):
                if not _settle_single(F32_ROWS_LOG, total[c], below[c], largest[c], digits, first + c):
                    terms, patterns = values[start:stop, first + c], bits[start:stop, first + c]
                    _single_terms(terms, patterns, F32_ROWS_LOG, below[c], largest[c], digits, nan, infinite, first + c)


def runs_float32(
    values: Array, bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array
) -> None:
    """values float32[outer, channels, inner], bits the same memory as int32; low and high int32, keys."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            least, greatest = low[c], high[c]
            for start in range(0, inner, 1 << F32_RUNS_LOG):
                stop = min(start + (1 << F32_RUNS_LOG), inner)
                total = 0.0
                below = np.uint32(0xFFFFFFFF)
                largest = np.uint32(0)
                for i in range(start, stop):
                    key = _single_key(bits[o, c, i])
                    magnitude = np.uint32(bits[o, c, i] & F32_MAGNITUDE)
                    less = np.uint32(magnitude - np.uint32(1))
                    total += values[o, c, i]
                    below = less if less < below else below
                    largest = magnitude if magnitude > largest else largest
                    least = key if key < least else least
                    greatest = key if key > greatest else greatest
                if not _settle_single(F32_RUNS_LOG, total, below, largest, digits, c):
                    terms, patterns = values[o, c, start:stop], bits[o, c, start:stop]
                    _single_terms(terms, patterns, F32_RUNS_LOG, below, largest, digits, nan, infinite, c)
            low[c], high[c] = least, greatest


# float64: always split


@compiled
def _double_key(bits: Scalar) -> Scalar:
    return bits ^ ((bits >> 63) & F64_MAGNITUDE)


@compiled
def _splitter(below: Scalar, largest: Scalar) -> Scalar:
    """1.5·2^(e−1018), whose last place is 2^(e−1070), e the greatest exponent; 0 where the split is not exact.

    `below` and `largest` are as in `_settle_single`, as int64.
    """
    lowest = (below + 1) >> 52
    highest = largest >> 52
    if highest > F64_HIGHEST or lowest < F64_LOWEST or highest - lowest > F64_SPAN:
        return 0.0
    return 1.5 * _power_of_two(highest - 1018)


@compiled
def _settle_double(
    splitter: Scalar, upper: Scalar, lower: Scalar, below: Scalar, largest: Scalar, digits: Array, channel: Scalar
) -> bool:
    """Deposit the sums of split terms where they are exact; whether they were."""
    if largest == 0:
        return True
    if splitter == 0.0:
        return False
    lowest = (below + 1) >> 52
    highest = largest >> 52
    _deposit(digits, channel, np.int64(upper * _power_of_two(1070 - highest)), highest + 4)
    _deposit(digits, channel, np.int64(lower * _power_of_two(1075 - lowest)), lowest - 1)
    return True


@compiled
def _double_terms(bits: Array, digits: Array, nan: Array, infinite: Array, channel: Scalar) -> None:
    for i in range(bits.size):
        _deposit_term(bits[i], 52, F64_INFINITY, digits, nan, infinite, channel)


def rows_float64(
    values: Array, bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array
) -> None:
    """values float64[rows, channels], bits the same memory as int64; low and high int64, keys."""
    rows, channels = values.shape
    below = np.empty(TILE, np.int64)
    largest = np.empty(TILE, np.int64)
    splitter = np.empty(TILE, np.float64)
    upper = np.empty(TILE, np.float64)
    lower = np.empty(TILE, np.float64)
    for start in range(0, rows, 1 << F64_LOG):
        stop = min(start + (1 << F64_LOG), rows)
        for first in range(0, channels, TILE):
            width = min(TILE, channels - first)
            least, greatest = low[first : first + width], high[first : first + width]
            below[:] = F64_MAGNITUDE
            largest[:] = 0
            upper[:] = 0.0
            lower[:] = 0.0
            for row in range(start, stop):
                line_bits = bits[row, first : first + width]
                for c in range(width):
                    near, far = below[c], largest[c]
                    magnitude = line_bits[c] & F64_MAGNITUDE
                    less = (magnitude - 1) & F64_MAGNITUDE
                    below[c] = less if less < near else near
                    largest[c] = magnitude if magnitude > far else far
                for c in range(width):
                    key, small, large = _double_key(line_bits[c]), least[c], greatest[c]
                    least[c] = key if key < small else small
                    greatest[c] = key if key > large else large
            for c in range(width):
                splitter[c] = _splitter(below[c], largest[c])
            for row in range(start, stop):
                line = values[row, first : first + width]
                for c in range(width):
                    term, split = line[c], splitter[c]
                    rounded = (term + split) - split
                    upper[c] += rounded
                    lower[c] += term - rounded
            for c in range(width):
                if not _settle_double(splitter[c], upper[c], lower[c], below[c], largest[c], digits, first + c):
                    _double_terms(bits[start:stop, first + c], digits, nan, infinite, first + c)


def runs_float64(
    values: Array, bits: Array, digits: Array, nan: Array, infinite: Array, low: Array, high: Array
) -> None:
    """values float64[outer, channels, inner], bits the same memory as int64; low and high int64, keys."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            least, greatest = low[c], high[c]
            for start in range(0, inner, 1 << F64_LOG):
                stop = min(start + (1 << F64_LOG), inner)
                below = np.int64(F64_MAGNITUDE)
                largest = np.int64(0)
                for i in range(start, stop):
                    key = _double_key(bits[o, c, i])
                    magnitude = bits[o, c, i] & F64_MAGNITUDE
                    below = min(below, (magnitude - 1) & F64_MAGNITUDE)
                    largest = max(largest, magnitude)
                    least = min(least, key)
                    greatest = max(greatest, key)
                splitter = _splitter(below, largest)
                upper = 0.0
                lower = 0.0
                for i in range(start, stop):
                    rounded = (values[o, c, i] + splitter) - splitter
                    upper += rounded
                    lower += values[o, c, i] - rounded
                if not _settle_double(splitter, upper, lower, below, largest, digits, c):
                    _double_terms(bits[o, c, start:stop], digits, nan, infinite, c)
            low[c], high[c] = least, greatest
