"""The contract of a statistic: a small value a channel that can be measured from a block and merged, exactly.

The law: `merge` is associative and commutative to the bit, `empty` is its identity, and the measure of a block is
the merge of the measures of any partition of its rows. So chunking, order and interruptions cannot change a result.
A new statistic is a frozen dataclass of arrays whose last axis is the channel; it writes `empty`, `measure` and
`merge`, and gets storage, joining and comparison from here. Those that do not ask which sample a value belongs to are
a `ValueStatistic`: one pass over a block finds what all of them need, and they only say what they take from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import DataError, MismatchError
from .pieces import Accumulator, Measures

Array = npt.NDArray[Any]

SUPPORTED_DTYPES = tuple(
    np.dtype(kind) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)


@dataclass(frozen=True, eq=False)
class Statistic(ABC):
    """A value per channel over blocks of one `dtype`; every other field is an array whose last axis is the channel."""

    name: ClassVar[str]

    dtype: np.dtype[Any]

    @classmethod
    @abstractmethod
    def empty(cls, channels: int, dtype: npt.DTypeLike) -> Self:
        """The statistic of no rows: the identity of `merge`. Raises `MismatchError` for an unsupported dtype."""

    @classmethod
    @abstractmethod
    def measure(cls, block: Array, channel_axis: int = -1) -> Self:
        """The statistic of `block`, which is not changed.

        Raises `MismatchError` for a dtype that has no statistics or an axis out of range.
        """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The statistic of both sets of rows. Raises `MismatchError` unless dtype and channels agree."""

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(next(iter(self.arrays().values())).shape[-1])

    def arrays(self) -> dict[str, Array]:
        """Its state, name → array: what is stored."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "dtype"}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], dtype: npt.DTypeLike) -> Self:
        """The statistic with this state, as `arrays` gave it. Raises `DataError` where the arrays are not such."""
        template = cls.empty(0, dtype).arrays()
        channels = {array.shape[-1] for name, array in arrays.items() if name in template and array.ndim}
        for name, expected in template.items():
            found = arrays.get(name)
            if found is None or len(channels) != 1 or not _alike(found, expected):
                raise DataError(
                    f"stored {cls.name} of {np.dtype(dtype)} data: {name} is {_describe(found)}; expected "
                    f"{expected.dtype}{[*expected.shape[:-1], 'channels']}"
                )
        return cls(checked_dtype(dtype), **{name: arrays[name] for name in template})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One statistic from those of neighbouring ranges of channels over the same rows, in order.

        Raises `MismatchError`, with both sides in it, unless all are of this kind and of one dtype.
        """
        first = parts[0]
        for part in parts:
            if (type(part), part.dtype) != (cls, first.dtype):
                raise MismatchError(
                    f"cannot join {cls.__name__} of {first.dtype} and {type(part).__name__} of {part.dtype}; "
                    "expected the same statistic and dtype"
                )
        states = [part.arrays() for part in parts]
        return cls(first.dtype, **{name: np.concatenate([s[name] for s in states], axis=-1) for name in states[0]})

    def check_mergeable(self, other: Statistic) -> None:
        """Raise `MismatchError`, with both sides in it, unless `other` is of the same kind, dtype and channels."""
        left = (type(self).__name__, str(self.dtype), self.channels)
        right = (type(other).__name__, str(other.dtype), other.channels)
        if left != right:
            raise MismatchError(
                f"cannot merge {left[0]} of {left[1]} with {left[2]} channels and {right[0]} of {right[1]} with "
                f"{right[2]} channels; expected the same statistic, dtype and channels"
            )

    def __eq__(self, other: object) -> bool:
        """Equal means equal bytes."""
        if type(self) is not type(other) or not isinstance(other, Statistic) or self.dtype != other.dtype:
            return False
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return all(mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]


class ValueStatistic(Statistic):
    """A statistic of values, whichever samples they belong to: the reduced axes may be taken in any order."""

    @classmethod
    @abstractmethod
    def from_measures(cls, measures: Measures) -> Self:
        """The statistic of some blocks, from what the pass over them found."""

    @classmethod
    def measure(cls, block: Array, channel_axis: int = -1) -> Self:
        """The statistic of `block` (any number of axes, any memory order).

        The block is copied, a piece at a time, only where its memory is not contiguous in any order. Raises as
        `Statistic.measure`.
        """
        accumulator = Accumulator(*checked_block(block, channel_axis))
        accumulator.add(block, channel_axis)
        return cls.from_measures(accumulator.measures())


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype` in native byte order. Raises `MismatchError` unless a statistic can be measured of it."""
    native = np.dtype(dtype).newbyteorder("=")
    if native not in SUPPORTED_DTYPES:
        raise MismatchError(
            f"values of dtype {np.dtype(dtype)} have no statistics; expected one of "
            f"{', '.join(map(str, SUPPORTED_DTYPES))}"
        )
    return native


def checked_block(block: Array, channel_axis: int) -> tuple[np.dtype[Any], int]:
    """The native dtype and the number of channels of `block`. Raises `MismatchError`."""
    if not -block.ndim <= channel_axis < block.ndim:
        raise MismatchError(
            f"channel axis {channel_axis} is out of range for a block of shape {block.shape}; expected "
            f"{-block.ndim} to {block.ndim - 1}"
        )
    return checked_dtype(block.dtype), block.shape[channel_axis]


def _alike(found: Array, expected: Array) -> bool:
    return found.dtype == expected.dtype and found.shape[:-1] == expected.shape[:-1] and found.ndim == expected.ndim


def _describe(array: Array | None) -> str:
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"
