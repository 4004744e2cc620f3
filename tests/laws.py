"""The laws that every statistic keeps, hard blocks to try them on, and the exact answers to compare with.

`laws_of(kind)` makes the tests of one kind; `statistics/test_laws.py` runs them for every kind in
`KINDS`. The exact answer is written in Python's integers and fractions, term by term: slow, and short enough to be seen
to be right.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamstats.coverage import Coverage
from streamstats.errors import DataError, MismatchError
from streamstats.floats import is_finite
from streamstats.layouts import Geometry, Kernel
from streamstats.outputs.layer_statistics import LayerStatistics
from streamstats.outputs.ledger import CountedSource
from streamstats.outputs.state import read_state, state_bytes
from streamstats.quantization import Quantization
from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.gram import Gram
from streamstats.statistics.histogram import Histogram
from streamstats.statistics.kinds import KINDS, kinds_of
from streamstats.statistics.magnitude import ChannelMagnitude
from streamstats.statistics.mean import ChannelMean
from streamstats.statistics.spread import SampleSpread
from streamstats.statistics.squares import ChannelSquares
from streamstats.statistics.statistic import Space, Statistic
from streamstats.statistics.statistics import Statistics, StatisticsAccumulator
from streamstats.statistics.taps import ReadSums, TapSums
from streamstats.storage.files import write_bytes

Array = np.ndarray[Any, np.dtype[Any]]
ExactAnswer = Callable[[Array, int], Statistic]
Where = tuple[slice, ...]

INTEGERS = [np.dtype(kind) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
FLOATS = [np.dtype(kind) for kind in ("f2", "f4", "f8")]
NARROW = [np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
BFLOAT16, E4M3FN, E5M2 = NARROW
ALL_FLOATS = [*FLOATS, *NARROW]
DTYPES = [np.dtype(bool), *INTEGERS, *ALL_FLOATS]
SMALLEST = {"f2": -24, "f4": -149, "f8": -1074, "bfloat16": -133, "float8_e4m3fn": -9, "float8_e5m2": -16}
"""The exponent of the smallest denormal."""
DIGITS = {"b1": 2, "i1": 2, "u1": 2, "i2": 2, "u2": 2, "i4": 3, "u4": 3, "i8": 4, "u8": 4, "f2": 3, "f4": 10, "f8": 67}
DIGITS |= {"bfloat16": 10, "float8_e4m3fn": 3, "float8_e5m2": 3}
"""Digits of 32 bits that hold 2^64 of the largest value, the top one 63 bits and the sign; at least 3 for floats."""


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("=") in ALL_FLOATS


def kind_of(dtype: np.dtype[Any]) -> str:
    """The key of a dtype in the tables here."""
    return dtype.name if dtype.newbyteorder("=") in NARROW else dtype.str[1:]


def limits_of(dtype: np.dtype[Any]) -> Any:
    """As `np.finfo`."""
    return ml_dtypes.finfo(dtype)


def held(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of extrema."""
    return np.dtype("f4") if dtype in NARROW else dtype


# The exact answers


def channel_values(block: Array, channel_axis: int) -> list[list[Any]]:
    """The values of each channel as Python numbers."""
    native = block.astype(block.dtype.newbyteorder("="))
    return [native.take(channel, channel_axis).ravel().tolist() for channel in range(block.shape[channel_axis])]


def units(values: Sequence[Any], kind: str) -> int:
    """The exact sum of the finite `values`, in units of the smallest denormal of `kind` or of 1."""
    total = 0
    for value, times in Counter(filter(math.isfinite, values)).items():
        numerator, denominator = value.as_integer_ratio()
        total += times * (numerator * 2 ** -SMALLEST.get(kind, 0) // denominator)
    return total


def as_digits(total: int, places: int) -> list[int]:
    """`total` in base 2^32, lowest digit first; the top one takes what is left and the sign."""
    low = [(total >> (32 * place)) & 0xFFFFFFFF for place in range(places - 1)]
    return [*low, total >> (32 * (places - 1))]


def exact_sums(block: Array, channel_axis: int) -> ChannelMean:
    """What `ChannelMean.measure` has to give."""
    kind = kind_of(block.dtype)
    channels = channel_values(block, channel_axis)
    digits = [as_digits(units(values, kind), DIGITS[kind]) for values in channels]
    counts = [[sum(map(test, values)) for values in channels] for test in (math.isfinite, math.isnan, math.isinf)]
    return ChannelMean(
        space_of(block.dtype, block.shape[channel_axis]),
        np.array(digits, np.int64).reshape(-1, DIGITS[kind]).T,
        *np.array(counts, np.int64),
    )


def exact_extrema(block: Array, channel_axis: int) -> ChannelExtrema:
    """What `ChannelExtrema.measure` has to give."""
    dtype = block.dtype.newbyteorder("=")
    finite = [[*filter(math.isfinite, values)] for values in channel_values(block, channel_axis)]
    if is_float(dtype):
        least, greatest = -math.inf, math.inf
    else:
        limits = [False, True] if dtype.kind == "b" else np.iinfo(dtype)
        least, greatest = limits if dtype.kind == "b" else (limits.min, limits.max)
    minimum = np.array([min(values, default=greatest) for values in finite], held(dtype))
    maximum = np.array([max(values, default=least) for values in finite], held(dtype))
    if is_float(dtype):
        minimum[minimum == 0] = maximum[maximum == 0] = 0.0  # a zero has no sign
    return ChannelExtrema(space_of(dtype, block.shape[channel_axis]), minimum, maximum)


def exact_spread(block: Array, channel_axis: int) -> SampleSpread:
    """What `SampleSpread.measure` has to give: sums over samples of squared sums, of sums times counts, of counts²."""
    kind, channels = kind_of(block.dtype), block.shape[channel_axis]
    samples, squares, products, counts = ([0] * channels for _ in range(4))
    for sample in block:
        for channel, values in enumerate(channel_values(sample, channel_axis - 1)):
            total, count = units(values, kind), sum(map(math.isfinite, values))
            samples[channel] += count > 0
            squares[channel] += total**2
            products[channel] += total * count
            counts[channel] += count**2

    def digits(totals: list[int], places: int) -> Array:
        return np.array([as_digits(total, places) for total in totals], np.int64).reshape(-1, places).T

    found = digits(squares, SPREAD_DIGITS[kind]), digits(products, PRODUCT_DIGITS[kind]), digits(counts, 4)
    return SampleSpread(Space.of(block, channel_axis), np.array(samples, np.int64), *found)


SPREAD_DIGITS = {"b1": 4, "i1": 4, "u1": 4, "i2": 4, "u2": 4, "i4": 5, "u4": 5, "i8": 7, "u8": 7, "f2": 6, "f4": 21}
SPREAD_DIGITS |= {"f8": 135, "bfloat16": 20, "float8_e4m3fn": 5, "float8_e5m2": 5}
"""Digits that hold 2^64 squares of sums of 2^31 of the largest value."""
PRODUCT_DIGITS = {"b1": 4, "i1": 4, "u1": 4, "i2": 4, "u2": 4, "i4": 4, "u4": 4, "i8": 5, "u8": 5, "f2": 5, "f4": 12}
PRODUCT_DIGITS |= {"f8": 69, "bfloat16": 12, "float8_e4m3fn": 4, "float8_e5m2": 4}
"""Digits that hold 2^64 products of 2^31 and sums of 2^31 of the largest value."""


def unmasked(block: Array, channel_axis: int, mask: Array) -> list[Array]:
    """What counts of each sample, [1, positions, C]."""
    return [
        np.moveaxis(sample, channel_axis - 1, -1)[kept][np.newaxis] for sample, kept in zip(block, mask, strict=True)
    ]


def kernel_of(shape: Sequence[int]) -> Kernel:
    """A kernel for blocks of `shape`, which differs along each axis and fits into any extents."""
    axes = list(AXES[: len(shape) - 2])
    taps, strides, before, after, dilations = zip(*axes, strict=True) if axes else ((),) * 5
    return Kernel(taps, Geometry(strides, (*before, *after), dilations))


AXES = [(3, 1, 1, 2, 1), (2, 3, 0, 2, 1), (4, 1, 3, 4, 2)]
"""(taps, stride, pad before, pad after, dilation) of each axis; along the second, the stride skips positions."""


def space_for(block: Array, channel_axis: int) -> Space:
    """The space of `block`, with a kernel: some kinds refuse a layer without one."""
    return Space.of(block, channel_axis, kernel_of(block.shape))


def axis_classes(extent: int, taps: int, stride: int, before: int, after: int, dilation: int) -> list[int]:
    """The class of each position, by the taps that see it for some output; in order of their first positions."""
    starts = range(-before, extent + after - dilation * (taps - 1), stride)
    seen = [tuple(tap for tap in range(taps) if at - tap * dilation in starts) for at in range(extent)]
    return [[*dict.fromkeys(seen)].index(each) for each in seen]


def exact_taps(block: Array, channel_axis: int) -> TapSums:
    """What `TapSums.measure` has to give: the sums of the positions of each class, as of a block of their own."""
    values = np.moveaxis(block, channel_axis, -1)
    along = [axis_classes(extent, *numbers) for extent, numbers in zip(values.shape[1:-1], AXES, strict=False)]
    numbers = [max(each, default=0) + 1 for each in along]
    labels = np.zeros(values.shape[1:-1], np.int64)
    for place in np.ndindex(*labels.shape):
        for classes, number, at in zip(along, numbers, place, strict=True):
            labels[place] = labels[place] * number + classes[at]
    found = [exact_sums(values[:, labels == label], 2).arrays() for label in range(math.prod(numbers))]
    arrays = {name: np.stack([each[name] for each in found], axis=-2) for name in found[0]}
    return TapSums(space_for(block, channel_axis), **arrays)


def exact_reads(block: Array, channel_axis: int) -> ReadSums:
    """What `ReadSums.measure` has to give: the sums of `exact_taps` where positions are missed, else one class."""
    extents = np.moveaxis(block, channel_axis, -1).shape[1:-1]
    if extents[1:] and extents[1] > 1:
        arrays = exact_taps(block, channel_axis).arrays()
    else:
        arrays = {name: array[..., np.newaxis, :] for name, array in exact_sums(block, channel_axis).arrays().items()}
    return ReadSums(space_for(block, channel_axis), **arrays)


SQUARE_DIGITS = {"b1": 2, "i1": 2, "u1": 2, "i2": 3, "u2": 3, "i4": 4, "u4": 4, "i8": 6, "u8": 6, "f2": 4, "f4": 19}
SQUARE_DIGITS |= {"f8": 133, "bfloat16": 18, "float8_e4m3fn": 3, "float8_e5m2": 4}
"""Digits that hold 2^64 of the largest square."""


def exact_powers(values: Sequence[Any], kind: str, power: int) -> int:
    """The exact sum of |x|^`power` over the finite `values`, in units: this power of the smallest denormal, or 1."""
    unit, times = Fraction(2) ** (power * SMALLEST.get(kind, 0)), Counter(filter(math.isfinite, values))
    total = sum((abs(Fraction(value)) ** power * number for value, number in times.items()), Fraction(0)) / unit
    assert total.denominator == 1
    return int(total)


def exact_squares(block: Array, channel_axis: int) -> ChannelSquares:
    """What `ChannelSquares.measure` has to give."""
    kind, places = kind_of(block.dtype), SQUARE_DIGITS[kind_of(block.dtype)]
    digits = [as_digits(exact_powers(values, kind, 2), places) for values in channel_values(block, channel_axis)]
    return ChannelSquares(Space.of(block, channel_axis), np.array(digits, np.int64).reshape(-1, places).T)


def exact_magnitude(block: Array, channel_axis: int) -> ChannelMagnitude:
    """What `ChannelMagnitude.measure` has to give."""
    space, kind = Space.of(block, channel_axis), kind_of(block.dtype)
    channels = channel_values(block, channel_axis)
    if block.dtype.itemsize == 1:
        counts = np.zeros((256, len(channels)), np.int64)
        for channel, values in enumerate(channels):
            bits = block.astype(space.dtype).take(channel, channel_axis).copy().view(np.uint8).ravel().tolist()
            for pattern, value in zip(bits, values, strict=True):
                counts[codes_of(block.dtype).index(pattern), channel] += math.isfinite(value)
        return ChannelMagnitude(space, counts=counts)
    digits = [as_digits(exact_powers(values, kind, 1), DIGITS[kind]) for values in channels]
    return ChannelMagnitude(space, np.array(digits, np.int64).reshape(-1, DIGITS[kind]).T)


def codes_of(dtype: np.dtype[Any]) -> list[int]:
    """The bit patterns of 8 bits, ascending by their values."""
    positive, negative = [*range(128)], [*range(128, 256)]
    if is_float(dtype):
        return [*reversed(negative), *positive]
    return [*negative, *positive] if dtype.kind == "i" else [*positive, *negative]


def exact_histogram(block: Array, channel_axis: int) -> Histogram:
    """What `Histogram.measure` has to give: wide values are counted by their places among all upper halves, sorted."""
    space, dtype = Space.of(block, channel_axis), block.dtype.newbyteorder("=")
    if dtype.itemsize == 1:
        return Histogram(space, exact_magnitude(block, channel_axis).counts)
    shift, counts = 8 * dtype.itemsize - 16, np.zeros(2**16, np.int64)
    values = np.ascontiguousarray(block.astype(dtype)).reshape(-1)
    for value, bits in zip(values.tolist(), values.view(f"u{dtype.itemsize}").tolist(), strict=True):
        if math.isfinite(value):
            counts[PLACES["f" if is_float(dtype) else dtype.kind][bits >> shift]] += 1
    return Histogram(space, counts)


NEGATIVE = range(2**15, 2**16)
"""The upper halves of bit patterns with a sign."""
ASCENDING = {
    "u": [*range(2**16)],
    "i": [*NEGATIVE, *range(2**15)],
    "f": [*reversed(NEGATIVE), *range(2**15)],
}
PLACES = {kind: {upper: place for place, upper in enumerate(order)} for kind, order in ASCENDING.items()}
"""Kind of dtype → upper half of a bit pattern → its place in ascending order."""


def exact_gram(block: Array, channel_axis: int) -> Gram:
    """What `Gram.measure` has to give: products of columns, which are the channels under each tap, as integers."""
    kind, space = kind_of(block.dtype), space_for(block, channel_axis)
    scale = Fraction(2) ** -SMALLEST.get(kind, 0)
    flat = np.moveaxis(block.astype(space.dtype), channel_axis, -1)
    finite = [value if math.isfinite(value) else 0 for value in flat.ravel().tolist()]
    values = np.array([*(int(value * scale) for value in finite), 0], object)[:-1].reshape(flat.shape)
    assert isinstance(space.kernel, Kernel)
    taps = space.kernel.taps
    ones = [int(scale)] if not is_float(block.dtype) or math.prod(taps) == 1 else []
    rows = [row for sample in values for row in patches(sample, taps, ones)]
    columns = np.array(rows, object).reshape(len(rows), -1) if rows else np.zeros((0, columns_of(block, channel_axis)))
    products = columns.T.dot(columns) if rows else np.zeros((columns.shape[1],) * 2, object)
    sums = [int(products[i, j]) for i in range(len(products)) for j in range(i, len(products))]
    digits, first = trimmed_digits(sums)
    left_out = sum(not math.isfinite(value) for value in flat.ravel().tolist())
    return Gram(space, digits, np.array([first]), np.array([len(rows)]), np.array([left_out]))


def columns_of(block: Array, channel_axis: int) -> int:
    taps = kernel_of(block.shape).taps
    ones = not is_float(block.dtype) or math.prod(taps) == 1
    return (block.shape[channel_axis] + ones) * math.prod(taps)


def patches(sample: Array, taps: tuple[int, ...], ones: list[int]) -> list[list[int]]:
    """For each output, the values under each tap: of ones, if there are some, then channel by channel."""
    extents, moves = sample.shape[:-1], AXES[: len(taps)]
    outputs = [
        (extent + before + after - dilation * (count - 1) - 1) // stride + 1
        for extent, (count, stride, before, after, dilation) in zip(extents, moves, strict=True)
    ]
    found = []
    for output in np.ndindex(*outputs):
        row = []
        for channel in [*[None for _ in ones], *range(sample.shape[-1])]:
            for tap in np.ndindex(*taps):
                at = tuple(o * move[1] - move[2] + t * move[4] for o, t, move in zip(output, tap, moves, strict=True))
                inside = all(0 <= place < extent for place, extent in zip(at, extents, strict=True))
                row.append(0 if not inside else ones[0] if channel is None else sample[(*at, channel)])
        found.append(row)
    return found


def trimmed_digits(values: list[int]) -> tuple[Array, int]:
    """`values` in base 2^32, two's complement, uint32[D, n], and the number of digits left out at the lower end."""
    first = 0
    while any(values) and not any(value & (1 << 32 * (first + 1)) - 1 for value in values):
        first += 1
    shifted, count = [value >> 32 * first for value in values], 1
    while not all(-(1 << 32 * count - 1) <= value < 1 << 32 * count - 1 for value in shifted):
        count += 1
    digits = [[value >> 32 * place & 0xFFFFFFFF for value in shifted] for place in range(count)]
    return np.array(digits, np.uint32).reshape(count, len(values)), first


EXACT: dict[str, ExactAnswer] = {
    "gram": exact_gram,
    "mean": exact_sums,
    "extrema": exact_extrema,
    "spread": exact_spread,
    "squares": exact_squares,
    "magnitude": exact_magnitude,
    "histogram": exact_histogram,
    "taps": exact_taps,
    "reads": exact_reads,
}
"""Name of a kind → its exact answer."""


# Hard blocks


def from_bits(bits: Any, dtype: np.dtype[Any]) -> Array:
    """The values with these bit patterns (a NaN keeps its payload)."""
    width = dtype.itemsize
    return np.array(bits, np.uint64).astype(f"u{width}").view(dtype)


def hard_bits(dtype: np.dtype[Any], finite: bool = False) -> list[int]:
    """Bit patterns at the ends of things: zeros, denormals, limits, quiet, signalling and negative NaN, infinities."""
    if dtype.kind == "b":
        return [0, 1]
    sign = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind in "iu":
        edges = [0, 1, 2, sign - 1, sign - 2, 1 << 31, (1 << 32) - 1]
        mask = 2 * sign - 1
        return sorted({pattern & mask for edge in edges for pattern in (edge, -edge, ~edge)})
    fraction_bits = limits_of(dtype).nmant
    infinity = sign - (1 if dtype == E4M3FN else 1 << fraction_bits)  # or NaN, where there are no infinities
    normal = 1 << fraction_bits
    one = int(np.ones(1, dtype).view(f"u{dtype.itemsize}")[0])
    magnitudes = [0, 1, 2, normal - 1, normal, normal + 1, one - 1, one, one + 1, infinity - normal, infinity - 1]
    if not finite and dtype == E4M3FN:
        magnitudes += [infinity]
    elif not finite:
        magnitudes += [infinity, infinity + 1, infinity + normal // 2, infinity + normal - 1]
    return [magnitude | s for magnitude in magnitudes for s in (0, sign)]


def _any_bits(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()


def _close_values(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Terms of a few neighbouring sizes, as activations are; here and there a zero."""
    if not is_float(dtype):
        return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    span = rng.integers(1, 60)
    limits = limits_of(dtype)
    exponent = rng.integers(limits.minexp, limits.maxexp) + rng.integers(-span, 1, shape)
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(rng.uniform(-1, 1, shape), exponent.clip(-1074, 1023)).astype(dtype)
    return np.where(rng.random(shape) < 0.1, dtype.type(0), values)


def _finite(block: Array) -> Array:
    return np.where(is_finite(block), block, block.dtype.type(1)) if is_float(block.dtype) else block


@st.composite
def contents(draw: st.DrawFn, dtype: np.dtype[Any], shape: tuple[int, ...], finite: bool = False) -> Array:
    """An array of `shape`: hard values, any bits, values of like size, cancelling pairs, or all the same."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["hard", "any", "close", "cancelling", "same"]))
    if kind in ("hard", "same"):
        patterns = draw(st.lists(st.sampled_from(hard_bits(dtype, finite)), min_size=1, max_size=6))
        return rng.choice(from_bits(patterns[:1] if kind == "same" else patterns, dtype), shape)
    block = (_close_values if kind == "close" else _any_bits)(rng, dtype, shape)
    if kind == "cancelling" and (dtype.kind == "i" or is_float(dtype)):
        flat = block.reshape(-1)
        half = flat.size // 2
        with np.errstate(over="ignore"):
            flat[half : 2 * half] = -flat[:half]
        block = rng.permutation(flat).reshape(shape)
    return _finite(block) if finite else block


def _strided(block: Array) -> Array:
    roomy = np.zeros([2 * extent + 1 for extent in block.shape], block.dtype)
    every_second = roomy[tuple(slice(1, None, 2) for _ in block.shape)]
    every_second[...] = block
    return every_second


def _unaligned(block: Array) -> Array:
    memory = np.zeros(block.nbytes + 1, np.uint8)
    moved = memory[1:].view(block.dtype).reshape(block.shape)
    moved[...] = block
    return moved


def _read_only(block: Array) -> Array:
    locked = block.copy()
    locked.flags.writeable = False
    return locked


def _permuted(block: Array) -> Array:
    """Axes rolled by one in memory: neither C nor Fortran order from three axes on."""
    order = [*range(1, block.ndim), 0]
    return block.transpose(order).copy().transpose(np.argsort(order))


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C order": lambda block: block.copy("C"),
    "Fortran order": lambda block: block.copy("F"),
    "permuted axes": _permuted,
    "negative strides": lambda block: np.flip(np.flip(block).copy()),
    "strided": _strided,
    "foreign byte order": lambda block: block.byteswap().view(block.dtype.newbyteorder()),
    "unaligned": _unaligned,
    "read-only": _read_only,
}
"""Ways in which the same values may lie in memory."""


@st.composite
def shapes(draw: st.DrawFn, channels: int | None = None) -> tuple[tuple[int, ...], int]:
    """2 to 5 small axes, one of them perhaps long or empty, and which is the channel's: not that of the samples."""
    extents = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=5))
    axis = draw(st.integers(1, len(extents) - 1))
    extents[draw(st.integers(0, len(extents) - 1))] = draw(st.sampled_from([1, 2, 0, 16, 17, 31, 32, 33, 70]))
    if channels is not None:
        extents[axis] = channels
    return tuple(extents), axis


@st.composite
def blocks(draw: st.DrawFn, dtypes: Sequence[np.dtype[Any]] = DTYPES, finite: bool = False) -> tuple[Array, int]:
    """A block of any dtype, layout and contents, and its channel axis."""
    shape, axis = draw(shapes())
    block = draw(contents(draw(st.sampled_from(dtypes)), shape, finite))
    repeated = draw(st.sampled_from([None] * 9 + list(range(len(shape)))))
    if repeated is not None and shape[repeated]:
        return np.broadcast_to(block.take([0], repeated), shape), axis  # a stride of zero
    return draw(st.sampled_from([*LAYOUTS.values()]))(block), axis


@st.composite
def partitions(draw: st.DrawFn, block: Array) -> list[Array]:
    """`block` cut along its rows; parts may be empty; in any order."""
    return draw(st.permutations(draw(cuts(block, 0))))


@st.composite
def places(draw: st.DrawFn, shape: Sequence[int], channel_axis: int, uncut: Sequence[str]) -> list[Where]:
    """The parts of a block in which an accumulator may get it: ranges of channels, of rows, of the other axes."""

    def ends(axis: int) -> list[slice]:
        fixed = "channels" in uncut if axis == channel_axis else axis > 0 and "space" in uncut
        inner = [] if fixed else draw(st.lists(st.integers(0, shape[axis]), max_size=2))
        stops = sorted({0, *inner, shape[axis]})
        return [slice(start, stop) for start, stop in pairwise(stops)] or [slice(0, 0)]

    along = [ends(axis) for axis in range(len(shape))]
    found = []
    for channels in along[channel_axis]:
        for rows in draw(st.permutations(along[0])):
            others = [[channels] if axis == channel_axis else along[axis] for axis in range(1, len(shape))]
            found += [(rows, *rest) for rest in product(*others)]
    return found


@st.composite
def cuts(draw: st.DrawFn, block: Array, axis: int, places: int | None = None) -> list[Array]:
    """`block` cut along `axis` at `places` places, or at up to 4."""
    place = st.integers(0, block.shape[axis])
    least, most = (0, 4) if places is None else (places, places)
    return np.split(block, sorted(draw(st.lists(place, min_size=least, max_size=most))), axis)


# The laws

MOST_BYTES = 2**18
"""The most bytes of a state: some kinds have as many as the squares of their channels."""

UNSUPPORTED = ("c8", "g", "O", "U1", "S1", "M8[s]", "m8[s]", "V4", "V2", "V1", "i4,i4", "float8_e4m3fnuz", "int4")
"""dtypes without statistics."""


def space_of(dtype: Any, channels: int) -> Space:
    """That of samples of `channels` values, which a matrix multiplies."""
    return Space(np.dtype(dtype), (channels,), 0, Kernel())


def laws_of(statistic: type[Statistic]) -> type:
    """The tests of all laws for `statistic`; equal means equal bytes."""

    blocks_of = globals()["blocks"]

    def exact_answer(block: Array, axis: int) -> Statistic:
        assert statistic.name in EXACT, f"put the exact answer of {statistic.name!r}, term by term, into EXACT"
        return EXACT[statistic.name](block, axis)

    def measure(block: Array, axis: int, kind: type[Statistic] = statistic) -> Statistic:
        return kind.measure(block, axis, kernel_of(block.shape))

    def blocks(dtypes: Sequence[np.dtype[Any]] = DTYPES) -> st.SearchStrategy[tuple[Array, int]]:
        found = blocks_of([dtype for dtype in dtypes if dtype in statistic.dtypes])
        return found.filter(lambda case: statistic.state_bytes(space_for(*case)) < MOST_BYTES)

    def measured_thirds(data: st.DataObject) -> list[Statistic]:
        block, axis = data.draw(blocks())
        return [measure(part, axis) for part in data.draw(cuts(block, 0, 2))]

    class Laws:
        @given(blocks())
        def test_a_measure_is_the_exact_answer(self, case):
            block, axis = case
            assert measure(block, axis) == exact_answer(block, axis)

        @given(st.sampled_from([dtype for dtype in DTYPES if dtype in statistic.dtypes]), st.integers(0, 4))
        def test_empty_is_the_measure_of_no_rows(self, dtype, channels):
            nothing = np.zeros((0, channels, 3), dtype)
            empty = statistic.empty(space_for(nothing, 1))
            assert empty == measure(nothing, 1) == exact_answer(nothing, 1)

        @given(blocks())
        def test_empty_is_the_identity(self, case):
            block, axis = case
            whole, nothing = measure(block, axis), statistic.empty(space_for(block, axis))
            assert whole.merge(nothing) == whole == nothing.merge(whole)

        @given(st.data())
        def test_merging_is_commutative(self, data):
            a, b, _ = measured_thirds(data)
            assert a.merge(b) == b.merge(a)

        @given(st.data())
        def test_merging_is_associative(self, data):
            a, b, c = measured_thirds(data)
            assert a.merge(b).merge(c) == a.merge(b.merge(c))

        @given(st.data())
        def test_any_partition_of_the_rows_in_any_order_equals_the_whole(self, data):
            block, axis = data.draw(blocks())
            parts = [measure(part, axis) for part in data.draw(partitions(block))]
            assert reduce(lambda a, b: a.merge(b), parts) == measure(block, axis)

        @given(st.data())
        def test_the_parts_in_which_blocks_come_do_not_matter(self, data):
            block, axis = data.draw(blocks())
            accumulator = statistic.accumulator(space_for(block, axis))
            for where in data.draw(places(block.shape, axis, statistic.uncut(space_for(block, axis)))):
                accumulator.add(np.require(block[where], block.dtype.newbyteorder("="), ["C", "A"]), where)
            assert accumulator.found() == measure(block, axis)

        @given(st.data())
        def test_what_a_mask_leaves_out_is_not_counted_or_the_layer_is_refused(self, data):
            block, axis = data.draw(blocks())
            space = replace(space_for(block, axis), masked=True)
            refused = statistic.refuses(space, None) is not None
            assert refused or statistic.maskable
            if refused or statistic.uncut(space):
                return  # a kind that tells positions apart has tests of its own
            positions = (*block.shape[:axis], *block.shape[axis + 1 :])
            share, seed = data.draw(st.sampled_from([0.1, 0.5, 0.9])), data.draw(st.integers(0, 99))
            mask = np.random.default_rng(seed).random(positions) < share
            accumulator = StatisticsAccumulator([statistic], space)
            for where in data.draw(places(block.shape, axis, statistic.uncut(space_for(block, axis)))):
                part = np.require(block[where], block.dtype.newbyteorder("="), ["C", "A"])
                accumulator.add(part, where, mask[(*where[:axis], *where[axis + 1 :])])
            nothing = statistic.empty(Space(block.dtype, (0, block.shape[axis]), 1))
            samples = [exact_answer(sample, 2) for sample in unmasked(block, axis, mask)]
            expected = reduce(lambda a, b: a.merge(replace(b, space=nothing.space)), samples, nothing)
            assert accumulator.found()[statistic.name] == expected

        @given(st.data())
        def test_it_is_the_same_beside_other_statistics(self, data):
            block, axis = data.draw(blocks())
            kinds = [*kinds_of(()), *(KINDS[name] for name in data.draw(st.lists(st.sampled_from(sorted(EXACT)))))]
            kinds = tuple(
                kind for kind in dict.fromkeys([*kinds, statistic]) if block.dtype.newbyteorder("=") in kind.dtypes
            )
            uncut = [name for kind in kinds for name in kind.uncut(space_for(block, axis))]
            accumulator = StatisticsAccumulator(kinds, space_for(block, axis))
            for where in data.draw(places(block.shape, axis, uncut)):
                accumulator.add(np.require(block[where], block.dtype.newbyteorder("="), ["C", "A"]), where)
            assert accumulator.found()[statistic.name] == measure(block, axis)

        @given(st.data())
        def test_what_is_left_without_a_part_is_known_or_said_not_to_be(self, data):
            a, b, c = measured_thirds(data)
            whole = a.merge(b).merge(c)
            for rest in (None, b, b.merge(c)):
                left = whole.without(a, rest)
                assert left is None or left == b.merge(c)

        @given(blocks(), st.randoms(use_true_random=False))
        def test_the_order_of_the_rows_does_not_matter(self, case, random):
            block, axis = case
            shuffled = block.take(random.sample(range(len(block)), len(block)), 0)
            assert measure(shuffled, axis) == measure(block, axis)

        @given(blocks())
        def test_the_layout_in_memory_does_not_matter(self, case):
            block, axis = case
            measured = measure(block, axis)
            for name, lay_out in LAYOUTS.items():
                assert measure(lay_out(block), axis) == measured, name

        @settings(max_examples=20)  # nothing but the axis differs
        @given(blocks())
        def test_a_negative_channel_axis_counts_from_the_end(self, case):
            block, axis = case
            assert measure(block, axis - block.ndim) == measure(block, axis)

        @given(blocks())
        def test_arrays_and_back_is_the_same_statistic(self, case):
            block, axis = case
            measured, space = measure(block, axis), space_for(block, axis)
            assert statistic.from_arrays(measured.arrays(), space) == measured
            declared = statistic.tensors(space)
            for name, array in measured.arrays().items():
                shape, dtype = declared[name]
                assert (array.dtype, array.shape[1:]) == (dtype, shape[1:])
                assert len(array) == shape[0] or (statistic is Gram and len(array) < shape[0])  # only digits in use
            assert statistic.state_bytes(space) >= sum(array.nbytes for array in measured.arrays().values())

        @given(blocks())
        def test_the_state_file_and_back_is_the_same_statistic(self, case):
            block, axis = case
            space = space_for(block, axis)
            kinds = dict.fromkeys([*kinds_of(()), statistic])
            members = {kind.name: measure(block, axis, kind) for kind in kinds}
            source = CountedSource("", 1, Coverage.first(1))
            written = LayerStatistics("layer", axis, None, (source,), Statistics(space, members))
            with TemporaryDirectory() as folder:
                path = Path(folder, "state")
                write_bytes(path, state_bytes(written))
                read = read_state(path)
            assert read.statistics[statistic.name] == measure(block, axis)
            assert read == written

        @given(blocks())
        def test_measuring_and_merging_change_nothing(self, case):
            block, axis = case
            before, flags = block.tobytes(), str(block.flags)
            measured = measure(block, axis)
            assert (block.tobytes(), str(block.flags)) == (before, flags)
            copy = statistic(measured.space, **{k: v.copy() for k, v in measured.arrays().items()})
            measured.merge(measured)
            assert measured == copy

        @given(blocks())
        def test_a_statistic_keeps_no_memory_of_its_block_or_of_what_was_merged(self, case):
            block, axis = case
            measured = measure(block, axis)
            for array in measured.arrays().values():
                assert not np.may_share_memory(array, block)
            for array in measured.merge(measured).arrays().values():
                assert not any(np.may_share_memory(array, other) for other in measured.arrays().values())

        @given(st.data())
        def test_another_value_is_not_equal(self, data):
            block, axis = data.draw(blocks())
            measured = measure(block, axis)
            for name, array in measured.arrays().items():
                if array.size:
                    other = array.copy()
                    place = data.draw(st.integers(0, array.nbytes - 1))
                    other.reshape(-1).view(np.uint8)[place] ^= 1
                    assert measured != replace(measured, **{name: other})

        @given(blocks(INTEGERS))
        def test_its_document_has_values_for_the_layer_and_one_for_each_channel(self, case):
            block, axis = case
            for quantization in (None, Quantization(0.5, 1)):
                members = {kind.name: measure(block, axis, kind) for kind in dict.fromkeys([*kinds_of(()), statistic])}
                document = members[statistic.name].document(quantization, members)
                assert all(isinstance(value, str | int | float | None) for value in document.layer.values())
                for table in document.tables.values():
                    assert all(len(row) == len(table.columns) and all(map(math.isfinite, row)) for row in table.rows)
                assert all(values.shape == (block.shape[axis],) for values in document.channels.values())

        @pytest.mark.parametrize("other", [space_of("u1", 3), space_of("i1", 1)], ids=["dtype", "channels"])
        def test_what_does_not_fit_is_not_merged_or_taken_out_and_both_are_named(self, other):
            mine = statistic.empty(space_of("i1", 3))
            named = rf"int8 samples of shape \(3,\).* and .* of {other.dtype} samples of shape .* do not fit together"
            with pytest.raises(MismatchError, match=named):
                mine.merge(statistic.empty(other))
            if mine.without(mine) is not None:
                with pytest.raises(MismatchError, match=named):
                    mine.without(statistic.empty(other))

        def test_other_kinds_are_not_merged_and_both_are_named(self):
            other = ChannelExtrema if statistic is not ChannelExtrema else ChannelMean
            named = f"{statistic.__name__} of .* and {other.__name__} of .* expected the same"
            with pytest.raises(MismatchError, match=named):
                statistic.empty(space_of("f4", 3)).merge(other.empty(space_of("f4", 3)))
            assert statistic.empty(space_of("f4", 3)) != other.empty(space_of("f4", 3))

        @pytest.mark.parametrize(
            "kind", ["c8", "g", "O", "U1", "S1", "M8[s]", "m8[s]", "V4", "V2", "V1", "float8_e4m3fnuz", "i4,i4"]
        )
        def test_values_without_a_statistic_are_refused_with_the_dtypes_that_have_one(self, kind):
            with pytest.raises(MismatchError, match=r"have no statistics; expected one of bool, int8, .*float64"):
                statistic.measure(np.zeros((2, 3), kind))

        @pytest.mark.parametrize(("shape", "axis"), [((2, 3), 2), ((2, 3), 0), ((2, 3), -2), ((3,), 1), ((), 0)])
        def test_a_channel_axis_out_of_range_is_refused_with_the_shape(self, shape, axis):
            named = re.escape(
                f"channel axis {axis} is out of range for a block of shape {shape} with samples on axis 0"
            )
            with pytest.raises(MismatchError, match=named):
                statistic.measure(np.zeros(shape), axis)

        def test_arrays_that_are_not_a_state_are_refused_with_what_was_expected(self):
            space = space_of("f4", 3)
            arrays = statistic.empty(space).arrays()
            for name, array in arrays.items():
                fewer = array[..., :2] if array.shape[-1] > 2 else array[..., :0]
                others = [fewer, array[None], array.astype("c16"), array.astype(array.dtype.newbyteorder())]
                for other in others:
                    with pytest.raises(DataError, match=rf"stored {statistic.name} of float32 data: .* expected"):
                        statistic.from_arrays({**arrays, name: other}, space)
                without = {other: array for other, array in arrays.items() if other != name}
                with pytest.raises(DataError, match=f"{name} is missing; expected"):
                    statistic.from_arrays(without, space)

    return Laws
