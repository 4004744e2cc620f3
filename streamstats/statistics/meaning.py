"""Meaning: what stored values stand for when they are counted.

Attributes of packed data say which stored values are missing, and that signed integers stand for unsigned ones. Missing
values become NaN, which statistics count apart from all others. Integers have no NaN: where some may be missing, they
become floats that hold all of them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled.cache import address, load
from ..floats import is_float
from .loops import ARGUMENTS
from .masks import Mask
from .riders import Chain, Taker
from .running import Intake, give
from .values import as_counted

Array = npt.NDArray[Any]
COMPILED = (np.dtype(np.float32), np.dtype(np.float64))
"""The dtypes whose missing values a compiled loop replaces, also while chunks are being decoded."""
LARGEST_WHOLE = 2**53
"""Float64 holds every integer up to here."""
COPIES = 6
"""Booleans per value that finding missing values needs without a compiled loop."""


class InexactError(ValueError):
    """An integer that no float holds."""


@dataclass(frozen=True)
class Meaning:
    """What values of the dtype `stored` are when they are counted: `viewed` as a dtype of the same width.

    `missing` values, and values below `low` or above `high`, do not count; where `nan` is true, NaN are such values,
    too, and no error. All are in the units of the viewed values.
    """

    stored: np.dtype[Any]
    viewed: np.dtype[Any]
    missing: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    nan: bool = False

    @property
    def leaves_out(self) -> bool:
        """Whether some values other than NaN may be missing."""
        return bool(self.missing) or self.low is not None or self.high is not None

    @property
    def counted(self) -> np.dtype[Any]:
        """The dtype of what is counted."""
        if not self.leaves_out or is_float(self.viewed):
            return self.viewed
        return np.dtype(np.float32 if self.viewed.itemsize <= 2 else np.float64)

    @property
    def converts(self) -> bool:
        """Whether what is counted has other bytes than what is stored, but for missing values."""
        return self.counted != self.viewed or self.viewed == np.bool_

    def where(self, stored: Array) -> Mask:
        """Which of the `stored` values are missing."""
        seen = as_counted(stored).view(self.viewed)
        with np.errstate(invalid="ignore"):  # signalling NaN of narrow floats
            found: Mask = seen != seen if self.nan else np.zeros(seen.shape, np.bool_)
            for value in self._typed(self.missing):
                found |= seen == value
            for low in self._typed([self.low]):
                found |= seen < low
            for high in self._typed([self.high]):
                found |= seen > high
        return found

    def _typed(self, values: Sequence[float | None]) -> list[Any]:
        """`values` but None: for floats, the nearest of the dtype; Python's integers compare exactly as they are."""
        given = [value for value in values if value is not None]
        if not is_float(self.viewed):
            return given
        with np.errstate(over="ignore"):
            return list(np.array(given, np.float64).astype(self.viewed))

    def working_bytes(self, values: int, *, masked: bool) -> int:
        """Peak memory of replacing the missing ones among `values`, in addition to these."""
        if not self.leaves_out and self.viewed != np.bool_:
            return 0
        if self.viewed in COMPILED and not masked:
            return 0
        return values * (COPIES + (self.counted.itemsize if self.converts else 0))


class Replacing:
    """Replaces missing values by NaN, as `meaning` has it; `replaced` counts them. NaN are left as they are."""

    def __init__(self, meaning: Meaning) -> None:
        self._meaning = meaning
        limits = [
            -np.inf if meaning.low is None else meaning.low,
            np.inf if meaning.high is None else meaning.high,
        ]
        self._rules = np.array([*limits, *meaning.missing], np.float64) if meaning.viewed in COMPILED else None
        self._count = np.zeros(1, np.int64)

    @property
    def replaced(self) -> int:
        """How many values were replaced, where a mask counts their positions."""
        return int(self._count[0])

    def counted(self, stored: Array, axis: int, mask: Mask | None) -> Array:
        """What is counted in place of `stored`, channels on `axis`; floats are replaced where they are.

        Raises `InexactError` for integers that no float holds.
        """
        if not self._meaning.leaves_out:
            return as_counted(stored).view(self._meaning.viewed)
        if self._rules is not None and mask is None and stored.flags.c_contiguous:
            self.rest(stored)
            return stored
        where = self._meaning.where(stored) & ~_is_nan(stored)
        self._count[0] += np.count_nonzero(where if mask is None else where & np.expand_dims(mask, axis))
        found = self._floats(stored, where)
        found[where] = np.nan
        return found

    def _floats(self, stored: Array, where: Mask) -> Array:
        seen = as_counted(stored).view(self._meaning.viewed)
        if not self._meaning.converts:
            return seen
        if seen.dtype.itemsize == 8:
            beyond = seen[((seen > LARGEST_WHOLE) | (seen < -LARGEST_WHOLE)) & ~where]
            if beyond.size:
                raise InexactError(
                    f"it holds {beyond[0]}, and with missing values it is counted as float64, beyond 2^53"
                )
        return seen.astype(self._meaning.counted)

    def before(self, taken: tuple[Taker, Intake]) -> tuple[Taker, Intake] | None:
        """What replaces values and then passes them to `taken`; None if the caller must use `counted` instead."""
        if self._meaning.converts or self._meaning.stored != self._meaning.viewed:
            return None
        if not self._meaning.leaves_out:
            return taken
        if self._rules is None:
            return None
        chain = Chain([(self, self._intake()), taken])
        return chain, chain.intake

    def _intake(self) -> Intake:
        assert self._rules is not None
        dtype, values = self._meaning.viewed, len(self._meaning.missing)
        arrays = self._rules.ctypes.data, self._count.ctypes.data
        return Intake(dtype.itemsize, address(_replacing(dtype)), values, 1, *arrays, 0, 0)

    def take(self, memory: npt.NDArray[np.uint8], intake: Intake) -> int:
        """As `Taker.take`."""
        return give(_replacing(self._meaning.viewed), memory, intake)

    def took(self, size: int) -> None:
        """As `Taker.took`: the loop counts what it replaces."""

    def rest(self, values: Array) -> None:
        """As `Taker.rest`."""
        if values.size:
            self.take(values.reshape(-1).view(np.uint8), self._intake())


def _is_nan(stored: Array) -> Mask:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isnan(stored)) if is_float(stored.dtype) else np.zeros(stored.shape, np.bool_)


@cache
def _replacing(dtype: np.dtype[Any]) -> Callable[..., None]:
    """The loop; of the arguments of `loops`, channels is the number of `missing`, sums the rules, low the count."""
    return load(f"replace-{dtype.name}", ARGUMENTS, lambda: _definition(dtype), (__name__,))


def _definition(dtype: np.dtype[Any]) -> Callable[..., None]:
    import numba

    carray, typed = numba.carray, dtype.type

    def replace(data, number, missing, inner, rules, count, unused, room):  # type: ignore[no-untyped-def]
        values, rule = carray(data, (number,), dtype), carray(rules, (missing + 2,), np.float64)
        nan, replaced = typed(np.nan), 0
        low, high = typed(rule[0]), typed(rule[1])
        if rule[0] > -np.inf or rule[1] < np.inf:
            for i in range(number):
                is_missing = (values[i] < low) | (values[i] > high)
                replaced += is_missing
                values[i] = nan if is_missing else values[i]
        for k in range(missing):
            value = typed(rule[k + 2])
            for i in range(number):
                is_missing = values[i] == value
                replaced += is_missing
                values[i] = nan if is_missing else values[i]
        carray(count, (1,), np.int64)[0] += replaced

    return replace
