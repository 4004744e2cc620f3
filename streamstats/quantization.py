"""Quantization: the affine map between stored values and reals, `real = (code − zero_point) · step + offset`.

A step is the real value of one code. Some compilers call its reciprocal "scale"; `Quantization.from_scale`
takes either, and its argument `scale_is` says which. Codes of compilers have a zero point; packed data (CF) has an
offset in real units, which need not be a multiple of the step. Fake-quantising rounds reals to the nearest value with a
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from .errors import MismatchError, UsageError, in_words, one_of

Float64Array = npt.NDArray[np.float64]
SCALE_CONVENTIONS = ("step", "reciprocal")
LARGEST_ZERO_POINT = 2**53  # beyond it, float64 arithmetic on codes is not exact
WIDEST_CODE = 4  # bytes; float64 cannot represent every wider code


@dataclass(frozen=True, eq=False)
class Quantization:
    """`step` (float64, scalar or [C], real units per code), `zero_point` (int64, scalar or [C], in codes), and `offset`
    (float64, one for all channels, in real units).

    A scalar applies to the whole tensor, a vector has one value per channel. All are read-only.

    Raises `UsageError` for a step that is zero, negative or not finite, for a zero point that is not an integer or is
    beyond ±2^53, for an offset that is not finite, and for both a zero point and an offset; `MismatchError` for
    different numbers of steps and zero points.

    >>> ss.Quantization(0.5, 1).dequantize(np.array([1, 2, 5], np.int8))
    array([0. , 0.5, 2. ])
    """

    step: Float64Array
    zero_point: npt.NDArray[np.int64]
    offset: float = 0.0

    def __repr__(self) -> str:
        step, zero_point = (in_words(each.tolist(), most=3) for each in (self.step, self.zero_point))
        return f"Quantization(step={step}, zero_point={zero_point}, offset={self.offset})"

    def __init__(self, step: npt.ArrayLike, zero_point: npt.ArrayLike = 0, offset: float = 0.0) -> None:
        object.__setattr__(self, "step", _checked_positive("step", step))
        object.__setattr__(self, "zero_point", _checked_zero_point(zero_point))
        object.__setattr__(self, "offset", _checked_offset(offset))
        if self.step.ndim and self.zero_point.ndim and self.step.shape != self.zero_point.shape:
            raise MismatchError(
                f"there are {self.step.size} steps and {self.zero_point.size} zero points; expected the same number "
                "of each, or a single one"
            )
        if self.offset and self.zero_point.any():
            raise UsageError(
                f"the quantisation has the zero point {self.zero_point.tolist()} and the offset {self.offset}; leave "
                "out one of them"
            )

    @classmethod
    def from_scale(
        cls, scale: npt.ArrayLike, scale_is: str, zero_point: npt.ArrayLike = 0, offset: float = 0.0
    ) -> Quantization:
        """Take `scale` as the step (`scale_is="step"`) or as its reciprocal (`scale_is="reciprocal"`).

        A reciprocal becomes the nearest float64 to `1 / scale`. Raises `UsageError` as the class does.

        >>> Quantization.from_scale(4.0, "reciprocal").step.item()
        0.25
        """
        if scale_is not in SCALE_CONVENTIONS:
            raise UsageError(f"scale_is is {scale_is!r}; {one_of(scale_is, SCALE_CONVENTIONS)}")
        if scale_is == "step":
            return cls(scale, zero_point, offset)
        with np.errstate(over="ignore"):  # an infinite step is refused by name
            return cls(1.0 / _checked_positive("scale", scale), zero_point, offset)

    @classmethod
    def from_metadata(cls, stored: object) -> Quantization | None:
        """The inverse of `to_metadata`; None for None. Raises `UsageError` for anything else, and as the class does."""
        if stored is None:
            return None
        if not isinstance(stored, Mapping) or "step" not in stored or not {"zero_point", "offset"} & stored.keys():
            raise UsageError(f"quantization is {stored!r}; expected an object with `step` and `zero_point`")
        return cls(stored["step"], stored.get("zero_point", 0), stored.get("offset", 0.0))

    @property
    def channels(self) -> int | None:
        """The number of channels, or None if one map applies to all."""
        sizes = [array.size for array in (self.step, self.zero_point) if array.ndim]
        return sizes[0] if sizes else None

    def dequantize(self, codes: npt.NDArray[Any], channel_axis: int = -1) -> Float64Array:
        """The real values (float64) of `codes`, any shape, channels on `channel_axis`.

        Raises `MismatchError` for a channel axis that does not exist or has another number of channels.
        """
        step, zero_point = self._along(codes.shape, channel_axis)
        real = np.asarray((codes - zero_point) * step)
        return real + self.offset if self.offset else real

    def quantize(self, real: npt.NDArray[Any], dtype: npt.DTypeLike, channel_axis: int = -1) -> npt.NDArray[Any]:
        """The nearest codes (ties to even), saturated to the range of the integer `dtype`, infinities too.

        Raises `UsageError` for NaN and for a `dtype` that is not an integer of at most 32 bits;
        `MismatchError` as `dequantize`.

        >>> ss.Quantization(0.5, 1).quantize(np.array([0.0, 0.6, 99.0]), "int8")
        array([  1,   2, 127], dtype=int8)
        """
        limits = _code_limits(np.dtype(dtype))
        step, zero_point = self._along(real.shape, channel_axis)
        if np.isnan(real).any():
            raise UsageError("the numbers to quantise hold NaN, which has no code; remove it first")
        with np.errstate(over="ignore"):  # beyond float64 is beyond the limits
            codes = np.rint((real - self.offset) / step) + zero_point
        return np.asarray(np.clip(codes, limits.min, limits.max)).astype(dtype)

    def to_metadata(self) -> dict[str, Any]:
        """`{"step": …, "zero_point": …}`, or `{"step": …, "offset": …}`, JSON-ready; floats survive to the bit.

        Versions that know no offsets refuse the second one, for lack of a zero point.
        """
        zero = {"offset": self.offset} if self.offset else {"zero_point": self.zero_point.tolist()}
        return {"step": self.step.tolist(), **zero}

    def _along(self, shape: tuple[int, ...], axis: int) -> tuple[Float64Array, Float64Array]:
        """Step and zero point as float64 arrays that broadcast along `axis` of an array of `shape`."""
        maps = self.step, self.zero_point.astype(np.float64)
        if self.channels is None:
            return maps
        try:
            index = normalize_axis_index(axis, len(shape))
        except ValueError as error:
            raise MismatchError(f"there is no channel axis {axis} in an array of shape {shape}") from error
        check_channels(self, shape[index])
        trailing = (1,) * (len(shape) - index - 1)
        return maps[0].reshape(-1, *trailing), maps[1].reshape(-1, *trailing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantization) and self.to_metadata() == other.to_metadata()

    def __hash__(self) -> int:
        return hash((self.step.tobytes(), self.zero_point.tobytes(), self.offset))


def check_channels(quantization: Quantization, channels: int) -> None:
    """Raise `MismatchError` unless the map is per tensor or has exactly `channels` channels."""
    if quantization.channels not in (None, channels):
        raise MismatchError(f"the quantisation has {quantization.channels} channels, the layer has {channels}")


def channel_maps(quantization: Quantization | None, channels: int) -> list[tuple[Fraction, Fraction]]:
    """The exact (step, code of zero) per channel, for `channels` channels: real = (code − zero) · step.

    With an offset, zero is −offset / step, a fraction of codes. Without a quantisation, codes are real values. Raises
    as `check_channels`.
    """
    if quantization is None:
        return [(Fraction(1), Fraction(0))] * channels
    check_channels(quantization, channels)
    offset, step, zero_point = quantization.offset, quantization.step, quantization.zero_point
    if step.ndim == zero_point.ndim == 0:
        return [_exact(step.item(), zero_point.item(), offset)] * channels
    steps, zero_points = (np.broadcast_to(each, (channels,)).tolist() for each in (step, zero_point))
    return [_exact(step, zero_point, offset) for step, zero_point in zip(steps, zero_points, strict=True)]


def _exact(step: float, zero_point: int, offset: float) -> tuple[Fraction, Fraction]:
    return Fraction(step), zero_point - Fraction(offset) / Fraction(step)


def moves_zero(quantization: Quantization) -> bool:
    """Whether the real value 0 is not stored as 0."""
    return bool(quantization.offset or quantization.zero_point.any())


def _checked_positive(name: str, value: npt.ArrayLike) -> Float64Array:
    numbers = _numbers(name, value).astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if bad.size:
        place = f" of channel {bad[0]}" if numbers.ndim else ""
        raise UsageError(
            f"quantisation {name}{place} is {numbers.reshape(-1)[bad[0]]}; expected a positive, finite number"
        )
    return _read_only(numbers)


def _checked_zero_point(zero_point: npt.ArrayLike) -> npt.NDArray[np.int64]:
    points = _numbers("zero point", zero_point)
    whole = np.isfinite(points) & (points == np.rint(points))
    if not (whole & (np.abs(points.astype(np.float64)) <= LARGEST_ZERO_POINT)).all():
        raise UsageError(f"quantisation zero point is {points.tolist()}; expected integers within ±2^53")
    return _read_only(points.astype(np.int64))


def _checked_offset(offset: float) -> float:
    number = _numbers("offset", offset)
    if number.ndim or not np.isfinite(number):
        raise UsageError(f"quantisation offset is {offset!r}; expected a finite number")
    return float(number)


def _numbers(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0:
        raise UsageError(f"quantisation {name} is {value!r}; expected a number, or a list of one number per channel")
    return array


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def _code_limits(dtype: np.dtype[Any]) -> np.iinfo[Any]:
    if dtype.kind not in "iu" or dtype.itemsize > WIDEST_CODE:
        raise UsageError(f"the dtype of the codes is {dtype}; expected an integer of at most 32 bits")
    return np.iinfo(dtype)


WEIGHT_RANGES = ("minmax", "mse")
"""How the range of weights is chosen: it includes all of them, or it has the least squared error."""
SHRUNK = np.arange(20, 100) / 100
"""The factors by which the ends of a range are shrunk to find the least squared error."""


def fake_quantize(
    weights: npt.NDArray[Any],
    bits: int,
    *,
    axis: int | Sequence[int] | None = None,
    symmetric: bool = False,
    weight_range: str = "minmax",
) -> npt.NDArray[Any]:
    """Round `weights` (real, any shape) to `2^bits` evenly spaced values; same shape and dtype.

    The range is that of the whole tensor, or of each index of `axis` (per channel). Asymmetric: the range is widened
    to include zero, and zero has a code. Symmetric: codes are −(2^(bits−1) − 1) … 2^(bits−1) − 1, and zero is code 0.
    With `weight_range` "minmax", the range includes all weights. With "mse", the range is shrunk if that reduces
    Σ(w − ŵ)², and weights beyond it are clipped: first both ends by the best of the factors 0.20, 0.21 … 1.00, then,
    unless symmetric, each end alone.

    Raises `UsageError` for bits outside 2…16, an unknown `weight_range`, weights that are not floating-point or not
    finite, and rounded values that overflow the dtype; `MismatchError` for axes that do not exist.

    >>> ss.fake_quantize(np.array([-1.0, 0.1, 0.8]), bits=2)
    array([-1.2,  0. ,  0.6])
    """
    check_bits(bits)
    _check_weights(weights)
    if weights.size == 0:
        return weights.copy()
    real, exponent, ranges = _ranges(weights, bits, axis, symmetric, weight_range)
    with np.errstate(over="ignore"):
        rounded = np.asarray(np.ldexp(_on_levels(real, *ranges, bits, symmetric), exponent)).astype(weights.dtype)
    if not np.isfinite(rounded).all():
        raise UsageError(f"the rounded weights overflow {weights.dtype}; scale the weights down first")
    return rounded


def quantization_step(
    weights: npt.NDArray[Any],
    bits: int,
    *,
    axis: int | Sequence[int] | None = None,
    symmetric: bool = False,
    weight_range: str = "minmax",
) -> Float64Array:
    """The distance between the levels of `fake_quantize`, float64, with extents of 1 for reduced axes; 0 for all zeros.

    Arguments and errors as `fake_quantize`.
    """
    check_bits(bits)
    _check_weights(weights)
    if weights.size == 0:
        return np.zeros(())
    _, exponent, (low, high) = _ranges(weights, bits, axis, symmetric, weight_range)
    return np.asarray(np.ldexp((high - low) / _intervals(bits, symmetric), exponent))


def weight_codes(
    weights: npt.NDArray[Any],
    bits: int,
    *,
    axis: int | Sequence[int] | None = None,
    symmetric: bool = False,
    weight_range: str = "minmax",
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """(step, lowest code, highest code): the levels of `fake_quantize` are the codes times the step.

    All are float64, with extents of 1 for reduced axes. The step of a range of zeros is 1. Arguments and errors as
    `fake_quantize`; there must be weights. Raises `UsageError` also for steps that float64 cannot represent.
    """
    check_bits(bits)
    _check_weights(weights)
    _, exponent, (low, high) = _ranges(weights, bits, axis, symmetric, weight_range)
    intervals = _intervals(bits, symmetric)
    step = _nonzero((high - low) / intervals)
    zero_point, real = np.rint(-low / step), np.ldexp(step, exponent)
    if not (np.isfinite(real) & (real > 0)).all():
        raise UsageError("the weights are too small for their steps to be float64 numbers; scale them up first")
    return real, -zero_point, intervals - zero_point


def _check_weights(weights: npt.NDArray[Any]) -> None:
    if weights.dtype.kind != "f" or not np.isfinite(weights).all():
        raise UsageError(
            f"the weights ({weights.dtype}) are not all finite floating-point numbers; convert or repair them first"
        )


def check_bits(bits: int) -> None:
    """Raise `UsageError` unless `bits` is an integer from 2 to 16, to which weights can be fake-quantised."""
    if not isinstance(bits, int | np.integer) or not 2 <= bits <= 16:
        raise UsageError(f"bits is {bits}; expected an integer from 2 to 16")


def _reduced_axes(shape: tuple[int, ...], kept: int | Sequence[int] | None) -> tuple[int, ...]:
    try:
        kept_axes = () if kept is None else normalize_axis_tuple(kept, len(shape))
    except ValueError as error:
        raise MismatchError(f"axis is {kept}, but the weights have the shape {shape}: {error}") from error
    return tuple(axis for axis in range(len(shape)) if axis not in kept_axes)


Ranges = tuple[Float64Array, Float64Array]
"""(low, high) of each range."""


def _ranges(
    weights: npt.NDArray[Any], bits: int, axis: int | Sequence[int] | None, symmetric: bool, weight_range: str
) -> tuple[Float64Array, npt.NDArray[np.int32], Ranges]:
    """(the weights, scaled by powers of two to magnitudes below 1; the exponents; the ranges, scaled likewise).

    The scaling keeps steps from underflowing and ranges from overflowing.
    """
    if weight_range not in WEIGHT_RANGES:
        raise UsageError(f"weight_range is {weight_range!r}; {one_of(weight_range, WEIGHT_RANGES)}")
    reduced = _reduced_axes(weights.shape, axis)
    wide = weights.astype(np.float64)
    _, exponent = np.frexp(np.abs(wide).max(axis=reduced, keepdims=True))
    real = np.ldexp(wide, -exponent)
    low = np.minimum(real.min(axis=reduced, keepdims=True), 0.0)
    high = np.maximum(real.max(axis=reduced, keepdims=True), 0.0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    if weight_range == "mse":
        low, high = _least_squares(real, (low, high), bits, symmetric, reduced)
    return real, exponent, (low, high)


def _least_squares(real: Float64Array, ranges: Ranges, bits: int, symmetric: bool, reduced: tuple[int, ...]) -> Ranges:
    """`ranges` shrunk to the least squared error: both ends by the same factor, then each alone unless symmetric."""
    best = ranges
    least = _squared_error(real, best, bits, symmetric, reduced)
    both = ((1, 1),) if symmetric else ((1, 1), (1, 0), (0, 1))
    for shrinks in both:
        start = best
        for factor in SHRUNK:
            tried = tuple(end * factor if shrunk else end for end, shrunk in zip(start, shrinks, strict=True))
            error = _squared_error(real, (tried[0], tried[1]), bits, symmetric, reduced)
            better = error < least
            best = np.where(better, tried[0], best[0]), np.where(better, tried[1], best[1])
            least = np.where(better, error, least)
    return best


def _squared_error(
    real: Float64Array, ranges: Ranges, bits: int, symmetric: bool, reduced: tuple[int, ...]
) -> Float64Array:
    return np.asarray(((real - _on_levels(real, *ranges, bits, symmetric)) ** 2).sum(axis=reduced, keepdims=True))


def _intervals(bits: int, symmetric: bool) -> int:
    """The steps from the least to the greatest level."""
    intervals: int = 2 ** int(bits) - (2 if symmetric else 1)
    return intervals


def _on_levels(real: Float64Array, low: Float64Array, high: Float64Array, bits: int, symmetric: bool) -> Float64Array:
    """`real` rounded to the levels from `low` to `high`, and clipped to them."""
    intervals = _intervals(bits, symmetric)
    step = _nonzero((high - low) / intervals)
    zero_point: Float64Array = np.rint(-low / step)
    # the zero point and a weight may both be ties that round up, past the last code
    codes: Float64Array = np.clip(np.rint(real / step) + zero_point, 0, intervals)
    return (codes - zero_point) * step


def _nonzero(step: Float64Array) -> Float64Array:
    """`step`, or 1 where it is zero: any step represents a range of zeros exactly."""
    return np.where(step > 0, step, np.float64(1.0))
