"""The compiled loops: exact sum and extrema per channel of one contiguous part of a block, in one pass.

A part is either *rows* [rows, channels], taken row by row with one accumulator per channel, or *runs* [outer, channels,
inner], each reduced separately. `values` is the part; `bits` is the same memory as signed integers. `sums`
int64[D + 2, channels] holds raw base-2^32 digits, then the counts of NaN and of infinities; a deposit adds less than
2^32 to a digit, so 2^31 deposits fit before carrying. `low` and `high` [channels] are widened to the finite values.
`room` [several, tile] is the working memory; a tile is a range of channels taken together, so that their accumulators
stay in the first-level cache. No loop allocates or raises, so none needs Python.

Floats are summed exactly and fast thanks to one observation: a float64 sum is exact, in any order, while every partial
sum fits 53 bits. The least and greatest magnitude in a strip of terms bound the distance of their exponents. If it is
small, the terms are simply added. If it is larger, each term is first split at a power of two (by adding and
subtracting a large number; both parts are exact), and the parts are summed separately. If it is larger still, the strip
goes term by term. Where some terms are not finite, the strip is taken once more without these; of float16 and float64,
it goes term by term.

Narrow floats are widened as they are loaded: shifting their bits makes bfloat16 a float32, and float8 a float16 (for
e4m3fn, 2^−8 times the value). So the loops of these serve them, too; only the unit of the sums is larger, by 2^SPARE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

Array = npt.NDArray[Any]
Scalar = Any
"""A compiled integer or float, whose type numba infers."""

compiled: Any = numba.njit
by_dtype: Any = partial(overload, strict=False)
"""For functions that compiled code chooses by the dtypes of their arguments."""

LOW = (1 << 32) - 1
RUN = 2**15
"""Terms of a run of integers that are summed at once: that many of up to 16 bits fit 32 bits."""

F16_STRIP = 8192
"""float16 terms in a strip: they span 40 bits, so 2^13 of them fit the 53 bits of a float64 sum, whatever their
exponents."""
F32_LOG = 8
"""log2 of the float32 terms in a strip: 2^n terms of 24 bits fit 53 if their exponents are within 29 − n."""
F32_SPAN = 29 - F32_LOG
F32_SPLIT_SPAN = 83 - 2 * F32_LOG
"""float32 terms whose exponents are within this span fit two sums: of their parts above and below a power of two."""
MANY = 16
"""If more than one of so many strips has terms that are not finite, a compiled pass without these serves all."""
F64_LOG = 5
F64_SPLIT_SPAN = 44
"""float64 terms are split at 2^(e−1070), with e the greatest exponent; within this span of exponents, the sums of both
parts of 2^5 terms fit 53 bits."""
F64_LOWEST, F64_HIGHEST = 64, 2000
"""Biased exponents between which the powers of two for the split are normal float64 numbers."""

F16_INFINITY, F32_INFINITY, F64_INFINITY = 0x7C00, 0x7F800000, 0x7FF0000000000000
F16_MAGNITUDE, F32_MAGNITUDE, F64_MAGNITUDE = 0x7FFF, 0x7FFFFFFF, 0x7FFFFFFFFFFFFFFF

BFLOAT16_SPARE, E5M2_SPARE, E4M3FN_SPARE = 16, 8, 7
"""log2 of the unit of a narrow float in units of the float that it is widened to."""
E4M3FN_NAN = 0x7F


# Widening. The dtype of the memory tells what is loaded: in the loops of float32, int16 is bfloat16; in those of
# float16, int8 is float8_e5m2, and uint8 float8_e4m3fn


def _single_bits(bits: Scalar) -> Scalar:
    """The bit pattern of a float32 or bfloat16 as that of a float32."""


@by_dtype(_single_bits)
def _widened_single_bits(bits: Any) -> Any:
    return (lambda bits: np.int32(np.int32(bits) << 16)) if bits == types.int16 else (lambda bits: bits)


def _number(value: Scalar) -> Scalar:
    """A float32 or float64 as it is; the bit pattern of a bfloat16 as a float32."""


@by_dtype(_number)
def _widened_number(value: Any) -> Any:
    if value == types.int16:
        return lambda value: np.int32(np.int32(value) << 16).view(np.float32)
    return lambda value: value


def _spare_of_single(bits: Array) -> Scalar:
    """SPARE for memory of bfloat16, 0 for float32."""


@by_dtype(_spare_of_single)
def _spare_of_single_memory(bits: Any) -> Any:
    spare = BFLOAT16_SPARE if bits.dtype == types.int16 else 0
    return lambda bits: spare  # noqa: ARG005 - its dtype decides


def _half_bits(bits: Scalar) -> Scalar:
    """The bit pattern of a float16 or float8 as that of a float16."""


@by_dtype(_half_bits)
def _widened_half_bits(bits: Any) -> Any:
    def of_e4m3fn(bits: Any) -> Any:
        magnitude = np.int16(bits) & np.int16(E4M3FN_NAN)
        wide = np.int16(F16_MAGNITUDE) if magnitude == E4M3FN_NAN else np.int16(magnitude << 7)
        return np.int16(wide | (np.int16(bits) & 0x80) << 8)

    if bits == types.uint8:
        return of_e4m3fn
    return (lambda bits: np.int16(np.int16(bits) << 8)) if bits == types.int8 else (lambda bits: bits)


def _spare_of_half(bits: Array) -> Scalar:
    """SPARE for memory of float8, 0 for float16."""


@by_dtype(_spare_of_half)
def _spare_of_half_memory(bits: Any) -> Any:
    spare = {types.int8: E5M2_SPARE, types.uint8: E4M3FN_SPARE}.get(bits.dtype, 0)
    return lambda bits: spare  # noqa: ARG005 - its dtype decides


# Digits and extrema


@compiled
def _deposit(sums: Array, channel: Scalar, mantissa: Scalar, position: Scalar) -> None:
    """Add mantissa·2^position, with |mantissa| ≤ 2^53, to the digits of `channel`."""
    k = position >> 5
    shift = position & 31
    low = (mantissa & LOW) << shift
    high = (low >> 32) + ((mantissa >> 32) << shift)
    sums[k, channel] += low & LOW
    sums[k + 1, channel] += high & LOW
    sums[k + 2, channel] += high >> 32


@compiled
def _power_of_two(exponent: Scalar) -> Scalar:
    """2^exponent for −1022 ≤ exponent ≤ 1023, built from its bits."""
    return np.int64((exponent + 1023) << 52).view(np.float64)


@compiled
def _lesser(a: Scalar, b: Scalar) -> Scalar:
    """The lesser; `b` if `a` is NaN."""
    return a if a < b else b


@compiled
def _greater(a: Scalar, b: Scalar) -> Scalar:
    """The greater; `b` if `a` is NaN."""
    return a if a > b else b


@compiled
def _widen(low: Array, high: Array, channel: Scalar, least: Scalar, greatest: Scalar) -> None:
    before, after = low[channel], high[channel]
    low[channel] = _lesser(least, before)
    high[channel] = _greater(greatest, after)


@compiled
def _deposit_term(bits: Scalar, fraction_bits: Scalar, infinity: Scalar, sums: Array, channel: Scalar) -> bool:
    """Add the float with the bit pattern `bits` to the digits, or count it as NaN or infinite; true if it is finite."""
    magnitude = bits & (infinity | ((1 << fraction_bits) - 1))
    if magnitude >= infinity:
        sums[len(sums) - (1 if magnitude == infinity else 2), channel] += 1
        return False
    exponent = magnitude >> fraction_bits
    mantissa = magnitude & ((1 << fraction_bits) - 1)
    if exponent:
        mantissa |= 1 << fraction_bits
        exponent -= 1
    if mantissa:
        _deposit(sums, channel, -mantissa if bits < 0 else mantissa, exponent)
    return True


@compiled
def _deposit_terms(
    values: Array,
    bits: Array,
    fraction_bits: Scalar,
    infinity: Scalar,
    sums: Array,
    low: Array,
    high: Array,
    channel: Scalar,
) -> None:
    """Add the float32, bfloat16 or float64 terms of `channel` one by one."""
    for i in range(values.size):
        if _deposit_term(np.int64(bits[i]), fraction_bits, infinity, sums, channel):
            _widen(low, high, channel, _number(values[i]), _number(values[i]))


# Integers of up to 32 bits, in an accumulator twice as wide


def rows_narrow(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values [rows, channels]; room of an integer type twice as wide."""
    rows, channels = values.shape
    total = room[0]
    longest = 1 << (8 * room.itemsize - 8 * values.itemsize - 1)  # that many of the largest terms fit an accumulator
    for first in range(0, channels, room.shape[1]):
        last = min(first + room.shape[1], channels)
        least, greatest = low[first:last], high[first:last]
        start = 0
        while start < rows:
            stop = min(start + longest, rows)
            total[:] = 0
            for row in range(start, stop - 1, 2):
                one, two = values[row, first:last], values[row + 1, first:last]
                for c in range(one.size):
                    total[c] += one[c] + two[c]
                for c in range(one.size):
                    _widen(least, greatest, c, _lesser(one[c], two[c]), _greater(one[c], two[c]))
            if (stop - start) % 2:
                line = values[stop - 1, first:last]
                for c in range(line.size):
                    total[c] += line[c]
                for c in range(line.size):
                    _widen(least, greatest, c, line[c], line[c])
            for c in range(last - first):
                sums[0, first + c] += total[c]
            start = stop


@compiled
def _sum_in_32_bits(values: Array) -> Scalar:
    """The sum of at most RUN integers of up to 16 bits."""
    total = np.int32(0)
    for i in range(values.size):
        total = np.int32(total + values[i])
    return np.int64(total)


@compiled
def _sum_in_64_bits(values: Array) -> Scalar:
    total = np.int64(0)
    for i in range(values.size):
        total += values[i]
    return total


def runs_narrow(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values [outer, channels, inner]."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            least, greatest = low[c], high[c]
            for start in range(0, inner, RUN):
                run = values[o, c, start : min(start + RUN, inner)]
                sums[0, c] += _sum_in_32_bits(run) if values.itemsize < 4 else _sum_in_64_bits(run)
                for i in range(run.size):
                    least = _lesser(run[i], least)
                    greatest = _greater(run[i], greatest)
            low[c] = least
            high[c] = greatest


# Integers of 64 bits: the two halves of each term go to two digits


def rows_wide(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values int64 or uint64 [rows, channels]; bits: the same memory as int64."""
    rows, channels = values.shape
    lower, upper = sums[0], sums[1]
    for row in range(rows):
        line, line_bits = values[row], bits[row]
        for c in range(channels):
            lower[c] += line_bits[c] & LOW
            upper[c] += np.int64(line[c] >> 32)
            _widen(low, high, c, line[c], line[c])


def runs_wide(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values int64 or uint64 [outer, channels, inner]; bits: the same memory as int64."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            lower = np.int64(0)
            upper = np.int64(0)
            least, greatest = low[c], high[c]
            for i in range(inner):
                term = values[o, c, i]
                lower += bits[o, c, i] & LOW
                upper += np.int64(term >> 32)
                least = _lesser(term, least)
                greatest = _greater(term, greatest)
            sums[0, c] += lower
            sums[1, c] += upper
            low[c] = least
            high[c] = greatest


# float16: shifting the bits gives a float32 that is 2^−112 times the value; infinities and NaN come out larger than
# every finite value. The float64 sum of a strip is always exact. `low` and `high` are float32, scaled alike. float8 is
# widened to float16 first.

SCALED_INFINITY = 2.0**-96


@compiled
def _scaled_from_half(bits: Scalar) -> Scalar:
    """2^−112 times the float16 with the bit pattern `bits`, as float32."""
    return np.int32(((bits & 0x8000) << 16) | ((bits & F16_MAGNITUDE) << 13)).view(np.float32)


@compiled
def _half_key(bits: Scalar) -> Scalar:
    """An integer that orders as the floats do; the function is its own inverse, from key to bits."""
    return np.int16(bits ^ ((bits >> 15) & F16_MAGNITUDE))


@compiled
def _settle_half(
    total: Scalar, keys: Scalar, bits: Array, sums: Array, low: Array, high: Array, channel: Scalar
) -> None:
    """Deposit a strip: its sum if all of `bits` [terms] are finite, else its terms; `keys` are those of its extrema."""
    least, greatest = _scaled_from_half(_half_key(keys[0])), _scaled_from_half(_half_key(keys[1]))
    spare = _spare_of_half(bits)
    if max(-least, greatest) < SCALED_INFINITY:
        _deposit(sums, channel, np.int64(total * _power_of_two(68) * _power_of_two(68 - spare)), 0)
        _widen(low, high, channel, least, greatest)
        return
    for i in range(bits.size):
        half = _half_bits(bits[i])
        if _deposit_term(np.int64(half) >> spare, 10 - spare, F16_INFINITY >> spare, sums, channel):
            value = _scaled_from_half(half)
            _widen(low, high, channel, value, value)


def rows_float16(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """bits int16, or float8 as int8 or uint8, [rows, channels]; low and high float32, 2^−112 times the extrema."""
    rows, channels = bits.shape
    total = room[0]
    least = room[1].view(np.int16)
    greatest = room[2].view(np.int16)
    for first in range(0, channels, room.shape[1]):
        last = min(first + room.shape[1], channels)
        for start in range(0, rows, F16_STRIP):
            stop = min(start + F16_STRIP, rows)
            total[:] = 0.0
            least[:] = F16_MAGNITUDE
            greatest[:] = ~F16_MAGNITUDE
            for row in range(start, stop):
                line = bits[row, first:last]
                for c in range(line.size):
                    total[c] += _scaled_from_half(_half_bits(line[c]))
                for c in range(line.size):
                    key = _half_key(_half_bits(line[c]))
                    _widen(least, greatest, c, key, key)
            for c in range(last - first):
                strip = bits[start:stop, first + c]
                _settle_half(total[c], (least[c], greatest[c]), strip, sums, low, high, first + c)


def runs_float16(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """bits int16, or float8 as int8 or uint8, [outer, channels, inner]; low and high as for rows."""
    outer, channels, inner = bits.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, F16_STRIP):
                strip = bits[o, c, start : min(start + F16_STRIP, inner)]
                total = 0.0
                least, greatest = np.int16(F16_MAGNITUDE), np.int16(~F16_MAGNITUDE)
                for i in range(strip.size):
                    total += _scaled_from_half(_half_bits(strip[i]))
                for i in range(strip.size):
                    key = _half_key(_half_bits(strip[i]))
                    least = _lesser(key, least)
                    greatest = _greater(key, greatest)
                _settle_half(total, (least, greatest), strip, sums, low, high, c)


# Splitting: adding and subtracting 1.5·2^(52 + p) rounds a term to its upper part; the rest, the lower part, is below
# 2^p


@compiled
def _split_rows(values: Array, first: Scalar, splitter: Array, upper: Array, lower: Array) -> None:
    """Sum the upper and lower parts of a strip's terms, values [rows, channels], separately, from channel `first`."""
    rows, channels = values.shape
    last = min(first + upper.size, channels)
    upper[:] = 0.0
    lower[:] = 0.0
    for row in range(rows):
        line = values[row, first:last]
        for c in range(line.size):
            term = np.float64(_number(line[c]))
            rounded = (term + splitter[c]) - splitter[c]
            upper[c] += rounded
            lower[c] += term - rounded


@compiled
def _split_run(values: Array, splitter: Scalar) -> Scalar:
    """(sum of the upper parts, sum of the lower parts) of a strip's terms."""
    upper = 0.0
    lower = 0.0
    for i in range(values.size):
        term = np.float64(_number(values[i]))
        rounded = (term + splitter) - splitter
        upper += rounded
        lower += term - rounded
    return upper, lower


# float32, and bfloat16 as its upper half


@compiled
def _single_key(bits: Scalar) -> Scalar:
    """An integer that orders as the floats do; the function is its own inverse, from key to bits."""
    return np.int32(bits ^ ((bits >> 31) & F32_MAGNITUDE))


@compiled
def _magnitude_below(bits: Scalar) -> Scalar:
    """The magnitude less one: zero wraps to the greatest uint32, so the least belongs to a nonzero term, if any."""
    return np.uint32(np.uint32(bits & F32_MAGNITUDE) - np.uint32(1))


@compiled
def _lowest_single(below: Scalar) -> Scalar:
    """The biased exponent (1 for denormals) of the least nonzero magnitude, which is `below` plus one."""
    return max((np.int64(below) + 1) >> 23, 1)


@compiled
def _highest_single(least: Scalar, greatest: Scalar) -> Scalar:
    """The biased exponent of the greatest magnitude; 255 for infinities."""
    return np.int64(np.float32(max(abs(least), abs(greatest))).view(np.int32)) >> 23


@compiled
def _settle_single(
    total: Scalar,
    below: Scalar,
    least: Scalar,
    greatest: Scalar,
    spare: Scalar,
    sums: Array,
    low: Array,
    high: Array,
    channel: Scalar,
) -> Scalar:
    """Deposit the float64 sum of a strip and return 0 if it is exact; −1 if it must go term by term; else its splitter.

    `below` is the least nonzero magnitude less one, as a bit pattern; `least` and `greatest` ignore NaN.
    """
    if total - total != 0.0:
        return -1.0  # NaN or infinite
    highest, lowest = _highest_single(least, greatest), _lowest_single(below)
    if highest - lowest <= F32_SPAN:
        if least != 0.0 or greatest != 0.0:  # for zeros alone, the exponent would be beyond the digits
            _deposit(sums, channel, np.int64(total * _power_of_two(150 - spare - lowest)), lowest - 1)
        _widen(low, high, channel, least, greatest)
        return 0.0
    if highest - lowest > F32_SPLIT_SPAN:
        return -1.0
    _widen(low, high, channel, least, greatest)
    return 1.5 * _power_of_two(highest + F32_LOG + spare - 127)


@compiled
def _settle_split_single(
    upper: Scalar, lower: Scalar, splitter: Scalar, below: Scalar, spare: Scalar, sums: Array, channel: Scalar
) -> None:
    """Deposit the two sums of a strip that was split."""
    highest = (np.float64(splitter).view(np.int64) >> 52) - 1023 - F32_LOG - spare + 127
    _deposit(sums, channel, np.int64(upper * _power_of_two(179 - spare - F32_LOG - highest)), highest + F32_LOG - 30)
    lowest = _lowest_single(below)
    _deposit(sums, channel, np.int64(lower * _power_of_two(150 - spare - lowest)), lowest - 1)


@compiled
def _deposit_singles(values: Array, bits: Array, sums: Array, low: Array, high: Array, channel: Scalar) -> None:
    """Add the float32 or bfloat16 terms of `channel` one by one."""
    spare = _spare_of_single(bits)
    _deposit_terms(values, bits, 23 - spare, F32_INFINITY >> spare, sums, low, high, channel)


@compiled
def _finite_single(bits: Scalar) -> Scalar:
    """The bit pattern of a float32 if it is finite, else zero."""
    return np.int32(bits if bits & F32_MAGNITUDE < F32_INFINITY else 0)


@compiled
def _split_finite(bits: Array, splitter: Scalar) -> Scalar:
    """As `_split_run`, of the finite ones of float32 or bfloat16 terms."""
    upper = 0.0
    lower = 0.0
    for i in range(bits.size):
        term = np.float64(np.int32(_finite_single(_single_bits(bits[i]))).view(np.float32))
        rounded = (term + splitter) - splitter
        upper += rounded
        lower += term - rounded
    return upper, lower


@compiled
def _settle_finite(
    total: Scalar,
    below: Scalar,
    least: Scalar,
    greatest: Scalar,
    nan: Scalar,
    infinite: Scalar,
    values: Array,
    bits: Array,
    sums: Array,
    low: Array,
    high: Array,
    channel: Scalar,
) -> None:
    """Deposit the finite ones of a strip of float32 or bfloat16 terms, of which `nan` and `infinite` are not.

    `total`, `below`, `least` and `greatest` are those of the finite terms.
    """
    spare = _spare_of_single(bits)
    if nan + infinite < bits.size:
        splitter = _settle_single(total, below, least, greatest, spare, sums, low, high, channel)
        if splitter < 0.0:
            _deposit_singles(values, bits, sums, low, high, channel)
            return
        if splitter > 0.0:
            upper, lower = _split_finite(bits, splitter)
            _settle_split_single(upper, lower, splitter, below, spare, sums, channel)
    sums[len(sums) - 2, channel] += np.int64(nan)
    sums[len(sums) - 1, channel] += np.int64(infinite)


@compiled
def _take_finite(values: Array, bits: Array, sums: Array, low: Array, high: Array, channel: Scalar) -> None:
    """Add a strip of float32 or bfloat16 terms, some of which are not finite."""
    total = 0.0
    below = np.uint32(LOW)
    least, greatest = np.float32(np.inf), np.float32(-np.inf)
    nan: Scalar = 0
    infinite: Scalar = 0
    for i in range(bits.size):
        pattern = np.int32(_single_bits(bits[i]))
        magnitude, finite = pattern & F32_MAGNITUDE, _finite_single(pattern)
        nan += magnitude > F32_INFINITY
        infinite += magnitude == F32_INFINITY
        value = np.int32(finite).view(np.float32)
        total += np.float64(value)
        below = _lesser(_magnitude_below(finite), below)
        if magnitude < F32_INFINITY:
            least, greatest = _lesser(value, least), _greater(value, greatest)
    _settle_finite(total, below, least, greatest, nan, infinite, values, bits, sums, low, high, channel)


@compiled
def _are_many(total: Array, channels: Scalar) -> Scalar:
    """Whether so many of the strips with these totals have terms that are not finite that all are best taken again."""
    found = 0
    for c in range(channels):
        found += total[c] - total[c] != 0.0
    return found * MANY > channels


@compiled
def _scan_finite_rows(
    bits: Array,
    first: Scalar,
    last: Scalar,
    total: Array,
    below: Array,
    least: Array,
    greatest: Array,
    nan: Array,
    infinite: Array,
) -> None:
    """What `_settle_finite` needs of the strips of channels `first` to `last` in bits [rows, channels]."""
    total[:] = 0.0
    nan[:] = 0.0
    infinite[:] = 0.0
    below[:] = LOW
    least[:] = np.inf
    greatest[:] = -np.inf
    for row in range(len(bits)):
        line = bits[row, first:last]
        for c in range(line.size):
            pattern = np.int32(_single_bits(line[c]))
            total[c] += np.float64(np.int32(_finite_single(pattern)).view(np.float32))
            below[c] = _lesser(_magnitude_below(_finite_single(pattern)), below[c])
        for c in range(line.size):
            magnitude = np.int32(_single_bits(line[c])) & F32_MAGNITUDE
            nan[c] += 1.0 if magnitude > F32_INFINITY else 0.0
            infinite[c] += 1.0 if magnitude == F32_INFINITY else 0.0
        for c in range(line.size):
            pattern = np.int32(_single_bits(line[c]))
            value, is_finite = pattern.view(np.float32), pattern & F32_MAGNITUDE < F32_INFINITY
            least[c] = _lesser(value if is_finite else np.float32(np.inf), least[c])
            greatest[c] = _greater(value if is_finite else np.float32(-np.inf), greatest[c])


@compiled
def _settle_by_terms(
    total: Scalar, values: Array, bits: Array, sums: Array, low: Array, high: Array, channel: Scalar
) -> None:
    """Add a strip of float32 or bfloat16 terms that `_settle_single` has refused; `total` is their float64 sum."""
    if total - total != 0.0:
        _take_finite(values, bits, sums, low, high, channel)
    else:
        _deposit_singles(values, bits, sums, low, high, channel)


def rows_float32(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values float32 [rows, channels]; bits: the same memory as int32; both int16 for bfloat16."""
    rows, channels = values.shape
    spare = _spare_of_single(bits)
    total, upper, lower, splitter = room[0], room[1], room[2], room[3]
    below = room[4].view(np.uint32)
    least = room[5].view(np.float32)
    greatest = room[6].view(np.float32)
    for start in range(0, rows, 1 << F32_LOG):
        stop = min(start + (1 << F32_LOG), rows)
        for first in range(0, channels, room.shape[1]):
            last = min(first + room.shape[1], channels)
            total[:] = 0.0
            below[:] = LOW
            least[:] = np.inf
            greatest[:] = -np.inf
            for row in range(start, stop - 3, 4):
                _four_rows_float32(values, bits, row, first, last, total, below, least, greatest)
            for row in range(stop - (stop - start) % 4, stop):
                line, line_bits = values[row, first:last], bits[row, first:last]
                for c in range(line.size):
                    total[c] += _number(line[c])
                    below[c] = _lesser(_magnitude_below(_single_bits(line_bits[c])), below[c])
                    _widen(least, greatest, c, _number(line[c]), _number(line[c]))
            if _are_many(total, last - first):
                strips = bits[start:stop]
                _scan_finite_rows(strips, first, last, total, below, least, greatest, upper, lower)
                for c in range(last - first):
                    found = total[c], below[c], least[c], greatest[c], upper[c], lower[c]
                    strip, strip_bits = values[start:stop, first + c], strips[:, first + c]
                    _settle_finite(*found, strip, strip_bits, sums, low, high, first + c)
                continue
            split = False
            for c in range(last - first):
                bounds = below[c], least[c], greatest[c]
                splitter[c] = _settle_single(total[c], *bounds, spare, sums, low, high, first + c)
                if splitter[c] < 0.0:
                    strip, strip_bits = values[start:stop, first + c], bits[start:stop, first + c]
                    _settle_by_terms(total[c], strip, strip_bits, sums, low, high, first + c)
                split |= splitter[c] > 0.0
            if split:
                _split_rows(values[start:stop], first, splitter, upper, lower)
                for c in range(last - first):
                    if splitter[c] > 0.0:  # for others, the exponents may be beyond the digits
                        _settle_split_single(upper[c], lower[c], splitter[c], below[c], spare, sums, first + c)


@compiled
def _four_rows_float32(
    values: Array,
    bits: Array,
    row: Scalar,
    first: Scalar,
    last: Scalar,
    total: Array,
    below: Array,
    least: Array,
    greatest: Array,
) -> None:
    """Take four rows at a time, so that the accumulators are loaded and stored only once for all four."""
    one, two = values[row, first:last], values[row + 1, first:last]
    three, four = values[row + 2, first:last], values[row + 3, first:last]
    for c in range(one.size):
        total[c] += (np.float64(_number(one[c])) + np.float64(_number(two[c]))) + (
            np.float64(_number(three[c])) + np.float64(_number(four[c]))
        )
    for c in range(one.size):
        small = _lesser(_number(two[c]), _lesser(_number(one[c]), least[c]))
        large = _greater(_number(two[c]), _greater(_number(one[c]), greatest[c]))
        least[c] = _lesser(_number(four[c]), _lesser(_number(three[c]), small))
        greatest[c] = _greater(_number(four[c]), _greater(_number(three[c]), large))
    ones, twos = bits[row, first:last], bits[row + 1, first:last]
    threes, fours = bits[row + 2, first:last], bits[row + 3, first:last]
    for c in range(one.size):
        near = _lesser(_magnitude_below(_single_bits(ones[c])), _magnitude_below(_single_bits(twos[c])))
        other = _lesser(_magnitude_below(_single_bits(threes[c])), _magnitude_below(_single_bits(fours[c])))
        below[c] = _lesser(_lesser(near, other), below[c])


def runs_float32(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values float32 [outer, channels, inner]; bits: the same memory as int32; both int16 for bfloat16."""
    outer, channels, inner = values.shape
    spare = _spare_of_single(bits)
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, 1 << F32_LOG):
                stop = min(start + (1 << F32_LOG), inner)
                strip, strip_bits = values[o, c, start:stop], bits[o, c, start:stop]
                total = 0.0
                below = np.uint32(LOW)
                least, greatest = np.int32(F32_MAGNITUDE), np.int32(~F32_MAGNITUDE)
                for i in range(strip.size):
                    pattern = np.int32(_single_bits(strip_bits[i]))
                    key = _single_key(pattern)
                    total += np.float64(pattern.view(np.float32))
                    below = _lesser(_magnitude_below(pattern), below)
                    least = _lesser(key, least)
                    greatest = _greater(key, greatest)
                smallest = np.int32(_single_key(least)).view(np.float32)
                largest = np.int32(_single_key(greatest)).view(np.float32)
                splitter = _settle_single(total, below, smallest, largest, spare, sums, low, high, c)
                if splitter < 0.0:
                    _settle_by_terms(total, strip, strip_bits, sums, low, high, c)
                elif splitter > 0.0:
                    upper, lower = _split_run(strip, splitter)
                    _settle_split_single(upper, lower, splitter, below, spare, sums, c)


# float64: always split


@compiled
def _splitter(below: Scalar, largest: Scalar) -> Scalar:
    """1.5·2^(e−1018), with e the greatest exponent, whose last place is 2^(e−1070); 0 if all terms are 0, −1 if the
    split would not be exact.

    `below` is the least nonzero magnitude less one, and `largest` the greatest magnitude, as bit patterns.
    """
    if largest == 0:
        return 0.0
    lowest = (below + 1) >> 52
    highest = largest >> 52
    if highest > F64_HIGHEST or lowest < F64_LOWEST or highest - lowest > F64_SPLIT_SPAN:
        return -1.0
    return 1.5 * _power_of_two(highest - 1018)


@compiled
def _settle_double(
    upper: Scalar,
    lower: Scalar,
    below: Scalar,
    largest: Scalar,
    least: Scalar,
    greatest: Scalar,
    sums: Array,
    low: Array,
    high: Array,
    channel: Scalar,
) -> None:
    """Deposit the two sums of a strip that was split."""
    _widen(low, high, channel, least, greatest)
    if largest:
        lowest = (below + 1) >> 52
        highest = largest >> 52
        _deposit(sums, channel, np.int64(upper * _power_of_two(1070 - highest)), highest + 4)
        _deposit(sums, channel, np.int64(lower * _power_of_two(1075 - lowest)), lowest - 1)


def rows_float64(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values float64 [rows, channels]; bits: the same memory as int64."""
    rows, channels = values.shape
    below, largest = room[0].view(np.int64), room[1].view(np.int64)
    least, greatest, splitter, upper, lower = room[2], room[3], room[4], room[5], room[6]
    for start in range(0, rows, 1 << F64_LOG):
        stop = min(start + (1 << F64_LOG), rows)
        for first in range(0, channels, room.shape[1]):
            last = min(first + room.shape[1], channels)
            below[:] = F64_MAGNITUDE
            largest[:] = 0
            least[:] = np.inf
            greatest[:] = -np.inf
            for row in range(start, stop):
                line, line_bits = values[row, first:last], bits[row, first:last]
                for c in range(line.size):
                    magnitude = line_bits[c] & F64_MAGNITUDE
                    below[c] = _lesser((magnitude - 1) & F64_MAGNITUDE, below[c])
                    largest[c] = _greater(magnitude, largest[c])
                for c in range(line.size):
                    _widen(least, greatest, c, line[c], line[c])
            for c in range(last - first):
                splitter[c] = _splitter(below[c], largest[c])
            _split_rows(values[start:stop], first, splitter, upper, lower)
            for c in range(last - first):
                if splitter[c] < 0.0:
                    strip, strip_bits = values[start:stop, first + c], bits[start:stop, first + c]
                    _deposit_terms(strip, strip_bits, 52, F64_INFINITY, sums, low, high, first + c)
                else:
                    _settle_double(
                        upper[c], lower[c], below[c], largest[c], least[c], greatest[c], sums, low, high, first + c
                    )


def runs_float64(values: Array, bits: Array, sums: Array, low: Array, high: Array, room: Array) -> None:
    """values float64 [outer, channels, inner]; bits: the same memory as int64."""
    outer, channels, inner = values.shape
    for o in range(outer):
        for c in range(channels):
            for start in range(0, inner, 1 << F64_LOG):
                stop = min(start + (1 << F64_LOG), inner)
                strip, strip_bits = values[o, c, start:stop], bits[o, c, start:stop]
                below = np.int64(F64_MAGNITUDE)
                largest = np.int64(0)
                least, greatest = np.inf, -np.inf
                for i in range(strip.size):
                    magnitude = strip_bits[i] & F64_MAGNITUDE
                    below = _lesser((magnitude - 1) & F64_MAGNITUDE, below)
                    largest = _greater(magnitude, largest)
                    least = _lesser(strip[i], least)
                    greatest = _greater(strip[i], greatest)
                splitter = _splitter(below, largest)
                if splitter < 0.0:
                    _deposit_terms(strip, strip_bits, 52, F64_INFINITY, sums, low, high, c)
                else:
                    upper, lower = _split_run(strip, splitter)
                    _settle_double(upper, lower, below, largest, least, greatest, sums, low, high, c)


LOOPS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "narrow": (rows_narrow, runs_narrow),
    "wide": (rows_wide, runs_wide),
    "float16": (rows_float16, runs_float16),
    "float32": (rows_float32, runs_float32),
    "float64": (rows_float64, runs_float64),
}
"""Kind of values → the loop over rows, the loop over runs."""
REORDERED = (runs_float16, runs_float32)
"""Loops that use float sums only if these are exact in any order, so the compiler may reorder them."""
