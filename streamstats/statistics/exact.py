"""ExactSum: the sum per channel as an integer, so that addition is exact, associative and commutative.

The unit is 2^e, with e fixed by the dtype: 0 for integers; for floats, that of their smallest denormals: −24, −149,
−1074 for float16, float32, float64; −133 for bfloat16; −9 and −16 for float8_e4m3fn and float8_e5m2. The integer is
held in canonical base-2^32 digits, lowest first: carries are resolved, and every digit except the top one is in [0,
2^32). Each value has one form, so equal sums have equal bytes. (After Neal, Fast exact summation using small and large
superaccumulators, arXiv 1505.05571; here, a digit is 32 bits of a 64-bit integer.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..floats import bound_exponent, is_float, unit_exponent_of

DIGIT_BITS = 32
DIGIT_MASK = (1 << DIGIT_BITS) - 1
TERMS_BITS = 64
"""A sum has room for 2^64 of the largest terms."""

FEWEST_FLOAT_DIGITS = 3
"""A deposit of a float is spread over so many digits."""


def unit_exponent(dtype: np.dtype[Any], power: int = 1) -> int:
    """The e for which sums over values of `dtype`, to this `power`, are integers in units of 2^e; 0 for integers."""
    return power * unit_exponent_of(dtype) if is_float(dtype) else 0


def digit_count(dtype: np.dtype[Any], power: int = 1, more_bits: int = 0) -> int:
    """The digits needed for 2^64 terms: the largest magnitude of `dtype` to this `power`, times 2^`more_bits`.

    The top digit holds 63 bits and the sign.

    >>> [digit_count(np.dtype(kind)) for kind in ("i1", "u8", "f2", "f4", "f8")]
    [2, 4, 3, 10, 67]
    >>> [digit_count(np.dtype(kind), 2) for kind in ("i1", "u8", "f2", "f4", "f8")]
    [2, 6, 4, 19, 133]
    >>> [(digit_count(np.dtype(kind)), digit_count(np.dtype(kind), 2)) for kind in ("bfloat16", "float8_e5m2")]
    [(10, 18), (3, 4)]
    """
    term_bits = bound_exponent(dtype) - unit_exponent(dtype) if is_float(dtype) else dtype.itemsize * 8
    digits = 1 + -(-(power * term_bits + more_bits + TERMS_BITS - 63) // DIGIT_BITS)
    return max(FEWEST_FLOAT_DIGITS, digits) if is_float(dtype) else digits


@dataclass(frozen=True, eq=False)
class ExactSum:
    """The sum per channel, for C channels: canonical `digits` int64[digit_count(dtype), C]."""

    dtype: np.dtype[Any]
    digits: npt.NDArray[np.int64]

    @classmethod
    def from_raw(cls, dtype: np.dtype[Any], raw: npt.NDArray[np.int64]) -> Self:
        """The sum whose value is that of `raw` int64[digit_count(dtype), C], digits of any size and sign."""
        return cls(dtype, carried(raw))

    def units(self) -> list[int]:
        """The sum per channel, in units of 2^`unit_exponent(dtype)`.

        >>> ExactSum.from_raw(np.dtype("i1"), np.array([[-3, 5], [0, 1]])).units()
        [-3, 4294967301]
        """
        low = np.ascontiguousarray(self.digits[:-1].T).astype("<u4")
        shift = DIGIT_BITS * (len(self.digits) - 1)
        return [
            (int(top) << shift) + int.from_bytes(rest.tobytes(), "little")
            for top, rest in zip(self.digits[-1], low, strict=True)
        ]


def is_canonical(digits: npt.NDArray[np.int64]) -> bool:
    """Whether every digit except the top one is in [0, 2^32)."""
    return bool((digits[:-1] & ~DIGIT_MASK == 0).all())


def carried(raw: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The canonical digits of the same value."""
    digits = raw.copy()
    for place in range(len(digits) - 1):
        digits[place + 1] += digits[place] >> DIGIT_BITS
        digits[place] &= DIGIT_MASK
    return digits
