"""The compiled loops: exact sums and extrema, per channel, of one contiguous piece of a block.

A piece has the axes (outer, channel, inner). Two shapes of loop cover it: *rows* (inner is 1: go down the rows with
one accumulator a channel) and *runs* (inner is long: reduce each run). Sums go into raw base-2^32 digits,
`int64[digits, channels]`; one deposit adds less than 2^32 to a digit, so 2^31 deposits fit before carrying.

Floats are exact at speed by one observation: a float64 sum is exact, in any order, while the exponents of its
nonzero terms are close enough for every partial sum to fit 53 bits. The least and greatest bit pattern of a strip
of terms tell whether that holds; a strip that fails is added term by term.
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
TILE = 512
"""Channels taken together, so that their accumulators stay in the first-level cache."""
LANES = 64
"""Neighbours of a run that are accumulated side by side."""

F16_STRIP = 8192
"""Terms of float16: 40 bits each, so 2^13 of them fit the 53 bits of a float64 sum whatever their exponents."""
F32_STRIP = 32
F32_SPAN = 24
"""32 float32 terms, exponents at most 24 apart: 24 + 24 + 5 bits = 53."""
F64_STRIP = 32
F64_SPAN = 44
"""float64 terms are split at 2^(e−1070), e the greatest exponent; both parts of 32 terms fit 53 bits up to here."""
F64_LOWEST, F64_HIGHEST = 64, 2000
"""Biased exponents between which the powers of two that the split needs are ordinary float64 numbers."""

F16_INFINITY, F32_INFINITY, F64_INFINITY = 0x7C00, 0x7F800000, 0x7FF0000000000000


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
    elif magnitude:
        exponent = magnitude >> fraction_bits
        mantissa = magnitude & ((1 << fraction_bits) - 1)
        if exponent:
            mantissa |= 1 << fraction_bits
            exponent -= 1
        _deposit(digits, channel, -mantissa if bits < 0 else mantissa, exponent)


# Sums of integers


def sum_rows_narrow(data: Array, accumulator: Array, longest: Scalar, digits: Array) -> None:
    """data [rows, channels]: `longest` rows at a time into narrow accumulators, those into the lowest digit."""
    rows, channels = data.shape
    for first in range(0, channels, TILE):
        width = min(TILE, channels - first)
        for start in range(0, rows, longest):
            accumulator[:] = 0
            for row in range(start, min(start + longest, rows)):
                line = data[row, first : first + width]
                for c in range(width):
                    accumulator[c] += line[c]
            for c in range(width):
                digits[0, first + c] += accumulator[c]


def sum_runs_narrow(data: Array, accumulator: Array, longest: Scalar, digits: Array) -> None:
    """data [outer, channels, inner]: each run in lanes of narrow accumulators."""
    outer, channels, inner = data.shape
    whole = inner - inner % LANES
    for o in range(outer):
        for c in range(channels):
            total = np.int64(0)
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


def sum_rows_wide(data: Array, upper_mask: Scalar, digits: Array) -> None:
    """data int64[rows, channels], or uint64 seen as int64: the halves of each term into two digits."""
    rows, channels = data.shape
    for row in range(rows):
        for c in range(channels):
            digits[0, c] += data[row, c] & LOW
            digits[1, c] += (data[row, c] >> 32) & upper_mask


def sum_runs_wide(data: Array, upper_mask: Scalar, digits: Array) -> None:
    """data int64[outer, channels, inner], as `sum_rows_wide`."""
    outer, channels, inner = data.shape
    for o in range(outer):
        for c in range(channels):
            low = np.int64(0)
            high = np.int64(0)
            for i in range(inner):
                low += data[o, c, i] & LOW
                high += (data[o, c, i] >> 32) & upper_mask
            digits[0, c] += low
            digits[1, c] += high


# Sums of float16: to float32 by moving the bits, which scales by 2^−112; a strip's float64 sum is always exact


@compiled
def _scaled_from_half(bits: Scalar) -> Scalar:
    """2^−112 times the float16 with the bit pattern `bits`, as float32."""
    return np.int32(((bits & 0x8000) << 16) | ((bits & 0x7FFF) << 13)).view(np.float32)


@compiled
def _deposit_half_sum(digits: Array, channel: Scalar, scaled: Scalar) -> None:
    _deposit(digits, channel, np.int64(scaled * _power_of_two(68) * _power_of_two(68)), 0)


def sum_rows_float16(bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """bits int16[rows, channels]."""
    rows, channels = bits.shape
    total = np.empty(TILE, np.float64)
    greatest = np.empty(TILE, np.int16)
    for first in range(0, channels, TILE):
        width = min(TILE, channels - first)
        for start in range(0, rows, F16_STRIP):
            stop = min(start + F16_STRIP, rows)
            total[:] = 0.0
            greatest[:] = 0
            for row in range(start, stop):
                line = bits[row, first : first + width]
                for c in range(width):
                    term = line[c]
                    magnitude = np.int16(term & 0x7FFF)
                    known = greatest[c]
                    greatest[c] = magnitude if magnitude > known else known
                    total[c] += _scaled_from_half(term)
            for c in range(width):
                if greatest[c] < F16_INFINITY:
                    _deposit_half_sum(digits, first + c, total[c])
                else:
                    for row in range(start, stop):
                        term = np.int64(bits[row, first + c])
                        _deposit_term(term, 10, F16_INFINITY, digits, nan, infinite, first + c)


def sum_runs_float16(bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """bits int16[outer, channels, inner]."""
    outer, channels, inner = bits.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, F16_STRIP):
                stop = min(start + F16_STRIP, inner)
                total = 0.0
                greatest = 0
                for i in range(start, stop):
                    greatest = max(greatest, bits[o, c, i] & 0x7FFF)
                    total += _scaled_from_half(bits[o, c, i])
                if greatest < F16_INFINITY:
                    _deposit_half_sum(digits, c, total)
                else:
                    for i in range(start, stop):
                        term = np.int64(bits[o, c, i])
                        _deposit_term(term, 10, F16_INFINITY, digits, nan, infinite, c)


# Sums of float32: a strip's float64 sum is exact where the exponents are close


@compiled
def _deposit_f32_strip(digits: Array, channel: Scalar, total: Scalar, least: Scalar, greatest: Scalar) -> bool:
    """Deposit a strip's float64 sum if it is exact; `least` is the least nonzero magnitude less one, as uint32."""
    if greatest == 0:
        return True
    lowest: Scalar = max((np.int64(least) + 1) >> 23, 1)
    if greatest >= F32_INFINITY or (np.int64(greatest) >> 23) - lowest > F32_SPAN:
        return False
    _deposit(digits, channel, np.int64(total * _power_of_two(150 - lowest)), lowest - 1)
    return True


def sum_rows_float32(values: Array, bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """values float32[rows, channels], bits the same memory as int32."""
    rows, channels = values.shape
    total = np.empty(TILE, np.float64)
    least = np.empty(TILE, np.uint32)
    greatest = np.empty(TILE, np.uint32)
    for start in range(0, rows, F32_STRIP):
        stop = min(start + F32_STRIP, rows)
        for first in range(0, channels, TILE):
            width = min(TILE, channels - first)
            total[:] = 0.0
            least[:] = 0xFFFFFFFF
            greatest[:] = 0
            for row in range(start, stop):
                line = values[row, first : first + width]
                line_bits = bits[row, first : first + width]
                for c in range(width):
                    magnitude = np.uint32(line_bits[c] & 0x7FFFFFFF)
                    below = np.uint32(magnitude - np.uint32(1))
                    low, high = least[c], greatest[c]
                    least[c] = below if below < low else low
                    greatest[c] = magnitude if magnitude > high else high
                    total[c] += line[c]
            for c in range(width):
                if not _deposit_f32_strip(digits, first + c, total[c], least[c], greatest[c]):
                    for row in range(start, stop):
                        term = np.int64(bits[row, first + c])
                        _deposit_term(term, 23, F32_INFINITY, digits, nan, infinite, first + c)


def sum_runs_float32(values: Array, bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """values float32[outer, channels, inner], bits the same memory as int32."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, F32_STRIP):
                stop = min(start + F32_STRIP, inner)
                total = 0.0
                least = np.uint32(0xFFFFFFFF)
                greatest = np.uint32(0)
                for i in range(start, stop):
                    magnitude = np.uint32(bits[o, c, i] & 0x7FFFFFFF)
                    below = np.uint32(magnitude - np.uint32(1))
                    least = below if below < least else least
                    greatest = magnitude if magnitude > greatest else greatest
                    total += values[o, c, i]
                if not _deposit_f32_strip(digits, c, total, least, greatest):
                    for i in range(start, stop):
                        term = np.int64(bits[o, c, i])
                        _deposit_term(term, 23, F32_INFINITY, digits, nan, infinite, c)


# Sums of float64: each term is split in two, whose float64 sums are exact where the exponents are close


@compiled
def _f64_splitter(least: Scalar, greatest: Scalar) -> Scalar:
    """1.5·2^(e−1018), to which adding and subtracting a term rounds it to 2^(e−1070); 0 where that is not exact."""
    lowest = (least + 1) >> 52
    highest = greatest >> 52
    if highest > F64_HIGHEST or lowest < F64_LOWEST or highest - lowest > F64_SPAN:
        return 0.0
    return 1.5 * _power_of_two(highest - 1018)


@compiled
def _deposit_f64_strip(
    digits: Array, channel: Scalar, upper: Scalar, lower: Scalar, least: Scalar, greatest: Scalar
) -> None:
    lowest = (least + 1) >> 52
    highest = greatest >> 52
    _deposit(digits, channel, np.int64(upper * _power_of_two(1070 - highest)), highest + 4)
    _deposit(digits, channel, np.int64(lower * _power_of_two(1075 - lowest)), lowest - 1)


def sum_rows_float64(values: Array, bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """values float64[rows, channels], bits the same memory as int64."""
    rows, channels = values.shape
    least = np.empty(TILE, np.int64)
    greatest = np.empty(TILE, np.int64)
    splitter = np.empty(TILE, np.float64)
    upper = np.empty(TILE, np.float64)
    lower = np.empty(TILE, np.float64)
    for start in range(0, rows, F64_STRIP):
        stop = min(start + F64_STRIP, rows)
        for first in range(0, channels, TILE):
            width = min(TILE, channels - first)
            least[:] = 0x7FFFFFFFFFFFFFFF
            greatest[:] = 0
            upper[:] = 0.0
            lower[:] = 0.0
            for row in range(start, stop):
                line_bits = bits[row, first : first + width]
                for c in range(width):
                    magnitude = line_bits[c] & 0x7FFFFFFFFFFFFFFF
                    below = (magnitude - 1) & 0x7FFFFFFFFFFFFFFF
                    low, high = least[c], greatest[c]
                    least[c] = below if below < low else low
                    greatest[c] = magnitude if magnitude > high else high
            for c in range(width):
                splitter[c] = _f64_splitter(least[c], greatest[c])
            for row in range(start, stop):
                line = values[row, first : first + width]
                for c in range(width):
                    term = line[c]
                    rounded = (term + splitter[c]) - splitter[c]
                    upper[c] += rounded
                    lower[c] += term - rounded
            for c in range(width):
                if splitter[c] != 0.0:
                    _deposit_f64_strip(digits, first + c, upper[c], lower[c], least[c], greatest[c])
                elif greatest[c] != 0:
                    for row in range(start, stop):
                        _deposit_term(bits[row, first + c], 52, F64_INFINITY, digits, nan, infinite, first + c)


def sum_runs_float64(values: Array, bits: Array, digits: Array, nan: Array, infinite: Array) -> None:
    """values float64[outer, channels, inner], bits the same memory as int64."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, F64_STRIP):
                stop = min(start + F64_STRIP, inner)
                least = np.int64(0x7FFFFFFFFFFFFFFF)
                greatest = np.int64(0)
                for i in range(start, stop):
                    magnitude = bits[o, c, i] & 0x7FFFFFFFFFFFFFFF
                    least = min(least, (magnitude - 1) & 0x7FFFFFFFFFFFFFFF)
                    greatest = max(greatest, magnitude)
                splitter = _f64_splitter(least, greatest)
                if splitter != 0.0:
                    upper = 0.0
                    lower = 0.0
                    for i in range(start, stop):
                        rounded = (values[o, c, i] + splitter) - splitter
                        upper += rounded
                        lower += values[o, c, i] - rounded
                    _deposit_f64_strip(digits, c, upper, lower, least, greatest)
                elif greatest != 0:
                    for i in range(start, stop):
                        _deposit_term(bits[o, c, i], 52, F64_INFINITY, digits, nan, infinite, c)


# Extrema: integers as they are; floats as keys, the integers whose order is that of the floats


def extrema_rows_integers(data: Array, minimum: Array, maximum: Array) -> None:
    """data [rows, channels]; minimum and maximum [channels] are narrowed and widened in place."""
    rows, channels = data.shape
    for first in range(0, channels, TILE):
        low, high = minimum[first : first + TILE], maximum[first : first + TILE]
        for row in range(rows):
            line = data[row, first : first + TILE]
            for c in range(low.size):
                term, least, greatest = line[c], low[c], high[c]
                low[c] = term if term < least else least
                high[c] = term if term > greatest else greatest


def extrema_runs_integers(data: Array, minimum: Array, maximum: Array) -> None:
    """data [outer, channels, inner]."""
    outer, channels, inner = data.shape
    for o in range(outer):
        for c in range(channels):
            low, high = minimum[c], maximum[c]
            for i in range(inner):
                term = data[o, c, i]
                low = term if term < low else low
                high = term if term > high else high
            minimum[c] = low
            maximum[c] = high


def extrema_rows_floats(
    bits: Array, shift: Scalar, mask: Scalar, infinity: Scalar, minimum: Array, maximum: Array
) -> None:
    """bits int[rows, channels]; `infinity` is the key of +∞ and minimum, maximum [channels] are keys."""
    rows, channels = bits.shape
    for first in range(0, channels, TILE):
        low, high = minimum[first : first + TILE], maximum[first : first + TILE]
        for row in range(rows):
            line = bits[row, first : first + TILE]
            for c in range(low.size):
                term, least, greatest = line[c], low[c], high[c]
                key = term ^ ((term >> shift) & mask)
                low[c] = key if (key < least) & (key > ~infinity) else least
                high[c] = key if (key > greatest) & (key < infinity) else greatest


def extrema_runs_floats(
    bits: Array, shift: Scalar, mask: Scalar, infinity: Scalar, minimum: Array, maximum: Array
) -> None:
    """bits int[outer, channels, inner], as `extrema_rows_floats`."""
    outer, channels, inner = bits.shape
    for o in range(outer):
        for c in range(channels):
            low, high = minimum[c], maximum[c]
            for i in range(inner):
                term = bits[o, c, i]
                key = term ^ ((term >> shift) & mask)
                low = key if (key < low) & (key > ~infinity) else low
                high = key if (key > high) & (key < infinity) else high
            minimum[c] = low
            maximum[c] = high
