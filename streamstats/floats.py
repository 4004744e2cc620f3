"""Floats narrower than numpy's own: bfloat16 and two float8, as ml_dtypes defines them, beside float16, 32 and 64.

numpy does not know that these are floats: `dtype.kind` is "V" for most, and `np.finfo` refuses all of them. Code that
must know whether a dtype is a float, or what its limits are, asks this module.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8_E4M3FN = np.dtype(ml_dtypes.float8_e4m3fn)
FLOAT8_E5M2 = np.dtype(ml_dtypes.float8_e5m2)
NARROW = (BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)
"""The floats that numpy lacks. float8_e4m3fn has NaN, but no infinities."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype` are floats, narrow ones included.

    >>> [is_float(np.dtype(name)) for name in ("float16", "bfloat16", "float8_e5m2", "int8", "V2")]
    [True, True, True, False, False]
    """
    return dtype.kind == "f" or dtype in NARROW


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of numpy that holds every value of `dtype`: float32 for narrow floats, others as they are."""
    return np.dtype(np.float32) if dtype in NARROW else dtype


def widen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values in a dtype of numpy."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return values.astype(widened(values.dtype), copy=False)


def is_finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is finite."""
    with np.errstate(invalid="ignore"):  # signalling NaN of narrow floats
        return np.asarray(np.isfinite(values))


def fraction_bits(dtype: np.dtype[Any]) -> int:
    """The bits of the fraction of a float, without the one that is not stored."""
    return int(_limits(dtype).nmant)


def unit_exponent_of(dtype: np.dtype[Any]) -> int:
    """The exponent of the smallest denormal of a float: all its values are multiples of that power of two.

    >>> [unit_exponent_of(each) for each in (np.dtype("f4"), BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)]
    [-149, -133, -9, -16]
    """
    return int(_limits(dtype).minexp) - fraction_bits(dtype)


def bound_exponent(dtype: np.dtype[Any]) -> int:
    """The least e for which every finite value of a float is below 2^e."""
    return int(_limits(dtype).maxexp)


@cache
def _limits(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
