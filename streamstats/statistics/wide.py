"""Wide integers: many at once, each of the same digits of 32 bits, as a two's complement, lowest digit first.

Digits that no integer needs are left out at both ends, so equal integers have equal bytes: `first` is the number of
digits left out at the lower end, where all of them are zero; at the upper end, a digit is left out if it only continues
the sign of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Digits = npt.NDArray[np.uint32]
Float64Array = npt.NDArray[np.float64]

BITS = 32
TOP = np.uint32(1 << (BITS - 1))
PIECE = 2**18
"""Integers that are worked on at once: their temporary arrays fit the second cache."""


@dataclass(frozen=True, eq=False)
class Wide:
    """Integers, the i-th of which is Σ digits[d, i]·2^(32·(first + d)), the top digit with its sign.

    `digits` uint32[D, n], D ≥ 1.
    """

    digits: Digits
    first: int = 0

    @classmethod
    def zeros(cls, size: int) -> Self:
        """`size` zeros."""
        return cls(np.zeros((1, size), np.uint32))

    @property
    def stop(self) -> int:
        """The number of the digit after the top one."""
        return self.first + len(self.digits)

    def plus(self, other: Wide, sign: int = 1) -> Self:
        """The sums, or the differences if `sign` is −1, trimmed."""
        low, high = min(self.first, other.first), max(self.stop, other.stop) + 1
        found = np.empty((high - low, self.digits.shape[1]), np.uint32)
        for start in range(0, found.shape[1], PIECE):
            piece = slice(start, start + PIECE)
            carry = np.zeros(found[0, piece].shape, np.int64)
            for place in range(low, high):
                carry += self.digit(place, piece).astype(np.int64) + sign * other.digit(place, piece).astype(np.int64)
                found[place - low, piece] = (carry & 0xFFFFFFFF).astype(np.uint32)
                carry >>= BITS
        return type(self)(found, low).trimmed()

    def digit(self, place: int, piece: slice = slice(None)) -> Digits:
        """Digit `place` of the integers in `piece`, left out or not."""
        if place < self.first:
            return np.zeros_like(self.digits[0, piece])
        if place < self.stop:
            return self.digits[place - self.first, piece]
        return _sign(self.digits[-1, piece])

    def trimmed(self) -> Self:
        """The same integers without digits that none of them needs; zeros have one digit, the first."""
        low, high = 0, len(self.digits)
        while high > 1 and (self.digits[high - 1] == _sign(self.digits[high - 2])).all():
            high -= 1
        while low < high - 1 and not self.digits[low].any():
            low += 1
        if high == 1 and not self.digits[0].any():
            return type(self)(self.digits[:1].copy())
        if (low, high) == (0, len(self.digits)):
            return self
        return type(self)(self.digits[low:high].copy(), self.first + low)

    @property
    def is_trimmed(self) -> bool:
        """Whether no digit can be left out."""
        trimmed = self.trimmed()
        return (trimmed.first, len(trimmed.digits)) == (self.first, len(self.digits))

    def negative(self) -> npt.NDArray[np.bool_]:
        """Which are negative, bool[n]."""
        return np.asarray(self.digits[-1] >= TOP)

    def integers(self, chosen: Any = slice(None)) -> list[int]:
        """As integers of Python.

        >>> Wide(np.array([[1, 0], [0, 0xFFFFFFFF]], np.uint32)).integers()
        [1, -4294967296]
        """
        digits = np.ascontiguousarray(self.digits[:, chosen].reshape(len(self.digits), -1).T).astype("<u4")
        return [int.from_bytes(each.tobytes(), "little", signed=True) << BITS * self.first for each in digits]

    def floats(self, exponent: int) -> Float64Array:
        """The float64 nearest to each of them times 2^`exponent`, ties to even."""
        found = np.empty(self.digits.shape[1])
        for start in range(0, found.size, PIECE):
            piece = slice(start, start + PIECE)
            found[piece] = _rounded(self.digits[:, piece], self.negative()[piece])
        return np.ldexp(found, exponent + BITS * self.first)


def _sign(digit: Digits) -> Digits:
    """The digit that continues the sign of `digit`."""
    return np.where(digit >= TOP, np.uint32(0xFFFFFFFF), np.uint32(0))


def _rounded(digits: Digits, negative: npt.NDArray[np.bool_]) -> Float64Array:
    """The float64 nearest to each integer.

    The upper 64 bits from the first that is set decide, if the last of them says whether any bit below is set: there
    are more than two bits below those of a float64, so one rounding is right.
    """
    magnitudes, carry = np.empty_like(digits), negative.astype(np.uint64)
    for place, digit in enumerate(digits):
        carry += np.where(negative, ~digit, digit)
        magnitudes[place] = (carry & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        carry >>= np.uint64(BITS)
    top = len(digits) - 1 - np.argmax(magnitudes[::-1] != 0, axis=0)
    padded = np.concatenate([np.zeros((2, digits.shape[1]), np.uint32), magnitudes]).astype(np.uint64)
    first, second, third = (np.take_along_axis(padded, (top + 2 - k)[np.newaxis], axis=0)[0] for k in range(3))
    upper = first << np.uint64(BITS) | second
    shift = (np.uint64(BITS) - np.frexp(first.astype(np.float64))[1].astype(np.uint64)) % np.uint64(BITS)
    window = upper << shift | third >> (np.uint64(BITS) - shift)
    below = (third << shift) & np.uint64(0xFFFFFFFF) != 0
    for place in range(len(digits)):
        below |= (place < top - 2) & (magnitudes[place] != 0)
    window |= below.astype(np.uint64)
    found: Float64Array = np.ldexp(
        window.astype(np.float64), (BITS * (top - 1)).astype(np.int64) - shift.astype(np.int64)
    )
    return np.where(negative, -found, found)
